from __future__ import annotations

import grpc
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy import wire_json, wire_proto
from understudy.api import (
    ClassifyRequest,
    ClassifyResponse,
    InvalidReplyInfo,
    LabelScore,
    Limits,
    ModelInfo,
    Prediction,
    Timings,
    Usage,
)
from understudy.errors import (
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    PayloadTooLarge,
    UnderstudyError,
)
from understudy.v1 import classification_pb2 as pb

LIMITS = Limits(body_bytes=10_000, texts=10, characters=1_000)

REQUESTS = [
    ClassifyRequest("topic", ("habari",)),
    ClassifyRequest("topic", ("habari", "😀 עברית ‏"), language="sw-KE", top_k=3),
]

RESPONSES = [
    ClassifyResponse(
        task="topic",
        language="sw",
        model="ngram",
        model_version="1",
        predictions=(
            Prediction("a", 0.75, (LabelScore("a", 0.75), LabelScore("b", 0.25)), truncated=True),
        ),
        timings=Timings(0.5, 0.25, 1.0, 2.0),
    ),
    ClassifyResponse(
        task="topic",
        language=None,
        model="big",
        model_version="2",
        predictions=(
            Prediction("a"),
            Prediction(None, invalid_reply=InvalidReplyInfo("several_labels", "a or b")),
        ),
        usage=Usage(2, 300, 10, 0.5),
    ),
    ClassifyResponse("topic", None, "m", "1", (), usage=Usage(1, 2, 3, None)),
]

MODELS = [ModelInfo("topic", ("sw", "he"), ("b", "a"), "ngram", "1", "ngram", 512)]


def read_json(body: bytes) -> ClassifyRequest:
    return wire_json.request_from_json(body, LIMITS)


def refusal(body: bytes) -> UnderstudyError:
    with pytest.raises(UnderstudyError) as caught:
        read_json(body)
    return caught.value


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_survives_both_codecs(request_: ClassifyRequest) -> None:
    assert read_json(wire_json.request_to_json(request_)) == request_
    data = wire_proto.request_to_proto(request_).SerializeToString()
    assert wire_proto.request_from_proto(data, LIMITS) == request_


@pytest.mark.parametrize("response", RESPONSES)
def test_a_response_survives_both_codecs(response: ClassifyResponse) -> None:
    assert wire_json.response_from_json(wire_json.response_to_json(response)) == response
    assert wire_proto.response_from_proto(wire_proto.response_to_proto(response)) == response


def test_models_survive_both_codecs() -> None:
    assert wire_json.models_from_json(wire_json.models_to_json(MODELS)) == MODELS
    assert wire_proto.models_from_proto(wire_proto.models_to_proto(MODELS)) == MODELS


def test_optional_parts_of_a_response_are_absent_from_json_unless_they_are_known() -> None:
    student, generator, _ = (orjson.loads(wire_json.response_to_json(r)) for r in RESPONSES)
    assert "usage" not in student
    assert "invalid_reply" not in student["predictions"][0]
    assert generator["predictions"][1] == {
        "label": None,
        "score": None,
        "scores": [],
        "truncated": False,
        "invalid_reply": {"reason": "several_labels", "reply": "a or b"},
    }


def test_a_reply_that_is_not_unicode_can_still_be_written() -> None:
    prediction = Prediction(None, invalid_reply=InvalidReplyInfo("no_label", "a\ud800b"))
    response = ClassifyResponse("topic", None, "m", "1", (prediction,))
    assert b"a?b" in wire_json.response_to_json(response)
    assert wire_proto.response_to_proto(response).predictions[0].invalid_reply.reply == "a?b"


def test_a_lone_surrogate_is_named_by_its_text() -> None:
    error = refusal(rb'{"task": "topic", "texts": ["good", "bad \ud800"]}')
    assert error.field == "texts[1]"
    assert "U+D800" in error.detail


def test_a_lone_surrogate_does_not_hide_that_the_rest_is_not_json() -> None:
    assert refusal(rb'{"task": "topic", "texts": ["bad \ud800"').field == "body"


def test_the_nearer_fault_is_told_where_a_surrogate_stands_in_front_of_it() -> None:
    # Strictly the first fault is the surrogate, and an unknown key is looked for before the texts.
    assert refusal(rb'{"x\ud800": 1, "task": "topic", "texts": ["a"]}').field == "x?"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xef\xbb\xbf{}",
        b'{"task": "topic", "texts": ["a"], "top_k": NaN}',
        b'{"task": "topic", "texts": ["a"], "top_k": 1e999}',
        b"[" * 100_000,
        b'{"a":' * 5_000,
        rb'["\ud800", ' + b"[" * 100_000,
        rb'["\ud800", NaN]',
        b'{"task": "topic", "texts": ["\xff"]}',
        '{"task": "topic"}'.encode("utf-16"),
        b"[]",
        b'"topic"',
        b"null",
    ],
)
def test_what_is_not_a_json_object_is_refused_as_a_body(body: bytes) -> None:
    error = refusal(body)
    assert isinstance(error, InvalidInput)
    assert error.field == "body"


def test_malformed_json_is_refused_with_its_position() -> None:
    assert "line 2, column 11" in refusal(b'{"task": "topic",\n "texts": }').detail


def test_numbers_of_any_size_are_refused_and_not_converted() -> None:
    for number in ("1" + "0" * 400, "12345678901234567890123", "-1", "0", "1.5", "true"):
        error = refusal(b'{"task": "topic", "texts": ["a"], "top_k": %s}' % number.encode())
        assert error.field in ("top_k", "body")


@given(st.binary(max_size=200))
def test_bytes_are_decoded_or_refused_and_nothing_else(data: bytes) -> None:
    for decode in (
        lambda: wire_json.request_from_json(data, LIMITS),
        lambda: wire_proto.request_from_proto(data, LIMITS),
        lambda: wire_proto.request_from_proto(data, LIMITS, pb.ClassifyStreamRequest),
    ):
        try:
            assert isinstance(decode(), ClassifyRequest)
        except UnderstudyError as error:
            wire_json.problem_to_json(error)
            wire_proto.status_details(error)


@given(st.lists(st.text(st.characters(codec=None), min_size=1), min_size=1, max_size=4))
def test_any_text_gets_through_json_unchanged_or_is_named(texts: list[str]) -> None:
    body = orjson.dumps({"task": "topic"})[:-1] + b', "texts": '
    import json

    body += json.dumps(texts).encode() + b"}"
    try:
        assert read_json(body).texts == tuple(texts)
    except InvalidInput as error:
        assert error.field is not None and error.field.startswith("texts[")


def test_text_that_is_not_utf8_is_named_in_a_message() -> None:
    good = pb.ClassifyRequest(task="topic", texts=["fine"]).SerializeToString()
    with pytest.raises(InvalidInput) as caught:
        wire_proto.request_from_proto(good + b"\x12\x02\xff\xfe", LIMITS)
    assert caught.value.field == "texts[1]"
    with pytest.raises(InvalidInput) as caught:
        wire_proto.request_from_proto(b"\x0a\x01\xff" + good, LIMITS)
    assert caught.value.field == "task"


def test_what_is_not_protobuf_is_refused_as_a_message() -> None:
    with pytest.raises(InvalidInput) as caught:
        wire_proto.request_from_proto(b"\xff\xff\xff", LIMITS)
    assert caught.value.field == "message"


def test_a_message_over_the_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(PayloadTooLarge) as caught:
        wire_proto.request_from_proto(b"\xff" * (LIMITS.body_bytes + 1), LIMITS)
    assert caught.value.field == "message"


def test_top_k_may_ask_for_more_labels_than_protobuf_can_count() -> None:
    message = wire_proto.request_to_proto(ClassifyRequest("topic", ("a",), top_k=2**40))
    assert message.top_k == 2**31 - 1


ERRORS = [
    NotFound("no such task", field="task", expected="one of: topic"),
    Overloaded("full", retry_after=2.5),
    UnderstudyError("broken"),
    NotReady("loading", retry_after=1.0),
]


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_the_same_at_the_other_end(error: UnderstudyError) -> None:
    by_json = wire_json.error_from_problem(orjson.loads(wire_json.problem_to_json(error)))
    by_stream = wire_proto.error_from_proto(wire_proto.problem_to_proto(error))
    by_status = wire_proto.error_from_status(
        wire_proto.status_code(error), str(error), wire_proto.status_details(error)
    )
    for received in (by_json, by_stream, by_status):
        assert type(received) is type(error)
        assert received.field == error.field
    assert by_json.problem() == error.problem()
    assert by_status.retry_after == error.retry_after


def test_a_status_without_our_details_is_the_plain_error() -> None:
    error = wire_proto.error_from_status(grpc.StatusCode.UNAVAILABLE, "no server", None)
    assert type(error) is UnderstudyError
    assert error.detail == "no server"


def test_an_endless_detail_is_cut_so_that_the_other_end_can_read_it() -> None:
    error = NotFound("ü\ud800" * 100_000, field="x" * 100_000, expected="…" * 100_000)
    assert len(wire_json.problem_to_json(error)) < 10_000
    # gRPC refuses trailers of more than 8 KiB; non-ASCII takes three bytes for one in a message.
    size = len(wire_proto.status_details(error)) * 4 / 3
    assert size + 3 * len(wire_proto.message_of(error).encode()) < 8_192
    assert len(wire_proto.problem_to_proto(error).SerializeToString()) < 8_192
