"""The engine: many callers, one compute thread, batches of similar length.

On a CPU a batch costs what its longest text costs times its size, so batches in order of arrival
are slower than none. The engine always takes the text that has waited longest, adds the waiting
texts nearest to it in length while the padded size stays within the student's token budget, and
never waits for more to come: while it computes, the next batch gathers by itself.

Everything heavy happens on the compute thread; the event loop only checks, queues and answers.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from understudy import language as languages
from understudy.api import (
    ClassifyRequest,
    ClassifyResponse,
    LabelScore,
    ModelInfo,
    Prediction,
    Timings,
)
from understudy.bundle import StudentBundle, find_bundles, read_info
from understudy.errors import BundleError, NotFound, Overloaded, Timeout, UnderstudyError
from understudy.model import Encoded, Floats, StudentModel

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

#: Waiting texts among which a batch's members are looked for, oldest first.
_WINDOW = 512


@dataclass(frozen=True)
class EngineLimits:
    """How much may wait, and for how long."""

    #: Texts that may wait; past it a request is refused at once.
    queue_texts: int = 4_096
    #: Seconds from a request's acceptance to its answer.
    timeout_seconds: float = 30.0
    #: Texts in one run of a model.
    batch_texts: int = 64


@dataclass(eq=False)
class _Job:
    """One request on its way through the compute thread."""

    model: StudentModel
    request: ClassifyRequest
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[ClassifyResponse]
    accepted: float
    tokenize_seconds: float = 0.0
    infer_seconds: float = 0.0
    started: float = 0.0
    encoded: list[Encoded] = field(default_factory=list)
    logits: Floats | None = None
    #: Texts that still count as pending; reaches 0 once, by answer, failure or abandonment.
    pending: int = 0
    #: Set on the event loop when the caller has gone; read by the compute thread.
    abandoned: bool = False


@dataclass(eq=False, slots=True)
class _Text:
    """One text of a job that waits for its batch."""

    job: _Job
    position: int
    length: int


class Engine:
    """Serves the students of one language; an `understudy.api.Classifier`.

    Args:
        students: by task, all of one language.
        language: BCP-47 tag of that language.
    """

    def __init__(
        self,
        students: Mapping[str, StudentModel],
        *,
        language: str,
        limits: EngineLimits = EngineLimits(),
    ) -> None:
        self._students = dict(students)
        self._language = language
        self._limits = limits
        self._arrived: list[_Job] = []
        self._waiting: list[_Text] = []
        # Texts accepted and not yet answered or dropped; touched under the condition only.
        self._pending = 0
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def queued_texts(self) -> int:
        """Texts that are accepted and not yet answered."""
        return self._pending

    async def start(self) -> None:
        """Verify every student's golden inputs, which warms them up too, and begin to serve.

        Raises:
            BundleError: a student doesn't compute what its bundle says.
        """
        for student in self._students.values():
            await asyncio.to_thread(student.verify)
        self._thread = threading.Thread(target=self._compute, name="understudy-engine", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Answer what was accepted, then stop."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def models(self) -> Sequence[ModelInfo]:
        return [
            ModelInfo(
                task=task,
                languages=(student.info.language,),
                labels=student.info.labels,
                name=student.info.name,
                version=student.info.version,
                kind=student.info.kind,
                max_length=student.info.max_length,
            )
            for task, student in sorted(self._students.items())
        ]

    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        """Answer a checked request; see `understudy.api.Classifier`.

        Raises:
            NotFound: no student for the task, or another language is asked for.
            Overloaded: the queue is full.
            Timeout: the answer did not come within the limit.
        """
        model = self._student(request)
        loop = asyncio.get_running_loop()
        job = _Job(model, request, loop, loop.create_future(), time.perf_counter())
        with self._wake:
            self._admit(job)
            self._arrived.append(job)
            self._wake.notify()
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                return await job.future
        except TimeoutError:
            raise Timeout(
                f"no answer within {self._limits.timeout_seconds:g} s", retry_after=1.0
            ) from None
        finally:
            job.abandoned = True

    def _student(self, request: ClassifyRequest) -> StudentModel:
        model = self._students.get(request.task)
        if model is None:
            raise NotFound(
                f"no student for task {request.task!r} here",
                field="task",
                expected=f"one of: {', '.join(sorted(self._students))}",
            )
        if request.language is not None and not languages.lookup(
            request.language, [self._language]
        ):
            raise NotFound(
                f"this service speaks {self._language!r}, not {request.language!r}",
                field="language",
                expected=f"{self._language!r}, or the address of the other language's service",
            )
        return model

    def _admit(self, job: _Job) -> None:
        texts = len(job.request.texts)
        if self._closing:
            raise Overloaded("the service is shutting down", retry_after=1.0)
        # One request alone always gets in, or it could never be answered.
        if self._pending and self._pending + texts > self._limits.queue_texts:
            raise Overloaded(
                f"{self._pending:,} texts are waiting already",
                expected=f"a queue of at most {self._limits.queue_texts:,} texts",
                retry_after=1.0,
            )
        self._pending += texts
        job.pending = texts

    # --- on the compute thread ---

    def _compute(self) -> None:
        while True:
            with self._wake:
                while not (self._arrived or self._waiting or self._closing):
                    self._wake.wait()
                arrived, self._arrived = self._arrived, []
                if not arrived and not self._waiting:
                    return
            for job in arrived:
                self._guarded([job], self._tokenize, job)
            self._waiting = self._drop_abandoned(self._waiting)
            if self._waiting:
                batch = self._next_batch()
                self._guarded({text.job for text in batch}, self._infer, batch)

    def _guarded(self, jobs: Iterable[_Job], work: Callable[[_T], None], argument: _T) -> None:
        """A fault while computing fails the requests concerned, never the thread."""
        try:
            work(argument)
        except Exception as error:
            # Not the exception's message, which could hold a text.
            _log.error("the engine failed: %s", type(error).__name__)
            for job in jobs:
                self._fail(job, UnderstudyError("the engine failed to compute the answer"))

    def _tokenize(self, job: _Job) -> None:
        if job.abandoned:
            self._release(job, job.pending)
            return
        job.started = time.perf_counter()
        job.encoded = job.model.encode(job.request.texts)
        job.tokenize_seconds = time.perf_counter() - job.started
        job.logits = np.empty((job.pending, len(job.model.info.labels)), dtype=np.float32)
        self._waiting.extend(
            _Text(job, position, max(1, len(encoded.ids)))
            for position, encoded in enumerate(job.encoded)
        )

    def _drop_abandoned(self, texts: list[_Text]) -> list[_Text]:
        kept = [text for text in texts if not text.job.abandoned]
        for text in texts:
            if text.job.abandoned:
                self._release(text.job, 1)
        return kept

    def _next_batch(self) -> list[_Text]:
        """The oldest text and its nearest in length, removed from those that wait."""
        oldest = self._waiting[0]
        budget = oldest.job.model.info.batch_tokens
        candidates = [
            (abs(text.length - oldest.length), position)
            for position, text in enumerate(self._waiting[:_WINDOW])
            if text.job.model is oldest.job.model
        ]
        taken: list[int] = []
        longest = 0
        for _, position in heapq.nsmallest(self._limits.batch_texts, candidates):
            longest = max(longest, self._waiting[position].length)
            if taken and longest * (len(taken) + 1) > budget:
                break
            taken.append(position)
        batch = [self._waiting[position] for position in taken]
        for position in sorted(taken, reverse=True):
            del self._waiting[position]
        return batch

    def _infer(self, batch: list[_Text]) -> None:
        start = time.perf_counter()
        model = batch[0].job.model
        logits = model.logits([text.job.encoded[text.position] for text in batch])
        seconds = time.perf_counter() - start
        for row, text in zip(logits, batch, strict=True):
            assert text.job.logits is not None
            text.job.logits[text.position] = row
            self._release(text.job, 1)
        for job in {text.job for text in batch}:
            job.infer_seconds += seconds
            if job.pending == 0:
                self._guarded([job], self._answer, job)

    def _answer(self, job: _Job) -> None:
        assert job.logits is not None
        now = time.perf_counter()
        total = now - job.accepted
        response = ClassifyResponse(
            task=job.request.task,
            language=self._language,
            model=job.model.info.name,
            model_version=job.model.info.version,
            predictions=_predictions(job),
            timings=Timings(
                queue_ms=1e3 * max(0.0, total - job.tokenize_seconds - job.infer_seconds),
                tokenize_ms=1e3 * job.tokenize_seconds,
                infer_ms=1e3 * job.infer_seconds,
                total_ms=1e3 * total,
            ),
        )
        _settle(job, lambda: job.future.set_result(response))

    def _fail(self, job: _Job, error: UnderstudyError) -> None:
        self._waiting = [text for text in self._waiting if text.job is not job]
        self._release(job, job.pending)
        _settle(job, lambda: job.future.set_exception(error))

    def _release(self, job: _Job, texts: int) -> None:
        with self._wake:
            self._pending -= texts
            job.pending -= texts


def load_engine(
    bundles: Path, language: str, *, limits: EngineLimits = EngineLimits(), threads: int = 1
) -> Engine:
    """Load every student of one language below a directory.

    Raises:
        BundleError: there is none, a bundle is unusable, or two are for the same task.
    """
    tag = languages.canonical(language)
    students: dict[str, StudentModel] = {}
    places: dict[str, Path] = {}
    for path in find_bundles(bundles, tag):
        student = StudentModel.of_bundle(StudentBundle.open(path), threads=threads)
        task = student.info.task
        if task in students:
            raise BundleError(
                f"{path} and {places[task]} are both for task {task!r} in {tag!r}",
                expected="one bundle for each task",
            )
        students[task], places[task] = student, path
    if not students:
        there = sorted({read_info(path).language for path in find_bundles(bundles)})
        raise BundleError(
            f"{bundles} holds no student bundle of language {tag!r}",
            field="bundles",
            expected=f"one of the languages there: {', '.join(there)}"
            if there
            else f"bundles as 'understudy train --language {tag} --out DIR' leaves them",
        )
    return Engine(students, language=tag, limits=limits)


def _predictions(job: _Job) -> tuple[Prediction, ...]:
    assert job.logits is not None
    labels = job.model.info.labels
    probabilities = job.model.probabilities(job.logits)
    # Stable, so that of equal scores the first label wins, as argmax has it.
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : job.request.top_k]
    predictions = []
    for row, best, encoded in zip(probabilities, order, job.encoded, strict=True):
        scores = tuple(LabelScore(labels[i], float(row[i])) for i in best)
        predictions.append(
            Prediction(scores[0].label, scores[0].score, scores, truncated=encoded.truncated)
        )
    return tuple(predictions)


def _settle(job: _Job, settle: Callable[[], None]) -> None:
    def on_loop() -> None:
        if not job.future.done():
            settle()

    try:
        job.loop.call_soon_threadsafe(on_loop)
    except RuntimeError:
        # The loop has closed, and with it whoever waited for the answer.
        _log.info("an answer came after its event loop had closed")
