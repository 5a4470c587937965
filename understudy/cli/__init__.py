"""The command line: `understudy …`.

Exit codes: 0 done, 1 it failed, 2 wrong use or wrong input, 130 interrupted. Everything that isn't
the result goes to standard error.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import click

from understudy.cli import ask, demo, measure, serve, show, teach
from understudy.errors import BundleError, InvalidInput, NotFound, PayloadTooLarge, UnderstudyError

#: Errors that the caller mends by calling differently.
_WRONG_USE = (BundleError, InvalidInput, NotFound, PayloadTooLarge)


class _OneLineErrors(click.Group):
    """Reports every foreseen error in one line that says what to do."""

    def main(self, *args: Any, **options: Any) -> Any:
        options["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            # A terminal that can't show a character gets its number, not a traceback.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        try:
            code = super().main(*args, **options)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "understudy"
            message = error.format_message().replace("\n", " ").rstrip(".")
            _fail(f"{path}: {message}; see '{path} --help'", 2)
        except click.ClickException as error:
            _fail(f"understudy: {error.format_message()}", error.exit_code)
        except UnderstudyError as error:
            _fail(f"understudy: {error}", 2 if isinstance(error, _WRONG_USE) else 1)
        except (click.Abort, KeyboardInterrupt):
            _fail("understudy: interrupted", 130)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"understudy: {place}{error.strerror or error}", 1)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            # Whoever read our output has seen enough; what Python still flushes goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _fail(message: str, code: int) -> None:
    click.echo(message, err=True)
    sys.exit(code)


@click.group(
    cls=_OneLineErrors,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="understudy")
def main() -> None:
    """Train small text classifiers from a language model's texts, serve them, compare the two.

    Start with 'understudy demo'.
    """


for command in (
    demo.demo,
    teach.train,
    measure.evaluate,
    serve.serve,
    ask.classify,
    ask.compare,
    show.tasks,
    show.data,
    measure.replies,
):
    main.add_command(command)
