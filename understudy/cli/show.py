"""`understudy tasks` and `understudy data`: what there is."""

from __future__ import annotations

import json
from collections import Counter

import click

from understudy.cli.console import chosen, json_option, print_json, print_table
from understudy.errors import NotFound
from understudy.sample import bundled_samples
from understudy.task import load_tasks


@click.command()
@click.argument("name", required=False)
@json_option
def tasks(name: str | None, as_json: bool) -> None:
    """List the tasks, or show NAME's labels.

    A task is a YAML file; to add one, put its file in a folder and name the folder in
    UNDERSTUDY_TASKS.
    """
    known = load_tasks()
    shown = [known.find(name)] if name else list(known.values())
    if as_json:
        print_json(
            [
                {
                    "task": task.name,
                    "title": task.title,
                    "instruction": task.instruction,
                    "languages": task.languages,
                    "labels": [{"name": x.name, "description": x.description} for x in task.labels],
                }
                for task in shown
            ]
        )
    elif name:
        task = shown[0]
        print_table(
            f"{task.title}: {task.instruction} Languages: {', '.join(task.languages)}.",
            ["label", "description"],
            [[label.name, label.description] for label in task.labels],
        )
    else:
        print_table(
            "Tasks",
            ["task", "instruction", "labels>", "languages"],
            [[t.name, t.instruction, len(t.labels), " ".join(t.languages)] for t in shown],
        )


@click.command()
@click.option("--task", "tasks", multiple=True, help="Only this task; may be repeated.")
@click.option("--language", "languages", multiple=True, help="Only this language; may be repeated.")
@click.option(
    "--rows",
    type=click.Choice(["all", "learn", "held-out"]),
    help="Print these rows of the one --task and --language as JSON Lines.",
)
@json_option
def data(
    tasks: tuple[str, ...], languages: tuple[str, ...], rows: str | None, as_json: bool
) -> None:
    """Show the bundled generator data, or print its rows.

    \b
    understudy data
    understudy data --task topic --language sw --rows held-out > sw-topic.jsonl
    """
    pairs = chosen(tasks, languages)
    if rows:
        if len(pairs) != 1:
            raise click.UsageError("--rows needs one --task and one --language")
        for sample in bundled_samples(*pairs[0], keywords=rows != "held-out"):
            held_out = sample.held_out and sample.kind == "sentence"
            if rows == "all" or held_out == (rows == "held-out"):
                row = {"text": sample.text, "label": sample.label}
                if sample.kind != "sentence":
                    row["kind"] = sample.kind
                click.echo(json.dumps(row, ensure_ascii=False))
        return
    table = []
    for task, language in pairs:
        try:
            samples = bundled_samples(task, language)
        except NotFound:
            # A user's own task comes without bundled data.
            table.append({"task": task.name, "language": language, "sentences": 0})
            continue
        sentences = [sample for sample in samples if sample.kind == "sentence"]
        per_label = Counter(sample.label for sample in sentences)
        table.append(
            {
                "task": task.name,
                "language": language,
                "sentences": len(sentences),
                "held_out": sum(sample.held_out for sample in sentences),
                "keywords": len(samples) - len(sentences),
                "fewest_per_label": min(per_label.values(), default=0),
                "most_per_label": max(per_label.values(), default=0),
            }
        )
    if as_json:
        print_json(table)
    else:
        print_table(
            "Bundled generator data",
            ["task", "language", "sentences>", "held out>", "keywords>", "per label>"],
            [
                [
                    row["task"],
                    row["language"],
                    row["sentences"],
                    row.get("held_out"),
                    row.get("keywords"),
                    f"{row.get('fewest_per_label', 0)}–{row.get('most_per_label', 0)}",
                ]
                for row in table
            ],
        )
