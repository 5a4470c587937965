"""Prometheus metrics of the transports.

The labels are fixed: role, task, language, transport, outcome. A task or a language that no model
serves is counted as ``unknown``, so that no caller can add a time series.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from understudy.api import ClassifyRequest, ClassifyResponse, ModelInfo

CONTENT_TYPE = CONTENT_TYPE_LATEST
UNKNOWN = "unknown"

# A creation time beside every counter would double their number.
disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it so

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WHERE = ("role", "task", "language")


class Metrics:
    """Counts what one process answers.

    Args:
        role: ``student`` or ``generator``.
    """

    def __init__(self, role: str) -> None:
        self._role = role
        self._tasks: frozenset[str] = frozenset()
        self._languages: frozenset[str] = frozenset()
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "understudy_requests",
            "Classify requests answered; a stream's messages count one each.",
            (*_WHERE, "transport", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "understudy_request_seconds",
            "Time from a classify request's arrival to its answer.",
            (*_WHERE, "transport"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._phases = {
            phase: Histogram(
                f"understudy_{phase}_seconds", text, _WHERE, buckets=_SECONDS, registry=registry
            )
            for phase, text in (
                ("queue", "Time of a request spent waiting for its turn."),
                ("tokenize", "Time of a request spent turning texts into tokens."),
                ("infer", "Time of a request spent computing, or waiting for the generator."),
            )
        }
        self._totals = {
            name: Counter(f"understudy_{name}", text, _WHERE, registry=registry)
            for name, text in (
                ("texts", "Texts classified."),
                ("truncated_texts", "Texts that were longer than the model reads."),
                ("invalid_replies", "Replies of the generator that name no label or several."),
                ("generator_calls", "Calls to the language model."),
                ("generator_prompt_tokens", "Tokens sent to the language model."),
                ("generator_completion_tokens", "Tokens that the language model wrote."),
                ("generator_cost_dollars", "US dollars paid for the language model."),
            )
        }
        self._in_flight = Gauge(
            "understudy_requests_in_flight",
            "Classify requests being answered.",
            ("role", "transport"),
            registry=registry,
        )
        self._ready = Gauge(
            "understudy_ready",
            "1 while the process takes requests.",
            ("role",),
            registry=registry,
        )
        self.ready(False)

    def know(self, models: Sequence[ModelInfo]) -> None:
        """Name the tasks and languages that may become labels."""
        self._tasks = frozenset(model.task for model in models)
        self._languages = frozenset(tag for model in models for tag in model.languages)

    def ready(self, ready: bool) -> None:
        self._ready.labels(self._role).set(ready)

    def began(self, transport: str) -> None:
        self._in_flight.labels(self._role, transport).inc()

    def ended(
        self,
        transport: str,
        outcome: str,
        seconds: float,
        request: ClassifyRequest | None,
        response: ClassifyResponse | None,
    ) -> None:
        """Count one request that `began`; `request` is None where it could not be read."""
        self._in_flight.labels(self._role, transport).dec()
        language = response.language if response else request.language if request else None
        if language is None and len(self._languages) == 1:
            (language,) = self._languages
        task = request.task if request else UNKNOWN
        where = (
            self._role,
            task if task in self._tasks else UNKNOWN,
            language if language in self._languages else UNKNOWN,
        )
        self._requests.labels(*where, transport, outcome).inc()
        self._seconds.labels(*where, transport).observe(seconds)
        if response is not None:
            self._answered(where, response)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def _answered(self, where: tuple[str, ...], response: ClassifyResponse) -> None:
        timings = response.timings
        self._phases["queue"].labels(*where).observe(timings.queue_ms / 1e3)
        self._phases["tokenize"].labels(*where).observe(timings.tokenize_ms / 1e3)
        self._phases["infer"].labels(*where).observe(timings.infer_ms / 1e3)
        predictions = response.predictions
        self._add("texts", where, len(predictions))
        self._add("truncated_texts", where, sum(p.truncated for p in predictions))
        if (usage := response.usage) is not None:
            invalid = sum(p.invalid_reply is not None for p in predictions)
            self._add("invalid_replies", where, invalid)
            self._add("generator_calls", where, usage.calls)
            self._add("generator_prompt_tokens", where, usage.prompt_tokens)
            self._add("generator_completion_tokens", where, usage.completion_tokens)
            self._add("generator_cost_dollars", where, usage.cost_usd or 0.0)

    def _add(self, name: str, where: tuple[str, ...], amount: float) -> None:
        if amount:
            self._totals[name].labels(*where).inc(amount)
