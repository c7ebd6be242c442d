"""Datasets as jobs open them: while ids, judgements and labels are read, they say so."""

from collections.abc import Iterable, Sequence

from pipelines.console import telling
from smec_core.data.columns import DEFAULT_NAMES, ColumnNames
from smec_core.data.dataset import Dataset
from smec_core.data.segments import Segments
from smec_core.shown import safe_line


def open_dataset(
    uri: str, max_unknown: float = 0.1, exclude_self: bool = False, columns: ColumnNames = DEFAULT_NAMES
) -> Dataset:
    """Opens a dataset; see `Dataset.open`.

    Raises:
        InputError: anything that breaks the data contract, with file, row and column.
    """
    with telling("reading ids and judgements"):
        return Dataset.open(uri, max_unknown, exclude_self, columns)


def read_segments(dataset: Dataset, columns: Sequence[str], splits: Iterable[str | None]) -> list[list[Segments]]:
    """The judged queries by columns of the queries table, each of which is read once.

    Args:
        dataset: the data.
        columns: of the queries table.
        splits: whose queries are meant.

    Returns:
        For each column the segments of each split.

    Raises:
        InputError: no such judgements, or a column that is missing or of another type, whatever the splits.
    """
    found, wanted = [], list(splits)
    for column in columns:
        with telling(f"reading column {safe_line(column)} of the queries"):
            found.append(Segments.of_splits(dataset, wanted, column))
    return found
