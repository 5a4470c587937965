"""The API's messages as protobuf, for both ends: what a server writes a client can read."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import duration_pb2, empty_pb2, unknown_fields
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

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
from understudy.errors import InvalidInput, PayloadTooLarge, UnderstudyError
from understudy.v1 import classification_pb2 as pb
from understudy.wire_json import clipped, clipped_problem, error_from_problem

#: Bytes of one string in a trailer: gRPC peers refuse more than 8 KiB of metadata in all.
_LONGEST = 512

_DOMAIN = "understudy"

RequestType = type[pb.ClassifyRequest] | type[pb.ClassifyStreamRequest]


def request_to_proto(request: ClassifyRequest) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(**_fields(request))


def stream_request_to_proto(request: ClassifyRequest) -> pb.ClassifyStreamRequest:
    return pb.ClassifyStreamRequest(**_fields(request))


def request_from_proto(
    data: bytes, limits: Limits, kind: RequestType = pb.ClassifyRequest
) -> ClassifyRequest:
    """Decode and check a serialised request.

    Raises:
        InvalidInput: it can't be decoded, or a field of it is wrong.
        PayloadTooLarge: the message is too large, or there are too many texts, or one is too long.
    """
    if len(data) > limits.body_bytes:
        raise PayloadTooLarge(
            f"the message has {len(data):,} bytes",
            field="message",
            expected=f"at most {limits.body_bytes:,}",
        )
    try:
        message = kind.FromString(data)
    except DecodeError as error:
        raise _undecodable(data, kind) from error
    return ClassifyRequest.checked(
        task=message.task,
        texts=tuple(message.texts),
        language=message.language if message.HasField("language") else None,
        top_k=message.top_k if message.HasField("top_k") else None,
        limits=limits,
    )


def response_to_proto(response: ClassifyResponse) -> pb.ClassifyResponse:
    timings, usage = response.timings, response.usage
    return pb.ClassifyResponse(
        request_id=response.request_id,
        task=response.task,
        language=response.language or "",
        model=response.model,
        model_version=response.model_version,
        predictions=[_prediction(prediction) for prediction in response.predictions],
        timings=pb.Timings(
            queue_ms=timings.queue_ms,
            tokenize_ms=timings.tokenize_ms,
            infer_ms=timings.infer_ms,
            total_ms=timings.total_ms,
        ),
        usage=None
        if usage is None
        else pb.Usage(
            calls=usage.calls,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=usage.cost_usd,
        ),
    )


def response_from_proto(message: pb.ClassifyResponse) -> ClassifyResponse:
    timings, usage = message.timings, message.usage
    return ClassifyResponse(
        task=message.task,
        language=message.language or None,
        model=message.model,
        model_version=message.model_version,
        predictions=tuple(_read_prediction(prediction) for prediction in message.predictions),
        timings=Timings(timings.queue_ms, timings.tokenize_ms, timings.infer_ms, timings.total_ms),
        usage=Usage(
            usage.calls,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cost_usd if usage.HasField("cost_usd") else None,
        )
        if message.HasField("usage")
        else None,
        request_id=message.request_id,
    )


def models_to_proto(models: Sequence[ModelInfo]) -> pb.ListModelsResponse:
    return pb.ListModelsResponse(
        models=[
            pb.Model(
                task=model.task,
                languages=model.languages,
                labels=model.labels,
                name=model.name,
                version=model.version,
                kind=model.kind,
                max_length=model.max_length,
            )
            for model in models
        ]
    )


def models_from_proto(message: pb.ListModelsResponse) -> list[ModelInfo]:
    return [
        ModelInfo(
            task=model.task,
            languages=tuple(model.languages),
            labels=tuple(model.labels),
            name=model.name,
            version=model.version,
            kind=model.kind,
            max_length=model.max_length,
        )
        for model in message.models
    ]


def problem_to_proto(error: UnderstudyError) -> pb.Problem:
    body = clipped_problem(error, _LONGEST)
    body.pop("retry_after", None)
    return pb.Problem(**body)


def error_from_proto(problem: pb.Problem) -> UnderstudyError:
    """The error that a stream's problem tells of, in the class that it was raised in."""
    return error_from_problem(
        {"code": problem.code, "detail": problem.detail}
        | {"field": problem.field, "expected": problem.expected}
    )


def status_code(error: UnderstudyError) -> grpc.StatusCode:
    return grpc.StatusCode[error.grpc_code]


def message_of(error: UnderstudyError) -> str:
    """What goes into ``grpc-message``."""
    return clipped(str(error), _LONGEST)


def status_details(error: UnderstudyError) -> bytes:
    """A serialised google.rpc.Status, for the trailer ``grpc-status-details-bin``."""
    status = status_pb2.Status(code=status_code(error).value[0], message=message_of(error))
    info = error_details_pb2.ErrorInfo(reason=error.code.upper(), domain=_DOMAIN)
    status.details.add().Pack(info)
    if error.field is not None:
        mend = f". Expected {error.expected}." if error.expected else ""
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=clipped(error.field, _LONGEST),
            description=clipped(f"{error.detail}{mend}", _LONGEST),
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = duration_pb2.Duration(
            seconds=int(error.retry_after), nanos=int(error.retry_after % 1 * 1e9)
        )
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return bytes(status.SerializeToString())


def error_from_status(
    code: grpc.StatusCode, message: str, details: bytes | None
) -> UnderstudyError:
    """The error that a failed call tells of, in the class that it was raised in.

    Without our details, as when no server answered, it is the plain `UnderstudyError`.
    """
    problem: dict[str, object] = {"detail": message or code.name}
    status = status_pb2.Status.FromString(details) if details else status_pb2.Status()
    for detail in status.details:
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info) and info.domain == _DOMAIN:
            problem["code"] = info.reason.lower()
        elif detail.Unpack(bad) and bad.field_violations:
            problem["field"] = bad.field_violations[0].field
            problem["detail"] = bad.field_violations[0].description
        elif detail.Unpack(retry):
            problem["retry_after"] = retry.retry_delay.ToTimedelta().total_seconds()
    return error_from_problem(problem)


def _fields(request: ClassifyRequest) -> dict[str, Any]:
    return {
        "task": request.task,
        "texts": request.texts,
        "language": request.language,
        # A larger number means no more than this one: every label.
        "top_k": min(request.top_k, 2**31 - 1),
    }


def _prediction(prediction: Prediction) -> pb.Prediction:
    invalid = prediction.invalid_reply
    return pb.Prediction(
        label=prediction.label or "",
        score=prediction.score,
        scores=[pb.LabelScore(label=s.label, score=s.score) for s in prediction.scores],
        truncated=prediction.truncated,
        invalid_reply=None
        if invalid is None
        else pb.InvalidReply(
            reason=invalid.reason, reply=invalid.reply.encode("utf-8", "replace").decode()
        ),
    )


def _read_prediction(message: pb.Prediction) -> Prediction:
    invalid = message.invalid_reply
    return Prediction(
        label=message.label or None,
        score=message.score if message.HasField("score") else None,
        scores=tuple(LabelScore(s.label, s.score) for s in message.scores),
        truncated=message.truncated,
        invalid_reply=InvalidReplyInfo(invalid.reason, invalid.reply)
        if message.HasField("invalid_reply")
        else None,
    )


def _undecodable(data: bytes, kind: RequestType) -> InvalidInput:
    """Why a message can't be decoded: which string of it isn't UTF-8, or that it is no protobuf.

    As an empty message every field is unknown and kept in bytes, so each can be looked at.
    """
    found: Any = ()  # its class can be iterated, but its stub doesn't say so
    with contextlib.suppress(DecodeError):
        found = unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(data))
    known = kind.DESCRIPTOR.fields_by_number
    texts = 0
    for field in found:
        descriptor = known.get(field.field_number)
        if descriptor is None or not isinstance(field.data, bytes):
            continue
        where = descriptor.name
        if where == "texts":
            where, texts = f"texts[{texts}]", texts + 1
        try:
            field.data.decode()
        except UnicodeDecodeError as fault:
            return InvalidInput(
                f"byte {field.data[fault.start]:#04x} at position {fault.start} is not UTF-8",
                field=where,
                expected="well-formed Unicode",
            )
    return InvalidInput(
        "the bytes can't be decoded",
        field="message",
        expected=f"a serialised {kind.DESCRIPTOR.full_name}",
    )
