"""SIGTERM to every command at ten moments by chance: it ends as it should, and the same command then goes on.

Each start goes on from what the one before has left, so that the last, which is let alone, has all of their traces
before it; its results are those of a run that nothing has disturbed.
"""

import os
import random
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from pipelines.cli.main import COMMANDS
from smec_core.model.model import Model
from smec_core.yaml_file import dump
from tests.builders import json_lines, write_beir, write_dataset
from tests.deploy.job_cluster import start_cluster
from tests.endings import Ended, started
from tests.pipelines.retrain.series import SETTINGS
from tests.serve_process import free_port
from tests.smec_core.clicks.logs import write_log, write_vectors

MOMENTS = 10
QUICK = "--dims 8,4 --set epochs=20 --set batch_size=32"

pytestmark = [pytest.mark.slow, pytest.mark.ray]


class Case(NamedTuple):
    """A command, and the files that are the same however often it was disturbed."""

    words: str
    results: tuple[str, ...] = ()


CASES = {
    "sample": Case("sample made --size 200", ("made/**/*.parquet",)),
    "check": Case("check data --json made.json", ("made.json",)),
    "ingest": Case("ingest text made --encoder {encoder} --set rows_per_file=8", ("made/**/*.parquet",)),
    "judge": Case("judge clicks bare", ("bare/qrels/*.parquet",)),
    "train": Case(f"train --data data --out made {QUICK} --set checkpoint_every=5", ("made/adapter.safetensors",)),
    "tune": Case(f"tune --data data --out made --space quick --trials 2 {QUICK}"),
    "experiment": Case(
        "experiment compare --data data --out made --dims 8 --seeds 2 --methods truncation,pca --set epochs=2",
        ("made/scores.csv",),
    ),
    "evaluate": Case("evaluate --data data --model model --json made.json", ("made.json",)),
    "compress": Case(
        "compress --model model --input data/corpus --output made --dim 8 --set rows_per_file=16",
        ("made/v*/**/*.parquet", "made/CURRENT"),
    ),
    "retrain": Case(
        "retrain --config retrain.yaml", ("vectors/v*/**/*.parquet", "storage/*/model/adapter.safetensors")
    ),
    "rollback": Case("rollback --config retrain.yaml", ("vectors/CURRENT",)),
    "status": Case("status --config retrain.yaml --deep", ("vectors/CURRENT",)),
    "clean": Case(
        "clean --config retrain.yaml --set publish.keep=1", ("vectors/*/*.parquet", "storage/*/model/*.safetensors")
    ),
    "verify": Case("verify model"),
    "export": Case("export --model model --to numpy --dim 8 --out made", ("made/*.npy",)),
    "serve": Case("serve --model model --port {port}"),
    "submit": Case("submit --id {id} -- check {data}"),
    "report": Case("report model --out made/report.html"),
}

SERIES = {"retrain": 0, "rollback": 2, "status": 1, "clean": 2}
"""Commands that work on a series, and how many releases it has had."""


def test_no_command_is_left_out() -> None:
    assert CASES.keys() == COMMANDS.keys()


@pytest.fixture
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        yield Path(folder)


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What the command needs beside its folder: for submit, a cluster."""
    # relative: a series stays with the registry of its first start
    found = {"MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    if request.node.callspec.params["name"] != "submit":
        yield found
        return
    with start_cluster() as cluster:
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "HOME", "PATH")
        del found["MLFLOW_TRACKING_URI"]
        found |= {name: cluster.client_env[name] for name in names}
        yield found | {"RAY_API_SERVER_ADDRESS": cluster.dashboard}


def prepare(name: str, folder: Path, temporary: Path, environment: dict[str, str]) -> None:
    """What a command works on."""
    folder.mkdir()
    write_dataset(folder / "data")
    Model([], 32, {"dims": [32, 8]}, {}).save(folder / "model")
    if name == "ingest":
        texts = [{"_id": f"d{row}", "title": "", "text": f"document {row} of the sea"} for row in range(48)]
        asked = [{"_id": f"q{row}", "text": f"which {row}"} for row in range(8)]
        qrels = "query-id\tcorpus-id\tscore\n" + "".join(f"q{row}\td{row}\t1\n" for row in range(8))
        write_beir(folder / "text", json_lines(texts), json_lines(asked), train=qrels)
    if name == "judge":
        write_vectors(folder / "bare")
        hours = range(20 * 24)
        columns = {"query_id": [f"q{hour % 30}" for hour in hours], "doc_id": [f"d{hour % 30}" for hour in hours]}
        times = [f"2026-01-{1 + hour // 24:02}T{hour % 24:02}:00:00Z" for hour in hours]
        write_log(folder / "clicks/0.parquet", {**columns, "timestamp": times})
    if name in SERIES:
        places = {"name": "series", "data": "data", "storage": "storage"}
        publish = {"publish": {"output": "vectors", "dim": 16}}
        (folder / "retrain.yaml").write_text(dump({**places, **SETTINGS, **publish}))
        judged = folder / "data/qrels/train.parquet"
        table = pq.read_table(judged)
        # each cycle has more judgements to learn from than the one before
        for rows in (int(0.6 * len(table)), len(table))[2 - SERIES[name] :]:
            pq.write_table(table.slice(0, rows), judged)
            assert finished("retrain --config retrain.yaml", folder, temporary, environment).code == 0


def finished(words: str, folder: Path, temporary: Path, environment: dict[str, str]) -> Ended:
    """A run that nothing disturbs."""
    with started(shlex.split(words), folder, temporary, environment) as command:
        ended = command.end()
    ended.check_left()
    return ended


def results(case: Case, folder: Path) -> dict[str, str]:
    """Digests of what must be the same, but for where it lies."""
    paths = [path for pattern in case.results for path in folder.glob(pattern)]
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}
    for name, data in contents.items():
        if name.endswith("CURRENT"):
            # its checksum is that of a manifest with paths and times
            contents[name] = data.splitlines()[0]
    return {name: sha256(data.replace(bytes(folder), b"")).hexdigest() for name, data in contents.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_ended_at_any_moment_goes_on(
    name: str, tmp_path: Path, temporary: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    case, chance = CASES[name], random.Random(name)
    # all in one place: a series knows where it lies
    place, kept = tmp_path / "place", tmp_path / "kept"
    prepare(name, place, temporary, environment)
    shutil.copytree(place, kept)
    words = case.words.format(
        encoder=request.getfixturevalue("encoder") if name == "ingest" else "",
        port=free_port(),
        id=f"job-{os.getpid()}",
        data=place / "data",
    )

    def prepare_again() -> None:
        shutil.rmtree(place)
        shutil.copytree(kept, place)

    began = time.monotonic()
    if name == "serve":
        with started(shlex.split(words), place, temporary, environment) as command:
            assert command.wait_until(lambda: "serving at" in command.said)
            command.send("SIGTERM")
            ended = command.end()
            ended.check_left()
    else:
        ended = finished(words, place, temporary, environment)
    lasted = time.monotonic() - began
    assert ended.code == 0, ended.said
    calm = results(case, place)
    assert bool(calm) == bool(case.results), "no file is compared"
    if name != "submit":
        prepare_again()
    hits = 0
    for _ in range(MOMENTS):
        moment = lasted * chance.random()
        began = time.monotonic()
        with started(shlex.split(words), place, temporary, environment) as command:
            if command.wait_until(lambda: command.takes_signals()):
                command.wait_until(lambda: time.monotonic() - began > moment)  # noqa: B023
                command.send("SIGTERM")
            ended = command.end()
        if ended.code == 0:
            # it was done before, or it serves, and ends well
            assert "ended by" not in ended.said
            ended.check_left()
            assert results(case, place) == calm
            if name != "serve":
                # the first run may have been a slow one
                lasted = min(lasted, time.monotonic() - began)
            if name != "submit":
                prepare_again()
            continue
        hits += 1
        ended.check("SIGTERM")
        assert not [path for path in place.rglob("lease.json") if "data" not in path.parts], moment
    assert hits, "every run was over before its moment"
    if name != "serve":
        ended = finished(words, place, temporary, environment)
        assert ended.code == 0, ended.said
        assert results(case, place) == calm
