"""Two datasets side by side: the rows find each other by id."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.concatenated import main
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import write_embeddings
from tests.builders import all_vectors, write_dataset


def test_each_row_has_both_vectors_of_its_id(tmp_path: Path) -> None:
    first = Dataset.open(str(write_dataset(tmp_path / "a", dim=16)))
    second = Dataset.open(str(write_dataset(tmp_path / "b", dim=8)))
    (tmp_path / "turned").mkdir()
    for name in ("corpus", "queries"):
        table = getattr(second, name)
        ids, x_NE = table.ids().to_pylist(), all_vectors(table)
        write_embeddings(str(tmp_path / "turned" / f"{name}.parquet"), ids[::-1], x_NE[::-1])
    main([str(tmp_path / "a"), str(tmp_path / "turned"), str(tmp_path / "both")])
    both = Dataset.open(str(tmp_path / "both"))
    assert both.dim == 24 and both.splits.keys() == first.splits.keys()
    parts = [all_vectors(one.corpus) for one in (first, second)]
    expected = np.hstack([x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts])
    np.testing.assert_allclose(all_vectors(both.corpus), expected, atol=1e-6)


def test_an_id_that_is_missing_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a")
    write_dataset(tmp_path / "b", docs=20)
    with pytest.raises(SystemExit, match=r"concatenated: '.+' of A is not in corpus of B"):
        main([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "both")])
