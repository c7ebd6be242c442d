"""What Python may give for a dataset: arrays, tensors, frames, Arrow and Hugging Face datasets, pairs, dicts, or a URI.

Nothing is copied that need not be. All of it becomes Arrow tables, which are judged as files are.

Shapes: N rows, D dims.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from smec_core.data.columns import DEFAULT_NAMES, ColumnNames, given_columns
from smec_core.data.dataset import Dataset
from smec_core.data.memory import MemoryDataset, MemoryTable
from smec_core.data.parquet import embedding_column
from smec_core.data.tables import SPLITS
from smec_core.data.vectors import tensor_of
from smec_core.errors import InputError, one_line

Vectors = Any
"""(N, D) numbers, whose ids are row numbers, or a table of ids and embeddings: see `table_of`."""
Qrels = Any
"""Judgements, of one split or by split: see `judged_splits`."""
_SPLIT_NAMES = {**{name: name for name in SPLITS}, "validation": "dev"}
_PAIRS = "a table, (query_id, doc_id[, score]) each, {query_id: {doc_id: score}} or {query_id: [doc_id]}"

_BEYOND = "a whole number of more than 64 bits; give ids as text, scores as floats"


def dataset_of(
    corpus: Vectors | str | Path | Dataset,
    queries: Vectors = None,
    qrels: Qrels = None,
    *,
    exclude_self: bool = False,
    columns: Mapping[str, str] | ColumnNames | None = None,
    unnamed: str = "train",
) -> Dataset:
    """Makes a dataset of what Python has; ids and judgements are checked, vectors when they are read.

    Args:
        corpus: documents; or a whole dataset: its folder or URI, or an open one.
        queries: queries, in the same forms as documents.
        qrels: judgements.
        exclude_self: the document that has a query's own id is the query itself.
        columns: what columns are called that have another name, as `{"id": "sku"}`.
        unnamed: the split that judgements without one are of.

    Raises:
        InputError: a form that is not known, or anything that breaks the data contract.

    Example:
        >>> dataset = dataset_of(corpus, queries, {"0": {"17": 1.0}, "1": {"4": 2.0, "5": 1.0}})
        >>> dataset.dim, dataset.summary()["splits"]["train"]["judgements"]
        (32, 3)
    """
    names = columns if isinstance(columns, ColumnNames) else names_of(columns)
    if isinstance(corpus, str | Path | Dataset):
        if queries is not None or qrels is not None:
            raise InputError(
                "corpus: is a whole dataset, with its own queries and qrels; leave these out, or give all three as "
                "arrays or tables"
            )
        if isinstance(corpus, Dataset):
            excludes = any(judged.own_doc_of is not None for judged in corpus.splits.values())
            if columns or (exclude_self and corpus.splits and not excludes):
                what = "columns" if columns else "exclude_self"
                raise InputError(f"{what}: differs from that of the open dataset; give it to Dataset.open")
            return corpus
        return Dataset.open(str(corpus), exclude_self=exclude_self, columns=names)
    docs = MemoryTable("corpus", table_of("corpus", corpus, names), names)
    judged = {} if qrels is None else judged_splits(qrels, unnamed, names)
    if queries is None:
        if judged:
            raise InputError(
                "queries: are missing, and qrels name them; where they are documents, give the corpus again"
            )
        asked = MemoryTable.empty("queries", docs.dim)
    else:
        asked = MemoryTable("queries", table_of("queries", queries, names), names)
    return MemoryDataset.made(docs, asked, judged, exclude_self, names)


def names_of(columns: Mapping[str, str] | None) -> ColumnNames:
    """What the columns of a dataset are called, as Python gives it.

    Raises:
        InputError: no mapping, an unknown key, or a name that is none.
    """
    from smec_core.layers import merged

    given = given_columns(columns)
    return merged(ColumnNames, [("columns", given)], lambda key: "") if given else DEFAULT_NAMES


def table_of(what: str, given: Vectors, names: ColumnNames = DEFAULT_NAMES) -> pa.Table:
    """Vectors as an Arrow table.

    Args:
        what: for messages.
        given: (N, D) numbers as a numpy array, a torch tensor or lists, whose ids are "0" to "N-1"; or a table with ids
            and embeddings: Arrow, pandas, polars, a Hugging Face dataset, whatever else gives Arrow's streams, or
            `{"id": ids, "embedding": vectors}`, other columns, too.
        names: what its columns are called.

    Raises:
        InputError: another form.
    """
    if isinstance(given, Mapping) and {names.id, names.embedding} <= set(given):
        ids = _arrow(what, given[names.id])
        table = _joined(what, ids, _vectors(what, given[names.embedding]), names)
        for name in given:
            if name not in (names.id, names.embedding):
                table = table.append_column(name, _beside(what, name, given[name], table.num_rows))
        return table
    if isinstance(given, Mapping) and not hasattr(given, "with_format"):
        kind = "id" if names.id not in given else "embedding"
        holds = ", ".join(map(str, given)) or "no columns"
        raise InputError(
            f"{what}: column {getattr(names, kind)} is missing; it holds {holds} (another name: columns="
            f"{{'{kind}': NAME}})"
        )
    table = _table(what, given)
    if table is not None:
        if not {names.id, names.embedding} & {*table.column_names} and all(map(_is_number, table.schema.types)):
            raise InputError(f"{what}: is a table of numbers without ids; give its values, as to_numpy() has them")
        return table
    vectors = _vectors(what, given)
    return _joined(what, pa.array(np.arange(len(vectors))), vectors, names)


def _beside(what: str, name: Any, values: Any, rows: int) -> pa.Array:
    """A column beside ids and embeddings.

    Raises:
        InputError: its name is no string, or it has not a value for each row.
    """
    if not isinstance(name, str):
        raise InputError(f"{what}: column {name!r} has a name that is no string; rename it")
    column = _arrow(what, values, name)
    if len(column) != rows:
        raise InputError(f"{what}: column {name} has {len(column)} values for {rows} rows; give one for each row")
    return column


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def judged_splits(given: Qrels, unnamed: str, names: ColumnNames = DEFAULT_NAMES) -> dict[str, pa.Table]:
    """Judgements of each split as Arrow tables, in the order train, dev, test.

    Args:
        given: judgements of one split: a table with columns query_id, doc_id and score (or BEIR's names), pairs
            (query_id, doc_id) or (query_id, doc_id, score), `{query_id: {doc_id: score}}` or `{query_id: [doc_id]}`, a
            list, tuple or set; where there is no score it is 1; or those of several, by "train", "dev" (or
            "validation") and "test".
        unnamed: the split of judgements that are not given by split.
        names: what the columns of a table are called.

    Raises:
        InputError: another form.
    """
    if isinstance(given, Mapping) and given and set(given) <= _SPLIT_NAMES.keys() and not _is_nested(given):
        tables = {_SPLIT_NAMES[name]: _qrels_table(f"qrels/{name}", one, names) for name, one in given.items()}
        if len(tables) < len(given):
            raise InputError("qrels: has both dev and validation, which are one split; leave one of them")
        return {split: tables[split] for split in SPLITS if split in tables}
    _refuse_unknown_split(given)
    return {unnamed: _qrels_table(f"qrels/{unnamed}", given, names)}


def _refuse_unknown_split(given: Qrels) -> None:
    """Refuses what is meant to be given by split, and names one that is none."""
    if not isinstance(given, Mapping) or _is_nested(given):
        return
    if all(_are_docs(docs) and not isinstance(docs, Mapping) for docs in given.values()):
        return
    for name in given.keys() - _SPLIT_NAMES.keys():
        near = difflib.get_close_matches(str(name).lower(), _SPLIT_NAMES, n=1, cutoff=0.7)
        if near or given.keys() & _SPLIT_NAMES.keys():
            hint = f"did you mean {near[0]!r}?" if near else "give train, dev (or validation) and test"
            raise InputError(f"qrels: {name!r} is no split; {hint}")


def _is_nested(given: Mapping[Any, Any]) -> bool:
    """Whether it is {query_id: {doc_id: score}}, or empty."""
    return all(
        isinstance(one, Mapping) and all(isinstance(score, int | float | np.number) for score in one.values())
        for one in given.values()
    )


def _are_docs(docs: Any) -> bool:
    """Whether it is the documents of a query, and not judgements each with its query."""
    is_listed = isinstance(docs, list | tuple) and all(isinstance(doc, str | int | np.integer) for doc in docs)
    return is_listed or isinstance(docs, Mapping | Set)


def _qrels_table(what: str, given: Qrels, names: ColumnNames) -> pa.Table:
    # a table may be given as lists, too, by the names of its columns
    known = {name for wanted in names.of_qrels.values() for name in wanted.names}
    fits = Mapping | Set if isinstance(given, Mapping) and known & set(given) else Mapping | Set | list | tuple
    if isinstance(given, Mapping) and all(isinstance(docs, fits) and _are_docs(docs) for docs in given.values()):
        given = [
            (query, doc, docs[doc] if isinstance(docs, Mapping) else 1) for query, docs in given.items() for doc in docs
        ]
    table = _table(what, given)
    if table is not None:
        return table
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy()
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InputError(f"{what}: is a {type(given).__name__}; give {_PAIRS}")
    rows = list(given)
    for number, row in enumerate(rows):
        if isinstance(row, str | bytes) or not isinstance(row, Sequence | np.ndarray) or len(row) not in (2, 3):
            raise InputError(f"{what}: row {number} is {row!r}; give {_PAIRS}")
    columns = {
        "query_id": [row[0] for row in rows],
        "doc_id": [row[1] for row in rows],
        "score": [row[2] if len(row) == 3 else 1 for row in rows],
    }
    return pa.table({name: _arrow(what, values, name) for name, values in columns.items()})


def _table(what: str, given: Any) -> pa.Table | None:
    """What is a table of any library as Arrow; None for anything else."""
    if isinstance(given, pa.Table):
        return _readable(given)
    if hasattr(given, "with_format"):
        if isinstance(given, Mapping):
            raise InputError(f"{what}: is a {type(given).__name__}; give one of its splits, {list(given)}")
        if not hasattr(given, "data"):
            raise InputError(f"{what}: is a {type(given).__name__}, which is read once only; give a datasets.Dataset")
        given = given.with_format("arrow")[:]
    is_frame = hasattr(given, "__arrow_c_stream__") and hasattr(given, "columns")
    if not (is_frame or isinstance(given, pa.RecordBatch | pa.RecordBatchReader | Mapping)):
        return given if isinstance(given, pa.Table) else None
    try:
        # the index of a frame of pandas is no column
        is_pandas = type(given).__module__.partition(".")[0] == "pandas"
        return pa.Table.from_pandas(given, preserve_index=False) if is_pandas else _readable(pa.table(given))
    except OverflowError as error:
        raise InputError(f"{what}: cannot be read as a table; it holds {_BEYOND}") from error
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{what}: cannot be read as a table ({one_line(error)})") from error


def _readable(table: pa.Table) -> pa.Table:
    """The table with dictionaries of strings in place of those of views, as polars has them: pyarrow reads none."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type) and pa.types.is_string_view(field.type.value_type):
            kind = pa.dictionary(field.type.index_type, pa.string())
            chunks = [
                pa.DictionaryArray.from_arrays(chunk.indices, chunk.dictionary.cast(pa.string()))
                for chunk in table[place].chunks
            ]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, kind))
    return table


def _vectors(what: str, given: Any) -> np.ndarray:
    """(N, D) numbers as floats of their own type, or as float32.

    Raises:
        InputError: anything else.
    """
    if isinstance(given, torch.Tensor):
        if given.layout != torch.strided:
            raise InputError(f"{what}: is a sparse tensor; give it whole: to_dense()")
        given = given.detach().cpu()
        if given.is_complex():
            raise InputError(f"{what}: is of type {given.dtype}; give real numbers")
        is_known = given.dtype in (torch.float16, torch.float32, torch.float64)
        given = (given if is_known else given.float()).numpy()
    # what is masked is told of by its row
    is_masked = isinstance(given, np.ma.MaskedArray)
    if is_masked or not isinstance(given, np.ndarray) or given.dtype not in (np.float16, np.float32, np.float64):
        try:
            given = tensor_of(given).numpy()
        except InputError as error:
            raise InputError(f"{what}: {error}, or a table with columns id and embedding") from error
    if given.ndim != 2 or not given.size:
        raise InputError(f"{what}: has shape {given.shape}; give (N, D) numbers, a row for each id")
    return given


def _joined(what: str, ids: pa.Array, vectors_ND: np.ndarray, names: ColumnNames) -> pa.Table:
    if len(ids) != len(vectors_ND):
        raise InputError(f"{what}: has {len(ids)} ids and {len(vectors_ND)} vectors; give an id for each vector")
    return pa.table({names.id: ids, names.embedding: embedding_column(vectors_ND)})


def _arrow(what: str, values: Any, column: str = "id") -> pa.Array:
    try:
        return pa.array(values)
    except OverflowError as error:
        if column != "score" and all(isinstance(value, int | np.integer) for value in values):
            # ids are compared as text: hashes of more than 64 bits, too
            return pa.array([str(int(value)) for value in values])
        raise InputError(f"{what}: column {column} holds {_BEYOND}") from error
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(
            f"{what}: column {column} cannot be read ({one_line(error)}); give values of one type"
        ) from error
