"""`understudy evaluate` and `understudy replies`: what predictions are worth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from understudy.cli.console import (
    DIRECTORY,
    EXISTING_FILE,
    json_option,
    print_json,
    print_table,
    progress_bar,
)
from understudy.language import canonical
from understudy.sample import read_samples
from understudy.task import load_tasks


@click.command()
@click.option("--bundle", type=DIRECTORY, help="Student bundle to score on --data.")
@click.option("--data", type=EXISTING_FILE, multiple=True, help='JSON Lines of {"text", "label"}.')
@click.option(
    "--test",
    type=DIRECTORY,
    help="Folder of <task>/<language>.test.jsonl: students trained by each --train are scored on "
    "it, beside the TF-IDF reference trained on the same rows.",
)
@click.option(
    "--split",
    default="test",
    show_default=True,
    help="With --test: score on <task>/<language>.<split>.jsonl instead.",
)
@click.option(
    "--train",
    "recipes",
    multiple=True,
    help="Training data: 'bundled', 'keywords' or a folder of <task>/<language>.jsonl, several "
    "joined by '+'. May be repeated.  [default: bundled+keywords]",
)
@click.option("--task", "tasks", multiple=True, help="Only this task; may be repeated.")
@click.option("--language", "languages", multiple=True, help="Only this language; may be repeated.")
@click.option("--student", default="ngram", show_default=True, help="Kind of student.")
@click.option("--seed", default=0, show_default=True, help="Seed of every random choice.")
@json_option
def evaluate(
    bundle: Path | None,
    data: tuple[Path, ...],
    test: Path | None,
    split: str,
    recipes: tuple[str, ...],
    tasks: tuple[str, ...],
    languages: tuple[str, ...],
    student: str,
    seed: int,
    as_json: bool,
) -> None:
    """Score one bundle on labelled texts, or training recipes against the TF-IDF reference.

    \b
    understudy evaluate --bundle bundles/sw/topic --data texts.jsonl
    understudy evaluate --test human --train bundled --train bundled+keywords+llama3-70b
    """
    if (bundle is None) == (test is None):
        raise click.UsageError("Give either --bundle and --data, or --test")
    if bundle is not None:
        if not data:
            raise click.UsageError("--bundle needs --data FILE.jsonl")
        _evaluate_bundle(bundle, data, as_json)
    else:
        assert test is not None
        _evaluate_recipes(
            test, split, recipes or ("bundled+keywords",), tasks, languages, student, seed, as_json
        )


def _evaluate_bundle(bundle: Path, data: tuple[Path, ...], as_json: bool) -> None:
    from training.evaluate import evaluate as score
    from understudy.model import StudentModel

    model = StudentModel.load(bundle)
    samples = [sample for path in data for sample in read_samples(path, model.info.labels)]
    result = score(model, samples)
    if as_json:
        info = model.info
        about = {"task": info.task, "language": info.language, "model_version": info.version}
        print_json(about | result.to_json())
        return
    print_table(
        f"{model.info.name} {model.info.version} on {result.n:,} texts, 95 % bootstrap intervals",
        ["figure", "value"],
        [["macro-F1", str(result.macro_f1)], ["accuracy", str(result.accuracy)]],
    )
    print_table(
        "Per label",
        ["label", "precision>", "recall>", "F1>", "texts>"],
        [[name, s.precision, s.recall, s.f1, s.support] for name, s in result.per_label.items()],
    )


def _evaluate_recipes(
    test: Path,
    split: str,
    recipes: tuple[str, ...],
    tasks: tuple[str, ...],
    languages: tuple[str, ...],
    student: str,
    seed: int,
    as_json: bool,
) -> None:
    from training.evaluate import Judge, Recipe, means, plan_cells, run_cells
    from understudy.task import Tasks

    known = load_tasks()
    chosen = Tasks(known.find(name) for name in tasks) if tasks else known
    judge = Judge(test, split)
    tags = [canonical(tag) for tag in languages]
    plan = plan_cells(chosen, [Recipe.parse(text) for text in recipes], judge, tags)
    with progress_bar(f"{len(plan)} students and references") as progress:
        cells = list(run_cells(plan, judge, student=student, seed=seed, progress=progress))
    averages = means(cells)
    if as_json:
        print_json({"cells": [asdict(c) for c in cells], "means": [asdict(m) for m in averages]})
        return
    print_table(
        "Macro-F1 on the test texts, trained on the same rows",
        ["trained on", "task", "language", "texts>", "tested on>", f"{student}>", "TF-IDF + LR>"],
        [[c.recipe, c.task, c.language, c.texts, c.n, c.student, c.reference] for c in cells],
    )
    print_table(
        "Mean over the languages",
        ["trained on", "task", "languages>", f"{student}>", "TF-IDF + LR>", "difference>"],
        [
            [m.recipe, m.task, m.languages, m.student, m.reference, m.student - m.reference]
            for m in averages
        ],
    )


@click.command()
@click.argument("files", nargs=-1, required=True, type=EXISTING_FILE)
@click.option("--task", required=True, help="The task that the replies answer.")
@json_option
def replies(files: tuple[Path, ...], task: str, as_json: bool) -> None:
    """Score a language model's recorded replies, read as the proxy reads them.

    FILES are JSON Lines of {"text", "label", "reply"}, one file a language, named after it.

    \b
    understudy replies --task topic gpt-4/topic/*.jsonl
    """
    from understudy.replies import score_replies

    report = score_replies(load_tasks().find(task), files)
    if as_json:
        print_json(
            {
                "task": report.task,
                "languages": [
                    asdict(row) | {"invalid_rate": row.invalid_rate} for row in report.rows
                ],
                "mean": asdict(report.mean) | {"invalid_rate": report.mean.invalid_rate},
            }
        )
        return
    mean = report.mean
    rows: list[list[object]] = [
        [
            row.language,
            row.n,
            _percent(row.no_label_rate),
            _percent(row.several_labels_rate),
            row.all.accuracy,
            row.valid.accuracy,
            row.all.macro_f1,
            row.valid.macro_f1,
        ]
        for row in report.rows
    ]
    rows.append(
        [
            "mean",
            mean.n,
            _percent(mean.no_label_rate),
            _percent(mean.several_labels_rate),
            mean.accuracy,
            mean.valid_accuracy,
            mean.macro_f1,
            mean.valid_macro_f1,
        ]
    )
    print_table(
        f"Replies to {task}; 'all' counts an invalid reply as wrong, 'valid' leaves it out",
        [
            "language",
            "replies>",
            "no label>",
            "several>",
            "accuracy all>",
            "valid>",
            "macro-F1 all>",
            "valid>",
        ],
        rows,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
