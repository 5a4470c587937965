"""The generator behind the classification API: a language model, or a recording of one, answers."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from understudy.api import (
    ClassifyRequest,
    ClassifyResponse,
    ModelInfo,
    Prediction,
    Timings,
    Usage,
)
from understudy.errors import InvalidInput, Overloaded, Timeout, UnderstudyError
from understudy.prompts import (
    PROMPT_VERSION,
    UnusableReply,
    classification_messages,
    label_order,
    parse_reply,
    reply_schema,
)
from understudy.recording import (
    Exchange,
    Recorder,
    Replay,
)
from understudy.task import Task, Tasks, load_tasks
from understudy.teacher import (
    ChatReply,
    OpenAITeacher,
    Teacher,
)
from understudy.teacher_settings import (
    BASE_URL_VARIABLE,
    MODEL_VARIABLE,
    Prices,
    TeacherSettings,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answer:
    prediction: Prediction
    reply: ChatReply


class GeneratorClassifier:
    """Answers for every task and language, one question to the language model for each text.

    A reply that names no label or several is a prediction without a label; it is counted in
    `invalid_replies`, by task, language and reason.
    """

    def __init__(
        self,
        tasks: Tasks,
        source: Teacher | Replay,
        *,
        model: str,
        seed: int = 0,
        prices: Prices | None = None,
        recorder: Recorder | None = None,
        deadline: float = 300.0,
        queue_texts: int = 4_096,
    ) -> None:
        """Answer `tasks` from a language model or a recording.

        Args:
            seed: of the order in which labels are offered.
            deadline: seconds in which a whole request is answered.
            queue_texts: texts of all requests together that may await their answer.
        """
        self.model = model
        self.version = _version(model, source)
        self.invalid_replies: Counter[tuple[str, str | None, str]] = Counter()
        self._tasks = tasks
        self._source = source
        self._seed = seed
        self._prices = prices
        self._recorder = recorder
        self._deadline = deadline
        self._queue_texts = queue_texts
        self._waiting = 0
        self._writing: set[asyncio.Future[None]] = set()

    def models(self) -> Sequence[ModelInfo]:
        return [
            ModelInfo(
                task=task.name,
                languages=task.languages,
                labels=task.label_names,
                name=self.model,
                version=self.version,
                kind="generator",
            )
            for task in self._tasks.values()
        ]

    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        """Answer a checked request; where one text fails, the others are dropped with it.

        In the timings, `queue_ms` is the longest that a text waited for its turn and `infer_ms`
        the longest that an exchange took.

        Raises:
            NotFound: no such task, the task doesn't cover the language, or, when replaying, a text
                was never recorded.
            Overloaded: too many texts wait already, or the endpoint refuses more.
            Timeout: the deadline has passed, or the endpoint didn't answer.
            GeneratorUnavailable: the endpoint can't be reached or refuses to work.
            InvalidReply: the endpoint sent something that is no completion.
        """
        started = time.perf_counter()
        task = self._tasks.find(request.task)
        language = None if request.language is None else task.language(request.language)
        count = len(request.texts)
        if self._waiting + count > self._queue_texts:
            raise Overloaded(
                f"{self._waiting:,} texts wait for the generator already",
                expected=f"at most {self._queue_texts:,} at a time",
                retry_after=1.0,
            )
        self._waiting += count
        try:
            answers = await self._answers(task, language, request.texts)
        finally:
            self._waiting -= count
        return ClassifyResponse(
            task=task.name,
            language=language,
            model=self.model,
            model_version=self.version,
            predictions=tuple(answer.prediction for answer in answers),
            timings=Timings(
                queue_ms=1e3 * max(answer.reply.queued_seconds for answer in answers),
                infer_ms=1e3 * max(answer.reply.latency_seconds for answer in answers),
                total_ms=1e3 * (time.perf_counter() - started),
            ),
            usage=_usage([answer.reply for answer in answers], self._prices),
        )

    async def start(self) -> None:
        """Nothing has to be started: connections are made when they are needed."""

    async def close(self) -> None:
        """Let go of connections and of the recording."""
        if not isinstance(self._source, Replay):
            await self._source.aclose()
        if self._recorder is not None:
            await asyncio.gather(*self._writing, return_exceptions=True)
            self._recorder.close()

    async def _answers(
        self, task: Task, language: str | None, texts: Sequence[str]
    ) -> list[_Answer]:
        try:
            async with asyncio.timeout(self._deadline), asyncio.TaskGroup() as group:
                pending = [
                    group.create_task(self._answer(task, language, text, f"texts[{position}]"))
                    for position, text in enumerate(texts)
                ]
        except TimeoutError:
            raise Timeout(
                f"the generator did not answer all of the request within {self._deadline:g} s",
                expected="fewer texts in one request, or a larger UNDERSTUDY_GENERATOR_DEADLINE",
            ) from None
        except BaseExceptionGroup as failures:
            # The first failure cancelled the others.
            raise failures.exceptions[0] from None
        return [task.result() for task in pending]

    async def _answer(self, task: Task, language: str | None, text: str, field: str) -> _Answer:
        try:
            if isinstance(self._source, Replay):
                reply = _replayed(self._source.find(task.name, language, text))
            else:
                reply = await self._asked(self._source, task, language, text)
        except UnderstudyError as error:
            error.field = error.field or field
            raise
        try:
            return _Answer(Prediction(_label(reply, task)), reply)
        except UnusableReply as error:
            self.invalid_replies[task.name, language, error.reason] += 1
            return _Answer(Prediction(None, invalid_reply=error.info), reply)

    async def _asked(
        self, teacher: Teacher, task: Task, language: str | None, text: str
    ) -> ChatReply:
        labels = label_order(task, seed=self._seed, key=text)
        reply = await teacher.chat(
            classification_messages(task, text, language, labels), schema=reply_schema(labels)
        )
        if self._recorder is not None:
            exchange = Exchange.of(task.name, language, text, labels, reply)
            # The disk may take its time. What was paid for is kept though the caller has gone.
            writing = asyncio.ensure_future(asyncio.to_thread(self._recorder.record, exchange))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)
            await asyncio.shield(writing)
        return reply


def build_generator(
    *,
    replay: Sequence[Path] = (),
    record: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> GeneratorClassifier:
    """The generator as a command line and an environment ask for it.

    With `replay` it answers from those recordings; else from the endpoint that the environment
    names; and where that names none, from the bundled recordings.

    Raises:
        NotFound: no such recording.
        InvalidInput: the settings don't go together, one can't be used or is missing, or a
            recording is broken.
    """
    if replay and record is not None:
        raise InvalidInput(
            "what is replayed can't be recorded", expected="either --replay or --record"
        )
    asks = record is not None or bool(not replay and environ.get(BASE_URL_VARIABLE, "").strip())
    settings = TeacherSettings.from_environment(environ, needs_endpoint=asks)
    tasks = load_tasks()
    if asks:
        recorder = None if record is None else Recorder(record)
        return GeneratorClassifier(
            tasks,
            OpenAITeacher(settings),
            model=settings.model,
            seed=settings.seed,
            prices=settings.prices,
            recorder=recorder,
            deadline=settings.deadline,
            queue_texts=settings.queue_texts,
        )
    if settings.model and not replay:
        _log.warning(
            "%s is set, but %s is not: answering from the bundled recordings",
            MODEL_VARIABLE,
            BASE_URL_VARIABLE,
        )
    return GeneratorClassifier(
        tasks,
        Replay.load(*replay),
        model="replay",
        prices=settings.prices,
        deadline=settings.deadline,
        queue_texts=settings.queue_texts,
    )


def _label(reply: ChatReply, task: Task) -> str:
    # A reply cut at its longest may have gone on to name another label; complete JSON may not.
    if reply.finish_reason == "length" and not reply.text.rstrip("`\n ").endswith("}"):
        raise UnusableReply("no_label", reply.text)
    return parse_reply(reply.text, task.label_names)


def _replayed(exchange: Exchange) -> ChatReply:
    return ChatReply(
        text=exchange.reply,
        model=exchange.model,
        prompt_tokens=exchange.prompt_tokens,
        completion_tokens=exchange.completion_tokens,
        finish_reason=exchange.finish_reason,
    )


def _usage(replies: Sequence[ChatReply], prices: Prices | None) -> Usage:
    """What the replies took, or, when replaying, took when they were recorded."""
    prompt_tokens = sum(reply.prompt_tokens or 0 for reply in replies)
    completion_tokens = sum(reply.completion_tokens or 0 for reply in replies)
    known = all(r.prompt_tokens is not None and r.completion_tokens is not None for r in replies)
    return Usage(
        calls=len(replies),
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=prices.cost(prompt_tokens, completion_tokens) if prices and known else None,
    )


def _version(model: str, source: Teacher | Replay) -> str:
    parts = [model, PROMPT_VERSION]
    if isinstance(source, Replay):
        parts.append(source.digest)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
