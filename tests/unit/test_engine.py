from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from tests.support.processes import wait_until
from training.train import TrainingPlan, train
from understudy.api import ClassifyRequest, ClassifyResponse
from understudy.bundle import MODEL, TOKENIZER, BundleInfo, Golden, StudentBundle, write_bundle
from understudy.engine import Engine, EngineLimits, load_engine
from understudy.errors import BundleError, NotFound, Overloaded, Timeout, UnderstudyError
from understudy.model import Encoded, Floats, StudentModel
from understudy.sample import Sample
from understudy.task import Task

_LONG = 30.0


class Gated:
    """Stands for a student: labels a text by its first digit, and computes only when it is let.

    Attributes:
        batches: the texts of each run, in order.
    """

    def __init__(self, *, budget: int = 1_000, is_open: bool = False) -> None:
        self.info = BundleInfo(
            task="digits",
            language="sw",
            labels=tuple("0123456789"),
            kind="fake",
            source="here",
            max_length=1_000,
            batch_tokens=budget,
            golden=(Golden("0", "0", (0.0,) * 10),),
        )
        self.batches: list[list[str]] = []
        self.fails: Callable[[list[str]], bool] = lambda texts: False
        self._open = is_open
        self._entered = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)

    def verify(self) -> None: ...

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        if any("unreadable" in text for text in texts):
            raise RuntimeError("secret")
        return [Encoded([ord(c) for c in text], text.endswith("…")) for text in texts]

    def logits(self, encoded: Sequence[Encoded]) -> Floats:
        texts = ["".join(chr(i) for i in e.ids) for e in encoded]
        self.batches.append(texts)
        self._entered.release()
        if not self._open:
            assert self._permits.acquire(timeout=_LONG)
        if self.fails(texts):
            raise RuntimeError(f"secret: {texts}")
        rows = np.zeros((len(texts), 10), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[int(text[0])] = 5.0
        return rows

    def probabilities(self, logits: Floats) -> Floats:
        exponentials = np.exp(logits)
        result: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
        return result

    async def entered(self) -> None:
        """Wait until another run has begun."""
        assert await asyncio.to_thread(self._entered.acquire, True, _LONG)

    def let(self, runs: int) -> None:
        self._permits.release(runs)

    def open(self) -> None:
        self._open = True
        self._permits.release(1_000)


@asynccontextmanager
async def serving(
    students: Mapping[str, Gated | StudentModel] | Gated, **limits: float
) -> AsyncIterator[Engine]:
    models = {"digits": students} if isinstance(students, Gated) else students
    engine = Engine(
        cast("Mapping[str, StudentModel]", models),
        language="sw",
        limits=EngineLimits(**limits),  # type: ignore[arg-type]
    )
    await engine.start()
    try:
        yield engine
    finally:
        for model in models.values():
            if isinstance(model, Gated):
                model.open()
        await engine.close()


def ask(engine: Engine, *texts: str, task: str = "digits") -> asyncio.Task[ClassifyResponse]:
    return asyncio.create_task(engine.classify(ClassifyRequest(task, texts)))


async def queued(engine: Engine, texts: int) -> None:
    """Wait until so many texts are pending, none of which is answered meanwhile."""
    await asyncio.to_thread(wait_until, lambda: engine.queued_texts == texts, f"{texts} pending")


async def test_predictions_come_in_the_order_of_the_texts_whatever_their_batches() -> None:
    model = Gated(budget=64, is_open=True)
    lengths = random.Random(1)
    texts = [f"{i % 10}" + "x" * lengths.randrange(40) for i in range(300)]
    async with serving(model) as engine:
        response = await engine.classify(ClassifyRequest("digits", tuple(texts)))
    assert [p.label for p in response.predictions] == [text[0] for text in texts]
    assert len(model.batches) > 10
    assert any(batch != sorted(batch, key=texts.index) for batch in model.batches)


@pytest.fixture(scope="module")
def rotated_bundle(
    tiny_task: Task, tiny_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> StudentBundle:
    """A student that has learnt every text under the next label."""
    names = tiny_task.label_names
    following = dict(zip(names, names[1:] + names[:1], strict=True))
    samples = [replace(sample, label=following[sample.label]) for sample in tiny_samples]
    place = tmp_path_factory.mktemp("rotated") / "rotated"
    return train(TrainingPlan(tiny_task, "en", samples), place)


async def test_two_thousand_concurrent_requests_get_the_answers_their_texts_get_alone(
    tiny_bundle: StudentBundle, rotated_bundle: StudentBundle, tiny_samples: list[Sample]
) -> None:
    def student(bundle: StudentBundle, temperature: float) -> StudentModel:
        return StudentModel(
            replace(bundle.info, temperature=temperature, batch_tokens=1_000),
            model=bundle.path / MODEL,
            tokenizer=(bundle.path / TOKENIZER).read_text(encoding="utf-8"),
        )

    students = {
        f"{name}-{temperature}": student(bundle, temperature)
        for name, bundle in (("tiny", tiny_bundle), ("rotated", rotated_bundle))
        for temperature in (0.5, 1.0, 3.0)
    }
    draw = random.Random(7)
    pool = [
        " ".join(draw.choice(tiny_samples).text for _ in range(draw.choice((1, 1, 2, 5))))[
            draw.randrange(10) :
        ]
        for _ in range(150)
    ]
    alone = {
        (task, text): model.probabilities(model.logits(model.encode([text])))[0]
        for task, model in students.items()
        for text in pool
    }
    requests = [
        ClassifyRequest(
            draw.choice(list(students)),
            tuple(draw.choices(pool, k=draw.choice((1, 1, 3)))),
            None,
            3,
        )
        for _ in range(2_000)
    ]
    async with serving(students, queue_texts=10_000) as engine:
        responses = await asyncio.gather(*(engine.classify(request) for request in requests))
        assert engine.queued_texts == 0
    for request, response in zip(requests, responses, strict=True):
        assert response.task == request.task
        labels = students[request.task].info.labels
        for text, prediction in zip(request.texts, response.predictions, strict=True):
            expected = alone[request.task, text]
            assert prediction.label == labels[int(expected.argmax())]
            scores = {score.label: score.score for score in prediction.scores}
            np.testing.assert_allclose([scores[x] for x in labels], expected, atol=1e-5)
    assert len({response.request_id for response in responses}) == 2_000


async def test_past_the_bound_a_request_is_refused_at_once_and_later_served() -> None:
    model = Gated()
    async with serving(model, queue_texts=3) as engine:
        first = ask(engine, "1")
        await model.entered()
        second = ask(engine, "2", "3")
        await queued(engine, 3)
        with pytest.raises(Overloaded) as refused:
            await engine.classify(ClassifyRequest("digits", ("4",)))
        assert refused.value.retry_after is not None
        assert refused.value.retry_after > 0
        assert engine.queued_texts == 3
        model.open()
        assert [p.label for p in (await second).predictions] == ["2", "3"]
        assert (await first).predictions[0].label == "1"
        assert (await ask(engine, "4")).predictions[0].label == "4"
        assert engine.queued_texts == 0


async def test_a_request_larger_than_the_queue_is_served_when_nothing_waits() -> None:
    async with serving(Gated(is_open=True), queue_texts=3) as engine:
        assert len((await ask(engine, *"123456")).predictions) == 6


async def test_a_cancelled_request_is_dropped_before_its_turn() -> None:
    model = Gated()
    async with serving(model) as engine:
        first = ask(engine, "1")
        await model.entered()
        gone, kept = ask(engine, *"2222"), ask(engine, "3")
        await queued(engine, 6)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        model.open()
        assert (await first).predictions[0].label == "1"
        assert (await kept).predictions[0].label == "3"
        await queued(engine, 0)
    assert model.batches == [["1"], ["3"]]


async def test_a_request_cancelled_half_done_leaves_the_other_half_undone() -> None:
    model = Gated(budget=2)
    async with serving(model) as engine:
        gone = ask(engine, *"22222")
        await model.entered()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        model.open()
        await queued(engine, 0)
        assert (await ask(engine, "3")).predictions[0].label == "3"
    assert model.batches == [["2", "2"], ["3"]]


async def test_an_answer_that_comes_too_late_is_a_timeout_and_the_next_one_works() -> None:
    model = Gated()
    async with serving(model, timeout_seconds=0.05) as engine:
        with pytest.raises(Timeout, match=r"no answer within 0\.05 s"):
            await engine.classify(ClassifyRequest("digits", ("1", "2")))
        model.open()
        await queued(engine, 0)
        assert (await ask(engine, "3")).predictions[0].label == "3"


async def test_an_unknown_task_is_not_found_and_the_known_ones_are_named() -> None:
    async with serving({"b": Gated(is_open=True), "a": Gated(is_open=True)}) as engine:
        with pytest.raises(NotFound) as refused:
            await engine.classify(ClassifyRequest("c", ("1",)))
    assert (refused.value.field, refused.value.expected) == ("task", "one of: a, b")
    assert engine.queued_texts == 0


async def test_another_language_is_not_found_but_a_region_of_its_own_is() -> None:
    async with serving(Gated(is_open=True)) as engine:
        for language in (None, "sw", "sw-KE"):
            response = await engine.classify(ClassifyRequest("digits", ("1",), language))
            assert response.language == "sw"
        for language in ("cy", "swb"):
            with pytest.raises(NotFound) as refused:
                await engine.classify(ClassifyRequest("digits", ("1",), language))
            assert refused.value.field == "language"


@pytest.mark.parametrize(
    "texts", [("1 bad", "2 bad"), ("1 bad", "2 xxx"), ("1", "2 bad"), ("1", "2 unreadable")]
)
async def test_a_model_that_fails_fails_its_request_alone_and_keeps_the_secret(
    texts: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    model = Gated(budget=5)
    model.fails = lambda batch: any("bad" in text for text in batch)
    async with serving(model) as engine:
        first = ask(engine, "1")
        await model.entered()
        failing, other = ask(engine, *texts), ask(engine, "3")
        await queued(engine, 2 + len(texts))
        model.open()
        with pytest.raises(UnderstudyError) as failed:
            await failing
        assert type(failed.value) is UnderstudyError
        assert "secret" not in str(failed.value)
        assert [(await job).predictions[0].label for job in (first, other)] == ["1", "3"]
        assert (await ask(engine, "4", "5")).predictions[1].label == "5"
        assert engine.queued_texts == 0
    assert "the engine failed" in caplog.text
    assert "secret" not in caplog.text


async def test_closing_answers_what_was_accepted_and_refuses_what_comes_after() -> None:
    model = Gated(budget=2)
    async with serving(model) as engine:
        jobs = [ask(engine, "1")]
        await model.entered()
        jobs += [ask(engine, str(i), str(i + 1)) for i in range(2, 8)]
        await queued(engine, 13)
        closing = asyncio.create_task(engine.close())
        # Once a newcomer is refused, the closing has begun.
        await asyncio.to_thread(wait_until, lambda: engine._closing, "closing")
        with pytest.raises(Overloaded, match="shutting down"):
            await engine.classify(ClassifyRequest("digits", ("9",)))
        assert not closing.done()
        model.open()
        responses = await asyncio.gather(*jobs)
        await closing
    assert [r.predictions[0].label for r in responses] == list("1234567")
    assert engine.queued_texts == 0


async def test_the_oldest_text_is_in_the_next_batch_and_batches_keep_to_their_budget() -> None:
    model = Gated(budget=60)
    draw = random.Random(3)
    texts = [f"{i:03}" + "x" * draw.choice((0, 1, 2, 10, 20, 56, 80)) for i in range(200)]
    async with serving(model, batch_texts=12) as engine:
        first = ask(engine, "0")
        await model.entered()
        jobs = [ask(engine, text) for text in texts]
        await queued(engine, 201)
        model.open()
        await asyncio.gather(first, *jobs)
    waiting = list(texts)
    for batch in model.batches[1:]:
        assert waiting[0] in batch
        assert len(batch) <= 12
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= 60
        waiting = [text for text in waiting if text not in batch]
    assert waiting == []
    assert max(len(batch) for batch in model.batches) == 12
    assert len(model.batches) < 120


async def test_a_long_text_is_not_starved_by_short_ones_that_keep_coming() -> None:
    model = Gated(budget=20)
    async with serving(model) as engine:
        jobs = [ask(engine, "0")]
        await model.entered()
        jobs.append(ask(engine, "1" + "x" * 50))
        await queued(engine, 2)
        for _ in range(3):
            before = engine.queued_texts
            jobs += [ask(engine, "2") for _ in range(30)]
            await queued(engine, before + 30)
        model.let(1)
        await model.entered()
        assert model.batches[1] == ["1" + "x" * 50]
        model.open()
        await asyncio.gather(*jobs)


async def test_a_batch_holds_one_student_s_texts_only() -> None:
    students = {"a": Gated(), "b": Gated()}
    async with serving(students) as engine:
        first = ask(engine, "0", task="a")
        await students["a"].entered()
        jobs = [ask(engine, text, task="ab"[int(text) % 2]) for text in "123456"]
        await queued(engine, 7)
        for model in students.values():
            model.open()
        await asyncio.gather(first, *jobs)
    assert students["a"].batches == [["0"], ["2", "4", "6"]]
    assert students["b"].batches == [["1", "3", "5"]]


async def test_what_gathers_while_the_engine_computes_goes_in_one_batch() -> None:
    model = Gated()
    async with serving(model) as engine:
        jobs = [ask(engine, "0")]
        await model.entered()
        jobs += [ask(engine, text) for text in "12345"]
        await queued(engine, 6)
        model.open()
        await asyncio.gather(*jobs)
    assert [sorted(batch) for batch in model.batches] == [["0"], ["1", "2", "3", "4", "5"]]


async def test_top_k_gives_the_best_labels_first_and_never_more_than_there_are() -> None:
    async with serving(Gated(is_open=True)) as engine:
        for top_k, count in ((1, 1), (3, 3), (99, 10)):
            response = await engine.classify(ClassifyRequest("digits", ("7",), None, top_k))
            (prediction,) = response.predictions
            scores = [score.score for score in prediction.scores]
            assert len(scores) == count
            assert scores == sorted(scores, reverse=True)
            assert prediction.label == prediction.scores[0].label == "7"
            assert prediction.score == scores[0]
        assert sum(scores) == pytest.approx(1.0)
        # Of equal scores the first label wins, as argmax has it.
        assert [score.label for score in prediction.scores[1:]] == list("012345689")


async def test_a_cut_text_is_flagged_and_the_timings_add_up() -> None:
    async with serving(Gated(is_open=True)) as engine:
        response = await ask(engine, "1", "2…", "3")
    assert [p.truncated for p in response.predictions] == [False, True, False]
    t = response.timings
    assert min(t.queue_ms, t.tokenize_ms, t.infer_ms) >= 0
    assert t.queue_ms + t.tokenize_ms + t.infer_ms == pytest.approx(t.total_ms, rel=1e-6)
    assert t.total_ms > 0


async def test_a_student_that_computes_something_else_keeps_the_engine_from_starting(
    tiny_bundle: StudentBundle,
) -> None:
    info = replace(tiny_bundle.info, labels=tiny_bundle.info.labels[::-1])
    model = StudentModel(
        info,
        model=tiny_bundle.path / MODEL,
        tokenizer=(tiny_bundle.path / TOKENIZER).read_text(encoding="utf-8"),
    )
    with pytest.raises(BundleError, match="golden input"):
        await Engine({"tiny": model}, language="en").start()


def copy(bundle: StudentBundle, place: Path, language: str) -> None:
    write_bundle(
        place,
        replace(bundle.info, language=language),
        model=(bundle.path / MODEL).read_bytes(),
        tokenizer=(bundle.path / TOKENIZER).read_text(encoding="utf-8"),
    )


async def test_the_students_of_one_language_are_loaded_and_listed(
    tiny_bundle: StudentBundle, tmp_path: Path
) -> None:
    copy(tiny_bundle, tmp_path / "sw" / "tiny", "sw")
    copy(tiny_bundle, tmp_path / "cy" / "tiny", "cy")
    engine = load_engine(tmp_path, "SW")
    await engine.start()
    (model,) = engine.models()
    response = await engine.classify(ClassifyRequest("tiny", ("The soup tastes salty.",)))
    await engine.close()
    assert (model.task, model.languages, model.labels) == (
        "tiny",
        ("sw",),
        tiny_bundle.info.labels,
    )
    assert (response.language, response.model) == ("sw", "ngram-tiny-sw")
    assert response.model_version == model.version
    assert response.predictions[0].label == "food"


def test_a_folder_without_the_language_says_which_it_has_or_how_to_get_them(
    tiny_bundle: StudentBundle, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="understudy train --language sw --out DIR"):
        load_engine(tmp_path, "sw")
    copy(tiny_bundle, tmp_path / "cy" / "tiny", "cy")
    with pytest.raises(BundleError, match="one of the languages there: cy"):
        load_engine(tmp_path, "sw")


def test_two_bundles_for_one_task_are_refused_and_both_named(
    tiny_bundle: StudentBundle, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        copy(tiny_bundle, tmp_path / name, "en")
    with pytest.raises(BundleError) as refused:
        load_engine(tmp_path, "en")
    assert str(tmp_path / "one") in refused.value.detail
    assert str(tmp_path / "two") in refused.value.detail
