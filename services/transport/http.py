"""The HTTP adapter: a small ASGI app over a `Dataplane`.

Every error is ``application/problem+json`` (RFC 9457). Nothing raised in here escapes: BentoML's
middleware waits for an answer that would never come.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import math
from collections.abc import AsyncIterator, Mapping

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, ExceptionHandler, Message, Receive, Scope, Send

from services.transport.dataplane import Dataplane, unforeseen
from services.transport.metrics import CONTENT_TYPE as METRICS_TYPE
from services.transport.openapi import document
from understudy.errors import (
    InvalidInput,
    MethodNotAllowed,
    NotFound,
    NotReady,
    PayloadTooLarge,
    UnderstudyError,
    UnsupportedMediaType,
)
from understudy.wire_json import (
    models_to_json,
    problem_to_json,
    request_from_json,
    response_to_json,
)

_log = logging.getLogger(__name__)

CLASSIFY = "/v1/classify"
MODELS = "/v1/models"

_JSON = b"application/json"
_PICKLE = b"application/vnd.bentoml+pickle"

# Most requests are answered within it, and are spared the watch over their connection.
_WATCH_AFTER_SECONDS = 0.02

# How long a refused upload is read and thrown away, so that its sender gets to see the refusal and
# not a reset connection.
_LINGER_SECONDS = 2.0

_START_PAGE = """
window.onload = () => {
  window.ui = SwaggerUIBundle({
    url: "./docs.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null,
    presets: [SwaggerUIBundle.presets.apis], layout: "BaseLayout",
  });
};
"""

_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Understudy</title>
<link rel="stylesheet" href="./static_content/swagger-ui.css">
<link rel="icon" href="data:,">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>The API's description: <a href="./openapi.json">openapi.json</a></noscript>
<script src="./static_content/swagger-ui-bundle.js"></script>
<script>{_START_PAGE}</script>
</body>
</html>
"""

_START_HASH = base64.b64encode(hashlib.sha256(_START_PAGE.encode()).digest()).decode()

_PAGE_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src 'self' 'sha256-{_START_HASH}'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)


def build_app(dataplane: Dataplane) -> Starlette:
    """The routes that Understudy adds to those of BentoML."""
    described = orjson.dumps(document(dataplane.role, dataplane.limits))
    page = HTMLResponse(_PAGE, headers={"content-security-policy": _PAGE_POLICY})
    spec = Response(described, media_type="application/json")

    async def models(_: Request) -> Response:
        return Response(models_to_json(dataplane.models()), media_type="application/json")

    async def metrics(_: Request) -> Response:
        return Response(dataplane.metrics.exposition(), media_type=METRICS_TYPE)

    async def described_as_json(_: Request) -> Response:
        return spec

    async def described_as_page(_: Request) -> Response:
        return page

    return Starlette(
        routes=[
            Route(CLASSIFY, ClassifyEndpoint(dataplane), methods=["POST"]),
            Route(MODELS, models),
            Route("/metrics", metrics),
            Route("/openapi.json", described_as_json),
            Route("/docs.json", described_as_json),
            Route("/docs", described_as_page),
            Route("/", described_as_page),
        ],
        exception_handlers=exception_handlers(),
    )


def exception_handlers() -> dict[type[Exception], ExceptionHandler]:
    """Handlers that turn whatever a Starlette app raises into a problem."""

    async def handle(request: Request, error: Exception) -> Response:
        match error:
            case UnderstudyError():
                return problem_response(error)
            case HTTPException():
                return problem_response(_from_starlette(request, error), error.headers or {})
        # Starlette raises it again after this answer, and `guarded` logs it.
        return problem_response(UnderstudyError("the service failed to answer; its log says where"))

    handlers: dict[type[Exception], ExceptionHandler] = {
        UnderstudyError: handle,
        HTTPException: handle,
        Exception: handle,
    }
    return handlers


def problem_response(error: UnderstudyError, headers: Mapping[str, str] | None = None) -> Response:
    """The error as ``application/problem+json``, with ``Retry-After`` where that is known."""
    merged = {**(headers or {}), "cache-control": "no-store"}
    if error.retry_after is not None:
        merged["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    return Response(
        problem_to_json(error),
        status_code=error.http_status,
        headers=merged,
        media_type="application/problem+json",
    )


async def refuse(error: UnderstudyError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem a request whose body has not been read to its end."""
    response = problem_response(error, {"connection": "close"})
    body = bytes(response.body)
    await send(
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while _has_more(await receive()):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def check_not_pickle(scope: Scope) -> None:
    """Refuse BentoML's pickle bodies, whatever the route and the method.

    Raises:
        UnsupportedMediaType: the request says that its body is one.
    """
    for name, value in scope["headers"]:
        if name == b"content-type" and _PICKLE in value.lower():
            raise _unsupported(value)


class ClassifyEndpoint:
    """``POST /v1/classify``, as a bare ASGI app: it is the hot path."""

    def __init__(self, dataplane: Dataplane) -> None:
        self._dataplane = dataplane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._body(scope, receive)
        except UnderstudyError as error:
            self._dataplane.refused("http", error)
            await refuse(error, scope, receive, send)
            return
        if body is None:
            return
        response: Response | None = None
        try:
            async with _while_connected(receive):
                answer = await self._dataplane.classify(
                    "http", lambda limits: request_from_json(body, limits), response_to_json
                )
                response = Response(answer, media_type="application/json")
        except UnderstudyError as error:
            response = problem_response(error)
        if response is not None:
            await response(scope, receive, send)

    async def _body(self, scope: Scope, receive: Receive) -> bytearray | None:
        """The request's body; None when the caller has gone.

        Raises:
            UnsupportedMediaType, PayloadTooLarge, InvalidInput: it will not be read.
        """
        most = self._dataplane.limits.body_bytes
        _check_headers(scope, most)
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                raise _too_large("the body has more than", most, most)
            if not message.get("more_body", False):
                return body


def _check_headers(scope: Scope, most: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-type":
            if not _is_json(value):
                raise _unsupported(value)
        elif name == b"content-encoding":
            if value.strip().lower() not in (b"", b"identity"):
                raise UnsupportedMediaType(
                    f"{_shown(value)!r} bodies are not read here",
                    field="Content-Encoding",
                    expected="no content encoding",
                )
        elif name == b"content-length" and value.isdigit() and int(value[:20]) > most:
            raise _too_large("the body has", int(value[:20]), most)


def _is_json(content_type: bytes) -> bool:
    media, *parameters = (part.strip() for part in content_type.lower().split(b";"))
    if media != _JSON and not (media.startswith(b"application/") and media.endswith(b"+json")):
        return False
    charsets = [p.partition(b"=")[2].strip(b' "') for p in parameters if p.startswith(b"charset")]
    return all(charset in (b"utf-8", b"utf8", b"us-ascii") for charset in charsets)


def _unsupported(content_type: bytes) -> UnsupportedMediaType:
    return UnsupportedMediaType(
        f"{_shown(content_type)!r} is not read here",
        field="Content-Type",
        expected="application/json in UTF-8",
    )


def _too_large(what: str, size: int, most: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"{what} {size:,} bytes", field="body", expected=f"at most {most:,} bytes"
    )


def _shown(header: bytes) -> str:
    return header[:100].decode("latin-1")


def _has_more(message: Message) -> bool:
    return message["type"] == "http.request" and bool(message.get("more_body", False))


def _from_starlette(request: Request, error: HTTPException) -> UnderstudyError:
    path = request.url.path[:100]
    match error.status_code:
        case 404:
            return NotFound(
                f"there is nothing at {path!r}", expected=f"{CLASSIFY}, {MODELS}, /docs"
            )
        case 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            return MethodNotAllowed(f"{request.method[:20]} {path}", expected=allowed)
        case 503:
            return NotReady("the service is starting or shutting down", retry_after=1.0)
        case 413:
            return PayloadTooLarge("the body is too large", field="body")
        case status if status < 500:
            return InvalidInput("the request can't be read")
    return UnderstudyError("the service failed to answer")


@contextlib.asynccontextmanager
async def _while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the caller hangs up, and leave it quietly then."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    watcher: asyncio.Task[None] | None = None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(_WATCH_AFTER_SECONDS, begin)
    try:
        yield
    except asyncio.CancelledError:
        # Whoever else cancels the task, such as a server that stops, still gets to.
        if not gone or task.uncancel() > 0:
            raise
    finally:
        timer.cancel()
        if watcher is not None and not gone:
            watcher.cancel()


def guarded(app: ASGIApp) -> ASGIApp:
    """The app, refusing pickle bodies and answering with a problem where it would raise."""

    async def guarded_app(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def tracked(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            check_not_pickle(scope)
            await app(scope, receive, tracked)
        except Exception as error:
            problem = error if isinstance(error, UnderstudyError) else unforeseen(error)
            if not started:
                await refuse(problem, scope, receive, send)

    return guarded_app
