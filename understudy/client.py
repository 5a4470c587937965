"""Asks a service, student or generator, over HTTP or gRPC: the address tells which."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from understudy.api import (
    ClassifyResponse,
    InvalidReplyInfo,
    LabelScore,
    Prediction,
    Timings,
    Usage,
)
from understudy.errors import InvalidInput, Timeout, UnderstudyError


class ServiceError(UnderstudyError):
    """A service answered with an error, or can't be reached."""

    code = "service"
    title = "Error of a service"


class Client:
    """An asynchronous client of the classification API.

    >>> async with Client("http://127.0.0.1:3000") as client:
    ...     response = await client.classify("topic", ["Rais amehutubia bunge"])

    Args:
        url: ``http://host:port``, ``https://host:port`` or ``grpc://host:port``.
        timeout: seconds for one request.

    Raises:
        InvalidInput: the URL is of another kind.
    """

    def __init__(self, url: str, *, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "grpc") or not parts.netloc:
            raise InvalidInput(
                f"{url!r} is no address of a service",
                field="url",
                expected="http://host:port or grpc://host:port",
            )
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._http: httpx.AsyncClient | None = None
        self._channel: Any = None
        if parts.scheme == "grpc":
            # Imported here: it takes longer than a whole HTTP request.
            import grpc

            self._channel = grpc.aio.insecure_channel(parts.netloc)
        else:
            self._http = httpx.AsyncClient(base_url=self._url, timeout=timeout, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.aclose()
        if self._channel is not None:
            await self._channel.close()

    async def classify(
        self,
        task: str,
        texts: Sequence[str],
        *,
        language: str | None = None,
        top_k: int | None = None,
    ) -> ClassifyResponse:
        """Classify texts; the predictions come in their order.

        Raises:
            ServiceError: the service refuses, fails or can't be reached; says what it said.
            Timeout: no answer within the timeout.
        """
        if self._http is not None:
            return await self._classify_http(self._http, task, texts, language, top_k)
        return await self._classify_grpc(task, texts, language, top_k)

    async def _classify_http(
        self,
        http: httpx.AsyncClient,
        task: str,
        texts: Sequence[str],
        language: str | None,
        top_k: int | None,
    ) -> ClassifyResponse:
        body: dict[str, Any] = {"task": task, "texts": list(texts)}
        if language is not None:
            body["language"] = language
        if top_k is not None:
            body["top_k"] = top_k
        try:
            answer = await http.post("/v1/classify", json=body)
        except httpx.TimeoutException as error:
            raise Timeout(f"{self._url} gave no answer within {self._timeout:g} s") from error
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_success:
            return response_from_json(answer.json())
        try:
            problem = answer.json()
            detail, field = problem["detail"], problem.get("field")
            expected = problem.get("expected")
        except (ValueError, KeyError, TypeError):
            detail, field, expected = answer.text[:200], None, None
        raise ServiceError(
            f"{self._url} answered {answer.status_code}: {detail}", field=field, expected=expected
        )

    async def _classify_grpc(
        self, task: str, texts: Sequence[str], language: str | None, top_k: int | None
    ) -> ClassifyResponse:
        import grpc

        from understudy.v1 import classification_pb2, classification_pb2_grpc

        stub = classification_pb2_grpc.ClassificationServiceStub(self._channel)  # type: ignore[no-untyped-call]
        request = classification_pb2.ClassifyRequest(
            task=task, texts=texts, language=language, top_k=top_k
        )
        try:
            return response_from_proto(await stub.Classify(request, timeout=self._timeout))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Timeout(f"{self._url} gave no answer within {self._timeout:g} s") from error
            raise ServiceError(
                f"{self._url} answered {error.code().name}: {error.details()}"
            ) from error

    def _unreachable(self, error: Exception) -> ServiceError:
        return ServiceError(
            f"{self._url} can't be reached: {error}",
            expected="a running service: see 'understudy serve --help'",
        )


def response_from_json(body: dict[str, Any]) -> ClassifyResponse:
    """Read the body of a ``POST /v1/classify`` answer."""
    return ClassifyResponse(
        task=body["task"],
        language=body.get("language"),
        model=body["model"],
        model_version=body["model_version"],
        predictions=tuple(
            Prediction(
                label=p["label"],
                score=p["score"],
                scores=tuple(LabelScore(s["label"], s["score"]) for s in p["scores"]),
                truncated=p["truncated"],
                invalid_reply=InvalidReplyInfo(**p["invalid_reply"])
                if p.get("invalid_reply")
                else None,
            )
            for p in body["predictions"]
        ),
        timings=Timings(**body["timings"]),
        usage=Usage(**body["usage"]) if body.get("usage") else None,
        request_id=body["request_id"],
    )


def response_from_proto(message: Any) -> ClassifyResponse:
    """Read an ``understudy.v1.ClassifyResponse``."""
    usage = message.usage
    return ClassifyResponse(
        task=message.task,
        language=message.language or None,
        model=message.model,
        model_version=message.model_version,
        predictions=tuple(
            Prediction(
                label=p.label or None,
                score=p.score if p.HasField("score") else None,
                scores=tuple(LabelScore(s.label, s.score) for s in p.scores),
                truncated=p.truncated,
                invalid_reply=InvalidReplyInfo(p.invalid_reply.reason, p.invalid_reply.reply)
                if p.HasField("invalid_reply")
                else None,
            )
            for p in message.predictions
        ),
        timings=Timings(
            message.timings.queue_ms,
            message.timings.tokenize_ms,
            message.timings.infer_ms,
            message.timings.total_ms,
        ),
        usage=Usage(
            calls=usage.calls,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cost_usd=usage.cost_usd if usage.HasField("cost_usd") else None,
        )
        if message.HasField("usage")
        else None,
        request_id=message.request_id,
    )
