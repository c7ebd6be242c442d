"""Secrets in addresses, settings files and the environment: whatever a cycle leaves behind has none of them."""

import base64
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.fs as pafs
import pytest

from smec_core.data.uri import open_filesystem
from smec_core.yaml_file import dump
from tests.builders import write_dataset
from tests.deploy.job_cluster import Cluster
from tests.kills import REPOSITORY
from tests.pipelines.retrain.series import SETTINGS
from tests.pipelines.tracking.servers import serving

pytestmark = [pytest.mark.ray, pytest.mark.server, pytest.mark.slow]

CORE = "Pl4ntedS3cret"
"""Part of every secret, whatever an address makes of the rest."""
SECRETS = {
    name: f"{CORE}/{name}+x" for name in ("data", "storage", "output", "mlflow", "session", "environment", "word")
}
ENVIRONMENT = {
    "AWS_SESSION_TOKEN": SECRETS["session"],
    "DB_PASSWORD": SECRETS["environment"],
    "HF_TOKEN": SECRETS["environment"],
}


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """Its address with a password; it has a database, and keeps the artifacts."""
    backend = ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    with serving(["server", *backend, "--artifacts-destination", str(tmp_path / "artifacts")], tmp_path / "mlflow") as (
        address,
        _,
    ):
        yield f"http://someone:{quote(SECRETS['mlflow'], safe='')}@{address}"


def _forms(secret: str) -> set[bytes]:
    """How a secret may be written."""
    pair = base64.b64encode(f"someone:{secret}".encode())
    return {CORE.encode(), CORE.lower().encode(), pair.rstrip(b"="), base64.b64encode(secret.encode())[:20]}


def _assert_clean(content: bytes, where: str) -> None:
    for secret in SECRETS.values():
        for form in _forms(secret):
            at = content.find(form)
            assert at < 0, f"{where}: ...{content[max(0, at - 200) : at + 60]!r}"


def test_a_cycle_with_secrets_everywhere_keeps_none(
    cluster: Cluster, s3: Callable[[str], str], mlflow_server: str, tmp_path: Path
) -> None:
    def planted(path: str, name: str) -> str:
        return s3(path).replace("s3://", f"s3://{name}:{quote(SECRETS[name], safe='')}@")

    local = write_dataset(tmp_path / "data")
    filesystem, place = open_filesystem(s3("data"))
    pafs.copy_files(str(local), place, destination_filesystem=filesystem)
    config = tmp_path / "settings" / "retrain.yaml"
    config.parent.mkdir()
    places = {"data": planted("data", "data"), "storage": planted("runs", "storage")}
    publish = {"output": planted("vectors", "output"), "dim": 16}
    config.write_text(dump({"name": "products", **places, **SETTINGS, "publish": publish}))
    env = cluster.client_env | ENVIRONMENT | {"RAY_ADDRESS": cluster.address, "MLFLOW_TRACKING_URI": mlflow_server}
    env |= {"PYTHONPATH": str(REPOSITORY)}

    def smec(*arguments: str, codes: tuple[int, ...] = (0,), **more: str) -> str:
        command = [sys.executable, "-m", "pipelines.cli", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=env | more, capture_output=True)
        said = ended.stdout + ended.stderr
        _assert_clean(said, f"output of {arguments[0]}")
        assert ended.returncode in codes, said.decode()
        return said.decode()

    # a cycle, with places in a settings file
    smec("retrain", "--config", str(config), "--json", str(tmp_path / "cycle.json"))
    # and on the command line, which Ray shows in its list of jobs
    model = tmp_path / "model"
    flags = ["--storage", planted("more", "storage"), "--out", str(model), "--dims", "16", "--set", "epochs=1"]
    smec("train", "--data", planted("data", "data"), *flags, SMEC_LOG="json")
    smec("evaluate", "--data", planted("data", "data"), "--model", str(model), "--workers", "2")
    compress = ["compress", "--model", str(model), "--dim", "16", "--workers", "1"]
    smec(
        *compress,
        "--input",
        planted("data/corpus", "data"),
        "--output",
        planted("small", "output"),
        "--json",
        f"{tmp_path}/c.json",
    )
    smec("report", str(model), "--out", str(tmp_path / "report.html"))

    # failures, with tracebacks and what libraries say
    nowhere = planted("data", "data").replace("endpoint_override=127.0.0.1", "endpoint_override=127.0.0.2")
    broken = tmp_path / "settings" / "broken.yaml"
    broken.write_text(f"data: {planted('data', 'data')}\nsecret: |\n  {SECRETS['word']}\n  x: [\ny: ]\n")
    failing = [
        ["check", planted("missing", "data")],
        ["check", nowhere],
        ["check", f"s3a://key:{SECRETS['word']}@bucket/x"],
        ["check", f"s3:/key:{SECRETS['word']}@bucket/x"],
        ["check", planted("data", "data").replace("scheme=http", f"sig={quote(SECRETS['word'], safe='')}")],
        ["train", "--config", str(broken), "--out", str(model)],
        ["train", "--set", f"password={SECRETS['word']}", "--out", str(model)],
        ["train", "--set", f"dims=s3://a:{SECRETS['word']}@b", "--out", str(model)],
        ["train", f"s3://a:{SECRETS['word']}@b"],
        [*compress, "--input", planted("missing", "data"), "--output", planted("small", "output")],
        ["compress", "--model", str(model), "--dim", "99", "--input", planted("data/corpus", "data"), "--output", "x"],
    ]
    for number, arguments in enumerate(failing):
        # either form in turn: each start takes seconds
        smec(*arguments, codes=(1, 2), SMEC_DEBUG="1", SMEC_LOG=("text", "json")[number % 2])

    # a job that is refused, and one that is not
    for words in (
        ["--", "check", planted("data", "data")],
        ["--", "check", f"s3://bucket/data?sig={SECRETS['word']}"],
        ["--", "retrain", "--config", str(config)],
        ["--env", f"AWS_SECRET_ACCESS_KEY={SECRETS['word']}", "--", "check", "/data"],
        ["--env", "DB_PASSWORD", "--", "check", "/data"],
    ):
        said = smec("submit", "--address", cluster.dashboard, *words, codes=(2,), MLFLOW_TRACKING_URI="http://host")
        assert "holds a secret" in said
    job = ["submit", "--address", cluster.dashboard, "--", "check", str(local)]
    said = smec(*job, MLFLOW_TRACKING_URI="http://host")
    assert "fingerprint" in said

    # what is left: files here, objects, MLflow's database and artifacts, Ray's logs, Ray's lists
    for folder in (tmp_path, cluster.folder):
        for path in folder.rglob("*"):
            if path.is_file() and path.parent != config.parent:
                _assert_clean(path.read_bytes(), str(path))
    assert (tmp_path / "mlflow.db").stat().st_size > 0
    assert any((tmp_path / "artifacts").rglob("adapter.safetensors"))
    for info in filesystem.get_file_info(pafs.FileSelector(place.partition("/")[0], recursive=True)):
        if info.type == pafs.FileType.File:
            _assert_clean(filesystem.open_input_stream(info.path).read(), info.path)
    lists = ("api/jobs/", "api/v0/jobs", "api/v0/tasks?detail=1", "api/v0/actors?detail=1", "api/v0/runtime_envs")
    for listed in (*lists, "api/v0/workers?detail=1", "api/train/v2/runs/v1"):
        request = urllib.request.Request(
            f"{cluster.dashboard}/{listed}", headers={"Authorization": f"Bearer {cluster.client_env['RAY_AUTH_TOKEN']}"}
        )
        try:
            answer = urllib.request.urlopen(request, timeout=60).read()
        except urllib.error.HTTPError as error:
            assert error.code in (404, 500), listed
            continue
        _assert_clean(answer, listed)
        if listed == "api/jobs/":
            shown = [job["entrypoint"] for job in json.loads(answer)]
            assert any("s3://***@" in entrypoint for entrypoint in shown), shown
