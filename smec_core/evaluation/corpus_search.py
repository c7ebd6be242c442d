"""Searches of a whole corpus, many systems and questions in one pass over it.

Shapes: Q queries, N documents of a block, D dims, k results.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from smec_core.data.dataset import Dataset
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import EmbeddingTable, unit_rows
from smec_core.data.seen import SeenDocuments
from smec_core.evaluation.metrics import SEARCH_DEPTH, Matrices, PrefixSearch, gains_of, ndcg

Encode = Callable[[Tensor], Tensor]
Work = Callable[[int, int], Generator[int, None, Any]]
"""Does something with a range of rows; gives how many it has come through since it last did, in the end the result."""
Parts = Callable[[Work, int], list[Any]]
"""Runs some work on ranges of so many rows, which together are all of them; gives its results in order."""
Best = dict[str, dict[int, tuple[Tensor, ...]]]
"""Scores and rows of the documents that queries have found, by system and prefix."""


class Sides(NamedTuple):
    """What embeds the two sides of a search; cosines between the two must mean something at every prefix."""

    queries: Encode
    documents: Encode

    @classmethod
    def same(cls, encode: Encode) -> "Sides":
        """One encoder for both."""
        return cls(encode, encode)


def in_one_part(work: Work, rows: int) -> list[Any]:
    """All rows at once, in this process."""
    return [result_of(work(0, rows))]


def result_of(work: Generator[int, None, Any], count: Callable[[int], object] = lambda rows: None) -> Any:
    """Does some work to its end, and counts the rows on the way."""
    while True:
        try:
            count(next(work))
        except StopIteration as done:
            return done.value


class CorpusSearch:
    """Queries that some systems answer, each at several prefixes."""

    def __init__(self, sides: Mapping[str, Sides], dims: Sequence[int], left_out: SeenDocuments | None = None) -> None:
        """Prepares a search; its queries come with `begin`.

        Args:
            sides: the systems, by name; the two sides may be embedded by different models.
            dims: prefixes to search by.
            left_out: documents that are not searched.
        """
        self.sides = sides
        self._dims, self._left_out = dims, left_out
        self._searches: dict[str, PrefixSearch] = {}

    def begin(self, x_QD: Tensor, depth: int, own_row_Q: Tensor | None) -> None:
        """Takes the queries.

        Args:
            x_QD: unit vectors.
            depth: results per query.
            own_row_Q: rows of the documents that the queries are themselves, -1 for none.
        """
        self._searches = {
            name: PrefixSearch(sides.queries(x_QD), self._dims, depth, own_row_Q) for name, sides in self.sides.items()
        }

    def fresh(self, matrices: Matrices) -> "CorpusSearch":
        """The same search, empty, with memory that it shares with others; they must take turns."""
        other = CorpusSearch(self.sides, self._dims, self._left_out)
        other._searches = {name: one.fresh(matrices) for name, one in self._searches.items()}
        return other

    def add(self, row: int, ids: pa.Array, z_ND: Mapping[Encode, Tensor]) -> None:
        """Searches a block of documents, the first of which is that row, as each encoder has them."""
        row_N = torch.arange(len(ids)) + row
        keep_N = None if self._left_out is None else torch.from_numpy(~self._left_out.has(ids.to_pylist()))
        for name, one in self._searches.items():
            d_ND = z_ND[self.sides[name].documents]
            one.add(*((row_N, d_ND) if keep_N is None else (row_N[keep_N], d_ND[keep_N])))

    @property
    def best(self) -> Best:
        """What has been found so far."""
        return {name: one.best for name, one in self._searches.items()}

    def merge(self, best: Best) -> None:
        """Takes what the same search found in other documents."""
        for name, one in self._searches.items():
            one.merge(best[name])

    def results(self) -> dict[str, dict[int, Tensor]]:
        """Rows (Q, k) of the documents that each query finds, by system and prefix."""
        return {name: one.results() for name, one in self._searches.items()}


class JudgedSearch(CorpusSearch):
    """The same by judged queries.

    Attributes:
        judgements: those of the queries.
    """

    def __init__(
        self,
        judgements: Judgements,
        sides: Mapping[str, Sides],
        dims: Sequence[int],
        left_out: SeenDocuments | None = None,
    ) -> None:
        super().__init__(sides, dims, left_out)
        self.judgements = judgements

    def begin_judged(self, x_QD: Tensor) -> None:
        """Takes the unit vectors of the queries."""
        own = self.judgements.own_doc_row_Q
        self.begin(x_QD, SEARCH_DEPTH, None if own is None else torch.from_numpy(own))

    def scores(self) -> dict[str, dict[int, np.ndarray]]:
        """nDCG@10 (Q) of each query, by system and prefix."""
        judged = self.judgements
        return {
            name: {dim: ndcg(gains_of(row_Qk, judged), judged).numpy() for dim, row_Qk in by_dim.items()}
            for name, by_dim in self.results().items()
        }


def search_judged(dataset: Dataset, searches: Sequence[JudgedSearch], parts: Parts = in_one_part) -> None:
    """Reads the queries once, then the corpus once, for all searches together; they hold the results.

    Args:
        dataset: what to search and with what.
        searches: of the dataset's queries.
        parts: how the pass over the corpus is divided.
    """
    rows = [one.judgements.query_row_Q for one in searches]
    row_U = np.unique(np.concatenate(rows))
    x_UD = read_rows(dataset.queries, row_U)
    for one, row_Q in zip(searches, rows, strict=True):
        one.begin_judged(x_UD[np.searchsorted(row_U, row_Q)])
    search_corpus(dataset.corpus, searches, parts)


def search_corpus(corpus: EmbeddingTable, searches: Sequence[CorpusSearch], parts: Parts = in_one_part) -> None:
    """Reads the corpus once for searches that have their queries."""
    # what several searches encode alike is encoded once
    encoders = {sides.documents for one in searches for sides in one.sides.values()}

    def search(start: int, stop: int) -> Generator[int, None, list[Best]]:
        matrices = Matrices()
        own = [one.fresh(matrices) for one in searches]
        for block in corpus.blocks(start, stop):
            x_ND = torch.from_numpy(unit_rows(block.vectors_ND))
            z_ND = {encode: encode(x_ND) for encode in encoders}
            for one in own:
                one.add(block.row, block.ids, z_ND)
            yield len(block.ids)
        return [one.best for one in own]

    for found in parts(search, corpus.rows):
        for one, best in zip(searches, found, strict=True):
            one.merge(best)


def query_scores(
    dataset: Dataset,
    systems: Mapping[str, Sides],
    dims: Sequence[int],
    judgements: Judgements,
    parts: Parts = in_one_part,
) -> dict[str, dict[int, np.ndarray]]:
    """nDCG@10 (Q) of each judged query, by system and prefix; see `JudgedSearch`."""
    search = JudgedSearch(judgements, systems, dims)
    search_judged(dataset, [search], parts)
    return search.scores()


def unit_blocks(table: EmbeddingTable, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Blocks of unit vectors of a table, each with the global row of its first."""
    for block in table.blocks(start, stop):
        yield block.row, torch.from_numpy(unit_rows(block.vectors_ND))


def read_rows(table: EmbeddingTable, row_Q: np.ndarray) -> Tensor:
    """Unit vectors (Q, D) of the named global rows, in that order, in one pass over the table."""
    found_QD = torch.empty(len(row_Q), table.dim)
    order = np.argsort(row_Q)
    for row, x_ND in unit_blocks(table):
        low, high = np.searchsorted(row_Q[order], [row, row + len(x_ND)])
        found_QD[order[low:high]] = x_ND[row_Q[order[low:high]] - row]
    return found_QD
