"""Input that is made to do harm: refused before it does, in one line, or masked."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import smec_core
from pipelines.cli import app
from pipelines.retrain.ledger import CYCLE_KEYS, Ledger, Release, Releases
from pipelines.storage.run_folder import RunFolder
from smec_core.checksums import write_sums
from smec_core.data.uri import open_filesystem
from smec_core.errors import InputError, SmecError
from smec_core.model.files import READ
from smec_core.model.model import Model
from smec_core.yaml_file import dump
from tests.builders import write_dataset
from tests.kills import REPOSITORY

PASSWORD = "hunter2"


def smec(*arguments: str) -> tuple[int, str]:
    """Exit code of a command, and what it printed."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout + result.stderr


@pytest.mark.parametrize("uri", ["s3://bucket/runs/../other", "file:///tmp/../etc", "gs://bucket/.."])
def test_a_uri_that_climbs_is_refused(uri: str) -> None:
    with pytest.raises(InputError, match=r"has '\.\.' in its path; write the path out"):
        open_filesystem(uri)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "..", "/etc", "a; touch b", "$(touch b)", "-rf"])
def test_a_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    config = tmp_path / "retrain.yaml"
    places = {"data": "data", "storage": str(tmp_path / "storage"), "publish": {"output": "out", "dim": 4}}
    config.write_text(dump({"name": name, "train": {"dims": 4}, **places}))
    code, printed = smec("retrain", "--config", str(config))

    assert code == 2
    assert re.fullmatch(r"smec: name: must be of letters, .* as nightly-2 .*\n", printed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["retrain.yaml"]


def test_a_stored_model_that_names_files_elsewhere_is_not_fetched(tmp_path: Path) -> None:
    run_folder = RunFolder(str(tmp_path), "run")
    run_folder.create()
    (tmp_path / "secret").write_text("stays")
    file = {"name": "../../secret", "bytes": 5, "sha256": ""}
    run_folder.write("finished.json", {"format": 1, "files": [file]})

    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(SmecError, match=r"finished\.json: names '\.\./\.\./secret', which is no file of a model"):
        run_folder.fetch_model(tmp_path / "a" / "b")
    assert (tmp_path / "secret").read_text() == "stays"


@pytest.mark.parametrize(("run", "version"), [("../elsewhere", "v0001"), ("run", "../v0001")])
def test_a_release_that_names_folders_elsewhere_is_refused(tmp_path: Path, run: str, version: str) -> None:
    ledger = Ledger(RunFolder(str(tmp_path), "series"))
    release = Release(1, 1, run, "0" * 64, "1", str(tmp_path), version, "", "")
    ledger.write_releases(Releases((release,), 1))
    with pytest.raises(InputError, match=r"releases\.json: '\.\./\w+' is no (name of a run|version); restore it"):
        ledger.releases()
    ledger.write_cycle(dict.fromkeys(CYCLE_KEYS) | {"cycle": 1, "release": release._asdict()})
    with pytest.raises(InputError, match=r"0001\.json: '\.\./\w+' is no (name of a run|version); restore it"):
        ledger.last_cycle()


def test_a_training_that_names_a_folder_elsewhere_removes_nothing(tmp_path: Path) -> None:
    ledger = Ledger(RunFolder(str(tmp_path / "storage"), "series"))
    (tmp_path / "elsewhere").mkdir()
    ledger.folder.write("training.json", {"run": "../elsewhere"})
    with pytest.raises(InputError, match=r"training\.json: '\.\./elsewhere' is no name of a run; restore it"):
        ledger.begin_training(ledger.folder.sibling("series-0"), 1)
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "text",
    ["data: !!python/object/apply:os.mkdir [{marker}]", "data: $(mkdir {marker})", "data: '; mkdir {marker} #'"],
)
def test_a_config_with_a_command_runs_none(tmp_path: Path, text: str) -> None:
    marker, config = tmp_path / "ran", tmp_path / "train.yaml"
    config.write_text(text.format(marker=marker) + "\ndims: 4\n")
    code, printed = smec("train", "--config", str(config), "--out", str(tmp_path / "model"))

    assert code == 2
    assert len(printed.splitlines()) == 1
    assert not marker.exists()


@pytest.mark.parametrize("dims", ["-1", "0", "4,-8", "1000000000000", "1e300", "4.5", "9" * 400])
def test_a_dim_that_cannot_be_is_refused_by_every_command(tmp_path: Path, dims: str) -> None:
    data, model = write_dataset(tmp_path / "data", docs=40, queries=40, dim=8), tmp_path / "model"
    Model([], 8, {"dims": [8]}, {}).save(model)
    commands = [
        ("train", "--data", str(data), "--dims", dims, "--out", str(tmp_path / "new")),
        ("compress", "--model", str(model), "--input", str(data / "corpus"), "--output", str(tmp_path / "out")),
    ]
    for command, option in zip(commands, ((), ("--dim", dims)), strict=True):
        code, printed = smec(*command, *option)
        assert code == 2
        assert re.fullmatch(r"smec: dims?\b.*\n", printed)
    assert not (tmp_path / "out").exists()


def test_a_model_of_an_impossible_width_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    Model([], 4, {"dims": [4]}, {}).save(folder)
    config = json.loads((folder / "config.json").read_text())
    for width in (-4, 10**12):
        (folder / "config.json").write_text(json.dumps({**config, "input_dim": width, "dims": [width]}))
        # as somebody who writes the checksums, too
        write_sums(folder, READ)
        with pytest.raises(InputError, match="do not fit together"):
            smec_core.load(folder)


@pytest.mark.ray
def test_the_password_of_an_mlflow_server_is_in_no_file_and_no_line(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data")
    uri = f"http://someone:{PASSWORD}@127.0.0.1:9"
    # Ray puts sockets there, whose paths must be short
    with tempfile.TemporaryDirectory(prefix="smec-", ignore_cleanup_errors=True) as ray_folder:
        # with SMEC_DEBUG Ray's logs stay there
        env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "TMPDIR": ray_folder}
        env |= {"SMEC_DEBUG": "1", "RAY_TMPDIR": ""}
        command = ["train", "--data", str(data), "--dims", "8", "--out", str(tmp_path / "model"), "--set", "epochs=1"]
        ended = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *command],
            env=os.environ | env,
            cwd=REPOSITORY,
            text=True,
            capture_output=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr
        assert "MLflow at http://***@127.0.0.1:9 fails" in ended.stderr
        assert PASSWORD not in ended.stdout + ended.stderr
        logs = [path for path in Path(ray_folder).rglob("*") if path.is_file()]
        assert logs
        for path in [*logs, *(path for path in tmp_path.rglob("*") if path.is_file())]:
            assert PASSWORD.encode() not in path.read_bytes(), path
