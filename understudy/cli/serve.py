"""`understudy serve`: one service in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from understudy.cli.console import DIRECTORY, EXISTING_FILE, print_table
from understudy.errors import NotFound
from understudy.language import canonical

if TYPE_CHECKING:
    from services.hosting import HostedService
    from services.settings import ServeSettings


@click.group(no_args_is_help=False)
def serve() -> None:
    """Serve the classification API over HTTP and gRPC.

    Every option has a twin in the environment, and the environment has more settings: see
    'understudy serve settings'. SIGTERM drains both transports and exits with 0.
    """


_Command = TypeVar("_Command", bound=Callable[..., Any])


def _address(http: int, grpc: int) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
        for option in (
            click.option(
                "--grpc-port",
                type=click.IntRange(0, 65_535),
                help=f"Port of gRPC.  [default: {grpc}]",
            ),
            click.option(
                "--port", type=click.IntRange(0, 65_535), help=f"Port of HTTP.  [default: {http}]"
            ),
            click.option("--host", help="Address to listen on.  [default: 127.0.0.1]"),
        ):
            command = option(command)
        return command

    return add


@serve.command()
@click.option("--language", help="BCP-47 tag of the language to serve.")
@click.option(
    "--bundles",
    type=DIRECTORY,
    help="Directory of bundles, as 'understudy train --out' leaves them.  [default: bundles]",
)
@_address(3000, 50051)
def student(language: str | None, bundles: Path | None, **address: Any) -> None:
    """Serve one language's students, all its tasks.

    \b
    understudy serve student --language sw --bundles bundles --port 3000 --grpc-port 50051
    """
    settings = _settings(
        {"UNDERSTUDY_BUNDLES": "bundles"},
        language=canonical(language, field="--language") if language else None,
        bundles=bundles,
        **address,
    )
    if settings.language is None:
        raise click.UsageError("Missing option '--language'")
    from services.hosting import run
    from services.student.service import StudentService

    # The decorator made the class a service, which type checkers can't see.
    sys.exit(run(cast("HostedService", StudentService), settings))


@serve.command()
@click.option(
    "--replay",
    type=EXISTING_FILE,
    multiple=True,
    help="Answer from recorded exchanges; may be repeated. The bundled ones when neither this nor "
    "an endpoint is given.",
)
@click.option(
    "--record",
    type=EXISTING_FILE,
    help="Append every exchange, texts included, to this file.",
)
@_address(3001, 50052)
def generator(replay: tuple[Path, ...], record: Path | None, **address: Any) -> None:
    """Serve a language model behind the students' API, every task and language.

    It asks the OpenAI-compatible endpoint at UNDERSTUDY_GENERATOR_BASE_URL for the model
    UNDERSTUDY_GENERATOR_MODEL with the key UNDERSTUDY_GENERATOR_API_KEY.

    \b
    understudy serve generator --port 3001 --grpc-port 50052 --replay recorded.jsonl
    """
    if replay and record:
        raise click.UsageError("--replay asks no model, so there is nothing to --record")
    for path in replay:
        if not path.is_file():
            raise NotFound(f"there is no file {path}", expected="a recording in JSON Lines")
    settings = _settings(
        {"UNDERSTUDY_PORT": "3001", "UNDERSTUDY_GRPC_PORT": "50052"},
        replay=replay or None,
        record=record,
        **address,
    )
    from services.generator.service import GeneratorService
    from services.hosting import run

    sys.exit(run(cast("HostedService", GeneratorService), settings))


@serve.command()
def settings() -> None:
    """List the environment variables that a service reads."""
    from services.settings import ServeSettings
    from understudy.environment import described
    from understudy.teacher_settings import TeacherSettings

    columns = ["variable", "default", "what it is"]
    print_table("Every service", columns, described(ServeSettings))
    print_table("The generator's endpoint", columns, described(TeacherSettings))


def _settings(defaults: dict[str, str], **options: Any) -> ServeSettings:
    """Options over the environment over the command's defaults over the settings'."""
    import dataclasses

    from services.settings import ServeSettings

    environ = {**defaults, **{name: value for name, value in os.environ.items() if value}}
    given = {name: value for name, value in options.items() if value is not None}
    return dataclasses.replace(ServeSettings.from_environ(environ), **given)
