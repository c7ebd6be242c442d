"""What the first edition has stored is read: `tests/data/first_edition` was made by its last commit.

    smec retrain --config retrain.yaml      data of `tests.builders.write_dataset`, docs=60, queries=60, dim=8, files=2
    smec_core.training.checkpoint           two checkpoints, written as a rank writes them

Only paths of the machine were replaced.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines.retrain.ledger import Ledger
from pipelines.storage.publish import check_version, promote
from pipelines.storage.run_folder import RunFolder
from pipelines.train.checkpoints import begin_start
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.versions import current, in_force
from smec_core.errors import DamagedError
from smec_core.model.files import load

RUN = "series-b67b52c272"


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    shutil.copytree(Path(__file__).parents[2] / "data/first_edition", tmp_path / "kept")
    return tmp_path / "kept"


def test_a_model_is_read_and_is_a_sealed_one_when_it_is_saved_again(kept: Path, tmp_path: Path) -> None:
    model = load(kept / f"storage/{RUN}/model")
    assert (model.input_dim, model.dims) == (8, (8, 4))
    model.save(tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.fingerprint == model.fingerprint
    assert again.config == model.config | {"format": 2}


def test_a_model_without_checksums_whose_matrix_was_changed_is_refused(kept: Path) -> None:
    path = kept / f"storage/{RUN}/model/adapter.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    # the exponent of the first number of the matrix
    content[start + 3] ^= 0x08
    path.write_bytes(content)
    with pytest.raises(Exception, match=r"adapter\.safetensors") as refused:
        load(path.parent)
    assert getattr(refused.value, "exit_code", 1) == 2


def test_a_run_folder_is_finished_and_gives_its_model(kept: Path, tmp_path: Path) -> None:
    run_folder = RunFolder(str(kept / "storage"), RUN)
    assert run_folder.is_finished
    run_folder.check(json.loads((kept / f"storage/{RUN}/run.json").read_text()))
    (tmp_path / "copy").mkdir()
    run_folder.fetch_model(tmp_path / "copy")
    assert load(tmp_path / "copy").fingerprint == load(run_folder.model_uri).fingerprint


def test_a_checkpoint_is_gone_on_from(kept: Path) -> None:
    start = begin_start(RunFolder(str(kept / "storage"), "running"))
    assert start.checkpoint is not None
    assert start.checkpoint.path.endswith("running.start-2/checkpoint_2")


def test_a_published_folder_is_read_and_promoted_anew(kept: Path) -> None:
    out = str(kept / "vectors")
    version = current(out)
    manifest = check_version(out, "v0001")
    assert EmbeddingTable.open(version).rows == manifest["rows"] == 60
    [first, *_] = EmbeddingTable.open(version).blocks(0, 60, 60)
    np.testing.assert_allclose(np.linalg.norm(first.vectors_ND, axis=1), 1, atol=1e-3)
    assert in_force(out).checksum == ""
    promote(out, "v0001", in_force(out))
    assert in_force(out).checksum
    assert current(out) == version


def test_a_changed_file_of_it_is_found(kept: Path) -> None:
    path = kept / "vectors/v0001/part-0.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"part-0\.parquet: is not as it was written"):
        check_version(str(kept / "vectors"), "v0001")


def test_a_ledger_is_read_and_goes_on(kept: Path) -> None:
    ledger = Ledger(RunFolder(str(kept / "storage"), "series"))
    releases = ledger.releases()
    assert releases.champion is not None
    assert (releases.champion.version, releases.champion.run) == ("v0001", RUN)
    assert (ledger.last_cycle() or {})["outcome"] == "promoted"
    reference, scores = ledger.reference(1)
    assert reference.rows == 60
    assert len(scores) == 20
    ledger.write_releases(releases)
    assert ledger.releases() == releases
