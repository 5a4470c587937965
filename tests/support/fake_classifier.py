"""A classifier that needs no model: what is tested is what stands around it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence

from understudy.api import (
    ClassifyRequest,
    ClassifyResponse,
    InvalidReplyInfo,
    LabelScore,
    ModelInfo,
    Prediction,
    Timings,
    Usage,
)
from understudy.errors import BundleError, NotFound, Overloaded

_log = logging.getLogger("fake")

LABELS = ("short", "long")


class FakeClassifier:
    """Labels a text by its length; a few tasks misbehave on purpose."""

    def __init__(self) -> None:
        self._tasks = ("topic", "hang", "wait", "boom", "full", "silent")

    def models(self) -> Sequence[ModelInfo]:
        return [
            ModelInfo(task, ("sw",), LABELS, f"fake-{task}", "1", "fake", 16)
            for task in self._tasks
        ]

    async def start(self) -> None:
        if os.environ.get("FAKE_BROKEN"):
            raise BundleError("golden input 0 differs", field="bundles", expected="the same logits")

    async def close(self) -> None:
        _log.info("closed")

    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        if request.task not in self._tasks:
            raise NotFound(
                f"no student for task {request.task!r} here",
                field="task",
                expected=f"one of: {', '.join(self._tasks)}",
            )
        if request.language not in (None, "sw"):
            raise NotFound(f"this service speaks 'sw', not {request.language!r}", field="language")
        match request.task:
            case "hang":
                await self._hang()
            case "wait":
                await asyncio.sleep(1.0)
            case "boom":
                raise ValueError(f"secret: {request.texts[0]}")
            case "full":
                raise Overloaded("the queue is full", retry_after=2.5)
        return ClassifyResponse(
            task=request.task,
            language="sw",
            model=f"fake-{request.task}",
            model_version="1",
            predictions=tuple(self._predict(request, text) for text in request.texts),
            timings=Timings(0.1, 0.2, 0.3, 0.6),
            usage=Usage(1, 20, 3, None) if request.task == "silent" else None,
        )

    async def _hang(self) -> None:
        _log.info("hanging")
        try:
            await asyncio.Event().wait()
        finally:
            _log.info("dropped")

    def _predict(self, request: ClassifyRequest, text: str) -> Prediction:
        if request.task == "silent":
            return Prediction(None, invalid_reply=InvalidReplyInfo("no_label", "I can't."))
        scores = [LabelScore("short", 1 / len(text)), LabelScore("long", 1 - 1 / len(text))]
        scores.sort(key=lambda score: -score.score)
        return Prediction(
            scores[0].label,
            scores[0].score,
            tuple(scores[: request.top_k]),
            truncated=len(text) > 16,
        )
