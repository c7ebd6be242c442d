"""Real process groups: any number of workers compute what one computes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smec_core.config import FAST_PRESET, TrainConfig
from smec_core.distributed.group import Group
from smec_core.distributed.resident import Node, ResidentRows, Rows
from smec_core.evaluation.metrics import PrefixSearch
from smec_core.model.adapter import FrozenStage, fold
from smec_core.model.pca import principal_rotation
from smec_core.training.losses import unsupervised_loss
from smec_core.training.memory import CrossBatchMemory
from smec_core.training.step import own_pairs
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import train
from smec_core.training.warm import WarmStart
from tests.smec_core.generated import Generated, Records, generate, resident
from tests.smec_core.ranks import MOST, Ranks

DIM = 24
RANKS = (2, 3)
Result = dict[str, Any]


def small_data(docs: int = 200) -> Generated:
    return generate(torch.arange(8), DIM, docs, queries=400, noise_scale=1.0, mixed=True)


def search(group: Group, queries: int, docs: int) -> Result:
    data = small_data()
    start, stop = docs * group.rank // group.size, docs * (group.rank + 1) // group.size
    searching = PrefixSearch(data.queries_QD[:queries], [3, 24], 10)
    searching.add(torch.arange(start, stop), data.docs_ND[start:stop])
    return {str(dim): rows.tolist() for dim, rows in searching.results(group).items()}


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize(("queries", "docs"), [(50, 200), (9, 7)])
def test_every_rank_gets_the_search_of_one_process(ranks: Ranks, size: int, queries: int, docs: int) -> None:
    assert ranks.run(size, search, queries, docs) == [search(Group(), queries, docs)] * size


def principal_directions(group: Group) -> Result:
    rows = ResidentRows(small_data().docs_ND, Node(group))
    return {"rotation": principal_rotation(rows, group).tolist()}


@pytest.mark.parametrize("size", RANKS)
def test_principal_directions_are_those_of_all_rows(ranks: Ranks, size: int) -> None:
    found = ranks.run(size, principal_directions)
    assert found == [found[0]] * size
    expected = principal_rotation(resident(small_data().docs_ND), Group())
    torch.testing.assert_close(torch.tensor(found[0]["rotation"]), expected, atol=1e-4, rtol=0)


def rows_of_a_node(group: Group, folder: str) -> Result:
    """All ranks as one machine, which holds its rows in files that they share."""
    node = Node(group, "here", group.rank, group.size, Path(folder))
    rows: Rows = ResidentRows(small_data(docs=53).docs_ND, node)
    stage = FrozenStage(8, "linear", {"weight": torch.eye(DIM).flip(0), "logits": torch.zeros(DIM)})
    kept = rows.project(stage)
    read = [kept.take(torch.tensor(some)).tolist() for some in (range(53), [52, 0, 7])]
    return {"read": read, "left": len(list(Path(folder).iterdir()))}


@pytest.mark.parametrize("size", RANKS)
def test_ranks_of_a_node_read_rows_that_others_filled(ranks: Ranks, size: int, tmp_path: Path) -> None:
    x_ND = small_data(docs=53).docs_ND
    kept_Nd = x_ND.flip(1)[:, :8]
    expected = {"read": [kept_Nd.tolist(), kept_Nd[[52, 0, 7]].tolist()], "left": 0}
    assert ranks.run(size, rows_of_a_node, str(tmp_path)) == [expected] * size


def loss_of_neighbours(group: Group, slots: int, top_k: int, docs: int, seed: int) -> Result:
    """L_unsup of random vectors whose products are exact, summed over the ranks."""
    generator = torch.Generator().manual_seed(seed)
    x_ND, z_ND = (torch.randint(-3, 4, (docs, 4), generator=generator).float() for _ in range(2))
    memory = CrossBatchMemory(slots, 4, group, "global", torch.device("cpu"))
    losses = []
    for row_N in torch.randperm(docs, generator=generator).split(max(docs // 3, 1)):
        memory.push(row_N, x_ND[row_N])
        found = memory.search(x_ND, torch.arange(docs), top_k)
        used_U, pairs = own_pairs(found, group)
        losses.append(group.sum_(unsupervised_loss(z_ND, z_ND[used_U], [(4, 1.0)], pairs)).item())
    return {"losses": losses}


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    size=st.integers(2, MOST),
    slots=st.integers(1, 30),
    top_k=st.integers(1, 8),
    docs=st.integers(1, 25),
    seed=st.integers(0, 99),
)
def test_the_loss_of_global_memory_is_that_of_one_process(
    ranks: Ranks, size: int, slots: int, top_k: int, docs: int, seed: int
) -> None:
    alone = loss_of_neighbours(Group(), slots, top_k, docs, seed)["losses"]
    for result in ranks.run(size, loss_of_neighbours, slots, top_k, docs, seed):
        assert result["losses"] == pytest.approx(alone, rel=1e-5)


def training(group: Group, docs: int, judged: bool, changes: Result) -> Result:
    records = Records()
    config = TrainConfig.model_validate({"dims": (8,), "alpha": 0.1, "queue_size": 100, **changes})
    warm_start = champion() if config.compatible else None
    trained = train(small_data(docs).training_data(judged, Node(group)), config, records, warm_start=warm_start)
    return {
        "losses": [record["loss"] for record in records.steps],
        "kinds": [record["projection"] for record in records.steps],
        "epochs": {record["stage"]: record["epoch"] for record in records.epochs},
        "dev": trained.metrics["dev"],
        "choices": [(stage["projection"], stage["epochs"]) for stage in trained.metrics["stages"]],
        "workers": trained.metrics["training"]["workers"],
        "matrix": fold(trained.stages, DIM).tolist(),  # type: ignore[union-attr]
    }


def champion() -> WarmStart:
    """A trained model, the same wherever it is made."""
    trained = train(small_data().training_data(), TrainConfig(dims=(8,), epochs=2), NullTracker())
    return WarmStart(DIM, (DIM, 8), trained.stages, [2] * len(trained.stages))


PCA: Result = dict(init="pca", unsupervised="cosines", alpha_whole=0.1, lr=2e-3)
TRAININGS: dict[str, tuple[int, bool, Result]] = {
    # 300 queries: the last step of an epoch has one, and so no query for most ranks
    "labelled": (200, True, dict(projection="linear", guard=False, epochs=1, batch_size=23, negatives=40)),
    "guarded": (200, True, PCA | dict(epochs=2, batch_size=64, negatives=40)),
    "defaults": (200, True, dict(dims=(8, 4, 2), alpha=None, epochs=2, batch_size=64, negatives=40)),
    "stops_early": (200, True, PCA | dict(epochs=8, patience=1, lr=2e-2, batch_size=64, negatives=40)),
    "listwise in all stages": (200, True, dict(alpha_whole=0.1, epochs=2, batch_size=64, negatives=40)),
    # a warm start
    "compatible": (200, True, dict(compatible=1, epochs=2, batch_size=23, negatives=40)),
    # 40 documents a step: the last step of every epoch has one, and so no document for most ranks
    "unlabelled": (
        41,
        False,
        dict(projection="linear", guard=False, epochs=2, batch_size=32, negatives=8, top_k=5),
    ),
}


@pytest.mark.parametrize("size", RANKS)
@pytest.mark.parametrize("name", TRAININGS)
def test_training_computes_what_one_process_computes(ranks: Ranks, name: str, size: int) -> None:
    alone, together = training(Group(), *TRAININGS[name]), ranks.run(size, training, *TRAININGS[name])
    first, *others = together
    assert first["workers"] == size
    assert first["kinds"] == alone["kinds"]
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-4)
    assert first["choices"] == alone["choices"]
    torch.testing.assert_close(torch.tensor(first["matrix"]), torch.tensor(alone["matrix"]), atol=1e-4, rtol=0)
    for other in others:
        assert other["matrix"] == first["matrix"], "the ranks hold different models"
        assert other["dev"] == first["dev"]
    assert first["epochs"] == alone["epochs"]
    most = TRAININGS[name][2]["epochs"]
    assert any(epoch < most for epoch in first["epochs"].values()) == (name == "stops_early")


def test_a_closed_form_is_chosen_as_one_process_does(ranks: Ranks) -> None:
    fast = dict(FAST_PRESET, alpha=None, dims=(8, 4))
    alone = training(Group(), 200, True, fast)
    for result in ranks.run(3, training, 200, True, fast):
        assert not result["losses"]
        torch.testing.assert_close(torch.tensor(result["matrix"]), torch.tensor(alone["matrix"]), atol=1e-4, rtol=0)


def test_local_memory_trains_too_and_all_ranks_agree(ranks: Ranks) -> None:
    docs, judged, changes = TRAININGS["guarded"]
    first, second = ranks.run(2, training, docs, judged, {**changes, "memory": "local"})
    assert first["matrix"] == second["matrix"]
    alone = training(Group(), docs, judged, changes)
    # other neighbours, so another loss, but the same batches and judgements
    assert first["losses"] != pytest.approx(alone["losses"], abs=1e-4)
    assert first["losses"] == pytest.approx(alone["losses"], rel=0.2)
