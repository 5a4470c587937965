"""What the commands share: tables, progress bars, and options that several have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from understudy.errors import NotFound
from understudy.task import Task, load_tasks

_Command = TypeVar("_Command", bound=Callable[..., Any])

EXISTING_FILE = click.Path(dir_okay=False, path_type=Path)
_PIPED_WIDTH = 200

DIRECTORY = click.Path(file_okay=False, path_type=Path)


def json_option(command: _Command) -> _Command:
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
    return option(command)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; columns whose name ends in ``>`` are right-aligned."""
    table = Table()
    for column in columns:
        table.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left")
    for row in rows:
        table.add_row(*(Text(_shown(cell)) for cell in row))
    # What is shown may be anybody's text, so brackets and colons in it mean nothing. A pipe or a
    # file has no width to fit.
    width = None if Console().is_terminal else _PIPED_WIDTH
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    if title:
        console.print(title, soft_wrap=True)
    console.print(table)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[float], None]]:
    """A bar on standard error while something long runs; the function takes the share done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True, markup=False)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def chosen(tasks: Sequence[str], languages: Sequence[str]) -> list[tuple[Task, str]]:
    """Tasks × languages as asked for, every task and language where nothing was.

    Raises:
        NotFound: an unknown task, or a language that none of the tasks covers.
    """
    known = load_tasks()
    pairs: list[tuple[Task, str]] = []
    covered: set[str] = set()
    for task in [known.find(name) for name in tasks] if tasks else known.values():
        for language in languages or task.languages:
            # With several tasks, one that lacks a language is passed over; with one it is an error.
            try:
                pairs.append((task, task.language(language)))
            except NotFound:
                if len(tasks) == 1:
                    raise
            else:
                covered.add(language)
    if lost := [language for language in languages if language not in covered]:
        raise NotFound(
            f"no task covers language {lost[0]!r}",
            field="language",
            expected=f"one of: {', '.join(known.languages)}",
        )
    return pairs


def _shown(cell: object) -> str:
    if cell is None:
        return "–"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)
