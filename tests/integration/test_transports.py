"""Both transports on real sockets, in front of a fake classifier, in a process of their own."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import jsonschema
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from services.transport.dataplane import Dataplane
from services.transport.grpc import SERVICE, GrpcServer
from tests.support.fake_classifier import FakeClassifier
from tests.support.processes import ROOT, ServiceProcess, service, wait_until
from understudy.v1 import classification_pb2 as pb
from understudy.v1 import classification_pb2_grpc as pb_grpc

FAKE = ("-m", "tests.support.fake_service")
BODY_BYTES = 2 * 1024 * 1024
SECRET = "siri-yangu-8841"
GOOD = {"task": "topic", "texts": ["habari", "x"], "top_k": 2}


@pytest.fixture(scope="module")
def served() -> Iterator[ServiceProcess]:
    with service(FAKE, {"UNDERSTUDY_MAX_BODY_BYTES": str(BODY_BYTES)}) as process:
        process.wait_ready()
        yield process


@pytest.fixture
def http(served: ServiceProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=20) as client:
        yield client


@pytest.fixture
def channel(served: ServiceProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(served.grpc) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> pb_grpc.ClassificationServiceStub:
    return pb_grpc.ClassificationServiceStub(channel)


def good(**changes: Any) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(**(GOOD | changes))


def stream_request(**changes: Any) -> pb.ClassifyStreamRequest:
    return pb.ClassifyStreamRequest(**(GOOD | changes))


# --- what is asked for is answered ---


def test_http_answers_as_its_document_says(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    response = http.post("/v1/classify", json=GOOD)
    assert response.status_code == 200
    check(response.json(), document, "ClassifyResponse")
    body = response.json()
    assert (body["task"], body["language"], body["model"]) == ("topic", "sw", "fake-topic")
    assert [p["label"] for p in body["predictions"]] == ["long", "short"]
    assert len(body["predictions"][0]["scores"]) == 2
    assert body["timings"]["tokenize_ms"] == 0.2
    assert "usage" not in body
    check(http.get("/v1/models").json(), document, "ListModelsResponse")
    silent = http.post("/v1/classify", json=GOOD | {"task": "silent"}).json()
    check(silent, document, "ClassifyResponse")
    assert silent["predictions"][0]["label"] is None
    assert silent["predictions"][0]["invalid_reply"]["reason"] == "no_label"
    assert silent["usage"]["prompt_tokens"] == 20


def test_grpc_answers_the_same(http: httpx.Client, stub: pb_grpc.ClassificationServiceStub) -> None:
    by_http = http.post("/v1/classify", json=GOOD).json()
    by_grpc = stub.Classify(good())
    assert [p.label for p in by_grpc.predictions] == [p["label"] for p in by_http["predictions"]]
    assert [
        [(s.label, s.score) for s in prediction.scores] for prediction in by_grpc.predictions
    ] == [[(s["label"], s["score"]) for s in p["scores"]] for p in by_http["predictions"]]
    assert not by_grpc.HasField("usage")
    silent = stub.Classify(good(task="silent"))
    assert silent.predictions[0].invalid_reply.reason == "no_label"
    assert not silent.predictions[0].HasField("score")
    models = stub.ListModels(pb.ListModelsRequest()).models
    assert [m.task for m in models] == [m["task"] for m in http.get("/v1/models").json()["models"]]
    assert list(models[0].labels) == ["short", "long"]


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "Application/JSON; charset=UTF-8", "application/vnd.api+json"],
)
def test_json_is_read_however_it_is_called(http: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = http.post("/v1/classify", content=json.dumps(GOOD).encode(), headers=headers)
    assert response.status_code == 200, response.text


def test_a_language_tag_may_be_spelled_freely(
    http: httpx.Client, stub: pb_grpc.ClassificationServiceStub
) -> None:
    assert http.post("/v1/classify", json=GOOD | {"language": "SW"}).status_code == 200
    assert len(stub.Classify(good(language="SW")).predictions) == 2


# --- bad input ---


@dataclass(frozen=True)
class Bad:
    """One bad request, by the fields that both transports have."""

    name: str
    fields: dict[str, Any]
    status: int
    code: str
    field: str


BAD = [
    Bad("unknown task", {"task": "nothing"}, 404, "NOT_FOUND", "task"),
    Bad("endless task", {"task": "x" * 1_000_000}, 400, "INVALID_ARGUMENT", "task"),
    Bad("empty task", {"task": ""}, 400, "INVALID_ARGUMENT", "task"),
    Bad("unknown language", {"language": "he"}, 404, "NOT_FOUND", "language"),
    Bad("no language tag", {"language": "no tag!"}, 400, "INVALID_ARGUMENT", "language"),
    Bad("empty list", {"texts": []}, 400, "INVALID_ARGUMENT", "texts"),
    Bad("empty text", {"texts": ["a", ""]}, 400, "INVALID_ARGUMENT", "texts[1]"),
    Bad("blank text", {"texts": [" \n\t"]}, 400, "INVALID_ARGUMENT", "texts[0]"),
    Bad("NUL", {"texts": ["a", "b", "c\0d"]}, 400, "INVALID_ARGUMENT", "texts[2]"),
    Bad("1 MB text", {"texts": ["ж" * 500_000]}, 413, "RESOURCE_EXHAUSTED", "texts[0]"),
    Bad("10,000 texts", {"texts": ["a"] * 10_000}, 413, "RESOURCE_EXHAUSTED", "texts"),
    Bad("top_k of 0", {"top_k": 0}, 400, "INVALID_ARGUMENT", "top_k"),
    Bad("negative top_k", {"top_k": -3}, 400, "INVALID_ARGUMENT", "top_k"),
    Bad("full queue", {"task": "full"}, 429, "RESOURCE_EXHAUSTED", ""),
    Bad("fault of ours", {"task": "boom"}, 500, "INTERNAL", ""),
]


def body(**fields: Any) -> bytes:
    return json.dumps(GOOD | fields).encode()


def typed(content_type: str) -> dict[str, str]:
    return {"Content-Type": content_type}


ENDLESS = b'{"task":"topic","texts":["a"],"top_k":1' + b"0" * 300 + b"}"

#: Name, body, headers, status, field: what only HTTP can be sent.
BAD_HTTP: list[tuple[str, bytes, dict[str, str], int, str]] = [
    ("text that is a number", body(texts=["a", 7]), {}, 400, "texts[1]"),
    ("text that is null", body(texts=[None]), {}, 400, "texts[0]"),
    ("text that is a list", body(texts=[["a"]]), {}, 400, "texts[0]"),
    ("texts that are a string", body(texts="abc"), {}, 400, "texts"),
    ("texts that are an object", body(texts={"a": "b"}), {}, 400, "texts"),
    ("task that is a number", body(task=3), {}, 400, "task"),
    ("language that is a list", body(language=["sw"]), {}, 400, "language"),
    ("top_k that is a string", body(top_k="2"), {}, 400, "top_k"),
    ("top_k that is a fraction", body(top_k=1.5), {}, 400, "top_k"),
    ("top_k that is true", body(top_k=True), {}, 400, "top_k"),
    ("top_k that is endless", ENDLESS, {}, 400, "top_k"),
    ("missing task", b'{"texts":["a"]}', {}, 400, "task"),
    ("missing texts", b'{"task":"topic"}', {}, 400, "texts"),
    ("unknown field", body(text="a"), {}, 400, "text"),
    ("lone surrogate", rb'{"task":"topic","texts":["a","b\ud800"]}', {}, 400, "texts[1]"),
    ("lone low surrogate", rb'{"task":"topic","texts":["\udfff"]}', {}, 400, "texts[0]"),
    ("surrogate in the task", rb'{"task":"a\ud800","texts":["a"]}', {}, 400, "task"),
    ("surrogate in a key", rb'{"task":"topic","texts":["a"],"\ud800":1}', {}, 400, "?"),
    ("invalid UTF-8", b'{"task":"topic","texts":["\xff\xfe"]}', {}, 400, "body"),
    ("UTF-8 surrogate", b'{"task":"topic","texts":["\xed\xa0\x80"]}', {}, 400, "body"),
    ("UTF-16", json.dumps(GOOD).encode("utf-16"), {}, 400, "body"),
    ("empty body", b"", {}, 400, "body"),
    ("half a body", body()[:-5], {}, 400, "body"),
    ("a list", b'["topic"]', {}, 400, "body"),
    ("a string", b'"topic"', {}, 400, "body"),
    ("NaN", b'{"task":"topic","texts":["a"],"top_k":NaN}', {}, 400, "body"),
    ("infinity", b'{"task":"topic","texts":["a"],"top_k":1e999}', {}, 400, "body"),
    ("deep list", b"[" * 200_000, {}, 400, "body"),
    ("deep object", b'{"a":' * 200_000, {}, 400, "body"),
    ("form", b"task=topic", typed("application/x-www-form-urlencoded"), 415, "Content-Type"),
    ("plain text", body(), typed("text/plain"), 415, "Content-Type"),
    ("nonsense type", body(), typed("json"), 415, "Content-Type"),
    ("protobuf", b"", typed("application/x-protobuf"), 415, "Content-Type"),
    ("other charset", body(), typed("application/json; charset=utf-16"), 415, "Content-Type"),
    ("pickle", b"\x80\x04N.", typed("application/vnd.bentoml+pickle"), 415, "Content-Type"),
    ("compressed", b"\x1f\x8b", {"Content-Encoding": "gzip"}, 415, "Content-Encoding"),
    ("oversize body", b" " * (BODY_BYTES + 1), {}, 413, "body"),
]

TOPIC = b"\x0a\x05topic"

#: Name, bytes, field: what only gRPC can be sent.
BAD_GRPC = [
    ("garbage", b"\xff" * 50, "message"),
    ("half a message", good(texts=["a" * 100]).SerializeToString()[:40], "message"),
    ("wrong wire type", b"\x08\x01", "task"),
    ("nothing", b"", "task"),
    ("invalid UTF-8", TOPIC + b"\x12\x01a" + b"\x12\x02\xff\xfe", "texts[1]"),
    ("lone surrogate", TOPIC + b"\x12\x03\xed\xa0\x80", "texts[0]"),
    ("invalid UTF-8 in the task", b"\x0a\x02\xc3\x28\x12\x01a", "task"),
    ("invalid UTF-8 in the language", TOPIC + b"\x12\x01a\x1a\x01\xff", "language"),
]


def ids(rows: list[tuple[Any, ...]]) -> list[str]:
    return [row[0] for row in rows]


def assert_problem(response: httpx.Response, status: int, field: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem.get("field", "") == field
    assert problem["detail"]
    assert len(response.content) < 10_000
    return problem


def assert_status(error: grpc.RpcError, code: str, field: str) -> None:
    assert error.code().name == code, error.details()
    trailers = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert info.domain == "understudy" and info.reason.isupper()
    if field:
        assert status.details[1].Unpack(bad)
        assert bad.field_violations[0].field == field
        assert bad.field_violations[0].description


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_gets_its_problem_over_http(http: httpx.Client, bad: Bad) -> None:
    response = http.post("/v1/classify", json=GOOD | bad.fields)
    assert_problem(response, bad.status, bad.field)
    assert http.post("/v1/classify", json=GOOD).status_code == 200


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_gets_its_status_over_grpc(
    stub: pb_grpc.ClassificationServiceStub, bad: Bad
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(good(**bad.fields))
    assert_status(caught.value, bad.code, bad.field)
    assert len(stub.Classify(good()).predictions) == 2


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_input_does_not_end_a_stream(stub: pb_grpc.ClassificationServiceStub, bad: Bad) -> None:
    requests = [stream_request(), stream_request(**bad.fields), stream_request()]
    first, second, third = stub.ClassifyStream(iter(requests))
    assert (first.index, second.index, third.index) == (0, 1, 2)
    assert len(first.response.predictions) == len(third.response.predictions) == 2
    assert (second.problem.status, second.problem.field) == (bad.status, bad.field)


@pytest.mark.parametrize(
    ("name", "content", "headers", "status", "field"), BAD_HTTP, ids=ids(BAD_HTTP)
)
def test_bad_bodies_get_their_problem(
    http: httpx.Client, name: str, content: bytes, headers: dict[str, str], status: int, field: str
) -> None:
    headers = {"Content-Type": "application/json"} | headers
    response = http.post("/v1/classify", content=content, headers=headers)
    problem = assert_problem(response, status, field)
    check(problem, http.get("/openapi.json").json(), "Problem")
    assert http.post("/v1/classify", json=GOOD).status_code == 200


@pytest.mark.parametrize(("name", "data", "field"), BAD_GRPC, ids=ids(BAD_GRPC))
def test_bad_messages_get_their_status(
    channel: grpc.Channel,
    stub: pb_grpc.ClassificationServiceStub,
    name: str,
    data: bytes,
    field: str,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/Classify")(data)
    assert_status(caught.value, "INVALID_ARGUMENT", field)
    answers = list(channel.stream_stream(f"/{SERVICE}/ClassifyStream")(iter([data, data])))
    assert [pb.ClassifyStreamResponse.FromString(a).problem.field for a in answers] == [field] * 2
    assert len(stub.Classify(good()).predictions) == 2


def test_an_undecodable_request_for_the_models_is_an_invalid_argument(
    channel: grpc.Channel,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/ListModels")(b"\xff")
    assert_status(caught.value, "INVALID_ARGUMENT", "message")


def test_an_oversize_message_is_refused_by_name(stub: pb_grpc.ClassificationServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(good(texts=["a" * BODY_BYTES]))
    assert_status(caught.value, "RESOURCE_EXHAUSTED", "message")
    assert len(stub.Classify(good()).predictions) == 2


def test_a_message_past_the_back_stop_is_refused_too(
    stub: pb_grpc.ClassificationServiceStub,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(good(texts=["a" * (20 * 1024 * 1024)]))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(stub.Classify(good()).predictions) == 2


def test_an_unknown_method_of_grpc_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_chunked_upload_is_refused_as_soon_as_it_is_too_long(http: httpx.Client) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(BODY_BYTES // 65_536 + 8):
            sent += 65_536
            yield b" " * 65_536

    response = http.post(
        "/v1/classify", content=chunks(), headers={"Content-Type": "application/json"}
    )
    assert_problem(response, 413, "body")
    assert http.post("/v1/classify", json=GOOD).status_code == 200


def test_a_body_that_announces_itself_too_long_is_refused_unread(served: ServiceProcess) -> None:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
    assert b" 413 " in raw(served, head)


def test_an_endless_upload_is_answered_and_then_cut_off(served: ServiceProcess) -> None:
    with connected(served) as connection:
        connection.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        started = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() < started + 15:
                connection.sendall(chunk)


def test_unknown_paths_and_methods_get_a_problem(http: httpx.Client) -> None:
    for path in (
        "/nothing",
        "/v1/",
        "/v1/classify/",
        "/%00",
        "/static_content/nothing",
        "/V1/models",
    ):
        assert http.get(path, follow_redirects=False).status_code == 404, path
        assert_problem(http.get(path), 404, "")
    for method, path, allowed in (
        ("GET", "/v1/classify", "POST"),
        ("PUT", "/v1/classify", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/metrics", "GET"),
        ("POST", "/livez", "GET"),
        ("POST", "/readyz", "GET"),
        ("POST", "/", "GET"),
    ):
        response = http.request(method, path)
        assert_problem(response, 405, "")
        assert allowed in response.headers["allow"]


ROUTES = (
    "/",
    "/docs",
    "/docs.json",
    "/healthz",
    "/livez",
    "/metrics",
    "/nothing",
    "/openapi.json",
    "/readyz",
    "/schema.json",
    "/static_content/swagger-ui.css",
    "/v1/classify",
    "/v1/models",
)


@pytest.mark.parametrize("route", ROUTES)
def test_pickle_is_refused_on_every_route_and_never_loaded(
    http: httpx.Client, route: str, tmp_path: Path
) -> None:
    trap = tmp_path / "loaded"
    payload = pickle.dumps(Trap(str(trap)))
    for kind in ("application/vnd.bentoml+pickle", "APPLICATION/vnd.BentoML+pickle; a=b"):
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            response = http.request(method, route, content=payload, headers={"Content-Type": kind})
            assert response.status_code == 415, (method, route)
            if method != "HEAD":
                assert_problem(response, 415, "Content-Type")
    assert not trap.exists()
    assert http.post("/v1/classify", json=GOOD).status_code == 200


@dataclass
class Trap:
    """Creates a file when it is unpickled."""

    path: str

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


def test_what_is_not_http_is_turned_away(served: ServiceProcess, http: httpx.Client) -> None:
    for data in (b"\x00" * 100 + b"\r\n\r\n", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        assert b" 400 " in raw(served, data) or raw(served, data) == b""
    assert http.post("/v1/classify", json=GOOD).status_code == 200


def test_a_full_queue_says_when_to_come_back(
    http: httpx.Client, stub: pb_grpc.ClassificationServiceStub
) -> None:
    response = http.post("/v1/classify", json=GOOD | {"task": "full"})
    assert response.headers["retry-after"] == "3"
    assert response.json()["retry_after"] == 2.5
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(good(task="full"))
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 2.5


# --- the stream ---


def test_a_stream_is_answered_in_order_however_long_each_takes(
    stub: pb_grpc.ClassificationServiceStub,
) -> None:
    requests = [
        stream_request(task="wait" if n % 10 == 0 else "topic", texts=["x" * (n + 1)])
        for n in range(40)
    ]
    responses = list(stub.ClassifyStream(iter(requests)))
    assert [r.index for r in responses] == list(range(40))
    scores = [r.response.predictions[0].scores for r in responses]
    assert all({s.score for s in row} >= {1 / (n + 1)} for n, row in enumerate(scores))


def test_a_stream_answers_before_it_is_asked_again(
    stub: pb_grpc.ClassificationServiceStub,
) -> None:
    answered = threading.Event()

    def requests() -> Iterator[pb.ClassifyStreamRequest]:
        yield stream_request()
        assert answered.wait(10)
        yield stream_request()

    responses = stub.ClassifyStream(requests())
    assert next(responses).index == 0
    answered.set()
    assert [r.index for r in responses] == [1]


def test_a_stream_takes_a_bounded_number_at_a_time_and_drops_them_with_its_caller(
    served: ServiceProcess, stub: pb_grpc.ClassificationServiceStub
) -> None:
    hung, dropped = served.log.count("hanging"), served.log.count("dropped")
    call = stub.ClassifyStream(stream_request(task="hang") for _ in range(1_000))
    wait_until(lambda: served.log.count("hanging") >= hung + 8, "8 of the stream are in flight")
    # An answer over another call shows that the service had time for a ninth.
    for _ in range(20):
        stub.Classify(good())
    assert served.log.count("hanging") == hung + 8
    call.cancel()
    wait_until(lambda: served.log.count("dropped") == dropped + 8, "all 8 dropped")


def test_an_empty_stream_ends_at_once(stub: pb_grpc.ClassificationServiceStub) -> None:
    assert list(stub.ClassifyStream(iter(()))) == []


# --- callers that go away ---


def test_work_is_dropped_when_its_http_caller_hangs_up(served: ServiceProcess) -> None:
    hung, dropped = served.log.count("hanging"), served.log.count("dropped")
    content = body(task="hang")
    with connected(served) as connection:
        head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until(lambda: served.log.count("hanging") == hung + 1, "in flight")
    wait_until(lambda: served.log.count("dropped") == dropped + 1, "dropped")


def test_work_is_dropped_at_its_grpc_callers_deadline_or_cancellation(
    served: ServiceProcess, stub: pb_grpc.ClassificationServiceStub
) -> None:
    dropped = served.log.count("dropped")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(good(task="hang"), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: served.log.count("dropped") == dropped + 1, "dropped at the deadline")
    hung = served.log.count("hanging")
    call = stub.Classify.future(good(task="hang"))
    wait_until(lambda: served.log.count("hanging") == hung + 1, "in flight")
    call.cancel()
    wait_until(lambda: served.log.count("dropped") == dropped + 2, "dropped when cancelled")


# --- what stands around it ---


def test_the_page_is_whole_and_fetches_nothing_from_elsewhere(http: httpx.Client) -> None:
    for path in ("/", "/docs"):
        page = http.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert not re.search(r"https?:", page.text)
        assert "connect-src 'self'" in page.headers["content-security-policy"]
    for reference in re.findall(r'(?:src|href|url: ?)"?="?\./([^"]+)"', page.text):
        assert http.get(f"/{reference}").status_code == 200, reference
    assert http.get("/docs.json").content == http.get("/openapi.json").content


def test_metrics_count_by_fixed_labels_and_no_caller_can_add_one(http: httpx.Client) -> None:
    def series() -> set[str]:
        lines = http.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    http.post("/v1/classify", json=GOOD)
    http.post("/v1/classify", json=GOOD | {"task": "nothing"})
    http.post("/v1/classify", json=GOOD | {"task": "nothing", "language": "he"})
    before = series()
    ok = [s for s in before if s.startswith("understudy_requests_total") and 'outcome="ok"' in s]
    assert any('task="topic"' in s and 'language="sw"' in s and 'role="student"' in s for s in ok)
    for n in range(100):
        http.get(f"/scan-{n}")
        http.post("/v1/classify", json=GOOD | {"task": f"t{n}"})
        http.post("/v1/classify", json=GOOD | {"task": f"t{n}", "language": f"a{chr(97 + n % 26)}"})
    assert series() == before
    allowed = {"role", "task", "language", "transport", "outcome", "le"}
    assert set(re.findall(r'(\w+)="', "".join(before))) <= allowed


def test_health_is_told_for_the_server_and_the_service(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        status = health.Check(health_pb2.HealthCheckRequest(service=name)).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_is_enough_to_call_the_service(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert SERVICE in database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    described = pool.FindServiceByName(SERVICE)
    assert set(described.methods_by_name) == {"Classify", "ClassifyStream", "ListModels"}
    method = described.methods_by_name["Classify"]
    request = message_factory.GetMessageClass(method.input_type)(task="topic", texts=["habari"])
    answer = channel.unary_unary(f"/{SERVICE}/Classify")(request.SerializeToString())
    response = message_factory.GetMessageClass(method.output_type).FromString(answer)
    assert response.predictions[0].label == "long"


def test_a_stub_that_somebody_else_generates_gets_answers(
    served: ServiceProcess, tmp_path: Path
) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}"),
            *(f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"),
            "understudy/v1/classification.proto",
        ],
        check=True,
    )
    # Or the installed package of that name, a regular one, would come before this namespace.
    (tmp_path / "understudy" / "__init__.py").touch()
    script = tmp_path / "client.py"
    script.write_text(
        "import sys, grpc\n"
        "from understudy.v1 import classification_pb2 as pb, classification_pb2_grpc as service\n"
        "assert pb.__file__.startswith(sys.path[0])\n"
        "with grpc.insecure_channel(sys.argv[1]) as channel:\n"
        "    stub = service.ClassificationServiceStub(channel)\n"
        "    answer = stub.Classify(pb.ClassifyRequest(task='topic', texts=['habari']))\n"
        "sys.stdout.write(answer.predictions[0].label)\n"
    )
    run = subprocess.run(
        [sys.executable, str(script), served.grpc],
        env={"PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "long"


def test_neither_texts_nor_what_quotes_them_get_into_the_log(
    served: ServiceProcess, http: httpx.Client, stub: pb_grpc.ClassificationServiceStub
) -> None:
    for task in ("topic", "boom", "nothing", "full"):
        http.post("/v1/classify", json={"task": task, "texts": [SECRET]})
        list(stub.ClassifyStream(iter([stream_request(task=task, texts=[SECRET])])))
    http.post("/v1/classify", content=f'{{"texts": ["{SECRET}'.encode())
    http.post("/v1/classify", json={"task": "topic", "texts": [SECRET, "\0"]})
    assert "unforeseen ValueError" in served.log
    assert SECRET not in served.log


# --- start and end ---


def test_what_is_in_flight_finishes_after_sigterm_and_nothing_new_begins() -> None:
    with service(FAKE) as process, grpc.insecure_channel(process.grpc) as channel:
        process.wait_ready()
        stub = pb_grpc.ClassificationServiceStub(channel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        by_grpc = stub.Classify.future(good(task="wait"))
        by_stream = stub.ClassifyStream(iter([stream_request(task="wait")]))
        answers: list[int] = []

        def ask() -> None:
            answer = httpx.post(f"{process.url}/v1/classify", json=GOOD | {"task": "wait"})
            answers.append(answer.status_code)

        by_http = threading.Thread(target=ask)
        by_http.start()
        in_flight = 'understudy_requests_in_flight{role="student",transport="%s"} 1.0'
        wait_until(
            lambda: all(
                in_flight % transport in httpx.get(f"{process.url}/metrics").text
                for transport in ("http", "grpc", "grpc_stream")
            ),
            "in flight on both transports",
        )
        process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with grpc.insecure_channel(process.grpc) as fresh, pytest.raises(grpc.RpcError) as caught:
            pb_grpc.ClassificationServiceStub(fresh).Classify(good(), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert len(by_grpc.result().predictions) == 2
        assert [len(r.response.predictions) for r in by_stream] == [2]
        by_http.join()
        assert answers == [200]
        assert process.wait() == 0
        assert "Traceback" not in process.log


def test_what_never_finishes_is_cut_off_after_the_grace() -> None:
    with (
        service(FAKE, {"UNDERSTUDY_GRACE": "0.5"}) as process,
        grpc.insecure_channel(process.grpc) as channel,
        connected(process, wait=True) as connection,
    ):
        call = pb_grpc.ClassificationServiceStub(channel).Classify.future(good(task="hang"))
        content = body(task="hang")
        head = f"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until(lambda: process.log.count("hanging") == 2, "in flight")
        process.terminate()
        assert process.wait(10) == 0
        assert process.log.count("dropped") == 2
        assert call.code() is not grpc.StatusCode.OK


@pytest.mark.parametrize("taken", ["port", "grpc_port"])
def test_a_taken_port_ends_the_start_with_one_line(taken: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        number = holder.getsockname()[1]
        with service(FAKE, **{taken: number}) as process:
            assert process.wait() == 1
            (line,) = process.log.splitlines()
    assert line.startswith("understudy: ")
    assert f"127.0.0.1:{number}" in line and "Address already in use" in line


def test_a_bad_bundle_ends_the_start_with_one_line() -> None:
    with service(FAKE, {"FAKE_BROKEN": "1"}) as process:
        assert process.wait() == 1
        (line,) = [x for x in process.log.splitlines() if x.startswith("understudy")]
        assert "golden input 0 differs" in line
        assert "Traceback" not in process.log


def test_bentoml_itself_can_serve_it(tmp_path: Path) -> None:
    command = ("-m", "bentoml", "serve", "tests.support.fake_service:FakeService")
    address = ("--host", "127.0.0.1", "--port", "{port}")
    with service((*command, *address), {"BENTOML_HOME": str(tmp_path)}) as process:
        process.wait_ready()
        answer = httpx.post(f"{process.url}/v1/classify", json=GOOD)
        assert answer.json()["predictions"][0]["label"] == "long"
        assert "understudy_requests_total" in httpx.get(f"{process.url}/metrics").text
        with grpc.insecure_channel(process.grpc) as channel:
            stub = pb_grpc.ClassificationServiceStub(channel)
            call = stub.Classify.future(good(task="wait"))
            wait_until(
                lambda: 'transport="grpc"} 1.0' in httpx.get(f"{process.url}/metrics").text,
                "in flight",
            )
            process.terminate()
            assert len(call.result().predictions) == 2
        assert process.wait() == 0


async def test_grpc_serves_nothing_until_it_is_told_to() -> None:
    dataplane = Dataplane("student")
    server = GrpcServer(dataplane, host="127.0.0.1", port=0)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        stub = pb_grpc.ClassificationServiceStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for call in (stub.Classify(good()), stub.ListModels(pb.ListModelsRequest())):
            with pytest.raises(grpc.RpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        dataplane.open(FakeClassifier())
        await server.serve()
        assert (await health.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
        assert len((await stub.Classify(good())).predictions) == 2
        watch = health.Watch(request)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        # A watch never ends by itself, and must not use the grace up.
        async with asyncio.timeout(5):
            await server.stop(grace=60)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING


# --- helpers ---


def check(value: Any, document: dict[str, Any], schema: str) -> None:
    components = {"components": document["components"]}
    jsonschema.validate(value, {"$ref": f"#/components/schemas/{schema}"} | components)


def connected(process: ServiceProcess, *, wait: bool = False) -> socket.socket:
    if wait:
        process.wait_ready()
    host, _, port = process.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def raw(process: ServiceProcess, data: bytes) -> bytes:
    """What the server answers to these bytes until it closes."""
    with connected(process) as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    return received
