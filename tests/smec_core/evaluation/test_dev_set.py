"""The dev set: which documents it is scored against, and how a prefix is scored."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.data.judgements import Judgements
from smec_core.distributed.resident import Node
from smec_core.evaluation.dev_set import dev_rows, make_dev_set
from tests.smec_core.generated import resident

JUDGED = st.sets(st.integers(0, 999), min_size=1, max_size=300)


def unit(rows: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(judged=JUDGED, corpus_rows=st.integers(1000, 5000), dev_corpus=st.integers(100, 900), seed=st.integers(0, 9))
def test_dev_is_scored_on_all_judged_documents_and_a_sample(
    judged: set[int], corpus_rows: int, dev_corpus: int, seed: int
) -> None:
    docs = np.array(sorted(judged))
    judgements = Judgements.from_pairs(np.zeros(len(docs), int), docs, np.ones(len(docs), np.float32))
    config = TrainConfig(dims=(1,), dev_corpus=dev_corpus, seed=seed)
    rows = dev_rows(judgements, np.empty(0, np.int64), corpus_rows, config)
    assert judged <= set(rows.tolist())
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < corpus_rows
    assert len(rows) == max(dev_corpus, len(judged))
    assert np.array_equal(rows, dev_rows(judgements, np.empty(0, np.int64), corpus_rows, config))


def test_a_small_corpus_is_scored_whole() -> None:
    judgements = Judgements.from_pairs(np.zeros(1, int), np.array([5]), np.ones(1, np.float32))
    config = TrainConfig(dims=(1,), dev_corpus=100)
    assert dev_rows(judgements, np.empty(0, np.int64), 100, config).tolist() == list(range(100))


def test_dev_scores_a_stage_on_top_of_the_kept_block() -> None:
    # query i is document i at the first two dims; the others are at random
    q_QD, d_ND = unit(6, 4, 0), unit(30, 4, 1)
    d_ND[:6, :2] = q_QD[:, :2]
    judgements = Judgements.from_pairs(np.arange(6), np.arange(6), np.ones(6, np.float32))
    dev = make_dev_set(
        resident(q_QD), resident(d_ND), judgements, np.empty(0, np.int64), TrainConfig(dims=(2,)), Node()
    )
    assert dev.measure == "ndcg@10"
    as_is = dev.score(lambda y: y, 4, [2, 4])
    assert as_is[2].tolist() == [1.0] * 6
    assert as_is[4].shape == (6,)

    flipped = dev.score(lambda y: y.flip(1), 4, [2])[2]
    assert flipped.mean() < 0.9
    dev.advance(lambda y: y.flip(1), 4)
    assert torch.equal(dev.score(lambda y: y, 4, [2])[2], flipped)
    # a stage on the first two dims leaves the others where they are
    swapped = dev.score(lambda y: -y, 2, [2])[2]
    assert torch.equal(swapped, flipped)


def test_without_judgements_dev_is_the_share_of_neighbours_kept() -> None:
    d_ND = unit(60, 6, 2)
    held_out = np.array([3, 17, 40])
    dev = make_dev_set(resident(unit(1, 6, 0)), resident(d_ND), None, held_out, TrainConfig(dims=(2,)), Node())
    assert dev.measure == "neighbour_recall@10"
    values = dev.score(lambda y: y, 6, [2, 6])
    assert values[6].tolist() == [1.0] * 3
    sim_QN = F.normalize(d_ND[:, :2], dim=1)[held_out] @ F.normalize(d_ND[:, :2], dim=1).T
    full_QN = d_ND[held_out] @ d_ND.T
    for sim in (sim_QN, full_QN):
        sim[torch.arange(3), torch.from_numpy(held_out)] = -1
    shares = [
        len(set(a.tolist()) & set(b.tolist())) / 10
        for a, b in zip(sim_QN.topk(10).indices, full_QN.topk(10).indices, strict=True)
    ]
    assert values[2].tolist() == pytest.approx(shares)
