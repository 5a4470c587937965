from __future__ import annotations

import re
from collections.abc import Iterator

import grpc
import pytest

from understudy import errors
from understudy.errors import InvalidInput, Overloaded, UnderstudyError

Row = tuple[str, str, int, str]


def family(root: type[UnderstudyError] = UnderstudyError) -> Iterator[type[UnderstudyError]]:
    yield root
    for child in root.__subclasses__():
        yield from family(child)


def drawn_tree() -> set[Row]:
    """(class, its parent, HTTP status, gRPC code), as the module's docstring draws them."""
    assert errors.__doc__ is not None
    rows: set[Row] = set()
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.fullmatch(r" {4}([│├└─ ]*)(\w+) +(\d{3}) +([A-Z_]+)", line)
        if found:
            depth = len(found[1]) // 4
            path = [*path[:depth], found[2]]
            rows.add((found[2], path[depth - 1] if depth else "Exception", int(found[3]), found[4]))
    return rows


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    real = {
        (kind.__name__, kind.__bases__[0].__name__, kind.http_status, kind.grpc_code)
        for kind in family()
        if kind.__module__ == errors.__name__
    }
    assert drawn_tree() == real


@pytest.mark.parametrize("kind", [*family()], ids=lambda kind: kind.__name__)
def test_every_code_is_one_of_grpc_and_every_status_is_an_error(
    kind: type[UnderstudyError],
) -> None:
    assert kind.grpc_code in grpc.StatusCode.__members__
    assert kind.grpc_code != "OK"
    assert 400 <= kind.http_status <= 599
    assert re.fullmatch(r"[a-z_]+", kind.code)


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in family() if kind.__module__ == errors.__name__]
    assert len(codes) == len(set(codes))


def test_a_problem_says_what_was_wrong_where_and_what_would_be_right() -> None:
    error = InvalidInput("top_k is 0", field="top_k", expected="1 or more")
    assert error.problem() == {
        "type": "urn:understudy:problem:invalid_input",
        "title": "Invalid input",
        "status": 400,
        "code": "invalid_input",
        "detail": "top_k is 0",
        "field": "top_k",
        "expected": "1 or more",
    }
    assert str(error) == "top_k: top_k is 0; expected 1 or more"


def test_a_problem_leaves_out_what_it_does_not_know_and_keeps_when_to_try_again() -> None:
    problem = Overloaded("full", retry_after=0.0).problem()
    assert problem["retry_after"] == 0.0
    assert not {"field", "expected"} & problem.keys()
