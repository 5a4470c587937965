"""`understudy train`."""

from __future__ import annotations

from pathlib import Path

import click

from understudy.bundle import INFO
from understudy.cli.console import DIRECTORY, EXISTING_FILE, chosen, print_table, progress_bar
from understudy.errors import InvalidInput
from understudy.sample import bundled_paths, has_bundled, read_samples


@click.command()
@click.option("--student", default="ngram", show_default=True, help="Kind of student.")
@click.option("--task", "tasks", multiple=True, help="Task; all of them when not given.")
@click.option("--language", "languages", multiple=True, help="BCP-47 tag; all when not given.")
@click.option(
    "--data",
    type=EXISTING_FILE,
    multiple=True,
    help='JSON Lines of {"text", "label"}; may be repeated. The bundled data when not given.',
)
@click.option(
    "--out",
    type=DIRECTORY,
    required=True,
    help="Directory of the bundle; with several, each at <out>/<language>/<task>.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of every random choice.")
@click.option(
    "--keywords/--no-keywords",
    default=True,
    show_default=True,
    help="Learn from the bundled keyword lists too.",
)
@click.option(
    "--held-out",
    type=click.Choice(["auto", "learn", "keep"]),
    default="auto",
    show_default=True,
    help="What becomes of the eighth of the texts that gives temperature and metrics: 'learn' from "
    "it in a last fit, or 'keep' it unseen, to judge the bundle by. 'auto' keeps the bundled "
    "data's and learns from --data's.",
)
@click.option("--missing-only", is_flag=True, help="Pass over what has a bundle already.")
def train(
    student: str,
    tasks: tuple[str, ...],
    languages: tuple[str, ...],
    data: tuple[Path, ...],
    out: Path,
    seed: int,
    keywords: bool,
    held_out: str,
    missing_only: bool,
) -> None:
    """Train students and write their bundles.

    \b
    understudy train --task topic --language sw --data texts.jsonl --out bundles/sw/topic
    understudy train --language sw --out bundles
    """
    from training.students import fit_function
    from training.train import TrainingPlan, bundled_plan
    from training.train import train as train_student

    fit_function(student)
    pairs = chosen(tasks, languages)
    if data and len(pairs) != 1:
        raise InvalidInput(
            "data files belong to one task and language",
            field="--data",
            expected="--task and --language with it",
        )
    one = len(tasks) == 1 and len(languages) == 1
    if not data and not tasks:
        # A user's own task comes without bundled data and is passed over unless it is named.
        pairs = [(task, tag) for task, tag in pairs if has_bundled(task.name, tag)]
    if not data:
        for task, language in pairs:
            bundled_paths(task.name, language, keywords=keywords)
    rows = []
    for task, language in pairs:
        place = out if one else out / language / task.name
        if missing_only and (place / INFO).is_file():
            continue
        refit = held_out == "learn" or (held_out == "auto" and bool(data))
        if data:
            plan = TrainingPlan(
                task=task,
                language=language,
                samples=[s for path in data for s in read_samples(path, task.label_names)],
                student=student,
                seed=seed,
                refit=refit,
                sources=[path.name for path in data],
            )
        else:
            plan = bundled_plan(
                task, language, keywords=keywords, student=student, seed=seed, refit=refit
            )
        with progress_bar(f"{language} {task.name}") as progress:
            info = train_student(plan, place, progress=progress).info
        measured = info.metrics["held_out"]
        rows.append(
            [
                task.name,
                language,
                info.data["texts"],
                measured["n"],
                measured["macro_f1"]["value"] if "macro_f1" in measured else None,
                f"{sum(f.stat().st_size for f in place.iterdir()) / 1e6:.1f}",
                info.version,
                str(place),
            ]
        )
    print_table(
        "Trained (macro-F1 on held-out generator texts, before they were learnt from, if at all)",
        ["task", "language", "texts>", "held out>", "macro-F1>", "MB>", "version", "bundle"],
        rows,
    )
