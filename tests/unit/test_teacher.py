from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fake_openai import (
    Disconnect,
    FakeOpenAI,
    Hang,
    Raw,
    Say,
    Script,
    Status,
    Together,
    label,
    refuses_schema,
)
from understudy.environment import described
from understudy.errors import (
    GeneratorUnavailable,
    InvalidInput,
    InvalidReply,
    NotFound,
    Overloaded,
    Timeout,
    UnderstudyError,
)
from understudy.prompts import Message, reply_schema
from understudy.recording import (
    Exchange,
    Recorder,
    Replay,
)
from understudy.teacher import (
    ChatReply,
    OpenAITeacher,
)
from understudy.teacher_settings import (
    Prices,
    TeacherSettings,
)

SECRET = "sk-not-to-be-seen"
PRIVATE = "A text that nobody else may read."
MESSAGES: list[Message] = [
    {"role": "system", "content": "Classify."},
    {"role": "user", "content": PRIVATE},
]
SCHEMA = reply_schema(["health", "travel"])
NOW = {"Retry-After": "0.01"}


async def ask(server: FakeOpenAI, *, count: int = 1, **settings: str) -> list[ChatReply]:
    teacher = OpenAITeacher(TeacherSettings.from_environment(server.environ(**settings)))
    try:
        return [await teacher.chat(MESSAGES, schema=SCHEMA) for _ in range(count)]
    finally:
        await teacher.aclose()


# --- Settings ---


@pytest.mark.parametrize("missing", ["BASE_URL", "MODEL"])
def test_a_missing_variable_is_named_with_its_alternative(missing: str) -> None:
    environ = {
        "UNDERSTUDY_GENERATOR_BASE_URL": "http://127.0.0.1:8000/v1",
        "UNDERSTUDY_GENERATOR_MODEL": "a-model",
    }
    del environ[f"UNDERSTUDY_GENERATOR_{missing}"]
    with pytest.raises(InvalidInput, match=f"UNDERSTUDY_GENERATOR_{missing} is not set") as caught:
        TeacherSettings.from_environment(environ)
    assert "--replay" in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BASE_URL", "127.0.0.1:8000"),
        ("TIMEOUT", "soon"),
        ("TIMEOUT", "0"),
        ("TIMEOUT", "inf"),
        ("TIMEOUT", "nan"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "1.5"),
        ("MAX_RETRIES", "-1"),
        ("STRUCTURED", "yes"),
        ("TEMPERATURE", "-1"),
        ("PRICE_INPUT", "free"),
    ],
)
def test_a_value_that_can_not_be_right_is_refused_by_its_name(variable: str, value: str) -> None:
    with FakeOpenAI(Say("")) as server, pytest.raises(InvalidInput) as caught:
        TeacherSettings.from_environment(server.environ(**{variable: value}))
    assert caught.value.field == f"UNDERSTUDY_GENERATOR_{variable}"
    assert caught.value.expected


def test_an_empty_variable_leaves_the_default() -> None:
    settings = TeacherSettings.from_environment(
        {
            "UNDERSTUDY_GENERATOR_BASE_URL": "http://127.0.0.1:8000/v1",
            "UNDERSTUDY_GENERATOR_MODEL": "a-model",
            "UNDERSTUDY_GENERATOR_API_KEY": "",
            "UNDERSTUDY_GENERATOR_TIMEOUT": " ",
        }
    )
    assert settings.api_key is None
    assert settings.timeout == TeacherSettings().timeout


def test_the_key_has_no_representation() -> None:
    settings = TeacherSettings(api_key=SECRET)
    assert SECRET not in repr(settings)


def test_every_setting_is_documented() -> None:
    assert all(
        variable.startswith("UNDERSTUDY_GENERATOR_") and doc
        for variable, _, doc in described(TeacherSettings)
    )


def test_prices_are_per_million_tokens_and_need_both() -> None:
    assert Prices(2.0, 10.0).cost(500_000, 100_000) == pytest.approx(2.0)
    assert TeacherSettings(price_input=1.0).prices is None
    assert TeacherSettings(price_input=1.0, price_output=2.0).prices == Prices(1.0, 2.0)


# --- Chat ---


async def test_a_chat_is_answered_and_measured() -> None:
    with FakeOpenAI(label("health")) as server:
        (reply,) = await ask(server)
    assert reply.text == '{"label": "health"}'
    assert reply.model == "fake-model-2026"
    assert (reply.prompt_tokens, reply.completion_tokens) == (100, 5)
    assert reply.finish_reason == "stop"
    assert reply.latency_seconds > 0
    (chat,) = server.chats
    assert chat.body["model"] == "fake-model"
    assert chat.body["messages"] == MESSAGES
    assert chat.body["temperature"] == 0


async def test_replies_are_held_to_the_schema() -> None:
    with FakeOpenAI(label("health")) as server:
        (reply,) = await ask(server)
    assert reply.structured
    given = server.chats[0].body["response_format"]
    assert given["type"] == "json_schema"
    assert given["json_schema"]["strict"] is True
    assert given["json_schema"]["schema"] == SCHEMA


async def test_an_endpoint_without_schemas_is_asked_without_from_then_on() -> None:
    with FakeOpenAI(refuses_schema(Say("health"))) as server:
        replies = await ask(server, count=3)
    assert [reply.text for reply in replies] == ["health"] * 3
    assert not any(reply.structured for reply in replies)
    assert [chat.has_schema for chat in server.chats] == [True, False, False, False]


async def test_a_refusal_for_another_reason_does_not_give_up_the_schema() -> None:
    too_long = Status(400, message="context length exceeded")
    with FakeOpenAI(too_long, too_long, label("health")) as server:
        settings = TeacherSettings.from_environment(server.environ())
        teacher = OpenAITeacher(settings)
        with pytest.raises(GeneratorUnavailable, match="HTTP 400"):
            await teacher.chat(MESSAGES, schema=SCHEMA)
        reply = await teacher.chat(MESSAGES, schema=SCHEMA)
        await teacher.aclose()
    assert reply.structured


async def test_a_schema_that_is_insisted_on_is_not_given_up() -> None:
    with (
        FakeOpenAI(refuses_schema(Say("health"))) as server,
        pytest.raises(GeneratorUnavailable, match="UNDERSTUDY_GENERATOR_STRUCTURED=off"),
    ):
        await ask(server, STRUCTURED="json_schema")
    assert len(server.chats) == 1


async def test_what_is_turned_off_is_not_sent() -> None:
    with FakeOpenAI(Say("health")) as server:
        await ask(server, STRUCTURED="off", TEMPERATURE="default", MAX_TOKENS="50")
    body = server.chats[0].body
    assert "response_format" not in body
    assert "temperature" not in body
    assert body["max_tokens"] == 50


async def test_only_the_generators_own_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-meant-for-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "an-organization")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "a-project")
    with FakeOpenAI(label("health")) as server:
        await ask(server)
        await ask(server, API_KEY=SECRET)
    without, with_key = (chat.headers for chat in server.chats)
    assert "authorization" not in without
    assert not {"openai-organization", "openai-project"} & set(without)
    assert with_key["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "script",
    [
        [Status(429, NOW), Status(429, NOW), label("health")],
        [Status(408, NOW), label("health")],
        [Status(409, NOW), label("health")],
        [Status(503, NOW), label("health")],
        [Status(500), label("health")],
        [Disconnect(), label("health")],
    ],
    ids=["429", "408", "409", "503", "500", "disconnect"],
)
async def test_what_passes_is_tried_again(script: list[Script]) -> None:
    with FakeOpenAI(*script) as server:
        (reply,) = await ask(server)
    assert reply.text == '{"label": "health"}'
    assert len(server.chats) == len(script)


@pytest.mark.parametrize(
    ("script", "error", "says"),
    [
        (Status(401), GeneratorUnavailable, "UNDERSTUDY_GENERATOR_API_KEY"),
        (Status(403), GeneratorUnavailable, "UNDERSTUDY_GENERATOR_API_KEY"),
        (Status(404), GeneratorUnavailable, "UNDERSTUDY_GENERATOR_MODEL"),
        (Status(500), GeneratorUnavailable, "HTTP 500"),
        (Status(503), GeneratorUnavailable, "HTTP 503"),
        (Status(429), Overloaded, "HTTP 429"),
        (Disconnect(), GeneratorUnavailable, "can't be reached"),
        (Hang(), Timeout, "within 0.05 s"),
        (Raw("<html>a portal</html>", "text/html"), InvalidReply, "no chat completion"),
        (Raw('{"choices": [', "application/json"), InvalidReply, "no chat completion"),
        (Raw("", "application/json"), InvalidReply, "no chat completion"),
        (Raw("null"), InvalidReply, "no chat completion"),
        (Raw("[1, 2]"), InvalidReply, "no chat completion"),
        (Raw("{}"), InvalidReply, "no choices"),
        (Raw('{"choices": []}'), InvalidReply, "no choices"),
        (Raw('{"choices": [null]}'), InvalidReply, "no message"),
        (Raw('{"choices": [{"message": null}]}'), InvalidReply, "no message"),
        (Raw('{"choices": [{"message": {"content": [1]}}]}'), InvalidReply, "isn't text"),
    ],
)
async def test_every_fault_of_the_endpoint_has_its_error(
    script: Script,
    error: type[UnderstudyError],
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "understudy")
    timeout = "0.05" if isinstance(script, Hang) else "20"
    with FakeOpenAI(script) as server, pytest.raises(error) as caught:
        await ask(server, API_KEY=SECRET, TIMEOUT=timeout, MAX_RETRIES="0")
    assert says in str(caught.value)
    # Neither the error nor what it stems from tells the key or the text.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert SECRET not in str(caught.value) + caplog.text
    assert PRIVATE not in str(caught.value) + caplog.text


async def test_nobody_listening_is_unavailable() -> None:
    with FakeOpenAI(Say("")) as server:
        environ = server.environ(MAX_RETRIES="0")
    teacher = OpenAITeacher(TeacherSettings.from_environment(environ))
    with pytest.raises(GeneratorUnavailable, match="UNDERSTUDY_GENERATOR_BASE_URL"):
        await teacher.chat(MESSAGES)
    await teacher.aclose()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("2.5", 2.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:00", 0.0),
        ("later", None),
        ("inf", None),
    ],
)
async def test_an_overload_tells_when_to_come_back(header: str, seconds: float | None) -> None:
    refusal = Status(429, {"Retry-After": header})
    with FakeOpenAI(refusal) as server, pytest.raises(Overloaded) as caught:
        await ask(server, MAX_RETRIES="0")
    assert caught.value.retry_after == seconds


async def test_an_empty_reply_is_a_reply() -> None:
    with FakeOpenAI(Say(None, finish_reason="content_filter", usage=None)) as server:
        (reply,) = await ask(server)
    assert (reply.text, reply.finish_reason) == ("", "content_filter")
    assert reply.prompt_tokens is None


async def test_a_refusal_in_words_is_the_reply() -> None:
    with FakeOpenAI(Say(None, refusal="I can't help with that.")) as server:
        (reply,) = await ask(server)
    assert reply.text == "I can't help with that."


async def test_chats_at_a_time_are_bounded_and_wait_their_turn() -> None:
    with FakeOpenAI(Together(2, label("health"))) as server:
        teacher = OpenAITeacher(TeacherSettings.from_environment(server.environ(CONCURRENCY="2")))
        replies = await asyncio.gather(*(teacher.chat(MESSAGES) for _ in range(6)))
        await teacher.aclose()
    assert server.peak == 2
    assert len(server.chats) == 6
    assert max(reply.queued_seconds for reply in replies) > 0


# --- Recording ---


def exchange(text: str, reply: str = "health", **more: object) -> Exchange:
    given: dict[str, object] = {"task": "topic", "language": "sw"} | more
    return Exchange(text=text, reply=reply, **given)  # type: ignore[arg-type]


def test_what_is_recorded_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    reply = ChatReply(
        '{"label": "health"}', "a-model", 10, 2, 0.5, finish_reason="stop", structured=True
    )
    kept = Exchange.of("topic", "sw", "Habari\nza \u2028afya 🙂", ["travel", "health"], reply)
    with Recorder(path) as recorder:
        recorder.record(kept)
    row = json.loads(path.read_text(encoding="utf-8"))
    assert row["labels"] == ["travel", "health"]
    assert row["prompt_version"] == "classify-1"
    assert set(row) == {field.name for field in dataclasses.fields(Exchange)}
    found = Replay.load(path).find("topic", "sw", "Habari\nza \u2028afya 🙂")
    assert (found.reply, found.prompt_tokens, found.finish_reason) == (kept.reply, 10, "stop")


def test_only_its_owner_may_read_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    Recorder(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    with Recorder(path) as recorder:

        def write(thread: int) -> None:
            for i in range(20):
                recorder.record(exchange(f"{thread} {i} " + "x" * 5_000))

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(Replay.load(path)) == 80


def test_one_file_is_recorded_to_by_one_recorder(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    with Recorder(path), pytest.raises(InvalidInput, match="another process records"):
        Recorder(path)
    Recorder(path).close()


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_line_that_a_crash_cut_off_is_mended(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "recording.jsonl"
    with Recorder(path) as recorder:
        recorder.record(exchange("first"))
        before = path.stat().st_size
        recorder.record(exchange("ఆరోగ్యం " * 20_000))
    size = path.stat().st_size
    # The last byte is the line break: without two of them the line is torn.
    with path.open("r+b") as file:
        file.truncate(before + kept if kept > 0 else size - 2)
    assert len(Replay.load(path)) == 1
    with Recorder(path) as recorder:
        recorder.record(exchange("second"))
    assert len(Replay.load(path)) == 2
    assert path.read_bytes().count(b"\n") == 2


def test_a_line_that_lacks_its_break_alone_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "recording.jsonl"
    with Recorder(path) as recorder:
        recorder.record(exchange("first"))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with Recorder(path) as recorder:
        recorder.record(exchange("second"))
    assert len(Replay.load(path)) == 2


def test_a_file_of_another_kind_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my only copy", encoding="utf-8")
    with pytest.raises(InvalidInput, match="not a recording"):
        Recorder(path)
    assert path.read_text(encoding="utf-8") == "my only copy"


def test_a_place_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file"):
        Recorder(tmp_path / "nowhere" / "recording.jsonl")
    with pytest.raises(InvalidInput, match="Is a directory"):
        Recorder(tmp_path)


# --- Replaying ---


@pytest.fixture
def rows(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: object, name: str = "replies.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


def row(text: object = "t", **more: object) -> dict[str, object]:
    return {"task": "topic", "language": "sw", "text": text, "reply": "health"} | more


def test_the_bundled_replies_are_the_default() -> None:
    replay = Replay.load()
    assert len(replay) == 1_038
    found = replay.find("intent", "en", "what's my morning alarm set to")
    assert found.reply == "alarm_query"


def test_a_text_never_recorded_is_not_found_and_not_shown(rows: Callable[..., Path]) -> None:
    replay = Replay.load(rows(row()))
    for task, language, text in [
        ("topic", "sw", PRIVATE),
        ("topic", None, PRIVATE),
        ("topic", "de", "t"),
        ("sentiment", "sw", "t"),
    ]:
        with pytest.raises(NotFound, match="--record") as caught:
            replay.find(task, language, text)
        assert PRIVATE not in str(caught.value)


def test_without_a_language_any_that_agrees_is_found(rows: Callable[..., Path]) -> None:
    replay = Replay.load(rows(row("a"), row("a", language="de"), row("b", language="de")))
    assert replay.find("topic", None, "a").reply == "health"
    assert replay.find("topic", None, "b").language == "de"


def test_without_a_language_replies_that_differ_are_not_chosen_from(
    rows: Callable[..., Path],
) -> None:
    replay = Replay.load(rows(row("a"), row("a", language="de", reply="travel")))
    with pytest.raises(InvalidInput, match="several languages") as caught:
        replay.find("topic", None, "a")
    assert caught.value.field == "language"
    assert caught.value.expected == "one of: de, sw"


def test_an_exchange_without_a_language_is_found_without_one(rows: Callable[..., Path]) -> None:
    replay = Replay.load(rows(row("a", language=None), row("a", reply="travel")))
    assert replay.find("topic", None, "a").reply == "health"
    assert replay.find("topic", "sw", "a").reply == "travel"


def test_the_later_of_two_exchanges_counts(rows: Callable[..., Path]) -> None:
    first = rows(row(reply="travel"), name="1.jsonl")
    second = rows(row(reply="health"), name="2.jsonl")
    assert Replay.load(first, second).find("topic", "sw", "t").reply == "health"
    assert Replay.load(second, first).find("topic", "sw", "t").reply == "travel"


def test_language_tags_are_made_canonical(rows: Callable[..., Path]) -> None:
    replay = Replay.load(rows(row("a", language="SW-ke"), row("b", language="iw")))
    assert replay.find("topic", "sw-KE", "a")
    assert replay.find("topic", "he", "b")


def test_other_recordings_have_another_digest(rows: Callable[..., Path]) -> None:
    first, second = rows(row("a"), name="1.jsonl"), rows(row("b"), name="2.jsonl")
    assert Replay.load(first).digest != Replay.load(second).digest
    assert Replay.load(first).digest == Replay.load(first).digest


def test_an_empty_reply_may_be_recorded(rows: Callable[..., Path]) -> None:
    assert Replay.load(rows(row(reply=""))).find("topic", "sw", "t").reply == ""


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"text": "t", "label": "health", "reply": "health"}, "names no language"),
        ({"language": "sw", "text": "t", "reply": "health"}, "'task' is missing"),
        (row(text=""), "'text' is empty"),
        (row(text=7), "'text' is empty or not a string"),
        (row(reply=None), "'reply' is missing"),
        (row(language="swahili!"), "is not a language tag"),
        (row(language=5), "is not a language tag"),
        ("[]", "not an object"),
        ("{", "not JSON"),
    ],
)
def test_a_broken_row_is_refused_with_its_place(
    rows: Callable[..., Path], bad: object, says: str
) -> None:
    path = rows(row("good"), bad, row("another"))
    with pytest.raises(InvalidInput) as caught:
        Replay.load(path)
    assert f"{path}:2: " in str(caught.value)
    assert says in str(caught.value)
    assert caught.value.expected


def test_what_rows_do_not_say_may_be_given(rows: Callable[..., Path]) -> None:
    path = rows({"text": "t", "label": "health", "reply": "about health"}, row("u", language="de"))
    replay = Replay.load(path, task="topic", language="SW")
    assert replay.find("topic", "sw", "t").reply == "about health"
    assert replay.find("topic", "de", "u")


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        Replay.load(tmp_path / "missing.jsonl")
