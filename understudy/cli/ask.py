"""`understudy classify` and `understudy compare`: asking running services."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from understudy.api import ClassifyResponse
from understudy.cli.console import (
    EXISTING_FILE,
    json_option,
    print_json,
    print_table,
    progress_bar,
)
from understudy.client import Client
from understudy.compare import Arm, Comparison
from understudy.compare import compare as compare_services
from understudy.sample import read_samples
from understudy.task import load_tasks


@click.command()
@click.option("--task", required=True, help="Name of the task.")
@click.option(
    "--url",
    default="http://127.0.0.1:3000",
    show_default=True,
    help="A student's or the generator's address, http://host:port or grpc://host:port.",
)
@click.option(
    "--language", help="BCP-47 tag of the texts' language; the service's own if not given."
)
@click.option("--top-k", type=click.IntRange(min=1), default=1, show_default=True)
@json_option
@click.argument("texts", nargs=-1)
def classify(
    task: str, url: str, language: str | None, top_k: int, as_json: bool, texts: tuple[str, ...]
) -> None:
    """Classify TEXTS, or the lines of standard input, by a running service.

    \b
    understudy classify --task topic --url http://127.0.0.1:3000 "Rais amehutubia bunge"
    """
    lines: Sequence[str] = texts
    if not texts:
        if sys.stdin.isatty():
            raise click.UsageError("Give a text, or pipe texts in, one a line")
        lines = [line for line in sys.stdin.read().split("\n") if line.strip()]

    async def ask() -> ClassifyResponse:
        async with Client(url) as client:
            return await client.classify(task, lines, language=language, top_k=top_k)

    response = asyncio.run(ask())
    if as_json:
        print_json(asdict(response))
        return
    rows = []
    for text, p in zip(lines, response.predictions, strict=True):
        scores = ", ".join(f"{s.label} {s.score:.3f}" for s in p.scores)
        note = "text cut" if p.truncated else p.invalid_reply.reason if p.invalid_reply else ""
        rows.append([text, p.label, scores, note])
    print_table(
        f"{response.model} {response.model_version}, {response.timings.total_ms:.1f} ms",
        ["text", "label", "scores", ""],
        rows,
    )


@click.command()
@click.option("--task", required=True, help="Name of the task.")
@click.option("--language", required=True, help="BCP-47 tag of the texts' language.")
@click.option("--student", required=True, metavar="URL", help="Address of the student.")
@click.option("--generator", required=True, metavar="URL", help="Address of the generator.")
@click.option(
    "--batch",
    type=click.IntRange(1, 1_000),
    default=1,
    show_default=True,
    help="Texts in one request.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Requests in flight at each service.",
)
@click.option("--held-out", is_flag=True, help="Only the rows that training holds out.")
@json_option
@click.argument("data", type=EXISTING_FILE)
def compare(
    task: str,
    language: str,
    student: str,
    generator: str,
    batch: int,
    concurrency: int,
    held_out: bool,
    as_json: bool,
    data: Path,
) -> None:
    """Send the texts of DATA, JSON Lines of {"text", "label"}, to both services and compare them.

    \b
    understudy compare --task topic --language sw --student http://127.0.0.1:3000 \\
        --generator http://127.0.0.1:3001 texts.jsonl
    """
    known = load_tasks().find(task)
    tag = known.language(language)
    samples = read_samples(data, known.label_names)
    if held_out:
        samples = [sample for sample in samples if sample.held_out]
    if not samples:
        raise click.UsageError(f"{data} has no held-out rows")
    with progress_bar(f"{len(samples)} texts to both") as progress:
        result = asyncio.run(
            compare_services(
                known,
                tag,
                samples,
                student=student,
                generator=generator,
                batch=batch,
                concurrency=concurrency,
                progress=progress,
            )
        )
    if as_json:
        print_json(result.to_json())
    else:
        print_comparison(result)


def print_comparison(result: Comparison) -> None:
    """The table of `understudy compare`."""
    rows = [
        [name, value(result.student), value(result.generator)]
        for name, value in (
            ("model", lambda arm: f"{arm.model} {arm.model_version}"),
            ("macro-F1", lambda arm: str(arm.macro_f1)),
            ("accuracy", lambda arm: str(arm.accuracy)),
            ("invalid replies", lambda arm: f"{100 * arm.invalid_rate:.1f} %"),
            ("macro-F1 without invalid", lambda arm: arm.macro_f1_valid),
            ("accuracy without invalid", lambda arm: arm.accuracy_valid),
            ("latency p50, ms", lambda arm: f"{arm.p50_ms:.1f}"),
            ("latency p95, ms", lambda arm: f"{arm.p95_ms:.1f}"),
            ("requests", lambda arm: arm.requests),
            ("tokens in / out", _tokens),
            ("cost, US$", _cost),
        )
    ]
    print_table(
        f"{result.task}, {result.language}: {result.n:,} texts, 95 % bootstrap intervals",
        ["", "student", "generator"],
        rows,
    )
    if result.generator.model == "replay":
        click.echo("The generator was replayed: its latency is the replay's, not a model's.")
    click.echo(
        f"Agreement {100 * result.agreement:.1f} %. Right alone: student {result.student_only}, "
        f"generator {result.generator_only}; exact McNemar p = {result.mcnemar_p:.4g}."
    )


def _tokens(arm: Arm) -> str | None:
    usage = arm.usage
    # A replayed reply costs nothing and may not say what it once took.
    if usage is None or not (usage.prompt_tokens or usage.completion_tokens):
        return None
    return f"{usage.prompt_tokens:,} / {usage.completion_tokens:,}"


def _cost(arm: Arm) -> str | None:
    if arm.usage is None or arm.usage.cost_usd is None:
        return None
    return f"{arm.usage.cost_usd:.4f}"
