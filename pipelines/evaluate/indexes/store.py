"""The parts of a search path, and what a vector store must provide to be measured: a module with `build`.

A search has one or two passes: the first finds a shortlist by a short prefix or a small number type, the second, where
there is one, orders the shortlist by more of the vector. Binary vectors with rescoring and funnel search are both that.

Shapes: Q queries, N documents, D dims of the nested vectors, d dims of a pass, k results, S shortlist.
"""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from pipelines.evaluate.settings import StoreName
from smec_core.config import VectorType
from smec_core.errors import InputError, SmecError, extra
from smec_core.model.quantize import to_bits, to_int8

BATCH_ROWS = 8192


class Form(NamedTuple):
    """How vectors are held for a pass: cut to `dim`, each number as a `dtype`."""

    dim: int
    dtype: VectorType

    @property
    def nbytes(self) -> int:
        """Bytes of one vector."""
        return math.ceil(self.dim / 8) if self.dtype == "binary" else self.dim * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dim} {self.dtype}"


class SearchPath(NamedTuple):
    """One way to search.

    Attributes:
        first: what all vectors are searched by.
        second: what the shortlist is ordered by; None: the first pass has the last word.
        shortlist: how many rows the second pass is given.
    """

    first: Form
    second: Form | None = None
    shortlist: int = 100

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms of its passes."""
        return (self.first,) if self.second is None else (self.first, self.second)

    def __str__(self) -> str:
        return ", ".join(map(str, self.forms))


@dataclass(frozen=True)
class NestedVectors:
    """The encoded corpus.

    Attributes:
        z_ND: nested vectors, float32.
        int8_scale: what 1 is worth in an int8 vector, by dims; refuses dims that it was not learnt for.
    """

    z_ND: np.ndarray
    int8_scale: Callable[[int], float]

    @property
    def rows(self) -> int:
        """N."""
        return len(self.z_ND)

    def held_as(self, form: Form, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` as a store holds them: (N, d) of the number type, or signs (N, ceil(d / 8))."""
        z_Nd = unit_prefix(self.z_ND[start:stop], form.dim)
        if form.dtype == "binary":
            return to_bits(z_Nd)
        if form.dtype == "int8":
            return to_int8(torch.from_numpy(z_Nd), self.int8_scale(form.dim)).numpy()
        return z_Nd.astype(form.dtype, copy=False)


class Cost(NamedTuple):
    """What an exact search of one query does: bytes of vectors that it reads, products of two numbers that it adds."""

    bytes_read: int
    multiply_adds: int


class SearchIndex(ABC):
    """A loaded store that answers queries along one path.

    Attributes:
        bytes_per_vector: of the vector's numbers in all their copies, without ids, graphs and page headers.
        index_bytes: what the store takes as a whole, measured.
        cost: what exact search costs; None for stores that do not look at every vector.
    """

    bytes_per_vector: int
    index_bytes: int
    cost: Cost | None = None

    def __init__(self, path: SearchPath) -> None:
        self.path = path

    @abstractmethod
    def search(self, q_QD: np.ndarray, k: int) -> np.ndarray:
        """Rows (Q, k) of the best documents for nested queries (float32), best first, -1 where there are fewer."""


class TwoPassIndex(SearchIndex):
    """A store that leaves the second pass to us."""

    def search(self, q_QD: np.ndarray, k: int) -> np.ndarray:
        """The best of what the first pass finds, by the vectors of the second where there is one."""
        first, second, shortlist = self.path
        q_Qd = unit_prefix(q_QD, first.dim)
        if second is None:
            return padded([rows for rows, _ in self.first_pass(q_Qd, k)], k)
        found = zip(unit_prefix(q_QD, second.dim), self.first_pass(q_Qd, shortlist), strict=True)
        return padded([row_S[best_first(q_d, v_Sd)] for q_d, (row_S, v_Sd) in found], k)

    @abstractmethod
    def first_pass(self, q_Qd: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, Any]]:
        """For each query at most k rows, best first, and their vectors for the second pass if there is one."""


Build = Callable[[SearchPath, NestedVectors, int], AbstractContextManager[SearchIndex]]
"""A store's `build(path, vectors, threads)`: loads vectors for one path; what it made is gone when the context ends."""


@dataclass(frozen=True)
class Store:
    """A store that can be measured.

    Attributes:
        rescoring: number type that its second pass over binary vectors takes.
        packages: what must be installed.
        most_dims: by number type, how many dims it can hold.
        most_rows: the longest shortlist that it gives.
        narrows: it makes eight bits of float32 itself, without the model's int8 scales.
        refused: by number type, why it cannot hold it.
    """

    rescoring: VectorType = "int8"
    packages: tuple[str, ...] = ()
    most_dims: Mapping[VectorType, int] = field(default_factory=dict)
    most_rows: int | None = None
    narrows: bool = False
    refused: Mapping[VectorType, str] = field(default_factory=dict)


STORES: dict[StoreName, Store] = {
    "exact": Store(),
    "faiss-hnsw": Store(packages=("faiss",), narrows=True),
    "lance": Store(
        packages=("lancedb",),
        refused={"int8": "LanceDB searches no int8 vectors; give float32, float16 or binary"},
    ),
    "pgvector": Store(
        rescoring="float16",
        packages=("psycopg", "pgvector"),
        # what its HNSW indexes take
        most_dims={"float32": 2000, "float16": 4000, "binary": 64_000},
        most_rows=1000,  # hnsw.ef_search
        refused={"int8": "pgvector has no int8 type; give float32, float16 (halfvec) or binary (bit)"},
    ),
}


def open_store(name: StoreName, dtype: VectorType) -> Build:
    """The function that builds a store.

    Raises:
        InputError: it cannot hold the number type.
        SmecError: what it needs is not installed.
    """
    store = STORES[name]
    if dtype in store.refused:
        raise InputError(f"dtype: {store.refused[dtype]}")
    if missing := [package for package in store.packages if find_spec(package) is None]:
        raise SmecError(f"smec evaluate --index {name} needs {' and '.join(missing)}: {extra('stores')}")
    build: Build = importlib.import_module(f"pipelines.evaluate.indexes.{name.replace('-', '_')}").build
    return build


def unit_prefix(z_ND: np.ndarray, dim: int) -> np.ndarray:
    """The first `dim` numbers as unit vectors, (N, dim), float32."""
    z_Nd = z_ND[:, :dim].astype(np.float32)
    z_Nd /= np.linalg.norm(z_Nd, axis=1, keepdims=True).clip(1e-12)
    return z_Nd


def best_first(q_d: np.ndarray, v_Sd: np.ndarray) -> np.ndarray:
    """Order (S) of vectors of any number type by their cosine with a query, best first."""
    v_Sd = v_Sd.astype(np.float32)
    cosine_S = v_Sd @ q_d / np.linalg.norm(v_Sd, axis=1).clip(1e-12)
    return np.argsort(-cosine_S, kind="stable")


def padded(rows_of_queries: list[Any], k: int) -> np.ndarray:
    """Results of each query as (Q, k), -1 where there are fewer."""
    row_Qk = np.full((len(rows_of_queries), k), -1, np.int64)
    for found_k, rows in zip(row_Qk, rows_of_queries, strict=True):
        found_k[: len(rows)] = rows[:k]
    return row_Qk
