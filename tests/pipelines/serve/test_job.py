"""The query service on a real Ray, asked by other processes: answers, refusals, metrics, updates and ends."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

import smec_core
from pipelines.console import RowProgress
from pipelines.serve import job
from pipelines.serve.job import app, run
from pipelines.serve.settings import ApplicationSettings, ServeSettings
from smec_core.errors import InputError, SmecError
from smec_core.model.adapter import FrozenStage
from smec_core.model.model import Model
from tests.openai_client import check_client, check_document
from tests.query_client import post, request
from tests.serve_process import free_port, serve_command, serving

serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed (extra: serve)")

pytestmark = pytest.mark.ray

EVALUATION = {"split": "test", "ndcg@10": {"32": 0.7, "16": 0.6, "8": 0.5}}
DIM = 32
WAIT_SECONDS = 120


def write_model(folder: Path, seed: int) -> Path:
    """A chain of two random stages, 32 to 16 to 8 dims."""
    generator = torch.Generator().manual_seed(seed)
    stages = [
        FrozenStage(dim, "linear", {"weight": torch.randn(d_in, d_in, generator=generator), "logits": torch.ones(d_in)})
        for d_in, dim in ((32, 16), (16, 8))
    ]
    Model(stages, DIM, {"dims": [32, 16, 8]}, {"evaluation": EVALUATION}).save(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two versions of a model."""
    folder = tmp_path_factory.mktemp("models")
    return write_model(folder / "first", 1), write_model(folder / "second", 2)


@pytest.fixture(scope="module")
def port(ray_cluster: None) -> Iterator[int]:
    """The port of Serve on the tests' cluster, which ends with this module."""
    yield free_port()
    serve.shutdown()


@pytest.fixture
def url(models: tuple[Path, Path], port: int) -> str:
    """The service with the first model; the tests share it as long as none has changed it."""
    running = serve.status().applications.get("smec")
    address = f"http://127.0.0.1:{port}"
    if running is not None and running.status == "RUNNING":
        status, info = get(f"{address}/info")
        if status == 200 and info["model"] == smec_core.load(models[0]).fingerprint:
            return address
    assert deploy(models[0], port) == address
    return address


def deploy(model: Path, port: int) -> str:
    batching: dict[str, Any] = {"batch_wait_ms": 20, "max_rows": 16}
    return str(run(ServeSettings(model=str(model), port=port, **batching))["url"])


def get(url: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def client(url: str, out: Path, requests: int, *stop: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "tests.query_client", url, str(DIM), str(out), str(requests), *stop])


def check_answers(out: Path, *folders: Path) -> set[str]:
    """Compares what a client got with what the models give; returns the fingerprints of those that have answered."""
    known = {model.fingerprint: model for model in map(smec_core.load, folders)}
    seen = set()
    for number, status, answer in json.loads(out.read_text()):
        sent = request(number, DIM)
        if sent.cure:
            assert 400 <= status < 500, (number, status, answer)
            assert sent.cure in answer["detail"]
            assert "\n" not in answer["detail"]
        else:
            assert status == 200, (number, status, answer)
            assert answer["dim"] == (sent.dim or DIM)
            expected_Nd = known[answer["model"]].encode(sent.x_ND, sent.dim)
            np.testing.assert_allclose(np.array(answer["embeddings"]), expected_Nd, rtol=0, atol=1e-6)
            seen.add(answer["model"])
    return seen


def counts() -> Counter[str]:
    """The service's metrics on Ray's Prometheus endpoint, over all replicas."""
    [node] = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        if match := re.match(r"ray_smec_serve_(\w+)\{(.*)\} (\S+)$", line):
            name, labels, value = match.groups()
            found[name] += int(float(value))
            if kind := re.search(r'kind="(\w+)"', labels):
                found[f"{name} of kind {kind[1]}"] += int(float(value))
    return found


def test_another_process_gets_what_encode_gives_and_each_bad_request_its_cure(
    url: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    before = counts()
    assert client(url, tmp_path / "answers", 400).wait(WAIT_SECONDS) == 0
    assert len(json.loads((tmp_path / "answers").read_text())) == 400
    assert check_answers(tmp_path / "answers", models[0]) == {smec_core.load(models[0]).fingerprint}
    assert get(f"{url}/healthz")[0] == 200

    # workers report their metrics every ten seconds
    deadline = time.monotonic() + WAIT_SECONDS
    while (now := counts() - before)["requests_total"] < 400 and time.monotonic() < deadline:
        time.sleep(1)
    sent = [request(number, DIM) for number in range(400)]
    good = [one for one in sent if not one.cure]
    assert now["requests_total"] == now["latency_ms_count"] == 400
    assert now["rows_total"] == sum(len(one.x_ND) for one in good)
    assert now["errors_total"] == len(sent) - len(good)
    assert now["errors_total of kind rows"] == sum("at most 16 rows" in one.cure for one in sent)
    assert 0 < now["batch_rows_count"] < len(good), "no two requests were multiplied together"


def test_info_says_what_the_model_is(url: str, models: tuple[Path, Path]) -> None:
    status, info = get(f"{url}/info")
    assert status == 200
    assert info == {
        "model": smec_core.load(models[0]).fingerprint,
        "input_dim": DIM,
        "dims": [32, 16, 8],
        "max_rows": 16,
        "evaluation": EVALUATION,
    }


def test_clients_of_openai_get_vectors_from_a_cluster(url: str, models: tuple[Path, Path]) -> None:
    check_client(url, smec_core.load(models[0]), max_rows=16)


def test_a_cluster_says_what_it_does(url: str, models: tuple[Path, Path]) -> None:
    check_document(url, DIM)
    beside = run(ServeSettings(model=str(models[0]), name="other", route="/other"))["url"]
    try:
        check_document(beside, DIM)
    finally:
        serve.delete("other")


def test_a_body_past_all_rows_is_refused_unread(url: str) -> None:
    status, answer = post(url, b" " * 2_000_000)
    assert status == 413
    assert "at most 16 rows" in answer["detail"]
    assert get(f"{url}/healthz")[0] == 200


def test_a_handle_gives_arrays_and_raises_the_same_errors(url: str, models: tuple[Path, Path]) -> None:
    handle = serve.get_app_handle("smec")
    sent = request(1, DIM)
    answers = [handle.encode.remote(sent.x_ND, dim) for dim in (8, 9, None)]
    for dim, answer in zip((8, 9, None), answers, strict=True):
        expected_Nd = smec_core.load(models[0]).encode(sent.x_ND, dim)
        np.testing.assert_allclose(answer.result(timeout_s=WAIT_SECONDS), expected_Nd, rtol=0, atol=1e-6)
    with pytest.raises(InputError, match=f"dim: give 1 to {DIM}"):
        handle.encode.remote(sent.x_ND, DIM + 1).result(timeout_s=WAIT_SECONDS)


def test_a_new_model_takes_over_while_requests_go_on(
    url: str, port: int, models: tuple[Path, Path], tmp_path: Path
) -> None:
    asking = client(url, tmp_path / "answers", 1_000_000, str(tmp_path / "stop"))
    try:
        wait_for_traffic(url)
        deploy(models[1], port)
        wait_for_traffic(url)
    finally:
        (tmp_path / "stop").touch()
        assert asking.wait(WAIT_SECONDS) == 0
    # none was refused or lost, and each is of the model that it names
    assert check_answers(tmp_path / "answers", *models) == {smec_core.load(model).fingerprint for model in models}
    assert get(f"{url}/info")[1]["model"] == smec_core.load(models[1]).fingerprint


def wait_for_traffic(url: str) -> None:
    """Returns when the client in the background has surely been answered, too: they share one queue."""
    for number in range(50):
        post(url, request(number, DIM).body)


def test_a_folder_that_changed_since_is_not_served_beside_what_was_deployed(
    url: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(models[1], tmp_path / "model")
    application = app(ApplicationSettings(model=str(folder)))
    shutil.copytree(models[0], folder, dirs_exist_ok=True)
    with pytest.raises(RuntimeError):
        serve.run(application, name="smec")
    assert "was deployed; deploy it again" in serve.status().applications["smec"].deployments["Encoder"].message
    status, answer = post(url, request(1, DIM).body)
    assert (status, answer["model"]) == (200, smec_core.load(models[0]).fingerprint)


def test_on_a_cluster_that_serves_what_cannot_be_had_is_refused(url: str, port: int, models: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=rf"listens on 127\.0\.0\.1:{port} already"):
        run(ServeSettings(model=str(models[0]), port=port + 1))
    with pytest.raises(InputError, match=r'"smec".*choose another with --set route'):
        run(ServeSettings(model=str(models[0]), name="other"))
    beside = run(ServeSettings(model=str(models[1]), name="other", route="/other"))["url"]
    try:
        assert get(f"{beside}/info")[1]["model"] == smec_core.load(models[1]).fingerprint
        assert get(f"{url}/info")[1]["model"] == smec_core.load(models[0]).fingerprint
    finally:
        serve.delete("other")


def test_it_says_that_it_waits_for_the_replicas(
    url: str, models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RowProgress, "EVERY_SECONDS", 0.05)
    run(ServeSettings(model=str(models[0]), name="other", route="/other"))
    serve.delete("other")
    assert re.search(r"^starting the replicas, \d+ s so far$", capsys.readouterr().err, re.MULTILINE)


def test_a_serve_config_file_builds_the_application(url: str, models: tuple[Path, Path]) -> None:
    """As `serve deploy` and KubeRay do it, but for their way to the controller."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    arguments = {"model": str(models[1]), "max_rows": "4"}
    target = {"name": "configured", "route_prefix": "/configured", "import_path": "pipelines.serve:app"}
    config = ServeDeploySchema.model_validate({"applications": [{**target, "args": arguments}]})
    controller = _get_global_client()
    assert controller is not None
    controller.deploy_apps(config, _blocking=True)
    try:
        info = get(f"{url}/configured/info")[1]
        assert (info["model"], info["max_rows"]) == (smec_core.load(models[1]).fingerprint, 4)
    finally:
        serve.delete("configured")


@pytest.mark.parametrize(
    ("stop", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 0)]
)
def test_the_command_answers_what_is_under_way_and_ends(
    models: tuple[Path, Path], tmp_path: Path, stop: signal.Signals, code: int
) -> None:
    # long enough for the signal to come while the request waits
    with serving(models[0], tmp_path, "batch_wait_ms=4000") as server:
        second = subprocess.run(serve_command(models[0], server.port), capture_output=True, text=True)
        assert second.returncode == 2
        assert "choose another --host or --port" in second.stderr

        sent = request(1, DIM)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(post, server.url, sent.body)
            time.sleep(1.5)
            server.process.send_signal(stop)
            status, content = answer.result(WAIT_SECONDS)
        assert status == 200
        expected_Nd = smec_core.load(models[0]).encode(sent.x_ND, sent.dim)
        np.testing.assert_allclose(np.array(content["embeddings"]), expected_Nd, rtol=0, atol=1e-6)
        log = server.log
        assert server.process.wait(WAIT_SECONDS) == code, log.read_text()
        assert "Traceback" not in log.read_text()
        assert ("ended by SIGINT" in log.read_text()) == (code == 130)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a model folder"):
        run(ServeSettings(model=str(tmp_path)))


def test_without_ray_serve_the_cure_is_named(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(SmecError, match=r"pip install -e '\.\[serve\]' in the clone"):
        run(ServeSettings(model=str(models[0])))


@pytest.mark.parametrize(("host", "url"), [("::1", "http://[::1]:8000/a"), ("0.0.0.0", "http://0.0.0.0:8000/a")])
def test_an_ipv6_address_has_brackets(host: str, url: str) -> None:
    assert job._url(host, 8000, "/a/") == url
