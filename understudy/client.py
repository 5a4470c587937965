"""Asks a service, student or generator, over HTTP or gRPC: the address tells which."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from understudy.api import ClassifyRequest, ClassifyResponse, Limits
from understudy.errors import InvalidInput, Timeout, UnderstudyError, Unreachable
from understudy.wire_json import error_from_problem, request_to_json, response_from_json

#: The service has limits of its own, and tells them.
_UNLIMITED = Limits(body_bytes=sys.maxsize, texts=sys.maxsize, characters=sys.maxsize)


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
        try:
            parts = urlsplit(url)
            readable = parts.port is None or parts.port > 0
        except ValueError:
            # Brackets that don't close, or a port that is no port.
            readable = False
        if not readable or parts.scheme not in ("http", "https", "grpc") or not parts.netloc:
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
        self, task: str, texts: Sequence[str], *, language: str | None = None, top_k: int = 1
    ) -> ClassifyResponse:
        """Classify texts; the predictions come in their order.

        Raises:
            InvalidInput: a text is empty or not well-formed Unicode, or the like.
            Unreachable: nobody answers at the address.
            Timeout: no answer within the timeout.
            UnderstudyError: what the service raised, in its own class.
        """
        request = ClassifyRequest.checked(
            task=task, texts=texts, language=language, top_k=top_k, limits=_UNLIMITED
        )
        if self._http is not None:
            return await self._classify_http(self._http, request)
        return await self._classify_grpc(request)

    async def _classify_http(
        self, http: httpx.AsyncClient, request: ClassifyRequest
    ) -> ClassifyResponse:
        headers = {"content-type": "application/json"}
        try:
            answer = await http.post(
                "/v1/classify", content=request_to_json(request), headers=headers
            )
        except httpx.TimeoutException as error:
            raise self._late() from error
        except httpx.TransportError as error:
            raise self._unreachable(str(error)) from error
        try:
            if answer.is_success:
                return response_from_json(answer.content)
            raise self._named(error_from_problem(answer.json()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnderstudyError(
                f"{self._url} answered {answer.status_code} with something else than this API's",
                expected="the address of a student or generator service",
            ) from error

    async def _classify_grpc(self, request: ClassifyRequest) -> ClassifyResponse:
        import grpc

        from understudy.v1 import classification_pb2_grpc
        from understudy.wire_proto import (
            error_from_status,
            request_to_proto,
            response_from_proto,
        )

        stub = classification_pb2_grpc.ClassificationServiceStub(self._channel)  # type: ignore[no-untyped-call]
        try:
            answer = await stub.Classify(request_to_proto(request), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            details = trailers.get("grpc-status-details-bin")
            if details is None and error.code() is grpc.StatusCode.UNAVAILABLE:
                raise self._unreachable(error.details() or "") from error
            if details is None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._late() from error
            raise self._named(
                error_from_status(error.code(), error.details() or "", details)
            ) from error
        return response_from_proto(answer)

    def _named(self, error: UnderstudyError) -> UnderstudyError:
        """The service's error, with its address."""
        error.detail = f"{self._url} says: {error.detail}"
        return error

    def _late(self) -> Timeout:
        return Timeout(f"{self._url} gave no answer within {self._timeout:g} s")

    def _unreachable(self, why: str) -> Unreachable:
        return Unreachable(
            f"{self._url} can't be reached: {why}",
            expected="a running service: see 'understudy serve --help'",
        )
