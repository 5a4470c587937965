"""Student against generator: the same texts to both services, and what the answers say.

The two are paired text by text, so McNemar's test applies. An invalid reply is wrong; the score
without the invalid ones stands beside it, since a student that beats a badly parsed language model
has won nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from understudy import statistics
from understudy.api import ClassifyResponse, Usage
from understudy.client import Client
from understudy.errors import (
    GeneratorUnavailable,
    NotReady,
    Overloaded,
    Timeout,
    UnderstudyError,
)
from understudy.sample import Sample
from understudy.statistics import Interval
from understudy.task import Task

#: Errors that may be gone a moment later.
_PASSING = (GeneratorUnavailable, NotReady, Overloaded, Timeout)
_ATTEMPTS = 4


@dataclass(frozen=True)
class Arm:
    """One side's answers and what they took.

    Attributes:
        macro_f1, accuracy: with invalid replies counted as wrong.
        macro_f1_valid, accuracy_valid: over the texts with a valid reply; None where there is none.
        p50_ms, p95_ms: latency of a request, as the caller sees it.
        usage: tokens and cost at the language model; None for a student.
    """

    url: str
    model: str
    model_version: str
    macro_f1: Interval
    accuracy: Interval
    macro_f1_valid: Interval | None
    accuracy_valid: Interval | None
    invalid_rate: float
    p50_ms: float
    p95_ms: float
    requests: int
    usage: Usage | None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Interval):
                found |= value.to_json(field.name)
            else:
                found[field.name] = asdict(value) if isinstance(value, Usage) else value
        return found


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        mcnemar_p: exact two-sided p-value of McNemar's test.
        student_only, generator_only: texts that only the one gets right.
        agreement: share of texts to which both give the same label.
    """

    task: str
    language: str
    n: int
    student: Arm
    generator: Arm
    mcnemar_p: float
    student_only: int
    generator_only: int
    agreement: float

    def to_json(self) -> dict[str, Any]:
        """Every figure; an interval stands beside its value, as ``…_interval``."""
        return asdict(self) | {
            "student": self.student.to_json(),
            "generator": self.generator.to_json(),
        }


async def compare(
    task: Task,
    language: str,
    samples: Sequence[Sample],
    *,
    student: str,
    generator: str,
    batch: int = 1,
    concurrency: int = 8,
    progress: Callable[[float], None] | None = None,
) -> Comparison:
    """Send the samples' texts to both services.

    Args:
        student, generator: their URLs, HTTP or gRPC.
        batch: texts in one request.
        concurrency: requests in flight at each.

    Raises:
        UnderstudyError: a service refuses or can't be reached.
    """
    answers = []
    for place, url in enumerate((student, generator)):

        def report(share: float, place: int = place) -> None:
            if progress:
                progress((place + share) / 2)

        answers.append(await _ask(url, task, language, samples, batch, concurrency, report))
    truth = [sample.label for sample in samples]
    labels = [[p.label for r in a.responses for p in r.predictions] for a in answers]
    right = [[guess == true for guess, true in zip(g, truth, strict=True)] for g in labels]
    pairs = list(zip(*right, strict=True))
    arms = [
        _arm(a, truth, guesses, task.label_names)
        for a, guesses in zip(answers, labels, strict=True)
    ]
    return Comparison(
        task=task.name,
        language=language,
        n=len(samples),
        student=arms[0],
        generator=arms[1],
        mcnemar_p=statistics.mcnemar_exact(*right),
        student_only=sum(a and not b for a, b in pairs),
        generator_only=sum(b and not a for a, b in pairs),
        agreement=float(np.mean([a is not None and a == b for a, b in zip(*labels, strict=True)])),
    )


@dataclass(frozen=True)
class _Answers:
    url: str
    responses: list[ClassifyResponse]
    latencies_ms: list[float]


async def _ask(
    url: str,
    task: Task,
    language: str,
    samples: Sequence[Sample],
    batch: int,
    concurrency: int,
    report: Callable[[float], None],
) -> _Answers:
    starts = range(0, len(samples), batch)
    responses: list[ClassifyResponse | None] = [None] * len(starts)
    latencies = [0.0] * len(starts)
    turn = iter(enumerate(starts))
    done = 0

    async def worker(client: Client) -> None:
        nonlocal done
        for place, start in turn:
            texts = [sample.text for sample in samples[start : start + batch]]
            begin = time.perf_counter()
            response = await _patiently(client, task.name, texts, language)
            latencies[place] = 1e3 * (time.perf_counter() - begin)
            _check(url, task, response, len(texts))
            responses[place] = response
            done += 1
            report(done / len(starts))

    async with Client(url) as client:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(starts))):
                    group.create_task(worker(client))
        except* UnderstudyError as errors:
            raise errors.exceptions[0] from None
    return _Answers(url, [r for r in responses if r is not None], latencies)


async def _patiently(
    client: Client, task: str, texts: Sequence[str], language: str
) -> ClassifyResponse:
    """Ask, and ask again where that may help: one refusal must not lose a long comparison."""
    for attempt in range(_ATTEMPTS - 1):
        try:
            return await client.classify(task, texts, language=language)
        except _PASSING as error:
            await asyncio.sleep(error.retry_after or 0.25 * 2**attempt)
    return await client.classify(task, texts, language=language)


def _check(url: str, task: Task, response: ClassifyResponse, asked: int) -> None:
    if len(response.predictions) != asked:
        raise UnderstudyError(
            f"{url} answered {len(response.predictions)} of {asked} texts",
            expected="a prediction for each text",
        )
    labels = {prediction.label for prediction in response.predictions} - {None}
    if strangers := sorted(str(label) for label in labels - set(task.label_names)):
        raise UnderstudyError(
            f"{url} answers {', '.join(map(repr, strangers))} for task {task.name!r}",
            expected="services that know the same task",
        )


def _arm(
    answers: _Answers, truth: Sequence[str], guesses: Sequence[str | None], labels: Sequence[str]
) -> Arm:
    matrix = statistics.confusion(truth, guesses, labels)
    valid = matrix.copy()
    valid[:, -1] = 0
    invalid = sum(guess is None for guess in guesses)
    answered = invalid < len(guesses)
    p50, p95 = np.quantile(answers.latencies_ms, [0.5, 0.95])
    return Arm(
        url=answers.url,
        model=answers.responses[0].model,
        model_version=answers.responses[0].model_version,
        macro_f1=statistics.bootstrap(matrix, statistics.macro_f1_of),
        accuracy=statistics.bootstrap(matrix, statistics.accuracy_of),
        macro_f1_valid=statistics.bootstrap(valid, statistics.macro_f1_of) if answered else None,
        accuracy_valid=statistics.bootstrap(valid, statistics.accuracy_of) if answered else None,
        invalid_rate=invalid / len(guesses),
        p50_ms=float(p50),
        p95_ms=float(p95),
        requests=len(answers.latencies_ms),
        usage=_sum([r.usage for r in answers.responses if r.usage is not None]),
    )


def _sum(usages: Sequence[Usage]) -> Usage | None:
    if not usages:
        return None
    costs = [usage.cost_usd for usage in usages]
    known = [cost for cost in costs if cost is not None]
    return Usage(
        calls=sum(usage.calls for usage in usages),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cost_usd=sum(known) if len(known) == len(costs) else None,
    )
