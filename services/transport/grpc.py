"""The gRPC adapter: ``understudy.v1.ClassificationService``, health and reflection over a
`Dataplane`, in the event loop of the HTTP server.

Handlers take the raw bytes of a message, so that one which can't be decoded is answered with
INVALID_ARGUMENT and the name of the field, where gRPC by itself would say INTERNAL.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.transport.dataplane import Dataplane, cancelled_and_awaited, unforeseen
from services.transport.sockets import listening
from understudy.api import ClassifyResponse
from understudy.errors import InvalidInput, UnderstudyError
from understudy.v1 import classification_pb2 as pb
from understudy.wire_proto import (
    message_of,
    models_to_proto,
    problem_to_proto,
    request_from_proto,
    response_to_proto,
    status_code,
    status_details,
)

SERVICE = pb.DESCRIPTOR.services_by_name["ClassificationService"].full_name

#: Past it gRPC itself refuses a message, unread and in its own words.
_BACKSTOP = 16 * 1024 * 1024

# Streams that nothing waits for, such as a watch on health, get so long once all calls are done.
_LAST_SECONDS = 0.5

#: grpcio has no types.
Context: TypeAlias = Any


class GrpcServer:
    """The gRPC side of one process.

    Args:
        port: 0 for a free one.
        stream_window: requests of one stream that are answered at a time.
    """

    def __init__(
        self, dataplane: Dataplane, *, host: str, port: int, stream_window: int = 8
    ) -> None:
        self._dataplane = dataplane
        self._host = host
        self._port = port
        self._calls = _Calls()
        self._health = health.aio.HealthServicer()
        self._server: grpc.aio.Server | None = None
        self._service = _Service(dataplane, stream_window)

    async def start(self) -> int:
        """Bind the port and begin to answer, health with NOT_SERVING; returns the port.

        Raises:
            UnderstudyError: the port can't be had.
        """
        limit = self._dataplane.limits.body_bytes + _BACKSTOP
        server = grpc.aio.server(
            options=[
                # Shared, a port that is taken would be found out only by the calls that go astray.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
            ]
        )
        self._bind(server)
        handlers = {
            "Classify": grpc.unary_unary_rpc_method_handler(self._counted(self._service.classify)),
            "ListModels": grpc.unary_unary_rpc_method_handler(
                self._counted(self._service.list_models)
            ),
            "ClassifyStream": grpc.stream_stream_rpc_method_handler(
                self._counted(self._service.classify_stream)
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await server.start()
        self._server = server
        return self._port

    def _bind(self, server: grpc.aio.Server) -> None:
        expected = "a free port (UNDERSTUDY_GRPC_PORT, --grpc-port)"
        # gRPC can't be given a socket and doesn't say why it fails to make one; this one finds out.
        listening(self._host, self._port, who="gRPC", expected=expected).close()
        host = f"[{self._host}]" if ":" in self._host else self._host
        try:
            self._port = server.add_insecure_port(f"{host}:{self._port}")
        except RuntimeError as error:
            raise UnderstudyError(
                f"gRPC can't listen on {host}:{self._port}", expected=expected
            ) from error

    async def serve(self) -> None:
        """Say through health that calls are welcome."""
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace: float) -> None:
        """Turn away new calls at once and let those in flight finish, for so many seconds."""
        await self._health.enter_graceful_shutdown()
        if self._server is None:
            return
        stopping = asyncio.ensure_future(self._server.stop(grace))
        idle = asyncio.ensure_future(self._calls.none_left())
        await asyncio.wait((stopping, idle), return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        await self._server.stop(min(grace, _LAST_SECONDS))
        await stopping

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def _counted(self, handler: Any) -> Any:
        async def counted(request: Any, context: Context) -> Any:
            with self._calls.one():
                return await handler(request, context)

        return counted


class _Calls:
    """How many calls are in flight."""

    def __init__(self) -> None:
        self._number = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        self._number += 1
        self._none.clear()
        try:
            yield
        finally:
            self._number -= 1
            if self._number == 0:
                self._none.set()

    async def none_left(self) -> None:
        await self._none.wait()


class _Service:
    """The three methods, from bytes to bytes."""

    def __init__(self, dataplane: Dataplane, stream_window: int) -> None:
        self._dataplane = dataplane
        self._stream_window = stream_window

    async def classify(self, data: bytes, context: Context) -> bytes:
        try:
            return await self._dataplane.classify(
                "grpc", lambda limits: request_from_proto(data, limits), _serialized
            )
        except UnderstudyError as error:
            await _abort(context, error)

    async def list_models(self, data: bytes, context: Context) -> bytes:
        try:
            pb.ListModelsRequest.FromString(data)
            return models_to_proto(self._dataplane.models()).SerializeToString()
        except DecodeError:
            await _abort(
                context,
                InvalidInput(
                    "the bytes can't be decoded",
                    field="message",
                    expected=f"a serialised {pb.ListModelsRequest.DESCRIPTOR.full_name}",
                ),
            )
        except UnderstudyError as error:
            await _abort(context, error)
        except Exception as error:
            await _abort(context, unforeseen(error))

    async def classify_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer in order; read on only while fewer than the window wait for their answer."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        free = asyncio.Semaphore(self._stream_window)
        tasks: set[asyncio.Task[bytes]] = set()

        async def read() -> None:
            index = 0
            await free.acquire()
            async for data in requests:
                task = asyncio.create_task(self._answer(index, data))
                tasks.add(task)
                answers.put_nowait(task)
                index += 1
                await free.acquire()
            answers.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await _next(answers, reader)) is not None:
                await context.write(await task)
                tasks.discard(task)
                free.release()
        finally:
            await cancelled_and_awaited(reader)
            await cancelled_and_awaited(*tasks)

    async def _answer(self, index: int, data: bytes) -> bytes:
        try:
            return await self._dataplane.classify(
                "grpc_stream",
                lambda limits: request_from_proto(data, limits, pb.ClassifyStreamRequest),
                lambda response: pb.ClassifyStreamResponse(
                    index=index, response=response_to_proto(response)
                ).SerializeToString(),
            )
        except UnderstudyError as error:
            return pb.ClassifyStreamResponse(
                index=index, problem=problem_to_proto(error)
            ).SerializeToString()


async def _next(
    answers: asyncio.Queue[asyncio.Task[bytes] | None], reader: asyncio.Task[None]
) -> asyncio.Task[bytes] | None:
    """The next answer of a stream, or the fault of its reader, which would never bring one."""
    if not answers.empty():
        return answers.get_nowait()
    coming = asyncio.ensure_future(answers.get())
    try:
        await asyncio.wait((coming, reader), return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            reader.result()
        return await coming
    finally:
        coming.cancel()


def _serialized(response: ClassifyResponse) -> bytes:
    return response_to_proto(response).SerializeToString()


async def _abort(context: Context, error: UnderstudyError) -> NoReturn:
    await context.abort(
        status_code(error),
        message_of(error),
        (("grpc-status-details-bin", status_details(error)),),
    )
    raise AssertionError("abort returned")
