"""Small click logs, and data that they are of."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from smec_core.clicks.judge import Found, judge, table_of
from smec_core.clicks.log import ClickColumns, ClickLog
from smec_core.clicks.reading import Read, read_log
from smec_core.clicks.rules import ClickRules
from smec_core.data.parquet import EmbeddingTable, write_embeddings

Columns = Mapping[str, Sequence[Any] | pa.Array]


def write_vectors(folder: Path, docs: int = 30, queries: int = 30) -> Path:
    """Data without judgements: documents d0, d1, ... and queries q0, q1, ..."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, rows in (("corpus", docs), ("queries", queries)):
        ids = [f"{name[0].replace('c', 'd')}{row}" for row in range(rows)]
        write_embeddings(str(folder / f"{name}.parquet"), ids, rng.standard_normal((rows, 4), dtype=np.float32))
    return folder


def write_log(path: Path, columns: Columns) -> Path:
    """A file of a log, in the form that its name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    if path.name.endswith(".parquet"):
        pq.write_table(table, path)
    elif path.name.endswith(".csv"):
        pacsv.write_csv(table, path)
    else:
        text = "".join(json.dumps(row, default=str) + "\n" for row in table.to_pylist())
        path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def found_in(log: Path, data: Path, columns: dict[str, str] | None = None, **rules: Any) -> tuple[Read, Found]:
    """What a log gives, by some rules."""
    opened = ClickLog(str(log), ClickColumns(**(columns or {})))
    made = ClickRules(**rules)
    read = read_log(opened, made)
    tables = [EmbeddingTable.open(str(data / name)) for name in ("corpus", "queries")]
    return read, judge(opened, read, made, *tables)


def judged_in(
    log: Path, data: Path, columns: dict[str, str] | None = None, **rules: Any
) -> dict[str, dict[str, float]]:
    """Scores by split and "query document"."""
    _, found = found_in(log, data, columns, **rules)
    tables = {name: table_of(part, found.ids).to_pylist() for name, part in found.parts.items()}
    return {name: {f"{row['query_id']} {row['doc_id']}": row["score"] for row in rows} for name, rows in tables.items()}
