"""What jobs and `smec check` read of a dataset before its rows, and that they say so meanwhile."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.check import run
from pipelines.data.opened import open_dataset, read_segments
from pipelines.data.settings import CheckSettings
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.segments import Segments
from smec_core.errors import InputError
from tests.builders import write_dataset


@pytest.fixture
def data(tmp_path: Path) -> str:
    folder = write_dataset(tmp_path / "data", docs=60, queries=60, dim=8, files=1)
    queries = pq.read_table(folder / "queries.parquet")
    pq.write_table(queries.append_column("language", pa.array(["de", "en", None] * 20)), folder / "queries.parquet")
    return str(folder)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each reading of labels whether it is told of."""
    found, read = [], EmbeddingTable.labels

    def labels(table: EmbeddingTable, column: str) -> Iterator[tuple[int, pa.Array]]:
        found.append(any(thread.name == "telling" for thread in threading.enumerate()))
        yield from read(table, column)

    monkeypatch.setattr(EmbeddingTable, "labels", labels)
    return found


def test_labels_are_read_once_for_all_splits_and_told_of(data: str, told: list[bool]) -> None:
    dataset = open_dataset(data)
    [found] = read_segments(dataset, ["language"], dataset.splits)
    assert told == [True]
    assert len(found) == len(dataset.splits) == 2
    for split, segments in zip(dataset.splits, found, strict=True):
        alone = Segments.of(dataset, split, "language")
        assert segments.values == alone.values and segments.digest == alone.digest


def test_check_reads_a_column_once(data: str, told: list[bool]) -> None:
    summary = run(CheckSettings(data=data, by=["language"]))
    assert told == [True]
    for split, judged in summary["splits"].items():
        assert sum(one["queries"][split] for one in summary["segments"]["language"]) == judged["queries"]


def test_a_missing_column_is_told_of_without_judgements_too(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    for judged in (True, False):
        if not judged:
            shutil.rmtree(Path(data, "qrels"))
        with pytest.raises(InputError, match="column nosuch is missing; it holds id, embedding, language"):
            run(CheckSettings(data=data, by=["nosuch"]))
    assert Dataset.open(data).splits == {}
    capsys.readouterr()
    assert run(CheckSettings(data=data, by=["language"]))["segments"] == {"language": []}
    out, err = capsys.readouterr()
    assert "language divides judged queries, and there are none" in err
    assert "segments" not in out
