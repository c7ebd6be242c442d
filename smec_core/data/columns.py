"""What the columns of a table must be: one judge for `smec check` and for every job, which read what it passes.

id              a string of any kind, dictionaries of them, or a whole number, which is read as its decimal text
embedding       a list of float16, float32 or float64: fixed-size, list, large list, or a tensor of fixed shape
score           any finite number
text            a string of any kind
label           a string of any kind, a whole number or a boolean
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, Field

from smec_core.config import Settings
from smec_core.errors import InputError, RowError

Kind = Literal["id", "embedding", "score", "text", "label"]
# training computes in float32
MAX_SCORE = float(np.finfo(np.float32).max)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


LabelColumns = Annotated[list[str], BeforeValidator(_listed)]
"""Names of columns of labels; one may be given as it is."""


class ColumnNames(Settings):
    """What the columns of a dataset are called."""

    id: str = Field("id", min_length=1)
    """Of corpus and queries: the id of a row."""
    embedding: str = Field("embedding", min_length=1)
    """Of corpus and queries: its vector."""
    query_id: str = Field("query_id", min_length=1)
    """Of qrels: the query; by default query-id is read, too."""
    doc_id: str = Field("doc_id", min_length=1)
    """Of qrels: the document; by default corpus-id is read, too."""
    score: str = Field("score", min_length=1)
    """Of qrels: how relevant the document is."""

    @property
    def of_vectors(self) -> dict[str, "Wanted"]:
        """What a table of vectors must have."""
        return {"id": Wanted((self.id,), "id"), "embedding": Wanted((self.embedding,), "embedding")}

    @property
    def of_qrels(self) -> dict[str, "Wanted"]:
        """What a table of judgements must have; BEIR's names are read where no others are given."""
        queries = ("query_id", "query-id") if self.query_id == "query_id" else (self.query_id,)
        docs = ("doc_id", "corpus-id") if self.doc_id == "doc_id" else (self.doc_id,)
        return {
            "query_id": Wanted(queries, "id"),
            "doc_id": Wanted(docs, "id"),
            "score": Wanted((self.score,), "score"),
        }


DEFAULT_NAMES = ColumnNames()


def given_columns(columns: Any) -> dict[str, Any]:
    """Names of columns as Python gives them; none for None.

    Raises:
        InputError: something else than a mapping of them.
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns):
        raise InputError(f"columns: is {columns!r}; say what each is called, as {{'id': 'sku'}}")
    return dict(columns)


class Wanted(NamedTuple):
    """A column that a table must have: the names it may have, the first of which counts, and what it holds."""

    names: Sequence[str]
    kind: Kind


def judge_schema(
    file: str, schema: pa.Schema, wanted: Mapping[str, Wanted], cure: str = "--set columns.%s=NAME"
) -> dict[str, str]:
    """Finds the columns of a table and judges them.

    Args:
        file: for messages.
        schema: of the file.
        wanted: by the name that the columns have here.
        cure: how to give one of them another name.

    Returns:
        What each of them is called in the file.

    Raises:
        InputError: a column is missing, is there twice, or holds something else.
    """
    names = list(schema.names)
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"{file}: column {name} is there twice; rename or remove one")
    found = {}
    for what, (choices, kind) in wanted.items():
        name = next((choice for choice in choices if choice in names), None)
        if name is None:
            if kept := next((choice for choice in choices if f"/{choice}=" in file), None):
                raise InputError(
                    f"{file}: column {kept} is in the name of a folder only, since the table is partitioned by it; "
                    "write the table without that partition"
                )
            holds = ", ".join(names) or "no columns"
            other = f" (another name: {cure % what})" if what in ColumnNames.model_fields else ""
            raise InputError(f"{file}: column {' or '.join(choices)} is missing; it holds {holds}{other}")
        fits, must_be = _KINDS[kind]
        if not fits(schema.field(name).type):
            raise InputError(f"{file}: column {name} is {schema.field(name).type}; it must be {must_be}")
        found[what] = name
    return found


def strings_of(
    column: pa.Array | pa.ChunkedArray, file: str, name: str, row: int = 0, nulls: bool = False, what: str = "an id"
) -> pa.Array | pa.ChunkedArray:
    """Ids or text as strings; `row` is the file's row of the first, `what` is what every row needs.

    Raises:
        RowError: a null, unless `nulls` are allowed.
    """
    if column.null_count and not nulls:
        raise RowError(file, row + first_true(pc.is_null(column)), name, f"is null; every row needs {what}")
    return pc.cast(column, pa.string())


def ids_of(column: pa.Array | pa.ChunkedArray, file: str, name: str, row: int = 0) -> pa.Array | pa.ChunkedArray:
    """Ids as strings; `row` is the file's row of the first.

    Raises:
        RowError: a null, or an empty id.
    """
    ids = strings_of(column, file, name, row)
    if (empty := pc.index(ids, pa.scalar("", pa.string())).as_py()) >= 0:
        raise RowError(file, row + empty, name, "is empty; every row needs an id")
    return ids


def scores_of(column: pa.ChunkedArray, file: str, name: str) -> np.ndarray:
    """Scores as float64.

    Raises:
        RowError: a null, NaN or infinity.
    """
    if column.null_count:
        raise RowError(file, first_true(pc.is_null(column)), name, "is null; every judgement needs a score")
    score_J: np.ndarray = pc.cast(column, pa.float64(), safe=False).to_numpy()
    # the comparison is false for NaN, too
    bad_J = ~(np.abs(score_J) <= MAX_SCORE)
    if bad_J.any():
        row = int(bad_J.argmax())
        raise RowError(file, row, name, f"{score_J[row]} is no score; fix or remove the row")
    return score_J


def _is_vector(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.FixedShapeTensorType) and list(kind.permutation or ()) != sorted(kind.permutation or ()):
        return False
    # a tensor of Ray Data is of its own type where Ray Data is imported, and a plain list elsewhere
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    is_list = pa.types.is_fixed_size_list(storage) or pa.types.is_list(storage) or pa.types.is_large_list(storage)
    return bool(is_list and pa.types.is_floating(storage.value_type))


def first_true(flags: pa.Array | pa.ChunkedArray) -> int:
    """Index of the first true of some booleans."""
    return int(pc.index(flags, True).as_py())


def _is_string(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    # of views there are no dictionaries that pyarrow could read
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(kind))


def _is_id(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _is_string(kind) or bool(pa.types.is_integer(value))


def _is_score(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    # a column of nothing but nulls has no type
    return _is_string(kind) or bool(pa.types.is_null(kind))


def _is_label(kind: pa.DataType) -> bool:
    return _is_text(kind) or _is_id(kind) or bool(pa.types.is_boolean(kind))


_KINDS: dict[Kind, tuple[Callable[[pa.DataType], bool], str]] = {
    "id": (_is_id, "a string or a whole number"),
    "embedding": (_is_vector, "a list of float16, float32 or float64"),
    "score": (_is_score, "a number"),
    "text": (_is_text, "string"),
    "label": (_is_label, "a string, a whole number or a boolean"),
}
