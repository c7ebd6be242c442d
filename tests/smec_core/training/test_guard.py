"""The guard, and what dev is scored on.

Shapes: Q dev queries, N documents, D dims.
"""

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
from smec_core.training.guard import Guard
from tests.smec_core.generated import resident

QUERIES = 16


def scores(new: float, previous: float = 0.5, earlier: float = 0.5, spread: float = 0.0) -> dict[int, Tensor]:
    """Scores (Q) at the prefixes 8 (earlier), 4 (previous) and 2 (new); `spread` apart between the queries at 2."""
    sign_Q = torch.tensor([1.0, -1.0]).repeat(QUERIES // 2)
    return {2: new + spread * sign_Q, 4: torch.full((QUERIES,), previous), 8: torch.full((QUERIES,), earlier)}


def make_guard(floor: float = 0.45, patience: int = 3) -> Guard:
    return Guard(counted=[2, 4], floors={8: floor}, held={}, patience=patience, z_threshold=1.0)


def test_a_state_counts_by_the_new_and_the_previous_prefix() -> None:
    guard = make_guard()
    is_best, total = guard.update(0, scores(0.3))
    assert is_best
    assert total == pytest.approx(0.4)
    is_best, total = guard.update(1, scores(0.35, previous=0.44))
    assert not is_best, "what the new prefix gained, the previous one lost"
    assert total == pytest.approx(0.395)
    is_best, total = guard.update(2, scores(0.35, previous=0.48))
    assert is_best
    assert guard.best_epoch == 2
    assert guard.best_score == pytest.approx(0.415)
    assert guard.best_scores == pytest.approx({2: 0.35, 4: 0.48, 8: 0.5})


def test_the_start_counts_even_below_a_floor() -> None:
    guard = make_guard(floor=0.9)
    assert guard.update(0, scores(0.3))[0]
    assert guard.best_epoch == 0


def test_a_held_prefix_may_not_lose_more_than_allowed_against_its_start() -> None:
    guard = Guard(counted=[2, 4], floors={}, held={4: 0.01}, patience=3, z_threshold=1.0)
    guard.update(0, scores(0.3, previous=0.5))
    assert not guard.update(1, scores(0.9, previous=0.48))[0]
    assert guard.update(2, scores(0.4, previous=0.495))[0]
    again = Guard(counted=[2, 4], floors={}, held={4: 0.01}, patience=3, z_threshold=1.0)
    again.restore(guard.state())
    assert not again.update(3, scores(0.9, previous=0.48))[0]


def test_a_state_that_costs_an_earlier_prefix_too_much_never_counts() -> None:
    guard = make_guard(floor=0.45)
    guard.update(0, scores(0.3))
    assert not guard.update(1, scores(0.9, earlier=0.44))[0]
    assert guard.update(2, scores(0.4, earlier=0.46))[0]
    assert guard.best_epoch == 2


def test_a_gain_below_its_standard_error_does_not_count() -> None:
    # the gain spreads by .2 around its mean over 16 queries: its standard error is .2 * sqrt(16 / 15) / 4 = .0516
    guard = make_guard()
    guard.update(0, scores(0.3))
    assert not guard.update(1, scores(0.35, spread=0.2))[0]
    assert guard.update(2, scores(0.36, spread=0.2))[0]


def test_the_gain_is_measured_from_the_start_and_must_beat_the_best() -> None:
    guard = make_guard()
    guard.update(0, scores(0.3))
    guard.update(1, scores(0.5))
    assert not guard.update(2, scores(0.4))[0]
    assert guard.best_epoch == 1


def test_patience_counts_epochs_since_the_best() -> None:
    guard = make_guard(patience=2)
    stopped = []
    for epoch, new in enumerate([0.3, 0.4, 0.35, 0.5, 0.45, 0.45]):
        guard.update(epoch, scores(new))
        stopped.append(guard.stopped)
    assert stopped == [False, False, False, False, False, True]


def test_a_stage_whose_gain_is_not_real_yet_goes_on() -> None:
    guard = make_guard(patience=2)
    stopped = []
    for epoch, new in enumerate([0.3, 0.31, 0.32, 0.33, 0.33, 0.33]):
        guard.update(epoch, scores(new, spread=0.2 if epoch else 0.0))
        stopped.append(guard.stopped)
    assert stopped == [False, False, False, False, False, True]
    assert guard.best_epoch == 0


JUDGED = st.sets(st.integers(0, 999), min_size=1, max_size=300)


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


def unit(rows: int, dim: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


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
