"""The teacher: a large language model behind an OpenAI-compatible endpoint, or its recording."""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import fcntl
import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from understudy import language as languages
from understudy.errors import (
    GeneratorUnavailable,
    InvalidInput,
    InvalidReply,
    NotFound,
    Overloaded,
    Timeout,
    UnderstudyError,
)
from understudy.prompts import PROMPT_VERSION, Message
from understudy.resources import bundled
from understudy.sample import read_rows

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion

_log = logging.getLogger(__name__)

BASE_URL_VARIABLE = "UNDERSTUDY_GENERATOR_BASE_URL"
MODEL_VARIABLE = "UNDERSTUDY_GENERATOR_MODEL"
API_KEY_VARIABLE = "UNDERSTUDY_GENERATOR_API_KEY"
TIMEOUT_VARIABLE = "UNDERSTUDY_GENERATOR_TIMEOUT"
STRUCTURED_VARIABLE = "UNDERSTUDY_GENERATOR_STRUCTURED"
TEMPERATURE_VARIABLE = "UNDERSTUDY_GENERATOR_TEMPERATURE"

_STRUCTURED = ("auto", "json_schema", "off")


# --- Settings ---


def _setting(variable: str, default: Any, parse: Callable[[str], Any], doc: str) -> Any:
    return dataclasses.field(
        default=default,
        repr=variable != API_KEY_VARIABLE,
        metadata={"variable": variable, "parse": parse, "doc": doc},
    )


def _url(value: str) -> str:
    if not value.lower().startswith(("http://", "https://")):
        raise InvalidInput("not a URL", expected="a URL such as http://127.0.0.1:8000/v1")
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise InvalidInput("no such choice", expected=f"one of: {', '.join(choices)}")
        return value

    return parse


def _number(low: float, *, whole: bool = False) -> Callable[[str], float]:
    expected = f"a {'whole ' if whole else ''}number of {low:g} or more"

    def parse(value: str) -> float:
        try:
            number = int(value) if whole else float(value)
        except ValueError:
            raise InvalidInput("not a number", expected=expected) from None
        if not math.isfinite(number) or number < low:
            raise InvalidInput("out of range", expected=expected)
        return number

    return parse


def _temperature(value: str) -> float | None:
    return None if value == "default" else _number(0)(value)


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens."""

    input: float
    output: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1_000_000


@dataclass(frozen=True)
class TeacherSettings:
    """How the language model is reached and asked; `from_environment` reads it.

    The key shows neither in the representation nor in any message or log.
    """

    base_url: str = _setting(
        BASE_URL_VARIABLE,
        "",
        _url,
        "URL of the OpenAI-compatible endpoint, as far as and with its version (…/v1).",
    )
    model: str = _setting(MODEL_VARIABLE, "", str, "Name of the model, as the endpoint knows it.")
    api_key: str | None = _setting(
        API_KEY_VARIABLE, None, str, "Key of the endpoint; local servers mostly need none."
    )
    timeout: float = _setting(
        TIMEOUT_VARIABLE, 60.0, _number(0.001), "Seconds in which one attempt must be answered."
    )
    deadline: float = _setting(
        "UNDERSTUDY_GENERATOR_DEADLINE",
        300.0,
        _number(0.001),
        "Seconds in which a whole request must be answered, waiting and retries included.",
    )
    max_retries: int = _setting(
        "UNDERSTUDY_GENERATOR_MAX_RETRIES",
        3,
        _number(0, whole=True),
        "Further attempts after a refusal (408, 409, 429, 5xx), a timeout or a lost connection.",
    )
    concurrency: int = _setting(
        "UNDERSTUDY_GENERATOR_CONCURRENCY",
        8,
        _number(1, whole=True),
        "Texts asked about at a time.",
    )
    queue_texts: int = _setting(
        "UNDERSTUDY_GENERATOR_QUEUE_TEXTS",
        4_096,
        _number(1, whole=True),
        "Texts that may wait for an answer; past it a request is refused at once.",
    )
    structured: str = _setting(
        STRUCTURED_VARIABLE,
        "auto",
        _one_of(*_STRUCTURED),
        "Constrain replies by JSON schema: 'json_schema', 'off', or 'auto' to do without where the "
        "endpoint refuses.",
    )
    seed: int = _setting(
        "UNDERSTUDY_GENERATOR_SEED", 0, _number(0, whole=True), "Seed of the order of the labels."
    )
    temperature: float | None = _setting(
        TEMPERATURE_VARIABLE, 0.0, _temperature, "Sampling temperature, 'default' to send none."
    )
    max_tokens: int | None = _setting(
        "UNDERSTUDY_GENERATOR_MAX_TOKENS",
        None,
        _number(1, whole=True),
        "Longest reply in tokens, thinking included; as the endpoint has it when not set.",
    )
    price_input: float | None = _setting(
        "UNDERSTUDY_GENERATOR_PRICE_INPUT",
        None,
        _number(0),
        "US dollars per million prompt tokens.",
    )
    price_output: float | None = _setting(
        "UNDERSTUDY_GENERATOR_PRICE_OUTPUT",
        None,
        _number(0),
        "US dollars per million completion tokens.",
    )

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] = os.environ, *, needs_endpoint: bool = True
    ) -> TeacherSettings:
        """Read the settings; an unset or empty variable leaves its default.

        Raises:
            InvalidInput: a value can't be right or, where `needs_endpoint`, the URL or the model is
                missing; the error names the variable.
        """
        values: dict[str, Any] = {}
        for setting in dataclasses.fields(cls):
            variable = setting.metadata["variable"]
            if text := environ.get(variable, "").strip():
                try:
                    values[setting.name] = setting.metadata["parse"](text)
                except InvalidInput as error:
                    raise InvalidInput(
                        f"the value of {variable} can't be used: {error.detail}",
                        field=variable,
                        expected=error.expected,
                    ) from None
        for name, variable in (("base_url", BASE_URL_VARIABLE), ("model", MODEL_VARIABLE)):
            if needs_endpoint and name not in values:
                raise InvalidInput(
                    f"{variable} is not set",
                    field=variable,
                    expected=f"{BASE_URL_VARIABLE} and {MODEL_VARIABLE} of an OpenAI-compatible "
                    "endpoint, or --replay FILE.jsonl to answer from recordings",
                )
        return cls(**values)

    @classmethod
    def described(cls) -> list[tuple[str, str, str]]:
        """Variable, default and documentation of every setting, in order of declaration."""
        return [
            (s.metadata["variable"], "" if s.default is None else str(s.default), s.metadata["doc"])
            for s in dataclasses.fields(cls)
        ]

    @property
    def prices(self) -> Prices | None:
        if self.price_input is None or self.price_output is None:
            return None
        return Prices(self.price_input, self.price_output)


# --- Chat ---


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


# --- Recording ---


@dataclass(frozen=True)
class Exchange:
    """One question to the language model and its reply."""

    task: str
    language: str | None
    text: str
    reply: str
    model: str = ""
    prompt_version: str = ""
    #: In the order in which they were offered.
    labels: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_seconds: float = 0.0
    finish_reason: str | None = None
    structured: bool = False
    #: UTC, ISO 8601.
    time: str = ""

    @classmethod
    def of(
        cls, task: str, language: str | None, text: str, labels: Sequence[str], reply: ChatReply
    ) -> Exchange:
        """The exchange that has just ended with `reply`."""
        return cls(
            task=task,
            language=language,
            text=text,
            reply=reply.text,
            model=reply.model,
            prompt_version=PROMPT_VERSION,
            labels=tuple(labels),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            latency_seconds=round(reply.latency_seconds, 6),
            finish_reason=reply.finish_reason,
            structured=reply.structured,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )


class Recorder:
    """Appends every exchange to a JSON Lines file, for `Replay`.

    **The file holds the texts that users sent, word for word**; only its owner may read it. Each
    line is on the disk before `record` returns, and one process writes at a time. A line that a
    crash has cut off is removed when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it.

        Raises:
            InvalidInput: it can't be written, another process records to it, or it is no
                recording.
        """
        self._lock = threading.Lock()
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise InvalidInput(
                f"{path}: {error.strerror}", expected="a file that can be written"
            ) from error
        self._file = os.fdopen(handle, "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _mend(self._file, path)
            _sync_directory(path)
        except BlockingIOError as error:
            self._file.close()
            raise InvalidInput(
                f"{path}: another process records to it", expected="a file of one's own"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def record(self, exchange: Exchange) -> None:
        """Append one exchange; safe from any thread. It blocks while the disk writes.

        Raises:
            OSError: the disk is full or fails; nothing is left of the line.
        """
        line = json.dumps(dataclasses.asdict(exchange), ensure_ascii=False).encode(
            "utf-8", "backslashreplace"
        )
        with self._lock:
            before = os.fstat(self._file.fileno()).st_size
            try:
                rest = memoryview(line + b"\n")
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(before)
                raise

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mend(file: Any, path: Path) -> None:
    """Remove a last line that a crash has cut off; end one that lacks its line break alone."""
    size = os.fstat(file.fileno()).st_size
    tail = _last_line(file, size)
    if not tail:
        return
    if _is_row(tail):
        file.write(b"\n")
        return
    # A file of one odd line is more likely no recording at all.
    if len(tail) == size and not tail.startswith(b"{"):
        raise InvalidInput(f"{path}: not a recording", expected="a JSON Lines file, or a new one")
    file.truncate(size - len(tail))
    _log.warning("%s: removed the last line, which a crash had cut off", path)


def _last_line(file: Any, size: int) -> bytes:
    """What follows the last line break."""
    tail, start = b"", size
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 65_536)
        file.seek(start)
        tail = bytes(file.read(size - start))
    return tail.rpartition(b"\n")[2]


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _sync_directory(path: Path) -> None:
    directory = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


# --- Replaying ---


class Replay:
    """Answers from recordings: what was asked before is answered as it was then."""

    def __init__(self, exchanges: Sequence[Exchange], *, digest: str = "") -> None:
        """Of two exchanges about one text, the later counts."""
        self._replies = {(e.task, e.language, e.text): e for e in exchanges}
        self._languages: dict[tuple[str, str], list[Exchange]] = {}
        for exchange in self._replies.values():
            self._languages.setdefault((exchange.task, exchange.text), []).append(exchange)
        #: Tells one set of recordings from another.
        self.digest = digest

    @classmethod
    def load(cls, *paths: Path, task: str | None = None, language: str | None = None) -> Replay:
        """Read recordings; by default the bundled ones.

        A last line that a crash has cut off is passed over.

        Args:
            task: the task of rows that don't say.
            language: the language of rows that don't say.

        Raises:
            NotFound: no such file.
            InvalidInput: a row is broken; the message gives path, line and the mend.
        """
        if not paths:
            paths = tuple(sorted((bundled("data") / "replies").glob("*.jsonl")))
        tag = None if language is None else languages.canonical(language)
        exchanges: list[Exchange] = []
        digest = hashlib.sha256()
        for path in paths:
            rows = _whole_rows(path)
            exchanges.extend(_exchange(row, where, task, tag) for where, row in rows)
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return cls(exchanges, digest=digest.hexdigest())

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, task: str, language: str | None, text: str) -> Exchange:
        """The exchange about a text; without a language, the one in whichever it was recorded.

        Raises:
            NotFound: the text was never recorded.
            InvalidInput: it was recorded in several languages, and answered differently.
        """
        found = self._replies.get((task, language, text))
        if found is not None:
            return found
        elsewhere = self._languages.get((task, text), [])
        if language is None and elsewhere:
            if len({exchange.reply for exchange in elsewhere}) > 1:
                tags = sorted(str(exchange.language) for exchange in elsewhere)
                raise InvalidInput(
                    "the text is recorded in several languages, with different replies",
                    field="language",
                    expected=f"one of: {', '.join(tags)}",
                )
            return elsewhere[-1]
        tongue = "" if language is None else f" in {language!r}"
        raise NotFound(
            f"no reply to this text is recorded for task {task!r}{tongue}",
            expected="a text from the recordings; 'understudy serve generator --record FILE.jsonl' "
            "with a language model makes new ones",
        )


def _whole_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, without a last line that a crash has cut off."""
    try:
        yield from read_rows(path)
    except InvalidInput:
        if not path.is_file():
            raise
        content = path.read_bytes()
        head, _, tail = content.rpartition(b"\n")
        # Any other line at fault is a fault of the file.
        if not head or not tail.startswith(b"{") or _is_row(tail) or not _are_rows(head):
            raise
        _log.warning("%s: passed over the last line, which a crash had cut off", path)


def _are_rows(content: bytes) -> bool:
    return all(_is_row(line) for line in content.split(b"\n") if line.strip())


def _exchange(row: dict[str, Any], where: str, task: str | None, language: str | None) -> Exchange:
    example = 'rows such as {"task": …, "language": …, "text": …, "reply": …}'
    # A recording says null where no language was named; a row that says nothing is no recording.
    if "language" not in row and language is None:
        raise InvalidInput(
            f"{where}: the row names no language", field="language", expected=example
        )
    values: dict[str, Any] = {
        "task": row.get("task", task),
        "text": row.get("text"),
        "reply": row.get("reply"),
    }
    for key, value in values.items():
        if not isinstance(value, str) or (not value and key != "reply"):
            raise InvalidInput(
                f"{where}: {key!r} is {'missing' if value is None else 'empty or not a string'}",
                field=key,
                expected=example,
            )
    tag = row.get("language", language)
    try:
        tag = None if tag is None else languages.canonical(tag)
    except InvalidInput as error:
        raise InvalidInput(
            f"{where}: {error.detail}", field="language", expected=error.expected
        ) from None
    finish_reason, model = row.get("finish_reason"), row.get("model")
    prompt_tokens, completion_tokens = row.get("prompt_tokens"), row.get("completion_tokens")
    return Exchange(
        language=tag,
        model=model if isinstance(model, str) else "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        prompt_tokens=prompt_tokens if isinstance(prompt_tokens, int) else None,
        completion_tokens=completion_tokens if isinstance(completion_tokens, int) else None,
        **values,
    )
