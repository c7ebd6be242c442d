"""What `smec submit` refuses before anything reaches a cluster, and what it would send."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import app
from pipelines.submit.bundle import fingerprint, write_bundle
from pipelines.submit.job import PROGRAM
from smec_core.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[3]
NOWHERE = "http://127.0.0.1:1"
CHECK = ["--", "check", "/data"]
TRAIN = ["--", "train", "--data", "/data", "--dims", "8", "--out", "/out"]
CURE = "set MLFLOW_TRACKING_URI to your MLflow server"
TUNE = ["--", "tune", *TRAIN[2:]]


def submit(*arguments: str) -> tuple[int, str]:
    """Exit code and all that was printed, as one line."""
    result = CliRunner().invoke(app, ["submit", *arguments])
    return result.exit_code, " ".join((result.stdout + result.stderr).split())


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", NOWHERE)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.com:5000")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--", "trian", "--data", "/data"], "trian: is no command that can be submitted"),
        (["--", "submit", "--", "check", "/data"], "submit: is no command that can be submitted"),
        (["--", "train", "--dta", "/data"], "smec train: No such option '--dta'"),
        (["--", "train", "--seed", "one"], "smec train: seed: Input should be a valid integer"),
        (["train", "--data", "data/products"], "smec train: data/products is relative"),
        (["--", "evaluate", "--data", "/data", "--json", "figures.json"], "smec evaluate: figures.json is relative"),
        (["--", "train", "--warm-start", "model", "--data", "/data"], "smec train: model is relative"),
        (["--", "retrain", "--set", "publish.output=vectors"], "smec retrain: vectors is relative"),
        (["--", "train", "--config", "missing.yaml"], "--config missing.yaml: no such file here"),
        (["--", "tune", "--space", "missing.yaml"], "--space missing.yaml: no such file here"),
        (["--", "train", "--data", "/d", "--dims", "8"], "smec train: out: is required; give --out or set it"),
        (["--", "train", "--data", "/d", "--out", "/o"], "smec train: dims: is required; give --dims or set it in"),
        ([*TRAIN, "--set", "lrr=1"], "smec train: --set: unknown key 'lrr'; did you mean 'lr'?"),
        ([*TRAIN, "--set", "lr=-1"], "smec train: lr: Input should be greater than 0 (given -1 by --set)"),
        ([*TRAIN, "--preset", "slow"], "smec train: --preset slow: unknown; known: paper, fast"),
        ([*TUNE, "--set", "space=missing.yaml"], "--space missing.yaml: no such file here"),
        (["--address", "ray://head:10001", *CHECK], "address ray://head:10001: must be the http:// or https://"),
        (["--address", "head:6379", *CHECK], "address head:6379: must be"),
        (["--env", "NOT_SET_ANYWHERE", *CHECK], "env NOT_SET_ANYWHERE: is not set here"),
        (["--env", "1=2", *CHECK], "env: must be NAME or NAME=VALUE"),
        (["--id", "../../etc", *CHECK], "id: must be of letters, digits, "),
        (["--id", "a;b", *CHECK], "id: must be of letters, digits, "),
    ],
)  # fmt: skip
def test_bad_usage_is_refused_with_one_line(arguments: list[str], reason: str) -> None:
    code, printed = submit(*arguments)

    assert code == 2
    assert printed.startswith(f"smec: {reason}")


@pytest.mark.parametrize("place", ["storage: runs", "publish: {output: vectors, dim: 8}"])
def test_relative_places_in_a_settings_file_are_refused(tmp_path: Path, place: str) -> None:
    config = tmp_path / "retrain.yaml"
    config.write_text(f"name: products\ndata: s3://bucket/data\n{place}\n")
    code, printed = submit("--", "retrain", "--config", str(config))

    assert code == 2
    assert "is relative, so it would lie in the job's own folder" in printed


def test_settings_of_a_file_that_is_here_are_checked_here(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("data: /data\ndims: [8]\nout: /out\nlrr: 1\n")
    code, printed = submit("--", "train", "--config", "train.yaml")
    assert code == 2
    assert printed.startswith("smec: smec train: train.yaml: unknown key 'lrr'; did you mean 'lr'?")
    # what a file of the cluster says is not known here
    assert submit("--", "train", "--config", "/of/the/cluster.yaml")[0] == 1
    # --compatible brings the start that it needs
    (tmp_path / "retrain.yaml").write_text(
        "name: a\ndata: /data\nstorage: /runs\ntrain: {dims: 8}\npublish: {output: /vectors, dim: 8}\n"
    )
    code, printed = submit("--", "retrain", "--compatible", "--config", "retrain.yaml")
    assert (code, "no Ray cluster answers" in printed) == (1, True), printed


def test_without_an_address_it_says_where_one_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    code, printed = submit(*CHECK)

    assert code == 2
    assert "--address http://HOST:8265" in printed


def test_a_cluster_out_of_reach_is_a_failure_and_its_password_is_masked() -> None:
    code, printed = submit("--address", "http://me:hunter2@127.0.0.1:1", *CHECK)

    assert code == 1
    assert printed.startswith("smec: no Ray cluster answers at http://***@127.0.0.1:1")
    assert "hunter2" not in printed


@pytest.mark.parametrize(
    "uri",
    [None, "sqlite:///mlflow.db", "sqlite+pysqlite:///a/mlflow.db", "file:mlruns", "file:./mlruns", "mlruns", "./a"],
)
def test_a_record_that_goes_away_with_the_job_is_warned_of(uri: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    given = [] if uri is None else ["--env", f"MLFLOW_TRACKING_URI={uri}"]
    for command in (TRAIN, [*TUNE, "--space", "quick"]):
        code, printed = submit(*given, *command)
        assert code == 1
        assert f"records in MLflow lies in the job's own folder, which goes away with it: {CURE}" in printed
        assert ("is not set here" if uri is None else f"MLFLOW_TRACKING_URI={uri} is relative") in printed
    # which record nothing
    for command in (CHECK, [*TRAIN, "--dry-run"]):
        assert "MLFLOW_TRACKING_URI" not in submit(*given, *command)[1]


@pytest.mark.parametrize(
    "uri",
    [
        "http://mlflow.example.com:5000",
        "sqlite:////shared/mlflow.db",
        "file:///shared/mlruns",
        "file:/shared/mlruns",
        "/shared/mlruns",
        "postgresql://host/mlflow",
        "databricks",
        "databricks://profile",
    ],
)
def test_a_record_that_stays_is_not_warned_of(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "MLFLOW_TRACKING_URI" not in submit(*TRAIN)[1]


@pytest.mark.parametrize("by_flag", [False, True])
def test_an_mlflow_address_with_a_password_goes_nowhere(monkeypatch: pytest.MonkeyPatch, by_flag: bool) -> None:
    uri = "https://me:hunter2@mlflow.example.com"
    if not by_flag:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    code, printed = submit(*(["--env", f"MLFLOW_TRACKING_URI={uri}"] if by_flag else []), *CHECK)

    assert code == 2
    assert "MLFLOW_TRACKING_PASSWORD in the environment of the cluster's machines" in printed
    assert "hunter2" not in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ["--", "check", "s3://key:Hunter2x@bucket/data"],
        ["--", "check", "s3://bucket/data?sig=Hunter2x"],
        ["--", "check", "https://bucket.s3.amazonaws.com/data?X-Amz-Credential=a&X-Amz-Signature=Hunter2x"],
        ["--", "train", "--data", "/data", "--set", "storage=s3://key:Hunter2x@bucket/runs"],
        ["--", "ingest", "/text", "/data", "--set", "encoder=hf_Hunter2xAbCdEfGhIjKlMnOp"],
        ["--id", "ghp_Hunter2xAbCdEfGhIjKlMnOpQrStUvWxYz01", *CHECK],
        ["--env", "AWS_SECRET_ACCESS_KEY=Hunter2x", *CHECK],
        ["--env", "HF_TOKEN", *CHECK],
        ["--env", "WHERE=postgresql://me:Hunter2x@host/db", *CHECK],
    ],
)
def test_a_secret_goes_nowhere(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "Hunter2x and more")
    code, printed = submit(*arguments)

    assert code == 2
    assert "holds a secret, which whoever may read the cluster's jobs would see" in printed
    assert "environment" in printed
    assert "Hunter2x" not in printed


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("data: s3://key:Hunter2x@bucket/data", 1),
        ("dims: [8]\n# once: s3://bucket/data?sig=Hunter2x\n", 2),
        ("dims: [8]\nstorage: {a: 1, password: Hunter2x}\n", 2),
    ],
)
def test_a_settings_file_with_a_secret_is_not_sent(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "train.yaml").write_text(text)
    said = rf"train.yaml: line {line} holds a secret \(.*\*\*\*.*\); leave it out"
    for option in ("--config", "--space"):
        with pytest.raises(InputError, match=f"{option} {said}") as refused:
            write_bundle(["tune", option, "train.yaml"], tmp_path / option)
        assert "Hunter2x" not in str(refused.value)


def test_help_of_the_command_is_answered_here() -> None:
    code, printed = submit("--", "train", "--help")

    assert code == 0
    assert "--dims" in printed


def test_settings_files_travel_and_paths_of_the_cluster_stay(tmp_path: Path) -> None:
    (tmp_path / "night's $run.yaml").write_text("dims: [8, 4]\n")
    (tmp_path / "space.yaml").write_text("lr: [0.001]\n")
    command = ["tune", "--config", "night's $run.yaml", "--space=space.yaml", "--data", "/data"]

    sent = write_bundle(command, tmp_path / "bundle")

    assert sent == ["tune", "--config", "files/config/night's $run.yaml", "--space=files/space/space.yaml", *sent[-2:]]
    assert (tmp_path / "bundle" / sent[2]).read_text() == "dims: [8, 4]\n"
    there = ["tune", "--config", "/of/the/cluster.yaml", "--space", "quick", "--data", "/data"]
    assert write_bundle(there, tmp_path / "other") == there


def test_a_search_space_travels_however_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("tau: {uniform: [0.5, 2]}\n")
    (tmp_path / "tune.yaml").write_text("space: mine.yaml\n")
    taken = ["tune", "--space", "files/space/mine.yaml"]
    for number, named in enumerate((["--set", "space=mine.yaml"], ["--config", "tune.yaml"])):
        sent = write_bundle(["tune", *named], tmp_path / str(number))
        assert sent[:3] == taken
        assert (tmp_path / str(number) / sent[2]).read_text() == "tau: {uniform: [0.5, 2]}\n"
    # --set wins over the file, a flag over both, and a space of this name is shipped
    command = ["tune", "--config", "tune.yaml", "--set", "space=quick"]
    assert write_bundle(command, tmp_path / "set") == ["tune", "--config", "files/config/tune.yaml", *command[3:]]
    sent = write_bundle([*command, "--space", "mine.yaml"], tmp_path / "flag")
    assert sent[1:3] == ["--config", "files/config/tune.yaml"] and sent[-2:] == taken[1:]


def test_a_change_of_a_file_changes_the_fingerprint(tmp_path: Path) -> None:
    settings, command = tmp_path / "train.yaml", ["train", "--config", str(tmp_path / "train.yaml")]
    prints = []
    for number, content in enumerate(["lr: 0.1", "lr: 0.2", "lr: 0.1"]):
        settings.write_text(content)
        write_bundle(command, tmp_path / str(number))
        prints.append(fingerprint(tmp_path / str(number)))

    assert prints[0] == prints[2] != prints[1]


def test_an_unreadable_package_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.submit.bundle.PACKAGES", ("smec_of_nowhere",))

    with pytest.raises(InputError, match="smec_of_nowhere"):
        write_bundle(["check", "/data"], tmp_path / "bundle")


def test_the_code_that_is_sent_runs_by_itself(tmp_path: Path) -> None:
    """In a folder of its own, without this repository or an installation of it."""
    write_bundle(["check", "/data"], tmp_path / "bundle")
    blocked = "import json, sys; sys.path.remove(sys.argv[1]) if sys.argv[1] in sys.path else None\n"
    blocked += "import pipelines.cli, smec_core, tune_spaces\n"
    blocked += "print(json.dumps([m.__file__ for m in (pipelines.cli, smec_core, tune_spaces)]))"

    found = subprocess.run(
        [sys.executable, "-c", blocked, str(REPOSITORY)], cwd=tmp_path / "bundle", capture_output=True, check=True
    )

    assert all(str(tmp_path) in file for file in json.loads(found.stdout))
    # as it is started there
    words = [sys.executable, *PROGRAM[1:], "check", "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PATH": "/nowhere"}
    found = subprocess.run(words, cwd=tmp_path / "bundle", env=environment, capture_output=True, check=True)
    assert b"Validate a dataset" in found.stdout
