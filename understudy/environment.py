"""Settings from environment variables: declared once, read, checked, described."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from understudy.errors import InvalidInput

Parse = Callable[[str], Any]


def setting(variable: str, default: Any, parse: Parse, doc: str, *, secret: bool = False) -> Any:
    """A dataclass field that is read from a variable; its documentation is its declaration.

    A secret stays out of the dataclass's representation.
    """
    return dataclasses.field(
        default=default,
        repr=not secret,
        metadata={"variable": variable, "parse": parse, "doc": doc},
    )


def read(declared: type, environ: Mapping[str, str]) -> dict[str, Any]:
    """Values, by field, of the variables that are set and not empty.

    Raises:
        InvalidInput: a value can't be right; the error names the variable and not the value, which
            may be a secret.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(declared):
        variable = field.metadata["variable"]
        if text := environ.get(variable, "").strip():
            try:
                values[field.name] = field.metadata["parse"](text)
            except InvalidInput as error:
                raise InvalidInput(
                    f"the value of {variable} can't be used: {error.detail}",
                    field=variable,
                    expected=error.expected,
                ) from None
    return values


def described(declared: type) -> list[tuple[str, str, str]]:
    """Variable, default and documentation of every setting, in order of declaration."""
    return [
        (
            field.metadata["variable"],
            "" if field.default in (None, ()) else str(field.default),
            field.metadata["doc"],
        )
        for field in dataclasses.fields(declared)
    ]


def number(low: float, high: float = math.inf, *, whole: bool = False) -> Parse:
    """A parser of numbers from `low` to `high`.

    The parser raises InvalidInput for anything else.
    """
    span = f"{low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
    expected = f"a {'whole ' if whole else ''}number, {span}"

    def parse(value: str) -> float:
        try:
            result = int(value) if whole else float(value)
        except ValueError:
            raise InvalidInput("not a number", expected=expected) from None
        if not math.isfinite(result) or not low <= result <= high:
            raise InvalidInput("out of range", expected=expected)
        return result

    return parse


def one_of(*choices: str) -> Parse:
    """A parser that takes nothing but the choices, and raises InvalidInput otherwise."""

    def parse(value: str) -> str:
        if value not in choices:
            raise InvalidInput("no such choice", expected=f"one of: {', '.join(choices)}")
        return value

    return parse
