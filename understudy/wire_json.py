"""The API's messages as JSON, for both ends: what a server writes a client can read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import orjson

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
from understudy.errors import InvalidInput, UnderstudyError

#: No detail of ours is longer; one that quotes a caller's endless input is cut here.
_LONGEST = 2_000


def request_to_json(request: ClassifyRequest) -> bytes:
    body: dict[str, Any] = {"task": request.task, "texts": request.texts, "top_k": request.top_k}
    if request.language is not None:
        body["language"] = request.language
    return orjson.dumps(body)


def request_from_json(body: bytes | bytearray, limits: Limits) -> ClassifyRequest:
    """Decode and check a request's body.

    Raises:
        InvalidInput: not JSON, or a field of it is wrong.
        PayloadTooLarge: too many texts, or one that is too long.
    """
    try:
        decoded = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        decoded = _decoded_to_name_a_fault(bytes(body), error)
        ClassifyRequest.from_json(decoded, limits)
        # The lenient decoder read it and no field is at fault: the strict one's word stands.
        raise _malformed(error) from error
    return ClassifyRequest.from_json(decoded, limits)


def response_to_json(response: ClassifyResponse) -> bytes:
    timings = response.timings
    body: dict[str, Any] = {
        "request_id": response.request_id,
        "task": response.task,
        "language": response.language,
        "model": response.model,
        "model_version": response.model_version,
        "predictions": [_prediction(prediction) for prediction in response.predictions],
        "timings": {
            "queue_ms": timings.queue_ms,
            "tokenize_ms": timings.tokenize_ms,
            "infer_ms": timings.infer_ms,
            "total_ms": timings.total_ms,
        },
    }
    if (usage := response.usage) is not None:
        body["usage"] = {
            "calls": usage.calls,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        if usage.cost_usd is not None:
            body["usage"]["cost_usd"] = usage.cost_usd
    return orjson.dumps(body)


def response_from_json(body: bytes) -> ClassifyResponse:
    """Read a server's answer.

    Raises:
        ValueError, KeyError: it isn't one.
    """
    data = orjson.loads(body)
    usage = data.get("usage")
    return ClassifyResponse(
        task=data["task"],
        language=data["language"],
        model=data["model"],
        model_version=data["model_version"],
        predictions=tuple(_read_prediction(prediction) for prediction in data["predictions"]),
        timings=Timings(**{key: data["timings"][key] for key in Timings.__dataclass_fields__}),
        usage=None if usage is None else Usage(**usage),
        request_id=data["request_id"],
    )


def models_to_json(models: Sequence[ModelInfo]) -> bytes:
    return orjson.dumps({"models": list(models)})


def models_from_json(body: bytes) -> list[ModelInfo]:
    """Read a server's list of models.

    Raises:
        ValueError, KeyError: it isn't one.
    """
    return [
        ModelInfo(
            task=model["task"],
            languages=tuple(model["languages"]),
            labels=tuple(model["labels"]),
            name=model["name"],
            version=model["version"],
            kind=model["kind"],
            max_length=model["max_length"],
        )
        for model in orjson.loads(body)["models"]
    ]


def problem_to_json(error: UnderstudyError) -> bytes:
    return orjson.dumps(clipped_problem(error, _LONGEST))


def error_from_problem(problem: Mapping[str, Any]) -> UnderstudyError:
    """The error that a server's problem body tells of, in the class that it was raised in."""
    classes = {cls.code: cls for cls in _family(UnderstudyError)}
    return classes.get(str(problem.get("code")), UnderstudyError)(
        str(problem.get("detail") or problem.get("title") or "the server gave no detail"),
        field=problem.get("field") or None,
        expected=problem.get("expected") or None,
        retry_after=problem.get("retry_after"),
    )


def clipped_problem(error: UnderstudyError, longest: int) -> dict[str, Any]:
    """The error's problem object, its strings well-formed and none longer than so many bytes."""
    return {
        key: clipped(value, longest) if isinstance(value, str) else value
        for key, value in error.problem().items()
    }


def clipped(text: str, longest: int) -> str:
    """The text, well-formed, in at most so many bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    if len(data) > longest:
        data = data[: longest - 3] + "…".encode()
    return data.decode("utf-8", "ignore")


def _family(cls: type[UnderstudyError]) -> list[type[UnderstudyError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _family(child))]


def _prediction(prediction: Prediction) -> dict[str, Any]:
    body: dict[str, Any] = {
        "label": prediction.label,
        "score": prediction.score,
        "scores": [{"label": s.label, "score": s.score} for s in prediction.scores],
        "truncated": prediction.truncated,
    }
    if (invalid := prediction.invalid_reply) is not None:
        body["invalid_reply"] = {
            "reason": invalid.reason,
            # A language model's reply may be anything that JSON can escape.
            "reply": invalid.reply.encode("utf-8", "replace").decode(),
        }
    return body


def _read_prediction(data: Mapping[str, Any]) -> Prediction:
    invalid = data.get("invalid_reply")
    return Prediction(
        label=data["label"],
        score=data["score"],
        scores=tuple(LabelScore(score["label"], score["score"]) for score in data["scores"]),
        truncated=data["truncated"],
        invalid_reply=None if invalid is None else InvalidReplyInfo(**invalid),
    )


def _decoded_to_name_a_fault(body: bytes, error: orjson.JSONDecodeError) -> Any:
    """What the body would be if lone surrogates were fine, so that their field can be named.

    Raises:
        InvalidInput: it would not be JSON even so.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as fault:
        raise InvalidInput(
            f"byte {body[fault.start]:#04x} at position {fault.start} is not UTF-8",
            field="body",
            expected="JSON in UTF-8",
        ) from fault
    if "surrogate" not in str(error):
        raise _malformed(error) from error
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as fault:
        raise _malformed(error) from fault


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _malformed(error: orjson.JSONDecodeError) -> InvalidInput:
    return InvalidInput(
        f"malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}",
        field="body",
        expected='a JSON object: {"task": …, "texts": […]}',
    )
