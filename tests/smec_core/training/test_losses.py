"""Both losses against plain loops, on the steps that the sampler makes.

Shapes: B queries, N documents, A anchors, U memory items, K neighbours, d dims.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.config import TrainConfig
from smec_core.data.judgements import Judgements
from smec_core.training.losses import (
    KINK,
    Pairs,
    RankedPairs,
    defined_rank_loss,
    defined_unsupervised_loss,
    rank_loss,
    unsupervised_loss,
)
from smec_core.training.sampling import Batch, LabelledSampler

QUERIES, DOCS = 6, 15
GRADES = st.dictionaries(
    st.tuples(st.integers(0, QUERIES - 1), st.integers(0, DOCS - 1)), st.integers(0, 3), min_size=1, max_size=40
).filter(lambda grades: any(grades.values()))


def only_batch(grades: dict[tuple[int, int], int], **options: int) -> Batch:
    """One step that holds all queries with a relevant document."""
    query_J, doc_J = np.array(list(grades)).T
    judged = Judgements.from_pairs(query_J, doc_J, np.array(list(grades.values()), np.float32)).with_positives()
    config = TrainConfig(dims=(1,), batch_size=QUERIES, **options)
    (batch,) = LabelledSampler(judged, DOCS, config).epoch((0,))
    return batch


def ranked(batch: Batch) -> RankedPairs:
    parts = (batch.pair_query_P, batch.pair_doc_P, batch.weight_PN)
    return RankedPairs(*(torch.from_numpy(part) for part in parts))


PREFIXES = [(6, 0.5), (2, 1.0), (3, 2.0)]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(grades=GRADES, temperature=st.sampled_from([0.05, 1.0]), seed=st.integers(0, 1000))
def test_rank_loss_equals_a_loop_over_grades(grades: dict[tuple[int, int], int], temperature: float, seed: int) -> None:
    batch = only_batch(grades, positives=2, hard_negatives=2, negatives=4)
    generator = torch.Generator().manual_seed(seed)
    q_Bd = F.normalize(torch.randn(len(batch.query_row_B), 4, generator=generator), dim=1)
    d_Nd = F.normalize(torch.randn(len(batch.doc_row_N), 4, generator=generator), dim=1)

    expected = 0.0
    for b, j in zip(batch.pair_query_P, batch.pair_doc_P, strict=True):
        query = int(batch.query_row_B[b])
        for k, doc in enumerate(batch.doc_row_N):
            margin = grades[query, int(batch.doc_row_N[j])] - grades.get((query, int(doc)), 0)
            if margin > 0:
                gap = float(q_Bd[b] @ d_Nd[k] - q_Bd[b] @ d_Nd[j])
                expected += margin * math.log1p(math.exp(gap / temperature))

    loss = rank_loss(3 * q_Bd, d_Nd / 5, [(4, 1.0)], ranked(batch), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(grades=GRADES, seed=st.integers(0, 1000))
@settings(deadline=None, derandomize=True, max_examples=40)
def test_rank_loss_and_its_written_out_gradient_are_those_of_its_definition(
    grades: dict[tuple[int, int], int], seed: int
) -> None:
    batch = only_batch(grades, positives=2, hard_negatives=2, negatives=4)
    pairs = RankedPairs(*(part.double() if part.is_floating_point() else part for part in ranked(batch)))
    generator = torch.Generator().manual_seed(seed)
    q_BI, d_NI = (
        torch.randn(len(rows), 7, generator=generator, dtype=torch.float64).requires_grad_()
        for rows in (batch.query_row_B, batch.doc_row_N)
    )
    expected = defined_rank_loss(q_BI, d_NI, PREFIXES, pairs, 0.3)
    loss = rank_loss(q_BI, d_NI, PREFIXES, pairs, 0.3)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(2 * loss, [q_BI, d_NI]),
        torch.autograd.grad(2 * expected, [q_BI, d_NI], allow_unused=True, materialize_grads=True),
    )


def test_a_relevant_document_is_no_negative_when_another_query_brought_it() -> None:
    # query 0 finds documents 0 and 1 relevant but may bring only one of them; queries 1 and 2 bring both
    grades = {(0, 0): 1, (0, 1): 1, (1, 0): 1, (2, 1): 1}
    batch = only_batch(grades, positives=1, hard_negatives=0, negatives=0)
    assert batch.doc_row_N.tolist() == [0, 1]
    for pair, b in enumerate(batch.pair_query_P):
        # only for queries 1 and 2 is the other document a negative
        assert batch.weight_PN[pair].sum() == (0 if batch.query_row_B[b] == 0 else 1)


def test_a_lower_grade_weighs_by_the_difference() -> None:
    batch = only_batch({(0, 0): 3, (0, 1): 1, (0, 2): 0}, positives=2, hard_negatives=1, negatives=0)
    weights = {int(batch.doc_row_N[j]): batch.weight_PN[p].tolist() for p, j in enumerate(batch.pair_doc_P)}
    assert weights == {0: [0, 2, 3], 1: [0, 0, 1]}


def test_unsupervised_loss_equals_a_loop_over_live_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    anchors, items, top_k = 5, 7, 3
    a_AI = torch.randn(anchors, 7, generator=generator).requires_grad_()
    m_UI = torch.randn(items, 7, generator=generator).requires_grad_()
    where_AK = torch.rand(anchors, items, generator=generator).topk(top_k).indices.sort(1).values
    target_AK = torch.rand(anchors, top_k, generator=generator) * 2 - 1
    live_AK = (torch.rand(anchors, top_k, generator=generator) < 0.7).float()

    def rounded_off(gap: float) -> float:
        return gap - KINK / 2 if gap >= KINK else gap * gap / (2 * KINK)

    live = live_AK == 1
    expected = 0.0
    for width, weight in PREFIXES:
        sim_AU = F.normalize(a_AI[:, :width], dim=1) @ F.normalize(m_UI[:, :width], dim=1).T
        expected += weight * sum(
            rounded_off(abs(float(target_AK[a, k]) - sim_AU[a, where_AK[a, k]].item()))
            for a in range(anchors)
            for k in range(top_k)
            if live[a, k]
        )

    pairs = Pairs(live.nonzero()[:, 0], where_AK[live], target_AK[live], anchors, items)
    loss = unsupervised_loss(a_AI, m_UI, PREFIXES, pairs)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    defined = defined_unsupervised_loss(a_AI, m_UI, PREFIXES, pairs)
    torch.testing.assert_close(loss, defined)
    gradients, expected_gradients = (torch.autograd.grad(2 * one, [a_AI, m_UI]) for one in (loss, defined))
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-5, rtol=1e-5)
