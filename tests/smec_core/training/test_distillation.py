"""The listwise loss: by hand, over lists of any make, and the same however the anchors are shared."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smec_core.distributed.group import Group
from smec_core.training.distillation import Lists, listwise_loss, make_lists, used_items
from smec_core.training.memory import CrossBatchMemory

DIM, TEMPERATURE = 6, 0.1
PREFIXES = [(6, 1.0), (2, 0.5)]


def made(docs: int, top_k: int, slots: int, seed: int, own: slice = slice(None)) -> tuple[Tensor, Tensor, Lists]:
    """A step of documents, every second of which may be in lists, and a memory of others and of some of them."""
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(40, DIM, generator=generator)
    x_ND /= x_ND.norm(dim=1, keepdim=True)
    teacher_ND, student_ND = (torch.randn(40, DIM, generator=generator) for _ in range(2))
    memory = CrossBatchMemory(slots, DIM, Group(), "global", torch.device("cpu"))
    memory.push(torch.arange(1, 40, 3), x_ND[1::3])
    row_N = torch.randperm(40, generator=generator)[:docs].sort()[0]
    doc_F = torch.arange(docs)[::2]
    found = memory.search(x_ND[row_N[doc_F]], row_N[doc_F], top_k)
    found = type(found)(*(part[own] for part in found))
    used_U, item_AK, hidden_AK = used_items(found, row_N[doc_F])
    lists = make_lists(
        doc_F[own], doc_F, item_AK, hidden_AK, teacher_ND[row_N], teacher_ND[used_U], len(doc_F), TEMPERATURE
    )
    # what every list must hold: the other free documents, and neighbours that are none of them, each once
    for place, anchor in enumerate(doc_F[own].tolist()):
        shown = ~lists.hidden_AC[place]
        rows = torch.cat([row_N[doc_F], used_U[item_AK[place]]])[shown].tolist()
        assert len(set(rows)) == len(rows)
        assert row_N[anchor] not in rows
        assert set(rows) >= set(row_N[doc_F].tolist()) - {int(row_N[anchor])}
    return student_ND[row_N], student_ND[used_U], lists


def by_hand(d_NI: Tensor, m_UI: Tensor, lists: Lists) -> float:
    """The sum, anchor by anchor, with the teacher's softmax as it is listed."""
    total = 0.0
    for dim, weight in PREFIXES:
        for place, anchor in enumerate(lists.anchor_A.tolist()):
            others = torch.cat([d_NI[lists.doc_F], m_UI[lists.item_AK[place]]])
            shown = ~lists.hidden_AC[place]
            cosine_C = torch.cosine_similarity(d_NI[anchor, None, :dim], others[shown, :dim])
            log_C = (cosine_C.double() / TEMPERATURE).log_softmax(0)
            target_C = lists.target_AC[place][shown].double()
            total += weight * float((torch.xlogy(target_C, target_C) - target_C * log_C).sum())
    return total


@given(st.integers(2, 20), st.integers(1, 12), st.integers(1, 30), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_it_is_the_sum_over_anchors_and_prefixes(docs: int, top_k: int, slots: int, seed: int) -> None:
    d_NI, m_UI, lists = made(docs, top_k, slots, seed)
    assert float(listwise_loss(d_NI, m_UI, PREFIXES, lists, TEMPERATURE)) == pytest.approx(
        by_hand(d_NI, m_UI, lists), rel=1e-4, abs=1e-4
    )


@given(st.integers(3, 20), st.integers(1, 12), st.integers(0, 99), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_anchors_shared_among_ranks_add_up(docs: int, top_k: int, seed: int, cut: int) -> None:
    whole = float(
        listwise_loss(*made(docs, top_k, 20, seed)[:2], PREFIXES, made(docs, top_k, 20, seed)[2], TEMPERATURE)
    )
    parts = [made(docs, top_k, 20, seed, own) for own in (slice(0, cut), slice(cut, None))]
    assert all(lists.anchors == math.ceil(docs / 2) for _, _, lists in parts)
    shared = sum(float(listwise_loss(d_NI, m_UI, PREFIXES, lists, TEMPERATURE)) for d_NI, m_UI, lists in parts)
    assert shared == pytest.approx(whole, rel=1e-4, abs=1e-4)


def test_a_student_that_is_the_teacher_loses_nothing_and_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    t_ND = torch.randn(9, DIM, generator=generator, requires_grad=True)
    doc_F, none = torch.arange(9), torch.empty(9, 0)
    lists = make_lists(doc_F, doc_F, none.long(), none.bool(), t_ND.detach(), torch.empty(0, DIM), 9, TEMPERATURE)
    loss = listwise_loss(t_ND, torch.empty(0, DIM), [(DIM, 1.0)], lists, TEMPERATURE)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert t_ND.grad is not None
    assert float(t_ND.grad.abs().max()) < 1e-5
