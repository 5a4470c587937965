"""A scripted OpenAI-compatible server, over real HTTP on a free port of the loopback.

::

    with FakeOpenAI(Say("health")) as server:            # every chat is answered so
        ...
    with FakeOpenAI(Status(500), Say("health")) as server:   # in turn; the last one repeats
        ...
    with FakeOpenAI(lambda chat: Say(...)) as server:    # depending on the chat
        ...
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass(frozen=True)
class Chat:
    """A chat that the server was sent."""

    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def system(self) -> str:
        return str(self.body["messages"][0]["content"])

    @property
    def user(self) -> str:
        return str(self.body["messages"][-1]["content"])

    @property
    def has_schema(self) -> bool:
        return "response_format" in self.body


@dataclass(frozen=True)
class Say:
    """Complete the chat."""

    text: str | None
    finish_reason: str = "stop"
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
    )
    refusal: str | None = None


def label(name: str) -> Say:
    """The constrained answer."""
    return Say(json.dumps({"label": name}))


@dataclass(frozen=True)
class Status:
    """Refuse."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "refused"


@dataclass(frozen=True)
class Raw:
    """Answer with 200 and whatever body."""

    body: str
    content_type: str = "application/json"


@dataclass(frozen=True)
class Hang:
    """Never answer."""


@dataclass(frozen=True)
class Disconnect:
    """Close the connection in the midst of the body."""


@dataclass(frozen=True)
class Together:
    """Answer once so many chats are there at a time."""

    count: int
    then: Say


Behaviour = Say | Status | Raw | Hang | Disconnect | Together
Script = Behaviour | Callable[[Chat], Behaviour]


def refuses_schema(then: Say) -> Callable[[Chat], Behaviour]:
    """An endpoint that knows no response_format."""
    refusal = Status(400, message="response_format is not supported")
    return lambda chat: refusal if chat.has_schema else then


class FakeOpenAI:
    def __init__(self, *script: Script) -> None:
        self.chats: list[Chat] = []
        #: The most chats that were there at a time.
        self.peak = 0
        #: Set once a chat has come.
        self.asked = threading.Event()
        #: Set once a client has gone from a chat that hangs.
        self.dropped = threading.Event()
        self._script = list(script)
        self._in_flight = 0
        self._gathered = asyncio.Condition()
        self._cohort = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def environ(self, **more: str) -> dict[str, str]:
        """The variables that point a generator here."""
        named = {f"UNDERSTUDY_GENERATOR_{name}": value for name, value in more.items()}
        return {
            "UNDERSTUDY_GENERATOR_BASE_URL": self.base_url,
            "UNDERSTUDY_GENERATOR_MODEL": "fake-model",
        } | named

    def __enter__(self) -> FakeOpenAI:
        # Listening before the server runs: a client that comes early waits in the backlog.
        self._socket = socket.create_server(("127.0.0.1", 0))
        app = Starlette(routes=[Route("/v1/chat/completions", self._chat, methods=["POST"])])
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, lifespan="off", ws="none", loop="asyncio")
        )
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()
        self._socket.close()

    async def _chat(self, request: Request) -> Response:
        chat = Chat(await request.json(), dict(request.headers))
        self.chats.append(chat)
        self.asked.set()
        step = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        self._in_flight += 1
        self.peak = max(self.peak, self._in_flight)
        try:
            return await self._respond(step(chat) if callable(step) else step, request)
        finally:
            self._in_flight -= 1

    async def _respond(self, behaviour: Behaviour, request: Request) -> Response:
        match behaviour:
            case Say():
                return JSONResponse(_completion(behaviour))
            case Status(code, headers, message):
                return JSONResponse({"error": {"message": message}}, code, headers)
            case Raw(body, content_type):
                return Response(body, media_type=content_type)
            case Disconnect():
                return StreamingResponse(
                    _torn(), media_type="application/json", headers={"content-length": "1000"}
                )
            case Hang():
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                self.dropped.set()
                return Response()
            case Together(count, then):
                async with self._gathered:
                    self._cohort += 1
                    complete = -(-self._cohort // count) * count
                    self._gathered.notify_all()
                    await self._gathered.wait_for(lambda: self._cohort >= complete)
                return JSONResponse(_completion(then))


class _TornOff(Exception):
    pass


async def _torn() -> AsyncIterator[bytes]:
    yield b'{"id": "torn", "choices": ['
    raise _TornOff


def _completion(say: Say) -> dict[str, Any]:
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion",
        "created": 0,
        "model": "fake-model-2026",
        "choices": [
            {
                "index": 0,
                "finish_reason": say.finish_reason,
                "message": {"role": "assistant", "content": say.text, "refusal": say.refusal},
            }
        ],
        "usage": say.usage,
    }
