"""Relevance judgements (qrels) as rows, not ids.

Shapes: Q judged queries, J judgements.
"""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Judgements:
    """The judgements of one split, grouped by query (CSR).

    Attributes:
        query_row_Q: row of each judged query in the queries table, ascending.
        offset_Q1: judgements of query i are `offset_Q1[i]` to `offset_Q1[i + 1]`; Q + 1 long.
        doc_row_J: row of the judged document in the corpus.
        score_J: its grade; 0 or less means judged irrelevant.
        own_doc_of: row of the document that a query itself is, by row of the queries table, -1 for none; such a
            document is neither result nor negative of its query. None where queries are no documents.
        repeated: judgements of the split, as it was read, that do not count because another of their pair does.
    """

    query_row_Q: np.ndarray
    offset_Q1: np.ndarray
    doc_row_J: np.ndarray
    score_J: np.ndarray
    own_doc_of: np.ndarray | None = None
    repeated: int = 0

    @classmethod
    def from_pairs(
        cls,
        query_row_J: np.ndarray,
        doc_row_J: np.ndarray,
        score_J: np.ndarray,
        own_doc_of: np.ndarray | None = None,
    ) -> "Judgements":
        """Groups judgements given in any order; of a pair judged twice the highest score counts."""
        if own_doc_of is not None:
            of_others = doc_row_J != own_doc_of[query_row_J]
            query_row_J, doc_row_J, score_J = query_row_J[of_others], doc_row_J[of_others], score_J[of_others]
        order = np.lexsort((-score_J, doc_row_J, query_row_J))
        query, doc, score = query_row_J[order], doc_row_J[order], score_J[order]
        repeated = np.zeros(len(query), bool)
        repeated[1:] = (query[1:] == query[:-1]) & (doc[1:] == doc[:-1])
        query, doc, score = query[~repeated], doc[~repeated], score[~repeated]
        query_row_Q, first = np.unique(query, return_index=True)
        return cls(
            query_row_Q.astype(np.int64),
            np.append(first, len(query)).astype(np.int64),
            doc.astype(np.int64),
            score.astype(np.float32),
            own_doc_of,
            int(repeated.sum()),
        )

    def __len__(self) -> int:
        return len(self.query_row_Q)

    @property
    def query_J(self) -> np.ndarray:
        """Index (not row) of the query of each judgement."""
        return np.repeat(np.arange(len(self)), np.diff(self.offset_Q1))

    @property
    def own_doc_row_Q(self) -> np.ndarray | None:
        """Row of the document that each judged query itself is, -1 for none."""
        return None if self.own_doc_of is None else self.own_doc_of[self.query_row_Q]

    def with_positives(self) -> "Judgements":
        """Only the queries that have a relevant document."""
        positives_Q = np.zeros(len(self), np.int64)
        np.add.at(positives_Q, self.query_J, self.score_J > 0)
        return self.select(positives_Q > 0)

    def select(self, keep_Q: np.ndarray) -> "Judgements":
        """The judgements of the queries where `keep_Q` is true."""
        keep_J = keep_Q[self.query_J]
        kept = Judgements.from_pairs(
            self.query_row_Q[self.query_J][keep_J], self.doc_row_J[keep_J], self.score_J[keep_J], self.own_doc_of
        )
        return replace(kept, repeated=self.repeated)

    def renumbered(self, query_row_K: np.ndarray, doc_row_K: np.ndarray) -> "Judgements":
        """The judgements by places among rows that were kept; those of others are left out.

        Args:
            query_row_K: kept rows of the queries table, in any order.
            doc_row_K: kept rows of the corpus.
        """
        query_J, query_known_J = _places(self.query_row_Q[self.query_J], query_row_K)
        doc_J, doc_known_J = _places(self.doc_row_J, doc_row_K)
        own_doc_of = None
        if self.own_doc_of is not None:
            own_row = self.own_doc_of[query_row_K]
            place, is_kept = _places(own_row, doc_row_K)
            own_doc_of = np.where(is_kept & (own_row >= 0), place, -1)
        known_J = query_known_J & doc_known_J
        kept = Judgements.from_pairs(query_J[known_J], doc_J[known_J], self.score_J[known_J], own_doc_of)
        return replace(kept, repeated=self.repeated)

    def merge(self, other: "Judgements") -> "Judgements":
        """Both sets of judgements together."""
        return Judgements.from_pairs(
            np.concatenate([self.query_row_Q[self.query_J], other.query_row_Q[other.query_J]]),
            np.concatenate([self.doc_row_J, other.doc_row_J]),
            np.concatenate([self.score_J, other.score_J]),
            self.own_doc_of,
        )


def _places(row_J: np.ndarray, row_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where among the kept rows each row is, and whether it is one."""
    order_K = np.argsort(row_K)
    place_J = order_K[np.searchsorted(row_K, row_J, sorter=order_K).clip(max=len(row_K) - 1)]
    return place_J, row_K[place_J] == row_J
