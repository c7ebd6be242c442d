"""PostgreSQL with pgvector: a table in a schema of its own, an HNSW index, both passes in one statement.

The server is the one that libpq's environment variables name (PGHOST, PGUSER, PGPASSWORD, ...). Where there are two
passes, the table holds the vectors of the second, and the index of the first is built on an expression of them.

Shapes: Q queries, N documents, d dims of a pass, k results.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psycopg
from pgvector import Bit, HalfVector, Vector
from pgvector.psycopg import register_vector
from psycopg import sql

from pipelines.evaluate.indexes.store import (
    BATCH_ROWS,
    Form,
    NestedVectors,
    SearchIndex,
    SearchPath,
    padded,
    unit_prefix,
)
from smec_core.config import VectorType
from smec_core.errors import SmecError, one_line

TYPES: dict[VectorType, str] = {"float32": "vector", "float16": "halfvec", "binary": "bit"}
WIDEST_SEARCH = 1000
"""The most that hnsw.ef_search takes."""


class PgVector(SearchIndex):
    """A loaded table and its index."""

    def __init__(self, path: SearchPath, vectors: NestedVectors, connection: psycopg.Connection[Any]) -> None:
        super().__init__(path)
        self._connection, self._width = connection, 0
        held = path.second or path.first
        self._execute("CREATE TABLE documents (row bigint NOT NULL, embedding {} NOT NULL)", _type(held))
        with connection.cursor().copy("COPY documents FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["int8", TYPES[held.dtype]])
            for start in range(0, vectors.rows, BATCH_ROWS):
                batch = vectors.held_as(held, start, start + BATCH_ROWS)
                for row, vector in enumerate(batch, start):
                    copy.write_row((row, _value(vector, held)))
        self._first = _expression(path)
        operators = "bit_hamming_ops" if path.first.dtype == "binary" else f"{TYPES[path.first.dtype]}_cosine_ops"
        self._execute("CREATE INDEX ON documents USING hnsw (({}) {})", self._first, sql.SQL(operators))
        self._execute("ANALYZE documents")
        # a small table would be read whole, and it is the index that is to be measured
        self._execute("SET enable_seqscan = off")
        self.bytes_per_vector = held.nbytes + path.first.nbytes
        self.index_bytes = int(self._execute("SELECT pg_total_relation_size('documents')").fetchone()[0])

    def search(self, q_QD: np.ndarray, k: int) -> np.ndarray:
        """See `SearchIndex`."""
        width = min(2 * (k if self.path.second is None else self.path.shortlist), WIDEST_SEARCH)
        if width != self._width:
            # not with every query: it is a trip to the server, whose time would count
            self._execute("SET hnsw.ef_search = {}", sql.Literal(width))
            self._width = width
        statement = self._statement(k)
        found = []
        for number in range(len(q_QD)):
            values = [_query(q_QD[number : number + 1], form) for form in self.path.forms]
            found.append([row for (row,) in self._connection.execute(statement, values, binary=True)])
        return padded(found, k)

    def _statement(self, k: int) -> sql.Composed:
        distance = sql.SQL("<~>" if self.path.first.dtype == "binary" else "<=>")
        order = sql.SQL("{} {} %b").format(self._first, distance)
        if self.path.second is None:
            return sql.SQL("SELECT row FROM documents ORDER BY {} LIMIT {}").format(order, k)
        return sql.SQL(
            "WITH shortlist AS MATERIALIZED (SELECT row, embedding FROM documents ORDER BY {} LIMIT {}) "
            "SELECT row FROM shortlist ORDER BY embedding <=> %b LIMIT {}"
        ).format(order, self.path.shortlist, k)

    def _execute(self, text: str, *parts: sql.Composable) -> Any:
        return self._connection.execute(sql.SQL(text).format(*parts))


def _type(form: Form) -> sql.Composed:
    return sql.SQL("{}({})").format(sql.SQL(TYPES[form.dtype]), form.dim)


def _expression(path: SearchPath) -> sql.Composable:
    """What the index is built on, and what queries order by so that it is used."""
    (dim, dtype), second = path.first, path.second
    if second is None:
        return sql.SQL("embedding")
    prefix: sql.Composable = sql.SQL("embedding")
    if dim < second.dim:
        prefix = sql.SQL("subvector(embedding, 1, {})").format(dim)
    if dtype == "binary":
        prefix = sql.SQL("binary_quantize({})").format(prefix)
    return sql.SQL("{}::{}").format(prefix, _type(path.first))


def _query(q_1D: np.ndarray, form: Form) -> Any:
    q_d = unit_prefix(q_1D, form.dim)[0]
    return _value(np.packbits(q_d > 0) if form.dtype == "binary" else q_d, form)


def _value(held: np.ndarray, form: Form) -> Any:
    if form.dtype == "binary":
        return Bit(np.unpackbits(held, count=form.dim).astype(bool))
    return HalfVector(held) if form.dtype == "float16" else Vector(held)


@contextmanager
def build(path: SearchPath, vectors: NestedVectors, threads: int) -> Iterator[PgVector]:
    """Loads a table into a schema of its own, which is dropped at the end. The server's threads are its own matter.

    Raises:
        SmecError: no server, no extension, or no right to make a schema.
    """
    schema = sql.Identifier(f"smec_evaluate_{uuid.uuid4().hex[:12]}")
    try:
        with _connect() as connection:
            _prepare(connection)
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
            try:
                # after it the path as it was: the extension's types may be in any of its schemas
                path_before = connection.execute("SHOW search_path").fetchone()
                assert path_before is not None
                connection.execute(sql.SQL("SET search_path = {}, {}").format(schema, sql.SQL(path_before[0])))
                yield PgVector(path, vectors, connection)
            finally:
                if not connection.closed:
                    connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))
    except psycopg.Error as error:
        raise SmecError(f"pgvector: {one_line(error)}") from error


def _connect() -> psycopg.Connection[Any]:
    try:
        return psycopg.connect(autocommit=True, connect_timeout=10)
    except psycopg.Error as error:
        raise SmecError(
            f"pgvector: no connection to the server that PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE name "
            f"({one_line(error)})"
        ) from error


def _prepare(connection: psycopg.Connection[Any]) -> None:
    """Sees that the server has the extension, and that its types are read."""
    if connection.execute("SELECT to_regtype('halfvec')").fetchone() == (None,):
        raise SmecError(
            "pgvector: the database has no extension vector 0.7 or newer; run CREATE EXTENSION vector in it"
        )
    register_vector(connection)
