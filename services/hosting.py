"""What Understudy's BentoML services share: one process that answers over HTTP and gRPC.

`ClassificationService` is the class that `hosted` makes into a BentoML service::

    @hosted
    class StudentService(ClassificationService):
        role = "student"

        async def load(self, settings): ...

Such a service runs under ``bentoml serve`` and, without its parent process, by `run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, ClassVar, Protocol, runtime_checkable

import bentoml
import uvicorn
from _bentoml_sdk import Service
from bentoml._internal.context import server_context
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.settings import ServeSettings
from services.transport.dataplane import Dataplane, unforeseen
from services.transport.grpc import GrpcServer
from services.transport.http import (
    CLASSIFY,
    ClassifyEndpoint,
    build_app,
    exception_handlers,
    guarded,
)
from services.transport.sockets import listening
from understudy.api import Classifier
from understudy.errors import UnderstudyError

# BentoML reports every start to its makers unless this word stands here; it looks when it starts.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Longer than the idle time after which common load balancers and clients drop a connection, so
# that it isn't this side that closes one on which a request is under way.
_KEEP_ALIVE_SECONDS = 75


@runtime_checkable
class Lifecycle(Protocol):
    """A classifier that has to be started before it answers, and closed after."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


Load = Callable[[ServeSettings], Awaitable[Classifier]]


class Host:
    """The transports of one process and what they serve."""

    def __init__(self, role: str, settings: ServeSettings) -> None:
        self._role = role
        self._settings = settings
        self._classifier: Classifier | None = None
        self._grpc: GrpcServer | None = None
        self._draining: asyncio.Task[None] | None = None
        self.dataplane = Dataplane(role, settings.limits)
        #: Why the start failed.
        self.failure: BaseException | None = None

    async def open(self, load: Load) -> None:
        """Bind gRPC, load the classifier and start it, and only then be ready.

        Raises:
            UnderstudyError: the port is taken, or the classifier can't be had.
        """
        settings = self._settings
        try:
            self._grpc = GrpcServer(
                self.dataplane,
                host=settings.host,
                port=settings.grpc_port,
                stream_window=settings.stream_window,
            )
            port = await self._grpc.start()
            self._classifier = await load(settings)
            if isinstance(self._classifier, Lifecycle):
                await self._classifier.start()
            self.dataplane.open(self._classifier)
            await self._grpc.serve()
        except BaseException as error:
            self.failure = error
            await self.close(grace=0)
            raise
        self._heed_signals()
        served = ", ".join(
            f"{model.task} ({', '.join(model.languages)})" for model in self.dataplane.models()
        )
        _log.info(
            "%s is ready: http://%s:%d, gRPC %s:%d; %s",
            self._role,
            settings.host,
            settings.port,
            settings.host,
            port,
            served,
        )

    def drain(self) -> None:
        """Stop being ready and take no more calls of gRPC; HTTP's server sees to its own."""
        self.dataplane.leave()
        if self._grpc is not None and self._draining is None:
            self._draining = asyncio.ensure_future(self._grpc.stop(self._settings.grace))

    async def close(self, grace: float | None = None) -> None:
        """Wait for what is in flight, then let go of everything."""
        self.dataplane.leave()
        if self._draining is not None:
            await self._draining
        elif self._grpc is not None:
            await self._grpc.stop(self._settings.grace if grace is None else grace)
        if isinstance(self._classifier, Lifecycle):
            await self._classifier.close()

    def _heed_signals(self) -> None:
        """Drain as soon as a signal comes: BentoML's shutdown hook runs after HTTP has drained."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            with contextlib.suppress(ValueError):  # Not in the main thread, as in some tests.
                then = signal.getsignal(number)
                signal.signal(number, self._draining_first(loop, then))

    def _draining_first(self, loop: asyncio.AbstractEventLoop, then: Any) -> Any:
        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.drain)
            if callable(then):
                then(number, frame)

        return handle


class ClassificationService:
    """Base of the classes that `hosted` makes into BentoML services."""

    role: ClassVar[str]
    #: Set by BentoML before the start-up hooks run.
    bento_service: HostedService

    async def load(self, settings: ServeSettings) -> Classifier:
        """Make the classifier that this service answers with.

        Raises:
            UnderstudyError: it can't be had; the service doesn't start then.
        """
        raise NotImplementedError

    @bentoml.on_startup  # type: ignore[untyped-decorator]  # bentoml is not checked
    async def open_transports(self) -> None:
        await self.bento_service.host.open(self.load)

    @bentoml.on_shutdown  # type: ignore[untyped-decorator]
    async def close_transports(self) -> None:
        await self.bento_service.host.close()

    async def __is_ready__(self) -> bool:
        return self.bento_service.host.dataplane.ready


class HostedService(Service[ClassificationService]):  # type: ignore[misc]  # bentoml is not checked
    """A BentoML service whose hot routes stand in front of BentoML's middleware.

    Its tracing, timeout and context layers cost several times what a small classification does and
    give it nothing; health, the static files and everything else pass through them as ever.
    """

    #: Set by `run`; otherwise the environment is read.
    settings: ServeSettings | None = None
    host: Host

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """BentoML's app with ours in front of it.

        Raises:
            InvalidInput: a setting in the environment can't be right.
        """
        settings = self.settings or ServeSettings.from_environ()
        self.host = Host(self.inner.role, settings)
        ours = build_app(self.host.dataplane)
        # So that BentoML's own schema of the service lists the routes too.
        self.mount_apps[:] = [(ours, "/", "understudy")]
        theirs = super().to_asgi(is_main=is_main)
        assert isinstance(theirs, Starlette)
        theirs.exception_handlers.update(exception_handlers())
        # A redirect to where nothing is would be built from the caller's own Host header.
        theirs.router.redirect_slashes = False
        return Front(self.host, ours, theirs)


class Front:
    """Sends each request to where it is answered, and tells a failed start in one line."""

    def __init__(self, host: Host, ours: Starlette, theirs: ASGIApp) -> None:
        self._host = host
        self._classify = guarded(ClassifyEndpoint(host.dataplane))
        self._ours = guarded(ours)
        self._theirs = theirs
        self._guarded_theirs = guarded(theirs)
        self._our_paths = frozenset(getattr(route, "path", None) for route in ours.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] != "http":
            await self._theirs(scope, receive, send)
        elif scope["path"] == CLASSIFY and scope["method"] == "POST":
            await self._classify(scope, receive, send)
        elif scope["path"] in self._our_paths:
            await self._ours(scope, receive, send)
        else:
            await self._guarded_theirs(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_cause(message: Message) -> None:
            # Starlette's message is a whole traceback.
            if message["type"] == "lifespan.startup.failed" and self._host.failure is not None:
                message = {**message, "message": _told(self._host.failure)}
            await send(message)

        try:
            await self._theirs(scope, receive, with_cause)
        except Exception:
            if self._host.failure is None:
                raise


def hosted(inner: type[ClassificationService]) -> HostedService:
    """Make a class into a BentoML service: one worker, without BentoML's access log and metrics.

    Its metrics label the raw path, which any scanner could grow without bound.
    """
    service = bentoml.service(
        service_class=HostedService,
        workers=1,
        metrics={"enabled": False},
        logging={"access": {"enabled": False}},
    )(inner)
    assert isinstance(service, HostedService)
    # What 'bentoml serve' imports in its workers is looked up where the class stands.
    service._caller_module = inner.__module__
    return service


def run(service: HostedService, settings: ServeSettings) -> int:
    """Serve in this very process, without BentoML's parent, and return the exit code.

    0 after SIGTERM or SIGINT, when both transports have drained; 1 when the start failed, with one
    line on stderr that names the cause.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # The HTTP clients would write a line for every text that the generator is asked about.
    for name in ("bentoml", "uvicorn", "httpx", "httpx2", "openai"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        listener = listening(
            settings.host,
            settings.port,
            who="HTTP",
            expected="a free port (UNDERSTUDY_PORT, --port)",
        )
    except UnderstudyError as error:
        return _failed(error)
    service.settings = dataclasses.replace(settings, port=listener.getsockname()[1])
    server_context.service_type = "entry_service"
    server_context.service_name = service.name
    server: uvicorn.Server | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        # Before uvicorn takes the signals, and again when it is done and raises them once more,
        # which must not kill a process that has drained.
        if server is None:
            raise SystemExit(0)
        server.should_exit = True

    for number in _SIGNALS:
        signal.signal(number, stop)
    server = uvicorn.Server(
        uvicorn.Config(
            service.to_asgi(),
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(settings.grace)),
        )
    )
    # A failed start is told below, once.
    logging.getLogger("uvicorn.error").addFilter(lambda _: service.host.failure is None)
    try:
        server.run(sockets=[listener])
    except SystemExit:
        return _failed(service.host.failure or UnderstudyError("the server did not start"))
    return 0


def _told(failure: BaseException) -> str:
    if isinstance(failure, UnderstudyError):
        return str(failure)
    return str(unforeseen(failure))


def _failed(failure: BaseException) -> int:
    sys.stderr.write(f"understudy: {_told(failure)}\n")
    return 1
