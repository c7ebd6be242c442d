"""Which documents a model has learnt from, and so which queries search for what it has seen.

A document is seen where it has a score above 0 in a training that the model learnt from. A query is seen where one of
its relevant documents is seen, and unseen where none is.

Shapes: N ids, S seen documents, Q judged queries, J judgements, P of them relevant, U distinct documents of these.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from smec_core.data.ids import TableIds
from smec_core.data.judgements import Judgements

LEAST_QUERIES = 30
"""Of fewer queries a mean is shown, but nothing is decided by it."""
LEAST_PART = 0.1
"""A part that is a smaller share of all queries does not count as much as the rest."""
PARTS = {"seen": "seen", "unseen": "unseen", "unseen_documents": "unseen-documents-only"}
"""Parts of an evaluation by what the model has learnt from, and what people call them."""


def parts_of(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The parts of an evaluation that have queries, by what people call them.

    None where it has one part only, which is the whole again.
    """
    found = {label: evaluation[name] for name, label in PARTS.items() if evaluation.get(name, {}).get("queries")}
    return found if len(found) > 1 else {}


class SeenDocuments(NamedTuple):
    """Documents that a model has learnt from.

    Attributes:
        hash_S: 64-bit hashes of their ids, ascending, each once.
    """

    hash_S: np.ndarray

    @classmethod
    def of(cls, learnt: Judgements | None, doc_ids: TableIds, query_ids: TableIds) -> "SeenDocuments":
        """The relevant documents of some judgements; none without.

        Args:
            learnt: what is learnt from. Where its queries are documents themselves, these are seen, too.
            doc_ids: those of the corpus that judgements name.
            query_ids: those of the queries.
        """
        if learnt is None:
            return cls(np.empty(0, np.uint64))
        hashes = _hashes(doc_ids.ids_of(np.unique(learnt.doc_row_J[learnt.score_J > 0])))
        if learnt.own_doc_of is not None:
            hashes = np.append(hashes, _hashes(query_ids.ids_of(learnt.query_row_Q)))
        return cls(np.unique(hashes))

    def has(self, ids: Iterable[str]) -> np.ndarray:
        """Whether the document of each id (N) is seen."""
        return np.isin(_hashes(ids), self.hash_S, kind="sort")

    def seen_queries(self, judgements: Judgements, doc_ids: TableIds) -> np.ndarray:
        """Whether each judged query (Q) is seen."""
        is_relevant_J = judgements.score_J > 0
        row_U, place_P = np.unique(judgements.doc_row_J[is_relevant_J], return_inverse=True)
        seen_P = self.has(doc_ids.ids_of(row_U))[place_P]
        return np.bincount(judgements.query_J[is_relevant_J][seen_P], minlength=len(judgements)) > 0


def joined(parts: Sequence[SeenDocuments | None]) -> SeenDocuments | None:
    """What is seen in any of several; None where one of them is not known."""
    known = [part.hash_S for part in parts if part is not None]
    return SeenDocuments(np.unique(np.concatenate(known))) if len(known) == len(parts) else None


def _hashes(ids: Iterable[str]) -> np.ndarray:
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(digests), np.dtype("<u8")).astype(np.uint64)
