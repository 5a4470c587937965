from __future__ import annotations

import pytest

from understudy.api import ClassifyRequest, Limits
from understudy.errors import InvalidInput, PayloadTooLarge, UnderstudyError

SECRET = "Rais amehutubia"
SMALL = Limits(texts=3, characters=20)


# Each row: the body, the error, the field that it names, and what it says.
BAD: list[tuple[object, type[UnderstudyError], str, str]] = [
    (None, InvalidInput, "body", "the body is null"),
    ([SECRET], InvalidInput, "body", "the body is a list"),
    (SECRET, InvalidInput, "body", "the body is a string"),
    ({}, InvalidInput, "task", "missing"),
    ({"texts": [SECRET]}, InvalidInput, "task", "missing"),
    ({"task": "topic"}, InvalidInput, "texts", "missing"),
    ({"task": "topic", "text": [SECRET]}, InvalidInput, "text", "did you mean 'texts'?"),
    (
        {"task": "topic", "texts": [SECRET], "topk": 2},
        InvalidInput,
        "topk",
        "did you mean 'top_k'?",
    ),
    ({"task": "topic", "texts": [SECRET], "x": 2}, InvalidInput, "x", "one of: task, texts"),
    ({"task": None, "texts": [SECRET]}, InvalidInput, "task", "the task is null"),
    ({"task": 7, "texts": [SECRET]}, InvalidInput, "task", "the task is a number"),
    ({"task": " ", "texts": [SECRET]}, InvalidInput, "task", "the task is an empty string"),
    ({"task": "t" * 129, "texts": [SECRET]}, InvalidInput, "task", "the task has 129 characters"),
    ({"task": "t\udc00", "texts": [SECRET]}, InvalidInput, "task", "lone surrogate U+DC00"),
    ({"task": "topic", "texts": None}, InvalidInput, "texts", "texts is null"),
    ({"task": "topic", "texts": SECRET}, InvalidInput, "texts", "texts is a string"),
    ({"task": "topic", "texts": {"0": SECRET}}, InvalidInput, "texts", "texts is an object"),
    ({"task": "topic", "texts": []}, InvalidInput, "texts", "the list is empty"),
    ({"task": "topic", "texts": [SECRET] * 4}, PayloadTooLarge, "texts", "at most 3"),
    ({"task": "topic", "texts": [SECRET, 5]}, InvalidInput, "texts[1]", "the text is a number"),
    ({"task": "topic", "texts": [True]}, InvalidInput, "texts[0]", "the text is a boolean"),
    ({"task": "topic", "texts": [[SECRET]]}, InvalidInput, "texts[0]", "the text is a list"),
    ({"task": "topic", "texts": [SECRET, ""]}, InvalidInput, "texts[1]", "the text is empty"),
    ({"task": "topic", "texts": [SECRET, "\u2003\n"]}, InvalidInput, "texts[1]", "is empty"),
    ({"task": "topic", "texts": [SECRET + "\0"]}, InvalidInput, "texts[0]", "NUL at character 15"),
    (
        {"task": "topic", "texts": [SECRET + "\ud83d"]},
        InvalidInput,
        "texts[0]",
        "lone surrogate U+D83D at character 15",
    ),
    (
        {"task": "topic", "texts": ["a", SECRET * 2]},
        PayloadTooLarge,
        "texts[1]",
        "the text has 30 characters; expected at most 20",
    ),
    (
        {"task": "topic", "texts": [SECRET], "language": "sw_KE"},
        InvalidInput,
        "language",
        "'sw_KE' is not a language tag",
    ),
    ({"task": "topic", "texts": [SECRET], "language": 5}, InvalidInput, "language", "int is not"),
    ({"task": "topic", "texts": [SECRET], "top_k": 0}, InvalidInput, "top_k", "top_k is 0"),
    ({"task": "topic", "texts": [SECRET], "top_k": -1}, InvalidInput, "top_k", "top_k is -1"),
    ({"task": "topic", "texts": [SECRET], "top_k": 1.5}, InvalidInput, "top_k", "top_k is 1.5"),
    ({"task": "topic", "texts": [SECRET], "top_k": "3"}, InvalidInput, "top_k", "is a string"),
    ({"task": "topic", "texts": [SECRET], "top_k": True}, InvalidInput, "top_k", "1 or more"),
]


@pytest.mark.parametrize(("body", "kind", "field", "says"), BAD)
def test_a_bad_request_is_refused_by_the_field_that_is_wrong_and_never_shows_the_text(
    body: object, kind: type[UnderstudyError], field: str, says: str
) -> None:
    with pytest.raises(UnderstudyError) as refused:
        ClassifyRequest.from_json(body, SMALL)
    assert type(refused.value) is kind
    assert refused.value.field == field
    assert says in str(refused.value)
    assert refused.value.expected
    assert SECRET not in str(refused.value.problem())


def test_an_unknown_key_that_is_no_unicode_or_very_long_is_still_named() -> None:
    for key, field in (("\ud800x", "?x"), ("k" * 5_000, "k" * 40)):
        with pytest.raises(InvalidInput) as refused:
            ClassifyRequest.from_json({"task": "topic", "texts": ["a"], key: 1})
        assert refused.value.field == field


def test_a_good_body_becomes_a_request_in_canonical_form() -> None:
    body = {"task": "topic", "texts": ["a", "b"], "language": "SW-ke", "top_k": 3}
    assert ClassifyRequest.from_json(body) == ClassifyRequest("topic", ("a", "b"), "sw-KE", 3)


def test_null_means_not_given_for_what_may_be_left_out() -> None:
    body = {"task": "topic", "texts": ["a"], "language": None, "top_k": None}
    assert ClassifyRequest.from_json(body) == ClassifyRequest("topic", ("a",), None, 1)


def test_a_request_just_at_the_limits_passes() -> None:
    request = ClassifyRequest.checked(task="topic", texts=["x" * 20] * 3, limits=SMALL)
    assert len(request.texts) == 3


def test_the_first_wrong_text_of_many_is_the_one_named() -> None:
    with pytest.raises(InvalidInput) as refused:
        ClassifyRequest.checked(task="topic", texts=["a", "", "\0", 5])
    assert refused.value.field == "texts[1]"
