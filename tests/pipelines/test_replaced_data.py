"""Data that are replaced while a command works, by others of the same size and time: it says so and keeps nothing."""

import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.cli import app
from smec_core.data.uri import join_uri, public_uri
from smec_core.model.model import Model
from tests.builders import replace_vectors, write_dataset, write_vectors
from tests.pipelines.storage.test_damage import copy_tree, snapshot

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

RESULTS = {"adapter.safetensors", "finished.json", "CURRENT", "_manifest.json"}
RESULTS |= {"best.yaml", "summary.json", "README.md", "figures.json"}

BETWEEN = {
    "train": "pipelines.train.job.connect",
    "tune": "pipelines.tune.job.scan_data",
    "experiment": "pipelines.experiment.job.scan_data",
    "evaluate": "pipelines.evaluate.job.evaluate",
    "evaluate --index": "pipelines.evaluate.index.run",
    "compress": "pipelines.compress.job.actor_pool",
}
"""What each command calls when it has seen the data and not read its vectors yet."""


def arguments(command: str, storage: str, folder: Path) -> list[str]:
    """A run on the data in the storage, with results there and in OUT of the folder."""
    data, model, out = join_uri(storage, "data"), f"{folder}/model", f"{folder}/out"
    short = ["--data", data, "--dims", "8,4", "--set", "epochs=1", "--out", out]
    stored = [*short, "--storage", join_uri(storage, "runs")]
    evaluate = ["evaluate", "--data", data, "--model", model, "--json", f"{out}/figures.json"]
    return {
        "train": ["train", *stored],
        "tune": ["tune", *stored, "--space", "quick", "--trials", "1"],
        "experiment": ["experiment", "ware", *short, "--seeds", "1"],
        "evaluate": evaluate,
        "evaluate --index": [*evaluate, "--index", "exact"],
        "compress": [
            *("compress", "--input", join_uri(data, "corpus"), "--model", model, "--dim", "8"),
            *("--output", join_uri(storage, "vectors")),
        ],
    }[command]


@pytest.mark.parametrize("command", BETWEEN)
def test_a_corpus_that_is_replaced_meanwhile_is_told_of_and_nothing_is_kept(
    command: str, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = write_dataset(tmp_path / "made", docs=120, queries=120, dim=16) / "corpus/part-1.parquet"
    table = pq.read_table(part)
    write_vectors(str(part), table["id"].to_pylist(), np.stack(table["embedding"].to_numpy()))
    copy_tree(tmp_path / "made", join_uri(storage, "data"))
    Model([], 16, {"dims": [16]}, {}).save(tmp_path / "model")
    step = resolve_name(BETWEEN[command])
    replaced: list[bool] = []

    def replace_first(*values: Any, **options: Any) -> Any:
        if not replaced:
            replaced.append(True)
            replace_vectors(join_uri(storage, "data/corpus/part-1.parquet"))
        return step(*values, **options)

    monkeypatch.setattr(BETWEEN[command], replace_first)
    result = CliRunner().invoke(app, arguments(command, storage, tmp_path))
    printed = result.stdout + result.stderr
    assert replaced, printed
    # as running it again helps
    assert result.exit_code == 1, printed
    data = re.escape(public_uri(join_uri(storage, "data")))
    told = rf"smec: {data}(/corpus)?: changed while it was used; nothing (of it is kept|is published), run again"
    assert re.fullmatch(told, printed.splitlines()[-1])
    assert not RESULTS & {path.rpartition("/")[2] for path in snapshot(storage)}
    assert not RESULTS & {path.name for path in (tmp_path / "out").rglob("*")}
