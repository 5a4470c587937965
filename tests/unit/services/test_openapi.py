from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from services.transport.openapi import document
from understudy.api import Limits
from understudy.errors import UnderstudyError

DOCUMENT = document("student", Limits(texts=7))


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from walk(child)
    elif isinstance(node, list):
        for child in node:
            yield from walk(child)


def resolve(reference: str) -> Any:
    node: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def check(value: Any, schema: dict[str, Any]) -> None:
    jsonschema.validate(value, {**schema, "components": DOCUMENT["components"]})


def test_every_reference_leads_somewhere() -> None:
    references = [node["$ref"] for node in walk(DOCUMENT) if "$ref" in node]
    assert len(references) > 20
    for reference in references:
        assert resolve(reference)


def test_every_schema_is_a_schema() -> None:
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_example_is_what_its_schema_says() -> None:
    checked = 0
    for node in walk(DOCUMENT):
        if "schema" in node and "example" in node:
            check(node["example"], node["schema"])
            checked += 1
        for example in node.get("examples", {}).values() if "schema" in node else ():
            check(example["value"], node["schema"])
            checked += 1
    assert checked > 12


def test_the_limits_stand_in_the_document() -> None:
    assert resolve("#/components/schemas/ClassifyRequest")["properties"]["texts"]["maxItems"] == 7
    with pytest.raises(jsonschema.ValidationError):
        check(
            {"task": "topic", "texts": ["a"] * 8}, {"$ref": "#/components/schemas/ClassifyRequest"}
        )


def test_every_status_of_the_error_family_is_described() -> None:
    described = set(DOCUMENT["paths"]["/v1/classify"]["post"]["responses"])
    pending: list[type[UnderstudyError]] = [UnderstudyError]
    while pending:
        error = pending.pop()
        pending += error.__subclasses__()
        # Keys are not asked for yet.
        if error.http_status != 401:
            assert str(error.http_status) in described, error
