"""What a training takes of data that it cannot hold."""

from pathlib import Path

import pytest

from pipelines.data.source import scan_data
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.errors import InputError
from tests.builders import write_dataset

GIB = 2.0**30


def test_judgements_go_by_the_rows_that_are_kept(tmp_path: Path) -> None:
    dataset = Dataset.open(str(write_dataset(tmp_path / "data")))
    config = TrainConfig(dims=(4,), sample_rows=100)
    whole, some = (scan_data(dataset, one) for one in (config.model_copy(update={"sample_rows": None}), config))
    assert whole.is_whole and not some.is_whole
    assert (some.drawn, whole.drawn) == (100, dataset.corpus.rows)
    assert some.used(config)["sample_rows"] == 100
    for kept, expected in zip(some.labels, dataset.training_split(config), strict=True):
        assert kept is not None and expected is not None
        for ids, rows, all_ids, all_rows in (
            (some.queries.id_K, kept.query_row_Q, dataset.queries.ids(), expected.query_row_Q),
            (some.docs.id_K, kept.doc_row_J, dataset.corpus.ids(), expected.doc_row_J),
        ):
            assert sorted(ids.take(rows).to_pylist()) == sorted(all_ids.take(all_rows).to_pylist())
    assert Dataset.open(dataset.uri).fingerprint == dataset.fingerprint


def test_what_memory_has_no_room_for_is_told(tmp_path: Path) -> None:
    dataset = Dataset.open(str(write_dataset(tmp_path / "data", docs=3000)))
    config = TrainConfig(dims=(4,), dev_corpus=100)
    row = 4 * dataset.dim / GIB
    found = scan_data(dataset, config, memory_budget=2000 * 2.6 * row)
    assert 1000 < found.drawn < 2000
    with pytest.raises(InputError, match=r"memory_budget: there is room for 10 documents of .*; give more"):
        scan_data(dataset, config, memory_budget=26 * row)
    with pytest.raises(InputError, match=r"sample_rows: 2,500 documents, and .* set one lower, or the other higher"):
        scan_data(dataset, config.model_copy(update={"sample_rows": 2500}), memory_budget=2000 * 2.6 * row)
