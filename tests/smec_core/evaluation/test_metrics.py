"""Retrieval measures against ir_measures, and the search at every prefix against brute force."""

import ir_measures
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, R, nDCG
from torch import Tensor

from smec_core.data.judgements import Judgements
from smec_core.evaluation.metrics import Matrices, PrefixSearch, gains_of, measure, ndcg, recall, reciprocal_rank

SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(SEEDS)
def test_measures_equal_those_of_ir_measures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, docs, depth = 6, 40, 30
    score_QN = rng.permuted(np.tile(np.linspace(1, 0, docs), (queries, 1)), axis=1)
    ranked_Qk = np.argsort(-score_QN, axis=1)[:, :depth]
    query_J, doc_J = np.nonzero(rng.random((queries, docs)) < 0.4)
    grade_J = rng.integers(0, 4, len(query_J))
    judgements = Judgements.from_pairs(query_J, doc_J, grade_J.astype(np.float32))

    qrels = [ir_measures.Qrel(str(q), str(d), int(g)) for q, d, g in zip(query_J, doc_J, grade_J, strict=True)]
    results = [ir_measures.ScoredDoc(str(q), str(d), score_QN[q, d]) for q in range(queries) for d in ranked_Qk[q]]
    wanted = {
        (m.measure, int(m.query_id)): m.value
        for m in ir_measures.iter_calc([nDCG @ 10, R @ 10, R @ 20, RR @ 10], qrels, results)
    }

    # row i of the results answers judged query i
    gain_Qk = gains_of(torch.from_numpy(ranked_Qk[judgements.query_row_Q]), judgements)
    found = {
        nDCG @ 10: ndcg(gain_Qk, judgements),
        R @ 10: recall(gain_Qk, judgements, 10),
        R @ 20: recall(gain_Qk, judgements, 20),
        RR @ 10: reciprocal_rank(gain_Qk, 10),
    }
    for name, value_Q in found.items():
        expected = [wanted[name, query] for query in judgements.query_row_Q]
        np.testing.assert_allclose(value_Q.numpy(), expected, atol=1e-9, err_msg=str(name))


def test_perfect_results_score_one_and_missing_results_zero() -> None:
    judgements = Judgements.from_pairs(np.array([0, 0, 1]), np.array([4, 2, 7]), np.array([1, 3, 2], np.float32))
    perfect = measure(torch.tensor([[2, 4] + [-1] * 98, [7] + [-1] * 99]), judgements)
    assert perfect == {"ndcg@10": 1, "recall@10": 1, "recall@100": 1, "mrr@10": 1}
    nothing = measure(torch.full((2, 100), -1), judgements)
    assert set(nothing.values()) == {0}


def brute_force(q_QD: Tensor, d_ND: Tensor, dim: int, k: int, own_row_Q: Tensor | None) -> Tensor:
    """Best rows (Q, k) by the cosine of a prefix, in double precision."""
    sim_QN = F.normalize(q_QD[:, :dim].double(), dim=1) @ F.normalize(d_ND[:, :dim].double(), dim=1).T
    if own_row_Q is not None:
        sim_QN[own_row_Q[:, None] == torch.arange(len(d_ND))] = -torch.inf
    score_Qk, row_Qk = sim_QN.topk(min(k, len(d_ND)), dim=1)
    row_Qk = torch.where(score_Qk > -torch.inf, row_Qk, -1)
    return F.pad(row_Qk, (0, k - row_Qk.shape[1]), value=-1)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=SEEDS, docs=st.integers(1, 40), k=st.integers(1, 12), exclude=st.booleans(), data=st.data())
def test_prefix_search_equals_brute_force_at_every_prefix(
    seed: int, docs: int, k: int, exclude: bool, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    dims = [2, 3, 8]
    q_QD, d_ND = torch.randn(5, 8, generator=generator), torch.randn(docs, 8, generator=generator)
    own_row_Q = torch.randint(-1, docs, (5,), generator=generator) if exclude else None
    cuts = sorted(data.draw(st.sets(st.integers(1, docs), max_size=4), label="block ends") | {docs})

    search = PrefixSearch(q_QD, dims, k, own_row_Q)
    for start, stop in zip([0, *cuts], cuts, strict=False):
        search.add(torch.arange(start, stop), d_ND[start:stop])

    results = search.results()
    for dim in dims:
        assert results[dim].tolist() == brute_force(q_QD, d_ND, dim, k, own_row_Q).tolist()


def test_prefix_search_ignores_the_scale_of_documents() -> None:
    q_QD, d_ND = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0], [100.0, 1000.0], [1e-3, 0.0]])
    search = PrefixSearch(q_QD, [2], 3)
    search.add(torch.arange(3), d_ND)
    assert search.results()[2].tolist() == [[2, 0, 1]]


@pytest.mark.parametrize("rows", [[5, -1], [-1, 5]])
def test_missing_results_gain_nothing(rows: list[int]) -> None:
    judgements = Judgements.from_pairs(np.array([0]), np.array([0]), np.ones(1, np.float32))
    assert gains_of(torch.tensor([rows]), judgements).tolist() == [[0, 0]]


def test_searches_that_take_turns_in_the_same_memory_find_what_each_finds_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q_QD, d_ND = (torch.randn(rows, 8, generator=generator) for rows in (5, 40))
    matrices = Matrices()
    # fewer queries, and blocks of other sizes, than what the memory was made for
    alone = [PrefixSearch(queries, [4, 8], 3, torch.arange(len(queries))) for queries in (q_QD, q_QD[:2])]
    shared = [search.fresh(matrices) for search in alone]
    for search in alone:
        search.add(torch.arange(40), d_ND)
    for start, stop in ((0, 25), (25, 33), (33, 40)):
        for search in shared:
            search.add(torch.arange(start, stop), d_ND[start:stop])
    for one, other in zip(alone, shared, strict=True):
        assert {dim: rows.tolist() for dim, rows in one.results().items()} == {
            dim: rows.tolist() for dim, rows in other.results().items()
        }
