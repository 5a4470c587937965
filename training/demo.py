"""The demonstration: bundled data → students → services → answers → comparison."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import click
import httpx

from training.train import bundled_plan, train
from understudy.cli.console import print_table, progress_bar
from understudy.client import Client
from understudy.compare import Comparison, compare
from understudy.errors import NotFound, UnderstudyError
from understudy.sample import bundled_samples, has_bundled
from understudy.task import Task, Tasks

#: A service loads in seconds; a machine that needs longer than this is not going to make it.
_READY_WITHIN_SECONDS = 60.0
_STOPPED_WITHIN_SECONDS = 40.0


@dataclass(frozen=True)
class Addresses:
    """Where a service that was started listens."""

    http: str
    grpc: str


def run_demo(tasks: Tasks, languages: Sequence[str], out: Path) -> None:
    """Train, serve, classify and compare, printing what happens.

    Raises:
        NotFound: there is no bundled data for a language.
        UnderstudyError: a service did not start.
    """
    start = time.monotonic()
    covered = {language: _tasks_of(tasks, language) for language in languages}
    _say(
        "1. Training: a large language model wrote labelled texts; each student learns one task "
        "of one language from them."
    )
    _train(covered, out)
    _say(
        "2. Serving: one process a language, and the language model's proxy beside it (here it "
        "replays recorded answers)."
    )
    results = []
    with _service("generator") as generator:
        for position, (language, own) in enumerate(covered.items()):
            options = ("--language", language, "--bundles", str(out))
            with _service("student", *options) as student:
                if position == 0:
                    click.echo(f"   student    {student.http}  {student.grpc}")
                    click.echo(f"   generator  {generator.http}  {generator.grpc}")
                    _say(
                        "3. Classifying a text that no student has seen, by both, over both "
                        "transports:"
                    )
                    _classify(own[0], language, student, generator)
                    _say("4. Comparing the two on the held-out texts:")
                results += _compare(own, language, student, generator)
    _report(results)
    _say(f"Done in {time.monotonic() - start:.0f} s; both services are stopped. To go on:")
    _next_steps(covered, out)


def _tasks_of(tasks: Tasks, language: str) -> list[Task]:
    own = [t for t in tasks.values() if language in t.languages and has_bundled(t.name, language)]
    if not own:
        raise NotFound(
            f"no bundled data in language {language!r}",
            field="--language",
            expected=f"one of: {', '.join(tasks.languages)}",
        )
    return own


def _train(covered: dict[str, list[Task]], out: Path) -> None:
    rows = []
    for language, tasks in covered.items():
        for task in tasks:
            plan = bundled_plan(task, language)
            begin = time.monotonic()
            with progress_bar(f"   {language} {task.name}") as progress:
                info = train(plan, out / language / task.name, progress=progress).info
            seconds = f"{time.monotonic() - begin:.1f}"
            rows.append([task.name, language, info.data["texts"], seconds, info.version])
    print_table("", ["task", "language", "texts>", "seconds>", "version"], rows)


def _classify(task: Task, language: str, student: Addresses, generator: Addresses) -> None:
    text = _unseen(task, language)
    click.echo(f"   {task.name}: {text}")

    async def ask(url: str) -> list[object]:
        async with Client(url) as client:
            response = await client.classify(task.name, [text], language=language)
        prediction = response.predictions[0]
        return [url, response.model, prediction.label, prediction.score]

    urls = (student.http, student.grpc, generator.http, generator.grpc)
    rows = [asyncio.run(ask(url)) for url in urls]
    print_table("", ["address", "model", "label", "score>"], rows)


def _compare(
    tasks: Sequence[Task], language: str, student: Addresses, generator: Addresses
) -> list[Comparison]:
    results = []
    for task in tasks:
        held_out = [s for s in bundled_samples(task, language, keywords=False) if s.held_out]
        with progress_bar(f"   {language} {task.name}") as progress:
            results.append(
                asyncio.run(
                    compare(
                        task,
                        language,
                        held_out,
                        student=student.http,
                        generator=generator.http,
                        progress=progress,
                    )
                )
            )
    return results


def _report(results: Sequence[Comparison]) -> None:
    print_table(
        "",
        [
            "task",
            "language",
            "texts>",
            "student macro-F1",
            "generator macro-F1",
            "invalid>",
            "agreement>",
            "McNemar p>",
            "student p50 ms>",
        ],
        [
            [
                r.task,
                r.language,
                r.n,
                str(r.student.macro_f1),
                str(r.generator.macro_f1),
                f"{100 * r.generator.invalid_rate:.0f} %",
                r.agreement,
                f"{r.mcnemar_p:.2g}",
                f"{r.student.p50_ms:.1f}",
            ]
            for r in results
        ],
    )
    click.echo(
        "   The texts are the generator's own, so it finds them easy: this shows the machinery, "
        "not who is\n   better. Human-labelled texts of yours show that: 'understudy compare'."
    )


def _next_steps(covered: dict[str, list[Task]], out: Path) -> None:
    # From a virtual environment that isn't active, the bare name would not be found.
    program = "understudy" if shutil.which("understudy") else sys.argv[0]
    language, tasks = next(iter(covered.items()))
    task = tasks[0]
    text = _unseen(task, language)
    both = "--student http://127.0.0.1:3000 --generator http://127.0.0.1:3001"
    for arguments in (
        f"serve student --language {language} --bundles {out}",
        "serve generator",
        f'classify --task {task.name} --url http://127.0.0.1:3000 "{text}"',
        f"data --task {task.name} --language {language} --rows held-out > held-out.jsonl",
        f"compare --task {task.name} --language {language} {both} held-out.jsonl",
    ):
        click.echo(f"   {program} {arguments}")


def _unseen(task: Task, language: str) -> str:
    return next(s.text for s in bundled_samples(task, language, keywords=False) if s.held_out)


@contextmanager
def _service(role: str, *options: str) -> Iterator[Addresses]:
    """Start a service as its own process on free ports, wait until it is ready, stop it after."""
    port, grpc_port = _free_ports(2)
    command = [sys.executable, "-m", "understudy", "serve", role, *options]
    command += ["--port", str(port), "--grpc-port", str(grpc_port)]
    addresses = Addresses(f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{grpc_port}")
    with TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            if not _ready(process, addresses.http):
                log.seek(0)
                said = log.read().decode(errors="replace").strip() or "nothing"
                raise UnderstudyError(f"the {role} service did not start; it said: {said}")
            yield addresses
        finally:
            process.terminate()
            try:
                process.wait(_STOPPED_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(process: subprocess.Popen[bytes], url: str) -> bool:
    deadline = time.monotonic() + _READY_WITHIN_SECONDS
    with httpx.Client(base_url=url, trust_env=False) as http:
        while process.poll() is None and time.monotonic() < deadline:
            # It isn't listening at first; then it answers that it isn't ready.
            with contextlib.suppress(httpx.TransportError):
                if http.get("/readyz").is_success:
                    return True
            time.sleep(0.05)
    return False


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def _say(text: str) -> None:
    click.echo(f"\n{text}")
