"""Vectors and judgements as a newcomer has them, for the tests of what Python offers."""

from typing import Any, NamedTuple

import numpy as np
import torch

from smec_core.data.judgements import Judgements
from tests.smec_core.generated import generate

Pair = tuple[int, int]


class Given(NamedTuple):
    """Documents (300, 32) and queries (100, 32) as float32, and pairs of rows that are judged."""

    corpus: np.ndarray
    queries: np.ndarray
    qrels: list[Pair]
    test: list[Pair]


def given() -> Given:
    """The same every time; relevance can be learnt."""
    made = generate(torch.arange(8), 32, 300, 100, noise_scale=1.0, mixed=True)
    learnt = made.train.merge(made.dev)
    return Given(made.docs_ND.numpy(), made.queries_QD.numpy(), pairs(learnt), pairs(made.test))


def pairs(judged: Judgements) -> list[Pair]:
    """Rows of judged queries and documents."""
    return list(zip(judged.query_row_Q[judged.query_J].tolist(), judged.doc_row_J.tolist(), strict=True))


def columns(x_ND: np.ndarray) -> dict[str, Any]:
    """Vectors as columns of lists, with ids as an array's rows have them."""
    return {"id": [str(row) for row in range(len(x_ND))], "embedding": list(x_ND)}
