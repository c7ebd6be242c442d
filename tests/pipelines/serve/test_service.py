"""The server of `smec serve` under load, under attack and at its end: a real process, asked over real connections."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.serve_client import Tally, load
from pipelines.serve.answers import EMBEDDINGS
from pipelines.serve.job import app
from pipelines.serve.settings import ApplicationSettings
from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage
from smec_core.model.files import load as load_model
from smec_core.model.model import Model
from tests.openai_client import check_client, check_document
from tests.query_client import post
from tests.serve_process import Service, free_port, serving

pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra: serve)")

pytestmark = pytest.mark.ray

DIM = 32
DEADLINE = 3
MAX_ROWS = 20_000
WAIT_SECONDS = 120
BODY = json.dumps({"inputs": np.random.default_rng(0).standard_normal((1, DIM)).tolist()}).encode()
EMBEDDINGS_BODY = BODY.replace(b"inputs", b"input")
HEAD = b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def write_model(folder: Path, weight: float) -> Path:
    stage = FrozenStage(16, "linear", {"weight": torch.eye(DIM) * weight, "logits": torch.ones(DIM)})
    Model([stage], DIM, {"dims": [DIM, 16]}, {"evaluation": {"ndcg@10": {"32": 0.5, "16": float("nan")}}}).save(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model", 1.0)


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that is slow enough for a few dozen requests to be too many; the last test ends it."""
    folder = tmp_path_factory.mktemp("service")
    limits = (
        f"deadline={DEADLINE}",
        "max_wait=0.05",
        "batch_wait_ms=200",
        "max_connections=400",
        f"max_rows={MAX_ROWS}",
    )
    with serving(model, folder, *limits) as running:
        yield running


def connect(service: Service, message: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=WAIT_SECONDS)
    connection.sendall(message)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What the server says until it closes."""
    found = b""
    with connection:
        try:
            while part := connection.recv(65536):
                found += part
        except ConnectionResetError:
            pass
    return found


def ask(service: Service, path: str, body: bytes = b"") -> tuple[int, dict[str, str], Any]:
    """Status, headers and content of an answer, which must be JSON, not what Python takes for it."""
    method = "POST" if body else "GET"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    said, _, content = read_all(connect(service, head.encode() + body)).partition(b"\r\n\r\n")
    first, *lines = said.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, json.loads(content, parse_constant=pytest.fail)


def test_clients_of_openai_get_vectors(service: Service, model: Path) -> None:
    check_client(service.url, load_model(model), MAX_ROWS)


def test_it_says_what_it_does(service: Service) -> None:
    check_document(service.url, DIM)


@pytest.mark.parametrize(("path", "allowed"), [("/encode", "POST"), ("/openapi.json", "GET")])
def test_another_method_is_told_which_there_is(service: Service, path: str, allowed: str) -> None:
    status, headers, told = ask(service, path, b"" if allowed == "POST" else b"{}")
    assert (status, headers["allow"], told) == (405, allowed, {"detail": f"{path} takes {allowed}"})


def test_slow_clients_stop_nobody_and_are_closed(service: Service) -> None:
    chunked = HEAD.replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked")
    # what a client sends before it falls silent, and the status that it is told
    kinds = [
        (b"", b""),
        (b"POST /encode HT", b"408"),
        (HEAD[:-2], b"408"),
        (HEAD + BODY[:20], b"408"),
        (chunked + b"5\r\n{", b"408"),
    ]
    slow = [(connect(service, message), said) for message, said in kinds * 28]
    for _ in range(3):
        assert post(service.url, BODY)[0] == 200
        assert ask(service, "/healthz")[0] == ask(service, "/readyz")[0] == 200
    late = connect(service, b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    for connection, said in slow:
        assert read_all(connection)[9:12] == said
    assert b'{"error": {"message": "body: has not come within' in read_all(late)


HEAD_REFUSALS = {
    "invalid": (b"Host: localhost\r\n\x00: 1\r\n\r\n", 400),
    "large": (b"X: " + b"x" * 70_000, 431),
    "slow": (b"Host: loc", 408),
}


@pytest.mark.parametrize("kind", HEAD_REFUSALS)
@pytest.mark.parametrize(
    "path", ["/encode", EMBEDDINGS, f"{EMBEDDINGS}?a=b", f"http://x{EMBEDDINGS}", "/v1/embedding%73"]
)
def test_a_refused_head_is_told_in_the_form_of_its_path(service: Service, path: str, kind: str) -> None:
    rest, status = HEAD_REFUSALS[kind]
    said, _, content = read_all(connect(service, f"POST {path} HTTP/1.1\r\n".encode() + rest)).partition(b"\r\n\r\n")
    assert said[9:12] == str(status).encode()
    answer = json.loads(content)
    if path == "/encode":
        assert answer.keys() == {"detail"}
    else:
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        assert answer["error"]["code"]


def test_the_form_is_of_the_path_that_was_asked_last(service: Service) -> None:
    ask_first = f"GET {EMBEDDINGS} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for rest in (b"\x00\r\n\r\n", b"GET /info HTTP/1.1\r\n\x00: 1\r\n\r\n"):
        connection = connect(service, ask_first)
        said = b""
        while b'"method"' not in said:
            said += connection.recv(65536) or pytest.fail(said.decode())
        connection.sendall(rest)
        said = read_all(connection)
        assert said[9:12] == b"400"
        assert b'{"detail"' in said


def test_a_client_that_does_not_read_is_cut_off(service: Service) -> None:
    # more than the kernel takes for it
    body = b'{"inputs": [' + b",".join([b"[" + b",".join([b"1"] * DIM) + b"]"] * MAX_ROWS) + b"]}"
    head = b"POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    connection = connect(service, head + body)
    mine = connection.getsockname()
    server = psutil.Process(service.process.pid)
    deadline = time.monotonic() + WAIT_SECONDS
    for is_there in (True, False):
        while any(one.raddr == mine for one in server.net_connections("tcp")) != is_there:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    said, _, content = read_all(connection).partition(b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200 ")
    assert len(content) < int(said.partition(b"content-length: ")[2])


def test_a_client_that_asks_ahead_without_end_is_refused(service: Service) -> None:
    with connect(service, b"") as connection, suppress(OSError):
        for _ in range(1000):
            connection.sendall(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000)
        pytest.fail("the server takes whatever comes")
    assert ask(service, "/healthz")[0] == 200


def test_too_many_requests_are_turned_away_at_once(service: Service) -> None:
    tally = Tally(body=BODY)
    asyncio.run(load(service.port, tally, 100, 3))
    assert tally.seconds.keys() == {200, 503}
    assert not tally.cut
    crowd = [connect(service, HEAD + BODY) for _ in range(100)]
    status, headers, content = ask(service, "/encode", BODY)
    while status == 200:
        status, headers, content = ask(service, "/encode", BODY)
    assert (status, headers["retry-after"]) == (503, "1")
    assert "try again" in content["detail"]
    assert ask(service, "/openapi.json")[0] == 200
    status, headers, content = ask(service, EMBEDDINGS, EMBEDDINGS_BODY)
    while status == 200:
        status, headers, content = ask(service, EMBEDDINGS, EMBEDDINGS_BODY)
    assert (status, headers["retry-after"]) == (503, "1")
    assert (content["error"]["type"], content["error"]["code"]) == ("server_error", "overload")
    for connection in crowd:
        connection.close()


def test_too_many_connections_leave_room_for_health(service: Service) -> None:
    crowd = [connect(service, HEAD + BODY[:20]) for _ in range(450)]
    status, _, content = ask(service, "/encode", BODY)
    assert status == 503
    assert "too many connections" in content["detail"]
    assert "too many connections" in ask(service, EMBEDDINGS, EMBEDDINGS_BODY)[2]["error"]["message"]
    assert ask(service, "/healthz")[0] == ask(service, "/readyz")[0] == 200
    for connection in crowd:
        connection.close()
    while status != 200:
        status = ask(service, "/encode", BODY)[0]


@pytest.mark.parametrize(
    ("body", "cure"),
    [
        (b'{"inputs": [' + b"[]," * 999_999 + b"[]]}", f"at most {MAX_ROWS} rows"),
        (b'{"inputs": [[' + b"1," * 999_999 + b"1]]}", f"at most {MAX_ROWS} rows"),
        (b'{"inputs": [[1]]' + b', "a": 1' * 3000 + b"}", "send {"),
        (b"[" * 30_000, "invalid JSON"),
        (b'{"inputs": ' + b"[" * 1_000_000, "invalid JSON"),
        (b'{"inputs": ' + b"[ " * 1_000_000, "invalid JSON"),
    ],
    ids=["rows", "numbers", "keys", "levels", "levels of inputs", "levels with spaces"],
)
def test_bodies_of_a_million_parts_are_refused(service: Service, body: bytes, cure: str) -> None:
    status, _, content = ask(service, "/encode", body)
    assert 400 <= status < 500
    assert cure in content["detail"]
    status, _, content = ask(service, EMBEDDINGS, body.replace(b"inputs", b"input"))
    assert 400 <= status < 500
    assert cure in content["error"]["message"]


def test_nan_is_never_written(service: Service, tmp_path: Path) -> None:
    assert ask(service, "/info")[2]["evaluation"] == {"ndcg@10": {"32": 0.5, "16": None}}
    for weight, problem in ((float("nan"), "holds NaN or infinity"), (3e38, "gives NaN or infinity; train it again")):
        with pytest.raises(InputError, match=problem):
            app(ApplicationSettings(model=str(write_model(tmp_path / f"model-{weight}", weight))))


HOSTILE_BODIES = st.one_of(
    st.binary(max_size=300),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["inputs", "input", "dim", "dimensions", "model", "x"]), inner)
        ),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda row, rows, dim, names: json.dumps({names[0]: [row] * rows, names[1]: dim}).encode(),
        st.lists(st.floats() | st.just(1e38) | st.just(0), min_size=DIM - 1, max_size=DIM),
        st.integers(0, 20),
        st.none() | st.integers() | st.floats(),
        st.sampled_from([("inputs", "dim"), ("input", "dimensions")]),
    ),
)
HOSTILE_HEADERS = st.lists(
    st.one_of(
        st.tuples(st.binary(max_size=12), st.binary(max_size=12)),
        st.tuples(
            st.sampled_from([
                b"Transfer-Encoding", b"Content-Length", b"Expect", b"Connection", b"Upgrade", b"X-Request-Id",
                b"X-Request-Timeout-Seconds", b"Serve_Multiplexed_Model_Id", b"Content-Encoding", b"Host",
            ]),
            st.sampled_from([
                b"chunked", b"gzip", b"0", b"-1", b"nan", b"9" * 30, b"100-continue", b"close", b"keep-alive",
                b"upgrade", b"websocket", b"h2c", b"\xff\xfe", b"",
            ]),
        ),
    ),
    max_size=4,
)  # fmt: skip
HOSTILE_PATHS = (
    b"/encode /v1/embeddings /openapi.json /docs /info /healthz /readyz / * http://x/encode //encode".split()
)
HOSTILE_LINES = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda method, path, version: b" ".join((method, path, version)),
        st.sampled_from([b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"TRACE", b"PRI", b"BREW"]),
        st.sampled_from(HOSTILE_PATHS) | st.binary(max_size=12).map(lambda path: b"/" + path),
        st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9"]),
    ),
)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    line=HOSTILE_LINES,
    headers=HOSTILE_HEADERS,
    body=HOSTILE_BODIES,
    honest=st.sampled_from([b"/encode", b"/v1/embeddings"]) | st.just(b""),
)
def test_nothing_that_a_client_sends_is_our_failure(
    service: Service, line: bytes, headers: list[tuple[bytes, bytes]], body: bytes, honest: bytes
) -> None:
    if honest:
        line, headers = b"POST %s HTTP/1.1" % honest, [(b"Host", b"x"), (b"Content-Length", b"%d" % len(body))]
    head = b"\r\n".join([line, *(name + b": " + value for name, value in headers)])
    connection = connect(service, head + b"\r\n\r\n" + body)
    if honest:
        # the answer must come, and whole
        said = connection.recv(1 << 20)
        assert said.startswith(b"HTTP/1.1 ")
        connection.close()
    else:
        connection.settimeout(0.05)
        try:
            said = connection.recv(1 << 20)
        except (TimeoutError, ConnectionResetError):
            said = b""
        connection.close()
    assert b" 500 " not in said.partition(b"\r\n")[0]
    assert b"Traceback" not in said and b'File "' not in said


def test_after_all_that_it_answers_and_has_not_failed(service: Service) -> None:
    assert post(service.url, BODY)[0] == 200
    assert "Traceback" not in service.log.read_text()


def kill_under_load(service: Service) -> None:
    [replica] = service.replicas()
    tally = Tally(body=BODY)

    async def kill_meanwhile() -> None:
        asking = asyncio.create_task(load(service.port, tally, 8, WAIT_SECONDS))
        while len(tally.seconds.get(200, [])) < 20:
            await asyncio.sleep(0.1)
        os.kill(replica.pid, signal.SIGKILL)
        while 503 not in tally.seconds:
            await asyncio.sleep(0.1)
        answered = len(tally.seconds[200])
        while len(tally.seconds[200]) < answered + 50:
            await asyncio.sleep(0.1)
        tally.is_over = True
        await asking

    asyncio.run(kill_meanwhile())
    assert tally.seconds.keys() == {200, 503}
    assert not tally.cut
    assert ask(service, "/readyz")[0] == 200


def test_a_killed_replica_costs_no_client_its_answer(service: Service) -> None:
    kill_under_load(service)


ON_A_CLUSTER = """
import logging, sys, ray
from pipelines.serve.job import run
from pipelines.serve.settings import ServeSettings
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
run(ServeSettings(model=sys.argv[1], port=int(sys.argv[2]), batch_wait_ms=200))
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_the_proxies_of_ray_take_the_gate(tmp_path: Path) -> None:
    environment = {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "pipelines.serve.gate:middlewares",
        "SMEC_SERVE_LIMITS": json.dumps({"deadline": DEADLINE, "max_wait": 0.05}),
    }
    port, log = free_port(), tmp_path / "serve.log"
    command = [sys.executable, "-c", ON_A_CLUSTER, str(write_model(tmp_path / "model", 1.0)), str(port)]
    with subprocess.Popen(
        command, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w")
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening\n", log.read_text()
            service = Service(process, port, log)
            slow = [connect(service, HEAD + BODY[:20]) for _ in range(140)]
            assert post(service.url, BODY)[0] == 200
            assert ask(service, "/readyz")[0] == 200
            late = connect(service, HEAD.replace(b"/encode", b"/v1/embeddings") + BODY[:20])
            for connection in slow:
                assert read_all(connection)[9:12] == b"408"
            assert b'{"error": {"message": "body: has not come within' in read_all(late)
            check_document(service.url, DIM)
            tally = Tally(body=BODY)
            asyncio.run(load(port, tally, 100, 3))
            assert tally.seconds.keys() == {200, 503}
            assert not tally.cut
            kill_under_load(service)
        finally:
            process.communicate(timeout=WAIT_SECONDS)


def test_it_ends_in_order(service: Service) -> None:
    tally, ready, health = Tally(body=BODY), Tally("/readyz"), Tally("/healthz")

    async def end_meanwhile() -> None:
        asking = [
            asyncio.create_task(load(service.port, one, count, WAIT_SECONDS, until_closed=True))
            for one, count in ((tally, 64), (ready, 1), (health, 1))
        ]
        while len(tally.seconds.get(200, [])) < 50:
            await asyncio.sleep(0.1)
        service.process.terminate()
        while 503 not in ready.seconds:
            await asyncio.sleep(0.01)
        # as an impatient supervisor does
        service.process.terminate()
        answered = len(tally.seconds[200])
        while len(tally.seconds[200]) == answered:
            # readiness fails first: requests are still answered
            assert not asking[0].done()
            await asyncio.sleep(0.01)
        await asyncio.gather(*asking)

    asyncio.run(end_meanwhile())
    assert tally.seconds.keys() == {200, 503}
    assert health.seconds.keys() == {200}
    assert not tally.cut and not ready.cut and not health.cut
    deadline = time.monotonic() + WAIT_SECONDS
    while service.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert service.process.returncode == 0, service.log.read_text()
    assert "Traceback" not in service.log.read_text()
