"""Second moments of the rows that a training learns from, which closed forms and the orders of dims are made of.

Shapes: Q queries, P pairs of a query and a relevant document, B pairs of a block, D dims.
"""

from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smec_core.data.judgements import Judgements
from smec_core.distributed.group import Group, rows_of_rank
from smec_core.distributed.resident import BLOCK_ROWS, Rows
from smec_core.model.closed_forms import Moments
from smec_core.model.pca import mean_of_squares


class MomentSums:
    """Second moments of rows: of all documents once, and of any judgements."""

    def __init__(self, docs: Rows, queries: Rows, group: Group, docs_DD: Tensor | None = None) -> None:
        """Takes the rows, and the ranks that read their share of them each.

        Args:
            docs: documents.
            queries: queries.
            group: the ranks.
            docs_DD: the documents' moment, where it is known.
        """
        self._docs, self._queries, self._group, self._docs_DD = docs, queries, group, docs_DD

    @cached_property
    def docs_DD(self) -> Tensor:
        """Of all documents. Collective the first time."""
        return mean_of_squares(self._docs, self._group) if self._docs_DD is None else self._docs_DD

    def queries_DD(self, judgements: Judgements) -> Tensor:
        """Of judged queries. Collective."""
        return mean_of_squares(self._queries, self._group, judgements.query_row_Q)

    def of(self, judgements: Judgements) -> Moments:
        """The moments of documents, judged queries, and differences of relevant pairs. Collective.

        Args:
            judgements: with a relevant document for each query.
        """
        docs, queries, group = self._docs, self._queries, self._group
        relevant_J = judgements.score_J > 0
        query_P, doc_row_P = judgements.query_J[relevant_J], judgements.doc_row_J[relevant_J]
        # the pairs of a query weigh 1 together
        weight_P = torch.from_numpy(1 / np.bincount(query_P, minlength=len(judgements))[query_P])
        sum_DD = torch.zeros(docs.dim, docs.dim, dtype=torch.float64)
        for low in range(0, len(query_P), BLOCK_ROWS):
            pairs = slice(low, low + BLOCK_ROWS)
            query_row_P, row_P = (
                torch.from_numpy(rows) for rows in (judgements.query_row_Q[query_P[pairs]], doc_row_P[pairs])
            )
            own = slice(*rows_of_rank(len(row_P), group.rank, group.size))
            mine = zip(
                query_row_P[own].split(BLOCK_ROWS),
                row_P[own].split(BLOCK_ROWS),
                weight_P[pairs][own].split(BLOCK_ROWS),
                strict=True,
            )
            for query_row_B, row_B, weight_B in mine:
                # unit rows, as in the other moments: norms decide no cosine
                query_BD, doc_BD = (F.normalize(rows, dim=1) for rows in (queries.take(query_row_B), docs.take(row_B)))
                difference_BD = (query_BD - doc_BD).double()
                sum_DD += (difference_BD * weight_B[:, None]).T @ difference_BD
        return Moments(self.docs_DD, self.queries_DD(judgements), group.sum_(sum_DD) / len(judgements))
