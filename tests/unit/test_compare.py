from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.processes import wait_until
from understudy.api import ClassifyResponse, InvalidReplyInfo, Prediction, Usage
from understudy.compare import compare
from understudy.errors import InvalidInput, NotFound, Overloaded, UnderstudyError, Unreachable
from understudy.sample import Sample
from understudy.task import Label, Task
from understudy.wire_json import problem_to_json, response_to_json

TASK = Task("mood", "Mood", "Say.", tuple(Label(x, x) for x in ("a", "b", "c")), ("sw",))

# text: truth, the student's answer, the generator's (None: an invalid reply).
SCRIPT: dict[str, tuple[str, str, str | None]] = {
    "one": ("a", "a", "a"),
    "two": ("a", "a", None),
    "three": ("a", "b", "a"),
    "four": ("b", "b", "b"),
    "five": ("b", "b", "a"),
    "six": ("b", "b", None),
    "seven": ("c", "c", None),
    "eight": ("c", "a", "b"),
}
SAMPLES = [Sample(text, truth) for text, (truth, _, _) in SCRIPT.items()]

Answer = Callable[[list[str]], Response]


@dataclass
class Service:
    """A server that answers from a script."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def service(answer: Answer) -> Iterator[Service]:
    requests: list[dict[str, Any]] = []

    async def classify(request: Request) -> Response:
        body = await request.json()
        requests.append(body)
        return answer(body["texts"])

    app = Starlette(routes=[Route("/v1/classify", classify, methods=["POST"])])
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", ws="none", loop="asyncio")
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            wait_until(lambda: server.started, "listening")
            yield Service(f"http://127.0.0.1:{listener.getsockname()[1]}", requests)
        finally:
            server.should_exit = True
            thread.join(20)


def ok(model: str, predictions: list[Prediction], usage: Usage | None = None) -> Response:
    response = ClassifyResponse("mood", "sw", model, "1", tuple(predictions), usage=usage)
    return Response(response_to_json(response), media_type="application/json")


def student(texts: list[str]) -> Response:
    return ok("small", [Prediction(SCRIPT[text][1], 0.9) for text in texts])


def generator(texts: list[str]) -> Response:
    predictions = [
        Prediction(guess, invalid_reply=None if guess else InvalidReplyInfo("no_label", "Hm."))
        for guess in (SCRIPT[text][2] for text in texts)
    ]
    return ok("large", predictions, Usage(len(texts), 10 * len(texts), 2 * len(texts), 0.5))


async def test_the_figures_are_those_worked_out_by_hand() -> None:
    with service(student) as small, service(generator) as large:
        result = await compare(TASK, "sw", SAMPLES, student=small.url, generator=large.url)
    assert (result.task, result.language, result.n) == ("mood", "sw", 8)
    # Right: the student one, two, four, five, six, seven; the generator one, three, four.
    assert result.student.accuracy.value == pytest.approx(6 / 8)
    assert result.generator.accuracy.value == pytest.approx(3 / 8)
    assert (result.student_only, result.generator_only) == (4, 1)
    # Two-sided binomial of 1 in 5: 2 * (1 + 5) / 32.
    assert result.mcnemar_p == pytest.approx(12 / 32)
    # Both say the same of one and four.
    assert result.agreement == pytest.approx(2 / 8)
    # F1 = 2 TP / (true + predicted): a 4/(3+3), b 6/(3+4), c 2/(2+1).
    assert result.student.macro_f1.value == pytest.approx((4 / 6 + 6 / 7 + 2 / 3) / 3)
    # a 4/(3+3), b 2/(3+2), c 0/(2+0).
    assert result.generator.macro_f1.value == pytest.approx((4 / 6 + 2 / 5 + 0) / 3)
    for arm in (result.student, result.generator):
        assert arm.macro_f1.low <= arm.macro_f1.value <= arm.macro_f1.high
        assert arm.accuracy.low < arm.accuracy.value < arm.accuracy.high


async def test_invalid_replies_are_wrong_and_the_score_without_them_stands_beside() -> None:
    with service(student) as small, service(generator) as large:
        result = await compare(TASK, "sw", SAMPLES, student=small.url, generator=large.url)
    assert result.student.invalid_rate == 0.0
    assert result.student.accuracy_valid == result.student.accuracy
    assert result.student.macro_f1_valid == result.student.macro_f1
    assert result.generator.invalid_rate == pytest.approx(3 / 8)
    # Without two, six and seven: 3 of 5; a 4/(2+3), b 2/(2+2), c 0/(1+0).
    assert result.generator.accuracy_valid is not None
    assert result.generator.macro_f1_valid is not None
    assert result.generator.accuracy_valid.value == pytest.approx(3 / 5)
    assert result.generator.macro_f1_valid.value == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)


async def test_a_generator_that_only_replies_invalidly_has_no_score_without_them() -> None:
    silent = InvalidReplyInfo("no_label", "I can't.")

    def refuse(texts: list[str]) -> Response:
        return ok("mute", [Prediction(None, invalid_reply=silent) for _ in texts])

    with service(refuse) as mute:
        result = await compare(TASK, "sw", SAMPLES, student=mute.url, generator=mute.url)
    assert result.generator.invalid_rate == 1.0
    assert result.generator.accuracy.value == result.generator.macro_f1.value == 0.0
    assert result.generator.accuracy_valid is None
    assert result.generator.macro_f1_valid is None
    # Two that say nothing do not agree on anything.
    assert result.agreement == 0.0
    assert result.mcnemar_p == 1.0


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1] * 8), (3, [2, 3, 3]), (100, [8])])
async def test_each_text_is_asked_once_of_both_in_batches_and_answers_are_paired(
    batch: int, sizes: list[int]
) -> None:
    shares: list[float] = []
    with service(student) as small, service(generator) as large:
        result = await compare(
            TASK,
            "sw",
            SAMPLES,
            student=small.url,
            generator=large.url,
            batch=batch,
            concurrency=3,
            progress=shares.append,
        )
    for asked in (small.requests, large.requests):
        assert sorted(text for body in asked for text in body["texts"]) == sorted(SCRIPT)
        assert sorted(len(body["texts"]) for body in asked) == sizes
        assert {(body["task"], body["language"]) for body in asked} == {("mood", "sw")}
    assert (result.student_only, result.generator_only) == (4, 1)
    assert result.student.requests == len(sizes)
    assert 0 < result.student.p50_ms <= result.student.p95_ms
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


async def test_tokens_and_cost_are_summed_and_a_student_has_none() -> None:
    with service(student) as small, service(generator) as large:
        result = await compare(TASK, "sw", SAMPLES, student=small.url, generator=large.url, batch=4)
    assert (result.student.model, result.generator.model) == ("small", "large")
    assert result.student.usage is None
    assert result.generator.usage == Usage(8, 80, 16, 1.0)


async def test_the_cost_is_unknown_when_one_answer_s_is() -> None:
    def half_priced(texts: list[str]) -> Response:
        cost = None if texts == ["six"] else 0.5
        return ok("large", [Prediction("a")], Usage(1, 10, 2, cost))

    with service(half_priced) as large:
        result = await compare(TASK, "sw", SAMPLES, student=large.url, generator=large.url)
    assert result.generator.usage == Usage(8, 80, 16, None)


async def test_the_result_is_json_with_the_figures_by_name() -> None:
    with service(student) as small, service(generator) as large:
        result = await compare(TASK, "sw", SAMPLES, student=small.url, generator=large.url)
    body = json.loads(json.dumps(result.to_json()))
    assert body["student"]["accuracy"] == 0.75
    assert body["generator"]["usage"]["prompt_tokens"] == 80
    assert body["generator"]["accuracy_valid"] == pytest.approx(0.6)
    low, high = body["student"]["accuracy_interval"]
    assert low <= 0.75 <= high
    assert np.isfinite(body["mcnemar_p"])


async def test_a_service_that_answers_for_other_labels_is_refused_by_its_url() -> None:
    def stranger(texts: list[str]) -> Response:
        return ok("other", [Prediction("sports") for _ in texts])

    with (
        service(student) as small,
        service(stranger) as other,
        pytest.raises(UnderstudyError) as refused,
    ):
        await compare(TASK, "sw", SAMPLES, student=small.url, generator=other.url)
    assert other.url in refused.value.detail
    assert "'sports'" in refused.value.detail
    assert refused.value.expected == "services that know the same task"


async def test_a_service_that_answers_for_fewer_texts_is_refused() -> None:
    def short(texts: list[str]) -> Response:
        return ok("short", [Prediction("a") for _ in texts[1:]])

    with service(short) as other, pytest.raises(UnderstudyError, match=other.url):
        await compare(TASK, "sw", SAMPLES, student=other.url, generator=other.url, batch=4)


async def test_a_service_that_refuses_is_quoted_with_its_url_in_its_own_class() -> None:
    for error in (NotFound("no task 'mood'", field="task"), Overloaded("full", retry_after=1)):

        def refuse(texts: list[str], error: UnderstudyError = error) -> Response:
            return Response(problem_to_json(error), status_code=error.http_status)

        with service(refuse) as other, pytest.raises(type(error)) as refused:
            await compare(TASK, "sw", SAMPLES, student=other.url, generator=other.url)
        assert other.url in refused.value.detail
        assert error.detail in refused.value.detail


@pytest.mark.parametrize(
    "answer",
    [
        Response("<html>Welcome</html>", media_type="text/html"),
        Response("<html>Bad gateway</html>", status_code=502, media_type="text/html"),
        Response('{"result": 1}', media_type="application/json"),
        Response("[]", media_type="application/json"),
        Response('"no"', status_code=500, media_type="application/json"),
        Response(status_code=302, headers={"location": "/login"}),
    ],
    ids=["a page", "a gateway's page", "other JSON", "a list", "an odd problem", "a redirect"],
)
async def test_a_server_of_another_kind_is_an_error_that_names_its_url(answer: Response) -> None:
    with service(lambda texts: answer) as other, pytest.raises(UnderstudyError) as refused:
        await compare(TASK, "sw", SAMPLES, student=other.url, generator=other.url)
    assert other.url in refused.value.detail


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("dead", ["student", "generator"])
async def test_a_service_that_cannot_be_reached_is_named(scheme: str, dead: str) -> None:
    with socket.socket() as unused:
        # Bound but not listening: nobody answers here, and nobody else can begin to.
        unused.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{unused.getsockname()[1]}"
        with service(student) as alive:
            small, large = (url, alive.url) if dead == "student" else (alive.url, url)
            with pytest.raises(Unreachable, match=f"^{url} can't be reached"):
                await compare(TASK, "sw", SAMPLES, student=small, generator=large)


async def test_the_first_failure_stops_the_rest() -> None:
    asked = 0
    lock = threading.Lock()

    def fail_at_ten(texts: list[str]) -> Response:
        nonlocal asked
        with lock:
            asked += 1
            late = asked > 10
        if late:
            return Response(problem_to_json(NotFound("gone")), status_code=404)
        return ok("small", [Prediction("a") for _ in texts])

    samples = [Sample(f"text {i}", "a") for i in range(500)]
    with service(fail_at_ten) as other, pytest.raises(NotFound):
        await compare(TASK, "sw", samples, student=other.url, generator=other.url, concurrency=4)
    assert len(other.requests) <= 20


async def test_a_refusal_that_passes_loses_nothing() -> None:
    refused = iter([True, False, True])

    def busy_at_first(texts: list[str]) -> Response:
        if next(refused, False):
            busy = Overloaded("full", retry_after=0.01)
            return Response(problem_to_json(busy), status_code=429)
        return student(texts)

    with service(busy_at_first) as small, service(generator) as large:
        result = await compare(TASK, "sw", SAMPLES, student=small.url, generator=large.url)
    assert result.student.accuracy.value == 0.75
    assert len(small.requests) == len(SAMPLES) + 2


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ftp://host", "http://", "", "file:///etc"])
async def test_what_is_no_address_of_a_service_is_wrong_input(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        await compare(TASK, "sw", SAMPLES, student=url, generator=url)
    assert refused.value.field == "url"


@pytest.mark.parametrize("url", ["http://host:port", "http://[::1"])
async def test_an_address_that_cannot_be_read_is_wrong_input_too(url: str) -> None:
    with pytest.raises(InvalidInput):
        await asyncio.wait_for(compare(TASK, "sw", SAMPLES, student=url, generator=url), 20)
