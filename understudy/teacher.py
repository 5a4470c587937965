"""The teacher: a large language model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from understudy.errors import (
    GeneratorUnavailable,
    InvalidReply,
    Overloaded,
    Timeout,
    UnderstudyError,
)
from understudy.prompts import Message
from understudy.teacher_settings import (
    API_KEY_VARIABLE,
    BASE_URL_VARIABLE,
    MODEL_VARIABLE,
    STRUCTURED_VARIABLE,
    TEMPERATURE_VARIABLE,
    TIMEOUT_VARIABLE,
    TeacherSettings,
)

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChatReply:
    """What the language model answered, and what that took."""

    text: str
    model: str
    #: None where the endpoint doesn't say.
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    #: From sending the request to its answer, retries included.
    latency_seconds: float = 0.0
    #: ``stop``, ``length``, ``content_filter`` …
    finish_reason: str | None = None
    #: Waiting for a turn.
    queued_seconds: float = 0.0
    #: Whether the endpoint held the reply to the schema.
    structured: bool = False


class Teacher(Protocol):
    """Something that answers chats."""

    async def chat(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None
    ) -> ChatReply:
        """Answer one chat, held to a JSON schema where there is one and that can be done.

        A reply that is empty (refused by a filter, say) has an empty text.

        Raises:
            GeneratorUnavailable: the language model can't be reached or refuses to work.
            Timeout: it did not answer in time.
            Overloaded: it refuses more requests for now.
            InvalidReply: what it sent is not a completion.
        """
        ...

    async def aclose(self) -> None: ...


class OpenAITeacher:
    """A language model behind an OpenAI-compatible endpoint.

    The `openai` client retries, with exponential back-off and jitter, heeding ``Retry-After``.
    """

    def __init__(self, settings: TeacherSettings) -> None:
        # It takes most of a second to import, which replaying need not wait for.
        import openai

        self.settings = settings
        self._client = openai.AsyncOpenAI(
            base_url=settings.base_url,
            # The client wants one, and would otherwise take the one that is meant for OpenAI.
            api_key=settings.api_key or "none",
            organization="",
            project="",
            timeout=settings.timeout,
            max_retries=settings.max_retries,
        )
        self._headers: dict[str, Any] = {
            "OpenAI-Organization": openai.Omit(),
            "OpenAI-Project": openai.Omit(),
        }
        if settings.api_key is None:
            self._headers["Authorization"] = openai.Omit()
        self._turns = asyncio.Semaphore(settings.concurrency)
        #: Whether replies are held to a schema; false once the endpoint has refused that.
        self.structured = settings.structured != "off"

    async def chat(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None
    ) -> ChatReply:
        """See `Teacher.chat`."""
        arrived = time.perf_counter()
        async with self._turns:
            started = time.perf_counter()
            structured = schema is not None and self.structured
            try:
                completion = await self._complete(messages, schema if structured else None)
            except _SchemaMayBeRefused:
                structured = False
                completion = await self._complete(messages, None)
                if self.structured:
                    self.structured = False
                    _log.warning(
                        "the endpoint refuses response_format: going on without, replies are "
                        "parsed strictly"
                    )
            done = time.perf_counter()
        return _reply(
            completion,
            model=self.settings.model,
            latency_seconds=done - started,
            queued_seconds=started - arrived,
            structured=structured,
        )

    async def aclose(self) -> None:
        await self._client.close()

    async def _complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None
    ) -> ChatCompletion:
        """Ask once.

        Raises:
            _SchemaMayBeRefused: the request was refused, and may not be without the schema.
        """
        import openai

        options: dict[str, Any] = {}
        if schema is not None:
            options["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "classification", "strict": True, "schema": dict(schema)},
            }
        if self.settings.temperature is not None:
            options["temperature"] = self.settings.temperature
        if self.settings.max_tokens is not None:
            options["max_tokens"] = self.settings.max_tokens
        # What an endpoint says of a fault may quote the text or the key: it is neither passed on
        # nor chained.
        try:
            return await self._client.chat.completions.create(
                model=self.settings.model,
                messages=[{"role": m["role"], "content": m["content"]} for m in messages],  # type: ignore[misc]
                extra_headers=self._headers,
                **options,
            )
        except openai.APIStatusError as error:
            refused = error.status_code in (400, 422)
            if refused and schema is not None and self.settings.structured == "auto":
                raise _SchemaMayBeRefused from None
            raise _status_error(error) from None
        except openai.APITimeoutError:
            raise Timeout(
                f"the generator did not answer within {self.settings.timeout:g} s",
                expected=f"a faster endpoint, or a larger {TIMEOUT_VARIABLE}",
            ) from None
        except openai.APIConnectionError as error:
            _log.warning("no connection to the generator: %s", type(error.__cause__).__name__)
            raise GeneratorUnavailable(
                "the generator's endpoint can't be reached",
                expected=f"a running endpoint at {BASE_URL_VARIABLE}",
            ) from None
        except (openai.APIError, ValueError, TypeError, AttributeError) as error:
            raise _broken(type(error).__name__) from None


class _SchemaMayBeRefused(Exception):
    pass


def _status_error(error: openai.APIStatusError) -> UnderstudyError:
    status = error.status_code
    said = f"the generator's endpoint answered with HTTP {status}"
    if status == 429:
        return Overloaded(
            said, expected="fewer requests at a time", retry_after=_retry_after(error)
        )
    if status in (401, 403):
        mend = f"a key that the endpoint accepts in {API_KEY_VARIABLE}"
    elif status == 404:
        mend = f"the endpoint's URL with its version in {BASE_URL_VARIABLE}, and a model that it "
        mend += f"has in {MODEL_VARIABLE}"
    elif status in (400, 422):
        mend = f"a text that fits the model, {TEMPERATURE_VARIABLE}=default where it takes no "
        mend += f"temperature, {STRUCTURED_VARIABLE}=off where it takes no JSON schema"
    else:
        mend = "a working endpoint; try again later"
    return GeneratorUnavailable(said, expected=mend, retry_after=_retry_after(error))


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds that the endpoint asks to wait (RFC 9110, section 10.2.3)."""
    value = error.response.headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (until - datetime.now(until.tzinfo)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _broken(how: str) -> InvalidReply:
    return InvalidReply(
        f"the generator's endpoint sent no chat completion ({how})",
        expected=f"an OpenAI-compatible endpoint at {BASE_URL_VARIABLE}",
    )


def _reply(completion: ChatCompletion, *, model: str, **measured: Any) -> ChatReply:
    # The client builds whatever came without checking it.
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise _broken("no choices")
    message = getattr(choices[0], "message", None)
    if message is None:
        raise _broken("no message")
    text = getattr(message, "content", None) or getattr(message, "refusal", None) or ""
    if not isinstance(text, str):
        raise _broken("content that isn't text")
    named, reason = getattr(completion, "model", None), getattr(choices[0], "finish_reason", None)
    return ChatReply(
        text=text,
        model=named if isinstance(named, str) and named else model,
        prompt_tokens=_tokens(completion, "prompt_tokens"),
        completion_tokens=_tokens(completion, "completion_tokens"),
        finish_reason=reason if isinstance(reason, str) else None,
        **measured,
    )


def _tokens(completion: ChatCompletion, name: str) -> int | None:
    count = getattr(completion.usage, name, None)
    return count if isinstance(count, int) and count >= 0 else None
