"""Generated data whose relevance can be learnt: some dims say what an item is about, the others are noise.

Shapes: N documents, Q queries, D dims, S informative dims.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smec_core.data.judgements import Judgements
from smec_core.distributed.resident import Node, ResidentRows
from smec_core.evaluation.metrics import SEARCH_DEPTH, PrefixSearch, measure
from smec_core.training.context import TrainingData
from smec_core.training.tracker import Record


@dataclass(frozen=True)
class Generated:
    """Unit vectors and judgements; every query has one relevant document, the one it was made from.

    Attributes:
        docs_ND: document vectors.
        queries_QD: query vectors.
        train: judgements of the first 60 % of the queries.
        dev: of the next 15 %.
        test: of the rest.
    """

    docs_ND: Tensor
    queries_QD: Tensor
    train: Judgements
    dev: Judgements
    test: Judgements

    def training_data(self, judged: bool = True, node: Node | None = None) -> TrainingData:
        """What every rank of the run trains on; without judgements if so asked."""
        node = node or Node()
        docs, queries = ResidentRows(self.docs_ND, node), ResidentRows(self.queries_QD, node)
        return TrainingData(docs, queries, self.train if judged else None, self.dev if judged else None, node)


def resident(x_ND: Tensor) -> ResidentRows:
    """A matrix as every rank of a run reads it."""
    return ResidentRows(x_ND, Node())


def generate(
    informative: Tensor, dim: int, docs: int, queries: int, noise_scale: float, mixed: bool, seed: int = 0
) -> Generated:
    """Generates data.

    Args:
        informative: the dims (S) that relevance depends on, each of variance 1.
        dim: D.
        docs: N.
        queries: Q.
        noise_scale: standard deviation of the other dims, in which a query has nothing to do with its document.
        mixed: rotate everything, so that no single dim is informative or noise.
        seed: seed of all random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    x_ND = noise_scale * torch.randn(docs, dim, generator=generator)
    x_QD = noise_scale * torch.randn(queries, dim, generator=generator)
    meaning_NS = torch.randn(docs, len(informative), generator=generator)
    target_Q = torch.arange(queries) % docs
    x_ND[:, informative] = meaning_NS
    x_QD[:, informative] = meaning_NS[target_Q] + 0.5 * torch.randn(queries, len(informative), generator=generator)
    if mixed:
        rotation_DD = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
        x_ND, x_QD = x_ND @ rotation_DD, x_QD @ rotation_DD
    order = torch.randperm(queries, generator=generator).numpy()
    train, dev, test = np.split(order, [int(0.6 * queries), int(0.75 * queries)])

    def judge(rows: np.ndarray) -> Judgements:
        return Judgements.from_pairs(rows, target_Q.numpy()[rows], np.ones(len(rows), np.float32))

    return Generated(F.normalize(x_ND, dim=1), F.normalize(x_QD, dim=1), judge(train), judge(dev), judge(test))


def ndcg_of(docs_ND: Tensor, queries_QD: Tensor, judgements: Judgements, dims: list[int]) -> dict[int, float]:
    """Mean nDCG@10 of the judged queries at prefixes of nested vectors."""
    search = PrefixSearch(queries_QD[torch.from_numpy(judgements.query_row_Q)], dims, SEARCH_DEPTH)
    search.add(torch.arange(len(docs_ND)), docs_ND)
    return {dim: measure(rows, judgements)["ndcg@10"] for dim, rows in search.results().items()}


class Records:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.all: list[Record] = []

    def log(self, record: Record) -> None:
        self.all.append(record)

    @property
    def steps(self) -> list[Record]:
        """Records of steps."""
        return [record for record in self.all if "loss" in record]

    @property
    def epochs(self) -> list[Record]:
        """Records of scored epochs."""
        return [record for record in self.all if "dev_score" in record]
