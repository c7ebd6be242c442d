"""The same arrays through Ray Train and in this process."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.fs as pafs
import pytest

import smec_core
from pipelines.train import fit
from smec_core.data.dataset import Dataset
from smec_core.data.uri import join_uri, open_filesystem
from smec_core.errors import InputError
from tests.builders import write_dataset
from tests.smec_core.given import columns, given

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

HAS = given()
SPLITS = {"train": HAS.qrels, "test": HAS.test}


@pytest.mark.parametrize("kind", ["judged", "sampled", "unjudged"])
def test_a_training_on_ray_gives_the_bits_of_one_in_this_process(kind: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"dims": [16, 8], "epochs": 3, "seed": 2, "score_steps": 1}
    if kind == "sampled":
        settings |= {"sample_rows": 150, "dev_corpus": 120, "alpha": 0.1, "queue_size": 100}
    qrels = None if kind == "unjudged" else SPLITS
    on_ray: dict[str, Any] = {"workers": 1, "cpus_per_worker": 1, "gpu": "off"}
    model = fit(HAS.corpus, HAS.queries, qrels, out=tmp_path / "model", **on_ray, **settings)
    [data] = (tmp_path / ".smec-runs").glob("data-*")
    corpus, queries = (pd.DataFrame(columns(x_ND)) for x_ND in (HAS.corpus, HAS.queries))
    here = [
        smec_core.fit(*data_, device="cpu", progress=False, **settings)
        for data_ in ((HAS.corpus, HAS.queries, qrels), (corpus, queries, qrels), (data,))
    ]
    for one in here:
        assert one._tensor_bytes() == model._tensor_bytes()
        assert one.seen is not None and model.seen is not None
        assert np.array_equal(one.seen.hash_S, model.seen.hash_S)
        assert one.metrics["dev"] == model.metrics["dev"]
        assert one.config["used"]["sample_rows"] == settings.get("sample_rows", 300)
        assert one.metrics["evaluation"] == model.metrics["evaluation"]
        assert one.config["used"] == model.config["used"]
        assert one.config["int8_scales"] == model.config["int8_scales"]
    # of a finished run it is taken, and the data are not written twice
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*.parquet")}
    again = fit(HAS.corpus, HAS.queries, qrels, out=tmp_path / "again", **on_ray, **settings)
    assert again.fingerprint == model.fingerprint
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*.parquet")} == before


def test_an_open_dataset_that_workers_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "d")
    opened = Dataset.open(str(folder))
    for changed in (opened.holding_out(0.3), opened.reversed()):
        with pytest.raises(InputError, match=r"corpus: this dataset is not as .*/d has it .* or take smec_core\.fit"):
            fit(changed, dims=8, out=tmp_path / "model")
    assert not (tmp_path / ".smec-runs").exists()
    model = fit(opened, dims=8, out=tmp_path / "model", epochs=1, hold_out=0.3)
    assert model.metrics["evaluation"]["split"] == "test"


def test_arrays_go_to_the_storage_that_all_nodes_reach(storage: str, tmp_path: Path) -> None:
    base = smec_core.fit(HAS.corpus, dims=[16, 8], epochs=1, progress=False)
    model = fit(HAS.corpus, dims=4, epochs=1, base=base, out=tmp_path / "model", storage=storage)
    assert model.dims == (32, 16, 8, 4)
    filesystem, folder = open_filesystem(storage)
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(folder))]
    [name] = [name for name in names if name.startswith("data-")]
    assert Dataset.open(join_uri(storage, name)).corpus.rows == 300


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epohcs": 1}, r"fit: unknown key 'epohcs'; did you mean 'epochs'\?"),
        ({"workers": "many"}, "workers: must be a number of at least 1, or MIN:MAX"),
        ({"dry_run": True}, "dry_run: makes no model; use smec train --dry-run"),
        ({"data": "data"}, "data: is no setting here; give what is trained on as corpus"),
        ({"dims": 64}, "dims: 64 is more than the 32 dims of the data"),
        ({"base": "nowhere"}, "nowhere"),
        ({"warm_start": "nowhere"}, "nowhere"),
        ({"columns": ["id"]}, r"columns: is \['id'\]; say what each is called"),
        ({"preset": "slow"}, "preset: slow is unknown"),
        ({"out": "s3://bucket/model"}, "out: must be a path, not a URI"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        fit(HAS.corpus, **{"dims": 8, "out": str(tmp_path / "model"), **changes})
    assert not list(tmp_path.iterdir())
