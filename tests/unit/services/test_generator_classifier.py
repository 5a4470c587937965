from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.generator import GeneratorClassifier, build_generator
from tests.support.fake_openai import (
    Behaviour,
    Chat,
    FakeOpenAI,
    Hang,
    Say,
    Script,
    Status,
    label,
)
from understudy.api import ClassifyRequest, InvalidReplyInfo, Prediction
from understudy.errors import (
    GeneratorUnavailable,
    InvalidInput,
    InvalidReply,
    NotFound,
    Overloaded,
    Timeout,
)
from understudy.prompts import Message
from understudy.recording import (
    Exchange,
    Recorder,
    Replay,
)
from understudy.task import load_tasks
from understudy.teacher import (
    ChatReply,
    Teacher,
)
from understudy.teacher_settings import (
    Prices,
)

TASKS = load_tasks()


def request(*texts: str, task: str = "topic", language: str | None = "sw") -> ClassifyRequest:
    return ClassifyRequest(task=task, texts=texts, language=language)


def by_text(**behaviours: Behaviour) -> Script:
    """Answers each text by the word that it holds."""

    def answer(chat: Chat) -> Behaviour:
        text = chat.user.split("\n")[-2]
        return next(behaviour for word, behaviour in behaviours.items() if word in text)

    return answer


class InstantTeacher:
    """A teacher without a network."""

    def __init__(self, *replies: str) -> None:
        self.replies = list(replies)
        self.closed = False

    async def chat(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None
    ) -> ChatReply:
        return ChatReply(self.replies.pop(0), "instant", 1_000_000, 100_000)

    async def aclose(self) -> None:
        self.closed = True


class StuckTeacher(InstantTeacher):
    """A teacher that answers once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.let = asyncio.Event()

    async def chat(
        self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None
    ) -> ChatReply:
        self.asked.set()
        await self.let.wait()
        return ChatReply("health", "stuck")


# --- Answers of a language model ---


async def test_each_text_gets_its_own_answer_in_order() -> None:
    script = by_text(afya=label("health"), safari=label("travel"), mpira=Say("It is about sports."))
    with FakeOpenAI(script) as server:
        generator = build_generator(environ=server.environ())
        response = await generator.classify(request("mpira", "afya", "safari", "afya tena"))
        await generator.close()
    assert response.predictions == tuple(
        Prediction(name) for name in ("sports", "health", "travel", "health")
    )
    assert (response.task, response.language, response.model) == ("topic", "sw", "fake-model")
    assert response.usage is not None
    assert (response.usage.calls, response.usage.prompt_tokens) == (4, 400)
    assert response.usage.cost_usd is None
    timings = response.timings
    assert timings.total_ms >= timings.infer_ms > 0


async def test_every_task_is_answered() -> None:
    for task in TASKS.values():
        generator = GeneratorClassifier(TASKS, InstantTeacher(task.label_names[-1]), model="m")
        response = await generator.classify(request("t", task=task.name, language="en"))
        assert response.predictions[0].label == task.label_names[-1]


async def test_invalid_replies_are_answers_and_counted() -> None:
    generator = GeneratorClassifier(
        TASKS,
        InstantTeacher("no idea", "health and travel", "", "health"),
        model="m",
    )
    response = await generator.classify(request("a", "b", "c", "d"))
    assert response.predictions == (
        Prediction(None, invalid_reply=InvalidReplyInfo("no_label", "no idea")),
        Prediction(None, invalid_reply=InvalidReplyInfo("several_labels", "health and travel")),
        Prediction(None, invalid_reply=InvalidReplyInfo("no_label", "")),
        Prediction("health"),
    )
    assert generator.invalid_replies == {
        ("topic", "sw", "no_label"): 2,
        ("topic", "sw", "several_labels"): 1,
    }


async def test_a_reply_cut_short_counts_only_if_it_is_whole() -> None:
    script = by_text(
        prose=Say("It is about health", finish_reason="length"),
        whole=Say('{"label": "health"}', finish_reason="length"),
    )
    with FakeOpenAI(script) as server:
        generator = build_generator(environ=server.environ())
        response = await generator.classify(request("prose", "whole"))
        await generator.close()
    assert [p.label for p in response.predictions] == [None, "health"]


async def test_labels_are_offered_in_an_order_of_the_texts_own() -> None:
    def orders(server: FakeOpenAI) -> dict[str, list[str]]:
        return {
            chat.user: chat.body["response_format"]["json_schema"]["schema"]["properties"]["label"][
                "enum"
            ]
            for chat in server.chats
        }

    texts = [f"text {i}" for i in range(8)]
    seen = []
    for given, seed in ((texts, "0"), (texts[::-1], "0"), (texts, "1")):
        with FakeOpenAI(label("health")) as server:
            generator = build_generator(environ=server.environ(SEED=seed))
            await generator.classify(request(*given))
            await generator.close()
        seen.append(orders(server))
    first, reversed_, other_seed = seen
    assert first == reversed_
    assert first != other_seed
    assert len({tuple(order) for order in first.values()}) > 1


async def test_a_region_finds_its_language_and_no_language_is_named_none() -> None:
    with FakeOpenAI(label("health")) as server:
        generator = build_generator(environ=server.environ())
        swahili = await generator.classify(request("t", language="sw-KE"))
        unnamed = await generator.classify(request("t", language=None))
        await generator.close()
    assert swahili.language == "sw"
    assert unnamed.language is None
    assert "BCP-47 tag: sw\n" in server.chats[0].user
    assert "BCP-47" not in server.chats[1].user


async def test_unknown_tasks_and_languages_are_not_found() -> None:
    generator = GeneratorClassifier(TASKS, InstantTeacher(), model="m")
    with pytest.raises(NotFound) as caught:
        await generator.classify(request("t", task="topics"))
    assert caught.value.field == "task"
    with pytest.raises(NotFound) as caught:
        await generator.classify(request("t", language="fr"))
    assert caught.value.field == "language"
    with pytest.raises(NotFound):
        await generator.classify(request("t", task="sarcasm", language="sw"))


async def test_cost_is_known_where_prices_and_tokens_are() -> None:
    priced = GeneratorClassifier(
        TASKS, InstantTeacher("health", "travel"), model="m", prices=Prices(2.0, 10.0)
    )
    response = await priced.classify(request("a", "b"))
    assert response.usage is not None
    assert response.usage.cost_usd == pytest.approx(2 * (2.0 + 1.0))
    with FakeOpenAI(Say("health", usage=None)) as server:
        generator = build_generator(environ=server.environ(PRICE_INPUT="1", PRICE_OUTPUT="1"))
        silent = await generator.classify(request("a"))
        await generator.close()
    assert silent.usage is not None
    assert silent.usage.cost_usd is None


# --- Faults ---


async def test_one_failure_drops_the_siblings_and_names_its_text() -> None:
    with FakeOpenAI(by_text(slow=Hang(), bad=Status(401))) as server:
        generator = build_generator(environ=server.environ())
        with pytest.raises(GeneratorUnavailable) as caught:
            await generator.classify(request("slow", "bad", "slow"))
        assert server.dropped.wait(timeout=30)
        await generator.close()
    assert caught.value.field == "texts[1]"


async def test_the_request_has_a_deadline_and_its_work_is_dropped() -> None:
    with FakeOpenAI(Hang()) as server:
        generator = build_generator(environ=server.environ(DEADLINE="0.2"))
        with pytest.raises(Timeout, match="UNDERSTUDY_GENERATOR_DEADLINE"):
            await generator.classify(request("t"))
        await generator.close()


async def test_a_caller_that_leaves_takes_its_work_along() -> None:
    with FakeOpenAI(Hang()) as server:
        generator = build_generator(environ=server.environ())
        call = asyncio.create_task(generator.classify(request("t")))
        assert await asyncio.to_thread(server.asked.wait, 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert server.dropped.wait(timeout=30)
        await generator.close()


async def test_past_its_queue_a_request_is_refused_at_once() -> None:
    teacher = StuckTeacher()
    generator = GeneratorClassifier(TASKS, teacher, model="m", queue_texts=3)
    first = asyncio.create_task(generator.classify(request("a", "b")))
    await teacher.asked.wait()
    with pytest.raises(Overloaded) as caught:
        await generator.classify(request("c", "d"))
    assert caught.value.retry_after
    teacher.let.set()
    await first
    response = await generator.classify(request("c", "d", "e"))
    assert len(response.predictions) == 3


async def test_something_that_is_no_completion_is_an_error() -> None:
    with FakeOpenAI(by_text(t=Say("health"))) as server:
        environ = server.environ()
        environ["UNDERSTUDY_GENERATOR_BASE_URL"] = server.base_url.replace("/v1", "/v2")
        generator = build_generator(environ=environ)
        with pytest.raises(GeneratorUnavailable, match="HTTP 404"):
            await generator.classify(request("t"))
        await generator.close()

    class BrokenTeacher(InstantTeacher):
        async def chat(
            self, messages: Sequence[Message], *, schema: Mapping[str, Any] | None = None
        ) -> ChatReply:
            raise InvalidReply("no completion")

    with pytest.raises(InvalidReply) as caught:
        await GeneratorClassifier(TASKS, BrokenTeacher(), model="m").classify(request("t"))
    assert caught.value.field == "texts[0]"


# --- Recording and replaying ---


async def test_a_recording_replays_the_same_answers(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    script = by_text(
        a=label("health"),
        b=Say("no idea"),
        c=Say("health", finish_reason="length"),
        d=Say("health and travel"),
    )
    texts = ("a", "b", "c", "d")
    prices = {"PRICE_INPUT": "1", "PRICE_OUTPUT": "2"}
    with FakeOpenAI(script) as server:
        live = build_generator(record=path, environ=server.environ(**prices))
        named = await live.classify(request(*texts))
        unnamed = await live.classify(request("a", language=None))
        await live.close()
        # The endpoint is set, yet recordings are what is asked for.
        replaying = build_generator(replay=[path], environ=server.environ(**prices))
        replayed = await replaying.classify(request(*texts))
        assert (await replaying.classify(request("a", language=None))).predictions == (
            unnamed.predictions
        )
    assert replayed.predictions == named.predictions
    assert replayed.usage == named.usage
    assert len(server.chats) == 5
    assert replayed.model == "replay"
    assert replayed.model_version != named.model_version
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sorted(rows[0]["labels"]) == sorted(TASKS["topic"].label_names)
    assert all(row["structured"] for row in rows)


async def test_what_was_never_recorded_is_not_found_by_its_place(tmp_path: Path) -> None:
    replay = Replay([Exchange("topic", "sw", "known", "health")])
    generator = GeneratorClassifier(TASKS, replay, model="replay")
    with pytest.raises(NotFound, match="--record") as caught:
        await generator.classify(request("known", "private words", "others"))
    assert caught.value.field == "texts[1]"
    assert "private words" not in str(caught.value)


async def test_a_recording_survives_its_caller(tmp_path: Path) -> None:
    """What was paid for is kept, even where the caller leaves while the disk writes."""
    path = tmp_path / "recording.jsonl"
    writing, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class SlowRecorder(Recorder):
        def record(self, exchange: Exchange) -> None:
            loop.call_soon_threadsafe(writing.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            super().record(exchange)

    generator = GeneratorClassifier(
        TASKS, InstantTeacher("health"), model="m", recorder=SlowRecorder(path)
    )
    call = asyncio.create_task(generator.classify(request("t")))
    await writing.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    go_on.set()
    await generator.close()
    assert Replay.load(path).find("topic", "sw", "t").reply == "health"


async def test_a_host_starts_and_closes_it(tmp_path: Path) -> None:
    path, teacher = tmp_path / "recording.jsonl", InstantTeacher("health")
    generator = GeneratorClassifier(TASKS, teacher, model="m", recorder=Recorder(path))
    await generator.start()
    await generator.classify(request("t"))
    await generator.close()
    assert teacher.closed
    Recorder(path).close()


async def test_the_bundled_recordings_are_the_default() -> None:
    generator = build_generator(environ={})
    response = await generator.classify(
        request("what's my morning alarm set to", task="intent", language="en")
    )
    assert response.predictions == (Prediction("alarm_query"),)
    assert response.model == "replay"
    await generator.close()


def test_models_are_one_for_each_task() -> None:
    models = build_generator(environ={}).models()
    assert [model.task for model in models] == list(TASKS)
    for model in models:
        assert model.labels == TASKS[model.task].label_names
        assert model.languages == TASKS[model.task].languages
        assert (model.kind, model.name) == ("generator", "replay")
        assert len(model.version) == 12


def test_the_version_tells_models_and_recordings_apart() -> None:
    def version(source: Teacher | Replay, model: str) -> str:
        return GeneratorClassifier(TASKS, source, model=model).version

    assert version(InstantTeacher(), "m") == version(InstantTeacher(), "m")
    versions = {
        version(InstantTeacher(), "m"),
        version(InstantTeacher(), "n"),
        version(Replay([], digest="1"), "m"),
        version(Replay([], digest="2"), "m"),
    }
    assert len(versions) == 4


def test_replaying_and_recording_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--replay or --record"):
        build_generator(replay=[tmp_path / "a"], record=tmp_path / "b", environ={})


def test_recording_needs_an_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    with pytest.raises(InvalidInput, match="BASE_URL is not set"):
        build_generator(record=path, environ={})
    assert not path.exists()


def test_an_endpoint_needs_a_model() -> None:
    with pytest.raises(InvalidInput, match="MODEL is not set"):
        build_generator(environ={"UNDERSTUDY_GENERATOR_BASE_URL": "http://127.0.0.1:1/v1"})


def test_a_model_without_an_endpoint_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    build_generator(environ={"UNDERSTUDY_GENERATOR_MODEL": "a-model"})
    assert "UNDERSTUDY_GENERATOR_BASE_URL is not" in caplog.text
