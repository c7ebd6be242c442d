"""Whole trainings in one process, on small generated data whose relevance can be learnt."""

import dataclasses
import re
import warnings
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from smec_core.config import FAST_PRESET, PAPER_PRESET, SET_BY_DATA, TrainConfig
from smec_core.distributed.group import Group
from smec_core.errors import InputError
from smec_core.evaluation.dev_set import DevSet, QueryScores
from smec_core.evaluation.metrics import PrefixSearch
from smec_core.model.adapter import FrozenStage, fold
from smec_core.model.closed_forms import ClosedForm
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.model.pca import principal_rotation
from smec_core.training.closed import FORMS, scaled
from smec_core.training.context import PassContext
from smec_core.training.guard import Guard, Loss
from smec_core.training.learner import Learner
from smec_core.training.moments import MomentSums
from smec_core.training.plan import plan_training
from smec_core.training.schedule import TrainingShape
from smec_core.training.stage import StageTraining
from smec_core.training.tracker import NullTracker
from smec_core.training.trained import Trained
from smec_core.training.trainer import Hooks, StageReached, settings_used, train
from tests.smec_core.generated import Generated, Records, generate, ndcg_of, resident

DIM, DIMS = 24, (8, 4)
SMALL = dict(dims=DIMS, epochs=5, lr=1e-2, alpha=0.1, queue_size=200, negatives=64)
STEP_KEYS = {
    "pass", "stage", "projection", "epoch", "step", "loss", "rank_loss", "unsup_loss", "tau", "lr", "rows_per_s",
    "seconds/data", "seconds/search", "seconds/compute", "memory_fill",
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Generated:
    """300 documents in 24 dims; a third of the space, at an unknown angle, says which queries are about them."""
    return generate(torch.arange(8), DIM, docs=300, queries=600, noise_scale=1.0, mixed=True)


@pytest.fixture(scope="module")
def run(data: Generated) -> tuple[Trained, Records]:
    """A training with judgements, and all that it reported."""
    records = Records()
    return train(data.training_data(), small(), records), records


def small(**changes: Any) -> TrainConfig:
    return TrainConfig(**{**SMALL, **changes})


def fold_of(trained: Trained) -> torch.Tensor:
    matrix_DD = fold(trained.stages, DIM)
    assert matrix_DD is not None
    return matrix_DD


def model_of(trained: Trained) -> Model:
    return Model(trained.stages, DIM, {"dims": [DIM, *DIMS]}, trained.metrics)


def same_tensors(one: Trained, other: Trained) -> bool:
    return all(
        torch.equal(tensor, second.tensors[name])
        for first, second in zip(one.stages, other.stages, strict=True)
        for name, tensor in first.tensors.items()
    )


@pytest.mark.parametrize(
    ("judged", "changes"),
    [(True, {}), (True, {"schedule": "parallel"}), (False, {}), (True, {"guard": False, "projection": "linear"})],
)
def test_the_settings_that_were_used_give_the_same_model(
    data: Generated, judged: bool, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # long enough for the patience of a full stage and that of a rotation to differ
    monkeypatch.setattr("smec_core.config.STAGE_STEPS", 90 if judged else 12)
    config = TrainConfig(dims=(4,), batch_size=64, negatives=32, queue_size=100, **changes)
    taken = data.training_data(judged)
    used = settings_used(taken.shape(config), config)
    assert all(getattr(config, name) is None and getattr(used, name) is not None for name in SET_BY_DATA)
    explicit = config.model_copy(update={name: getattr(used, name) for name in SET_BY_DATA})
    assert same_tensors(train(taken, config, NullTracker()), train(taken, explicit, NullTracker()))


def test_a_trained_model_beats_pca_on_queries_it_has_not_seen(data: Generated, run: tuple[Trained, Records]) -> None:
    model, dims = model_of(run[0]), [DIM, *DIMS]
    trained = ndcg_of(model.encode(data.docs_ND), model.encode(data.queries_QD), data.test, dims)
    rotation_DD = principal_rotation(resident(data.docs_ND), Group())
    pca = ndcg_of(data.docs_ND @ rotation_DD.T, data.queries_QD @ rotation_DD.T, data.test, dims)
    for dim in DIMS:
        assert trained[dim] > pca[dim] + 0.1
    assert trained[8] > pca[DIM], "the informative third alone finds more than the whole does"


def test_metrics_tell_how_the_model_came_about(run: tuple[Trained, Records]) -> None:
    trained, _ = run
    metrics = trained.metrics
    assert [(stage["d_in"], stage["dim"]) for stage in metrics["stages"]] == [(24, 24), (24, 12), (12, 8), (8, 4)]
    assert set(metrics["dev"]["ndcg@10"]) == {"24", "8", "4"}
    for stage in metrics["stages"]:
        assert len(stage["importance"]) == stage["d_in"]
        assert sum(stage["importance"]) == pytest.approx(1, abs=1e-4)
        assert stage["projection"] == ("linear" if stage["d_in"] == stage["dim"] else "rotation")
    training = metrics["training"]
    assert (training["workers"], training["device"]) == (1, "cpu")
    assert training["parameters"] == sum(t.numel() for stage in trained.stages for t in stage.tensors.values())
    assert [stage.dim for stage in trained.stages] == [24, 12, 8, 4]


def test_metrics_hold_the_dev_score_of_the_state_that_was_kept(run: tuple[Trained, Records]) -> None:
    trained, records = run
    for stage in trained.metrics["stages"]:
        ended = (stage["dim"], stage["epochs"])
        assert [r["dev_score"] for r in records.epochs if (r["stage"], r["epoch"]) == ended] == [stage["dev_score"]]


def test_figures_come_in_order_and_complete(run: tuple[Trained, Records]) -> None:
    trained, records = run
    numbers = [record["step"] for record in records.all]
    assert numbers == sorted(numbers)
    assert {record["step"] for record in records.steps} == set(range(1, trained.metrics["training"]["steps"] + 1))
    for record in records.steps:
        # the stage of all dims has no memory
        assert set(record) == (STEP_KEYS if record["stage"] != DIM else STEP_KEYS - {"memory_fill"})
    for record in records.steps:
        assert record["loss"] == pytest.approx(float(record["rank_loss"]) + 0.1 * float(record["unsup_loss"]), rel=1e-5)
    keys = {"pass", "stage", "projection", "epoch", "step", "dev_ndcg@10", "dev_score"}
    assert all(set(record) == keys for record in records.epochs)
    passes = [record["pass"] for record in records.all]
    assert passes == sorted(passes), "first, then refit"
    assert {record["pass"] for record in records.epochs} == {"first"}, "the replay chooses nothing"


def test_the_replay_repeats_what_dev_chose(run: tuple[Trained, Records]) -> None:
    trained, records = run
    replayed: dict[Any, set[Any]] = {}
    for record in records.steps:
        if record["pass"] == "refit":
            replayed.setdefault((record["stage"], record["projection"]), set()).add(record["epoch"])
    chosen = {
        (stage["dim"], stage["projection"]): set(range(stage["epochs"]))
        for stage in trained.metrics["stages"]
        if stage["epochs"]
    }
    assert replayed == chosen


def test_dev_never_falls_below_the_start(run: tuple[Trained, Records]) -> None:
    trained, records = run
    for stage in trained.metrics["stages"]:
        # that of all dims may be trained from two starts
        starts = [float(r["dev_score"]) for r in records.epochs if r["stage"] == stage["dim"] and r["epoch"] == 0]
        assert stage["dev_score"] >= max(starts)


def test_counts_of_clicks_as_scores_cost_no_quality(data: Generated, run: tuple[Trained, Records]) -> None:
    rng, given = np.random.default_rng(0), data.training_data()
    assert given.train is not None and given.dev is not None
    train_counts, dev_counts = (
        dataclasses.replace(judged, score_J=np.minimum(rng.zipf(1.2, len(judged)), 10**6).astype(np.float32))
        for judged in (given.train, given.dev)
    )
    trained = train(dataclasses.replace(given, train=train_counts, dev=dev_counts), small(), NullTracker())
    of_counts, of_ones = (
        ndcg_of(model.encode(data.docs_ND), model.encode(data.queries_QD), data.test, [DIM, *DIMS])
        for model in (model_of(trained), model_of(run[0]))
    )
    for dim, ndcg in of_ones.items():
        assert of_counts[dim] >= ndcg - 0.01, f"{dim} dims: {of_counts[dim]:.4f}, with scores of 1 {ndcg:.4f}"


def test_without_alpha_the_memory_is_left_out(data: Generated) -> None:
    records, with_memory = Records(), Records()
    train(data.training_data(), small(alpha=0), records)
    train(data.training_data(), small(alpha=1e-9, alpha_whole=1e-9), with_memory)
    assert all(record["unsup_loss"] == 0 and record["loss"] == record["rank_loss"] for record in records.steps)
    assert any(float(record["unsup_loss"]) > 0 for record in with_memory.steps)
    assert records.steps[0]["rank_loss"] == pytest.approx(float(with_memory.steps[0]["rank_loss"]), rel=1e-4)


def test_the_guard_undoes_a_training_that_only_harms(data: Generated) -> None:
    # judgements that name wrong documents teach nothing that dev rewards: all dims stay as they were
    config = small(epochs=2, projection="linear", refit=False, init="pca")
    given = data.training_data()
    assert given.train is not None
    wrong = dataclasses.replace(given.train, doc_row_J=np.roll(given.train.doc_row_J, 1))
    trained = train(dataclasses.replace(given, train=wrong), config, NullTracker())
    assert trained.metrics["stages"][0]["epochs"] == 0
    model = model_of(trained)
    kept = ndcg_of(model.encode(data.docs_ND), model.encode(data.queries_QD), data.dev, [DIM])[DIM]
    frozen = ndcg_of(data.docs_ND, data.queries_QD, data.dev, [DIM])[DIM]
    assert kept >= frozen - config.guard_tolerance
    assert trained.metrics["dev"]["ndcg@10"][str(DIM)] == pytest.approx(kept, abs=1e-6)


def test_later_stages_cost_earlier_prefixes_no_more_than_the_tolerance() -> None:
    # a rate at which, unguarded, the stages to 6 and 3 dims cost the one at 12 dims some of its score
    data = generate(torch.arange(12), DIM, docs=300, queries=900, noise_scale=0.7, mixed=True, seed=1)
    records = Records()
    config = small(
        dims=(12, 6, 3), lr=5e-2, epochs=6, projection="linear", init="pca", refit=False, guard_tolerance=0.0
    )
    trained = train(data.training_data(), config, records)
    for stage in trained.metrics["stages"]:
        ended = (stage["dim"], stage["epochs"])
        (reached,) = [float(r["dev_ndcg@10"]) for r in records.epochs if (r["stage"], r["epoch"]) == ended]
        assert trained.metrics["dev"]["ndcg@10"][str(stage["dim"])] >= reached - 1e-6


def test_the_same_seed_gives_the_same_model_bit_for_bit(data: Generated) -> None:
    config = small(epochs=2)
    first = train(data.training_data(), config, NullTracker())
    torch.manual_seed(123)  # of no consequence
    assert same_tensors(first, train(data.training_data(), config, Records()))
    assert not same_tensors(first, train(data.training_data(), small(epochs=2, seed=1), NullTracker()))


def test_without_judgements_neighbours_are_kept(data: Generated) -> None:
    records = Records()
    config = small(epochs=3, top_k=20, batch_size=8)
    trained = train(data.training_data(judged=False), config, records)
    assert set(trained.metrics["dev"]) == {"neighbour_recall@10"}
    assert all(record["rank_loss"] == 0 for record in records.steps)
    assert any(float(record["unsup_loss"]) > 0 for record in records.steps)
    # 72 documents a step, without the 60 that dev is scored by
    epochs = [(record["pass"], record["stage"], record["projection"], record["epoch"]) for record in records.steps]
    # four steps an epoch, the first of which meets an empty memory and trains nothing
    assert epochs.count(("first", 12, "rotation", 0)) == 3
    assert epochs.count(("first", 12, "rotation", 1)) == 4
    assert {(pass_name, kind) for pass_name, _, kind, _ in epochs} == {("first", "rotation")}
    assert any(stage["epochs"] for stage in trained.metrics["stages"])
    for stage in trained.metrics["stages"]:
        assert stage["d_in"] > stage["dim"], "from D to D there is nothing to learn"
        for start in (r for r in records.epochs if r["stage"] == stage["dim"] and r["epoch"] == 0):
            assert stage["dev_score"] >= float(start["dev_score"])

    # over the whole corpus the trained prefixes keep at least about as many neighbours as PCA does
    model, rotation_DD = model_of(trained), principal_rotation(resident(data.docs_ND), Group())
    truth = nearest(data.docs_ND, DIM)
    for dim in DIMS:
        kept = share(nearest(model.encode(data.docs_ND), dim), truth)
        assert kept >= share(nearest(data.docs_ND @ rotation_DD.T, dim), truth) - 0.01


def nearest(z_ND: torch.Tensor, dim: int) -> torch.Tensor:
    rows = torch.arange(len(z_ND))
    search = PrefixSearch(z_ND, [dim], 10, own_row_Q=rows)
    search.add(rows, z_ND)
    return search.results()[dim]


def share(found_Nk: torch.Tensor, truth_Nk: torch.Tensor) -> float:
    return (found_Nk[:, :, None] == truth_Nk[:, None, :]).any(2).double().mean().item()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 8, "patience": 8, "score_steps": 7}, [0, 3, 6, 8]),
        ({"epochs": 8, "patience": 8, "score_steps": 1}, list(range(9))),
        ({"epochs": 4, "patience": 4, "score_steps": 100}, [0, 2, 4]),
    ],
    ids=["every so many steps", "every epoch", "twice within patience"],
)
def test_dev_is_scored_so_often(changes: dict[str, Any], expected: list[int], data: Generated) -> None:
    records = Records()
    # three steps an epoch
    train(data.training_data(), small(projection="rotation", refit=False, **changes), records)
    for dim in DIMS:
        assert [record["epoch"] for record in records.epochs if record["stage"] == dim] == expected


@pytest.mark.parametrize("changes", [{}, {"lookahead": 0.0}, {"schedule": "parallel"}], ids=str)
def test_what_a_rotation_cannot_change_has_the_scores_that_it_would_get(
    changes: dict[str, Any], data: Generated
) -> None:
    score, update = Learner.score, Guard.update
    moved = []

    def watched(learner: Learner, run: PassContext, epoch: int, at_start: QueryScores) -> dict[str, float]:
        spec = learner._plan
        taken: list[QueryScores] = []

        def keep(guard: Guard, epoch: int, values: QueryScores, losses: set[Loss]) -> tuple[bool, float]:
            taken.append(values)
            return update(guard, epoch, values, losses)

        with patch.object(Guard, "update", keep):
            figures = score(learner, run, epoch, at_start)
        assert run.dev is not None
        stage = learner.average.freeze(spec.keeps_places)
        anew = run.dev.score(stage.apply, spec.d_in, spec.scored)
        assert taken[0].keys() == anew.keys()
        for dim, value_Q in anew.items():
            # rounding may swap neighbours of the same cosine
            assert taken[0][dim].mean() == pytest.approx(value_Q.mean().item(), abs=2e-3)
        start = run.dev.score(lambda y: y, spec.d_in, spec.scored)
        moved.append(max(float((anew[dim] - start[dim]).abs().mean()) for dim in spec.scored if dim < spec.d_in))
        return figures

    with patch.object(Learner, "score", watched):
        train(
            data.training_data(),
            small(projection="rotation", refit=False, score_steps=1, favour="all", **changes),
            NullTracker(),
        )
    assert max(moved) > 0.05, "no rotation changed anything"


@pytest.mark.parametrize("guard", [True, False])
def test_the_fast_preset_gives_a_closed_form_of_all_judgements(data: Generated, guard: bool) -> None:
    records, made, said = Records(), data.training_data(), list[str]()
    trained = train(made, small(**FAST_PRESET, guard=guard, projection="linear"), records, Hooks(say=said.append))
    assert not records.steps
    [stage] = trained.stages
    moments = MomentSums(made.docs, made.queries, made.node.group).of(data.train.merge(data.dev))
    same = [form for form in FORMS if torch.allclose(scaled(form.matrix(moments)), stage.tensors["weight"], atol=1e-4)]
    assert len(same) == 1
    assert any(f"start: {same[0]}" in line for line in said)
    assert ClosedForm(**{name: trained.metrics["start"][name] for name in ClosedForm._fields}) == same[0]
    found, pca = (
        ndcg_of(data.docs_ND @ matrix_DD.T, data.queries_QD @ matrix_DD.T, data.test, [DIM, *DIMS])
        for matrix_DD in (fold_of(trained), principal_rotation(made.docs, Group()))
    )
    assert all(found[dim] > pca[dim] for dim in found)


def test_stages_that_are_not_trained_make_up_the_closed_form(data: Generated) -> None:
    chain, whole = (
        model_of(train(data.training_data(), small(**changes), NullTracker()))
        for changes in ({"epochs": 0}, FAST_PRESET)
    )
    for dim in (DIM, *DIMS):
        torch.testing.assert_close(*(cosines(model.encode(data.docs_ND), dim) for model in (chain, whole)))


def cosines(z_ND: torch.Tensor, dim: int) -> torch.Tensor:
    """Of the first 20 rows to each other."""
    some_Nd = torch.nn.functional.normalize(z_ND[:20, :dim], dim=1)
    return some_Nd @ some_Nd.T


def test_the_closed_form_is_kept_where_training_is_no_better(data: Generated) -> None:
    """Here the whole chain finds nothing on dev; it is scored last, at all prefixes at once."""
    records, said = Records(), list[str]()
    score = DevSet.score

    def worse(dev: DevSet, apply: Any, d_in: int, dims: Any) -> QueryScores:
        values = score(dev, apply, d_in, dims)
        is_chain = tuple(dims) == (DIM, *DIMS) and bool(records.steps)
        return {dim: value_Q * 0 for dim, value_Q in values.items()} if is_chain else values

    config = small(epochs=2)
    with patch.object(DevSet, "score", worse):
        trained = train(data.training_data(), config, records, Hooks(say=said.append))
    assert trained.metrics["start"]["kept"] == "closed"
    assert "the trained stages are no better on dev than the closed form, which is kept" in said
    assert [stage["epochs"] for stage in trained.metrics["stages"]] == [0] * 4
    assert {record["pass"] for record in records.steps} == {"first"}
    untrained = train(data.training_data(), small(epochs=0), NullTracker())
    assert same_tensors(trained, untrained)


def test_lists_of_neighbours_are_kept_where_pairs_are_not_learnt_from(data: Generated) -> None:
    def kept(**changes: Any) -> float:
        """Overlap of the ten nearest documents at all dims with those of the closed form, over all documents."""
        config = small(init="closed", unsupervised="listwise", guard=False, refit=False, projection="linear", **changes)
        trained, start = (
            train(data.training_data(), one, NullTracker()) for one in (config, config.model_copy(update={"epochs": 0}))
        )
        nearest = []
        for some in (trained, start):
            z_ND = torch.nn.functional.normalize(data.docs_ND @ fold_of(some)[:DIM].T, dim=1)
            nearest.append((z_ND @ z_ND.T - 2 * torch.eye(len(z_ND))).topk(10)[1])
        return float((nearest[0][:, :, None] == nearest[1][:, None, :]).any(2).float().mean())

    dims = {"dims": (DIM,)}
    assert kept(alpha=0, alpha_whole=3.0, **dims) > kept(alpha=0, alpha_whole=0.0, **dims) + 0.05


def test_the_paper_preset_runs_all_its_epochs(data: Generated) -> None:
    records = Records()
    trained = train(data.training_data(), small(epochs=3, **PAPER_PRESET), records)
    assert [stage["epochs"] for stage in trained.metrics["stages"]] == [3] * 4
    assert {stage["projection"] for stage in trained.metrics["stages"]} == {"linear"}
    assert trained.metrics["dev"] == {}
    assert not records.epochs
    # 600 queries, 75 % of them train or dev, in steps of 128: without the guard nothing is held out
    assert trained.metrics["training"]["steps"] == 4 * 3 * 4
    model = model_of(trained)
    before = ndcg_of(data.docs_ND, data.queries_QD, data.test, [8])
    after = ndcg_of(model.encode(data.docs_ND), model.encode(data.queries_QD), data.test, [8])
    assert after[8] > before[8]


def test_a_residual_mlp_trains_and_is_stored(data: Generated, tmp_path: Any) -> None:
    config = small(projection="residual_mlp", hidden_dim=16, epochs=2, init="pca")
    model = model_of(train(data.training_data(), config, NullTracker()))
    assert model.matrix_DD is None
    assert any((stage.tensors["down"] != 0).any() for stage in model.stages)
    model.save(tmp_path)
    assert torch.equal(load(tmp_path).encode(data.docs_ND, 4), model.encode(data.docs_ND, 4))


@pytest.mark.parametrize("projection", ["rotation", "selection"])
def test_rotations_and_selections_leave_the_full_cosines_alone(data: Generated, projection: str) -> None:
    trained = train(data.training_data(), small(projection=projection, epochs=2), NullTracker())
    assert any(stage["epochs"] for stage in trained.metrics["stages"])
    z_ND = model_of(trained).encode(data.docs_ND)
    torch.testing.assert_close(z_ND @ z_ND.T, data.docs_ND @ data.docs_ND.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["identity", "random"])
def test_other_starts_learn_too(data: Generated, init: str) -> None:
    trained = train(data.training_data(), small(init=init, projection="linear", epochs=4), NullTracker())
    assert trained.metrics["dev"]["ndcg@10"]["8"] > ndcg_of(data.docs_ND, data.queries_QD, data.dev, [8])[8]


def test_full_dims_alone_can_be_asked_for(data: Generated) -> None:
    trained = train(data.training_data(), small(dims=(DIM,), epochs=2), NullTracker())
    assert [(stage["d_in"], stage["dim"]) for stage in trained.metrics["stages"]] == [(DIM, DIM)]
    nothing = train(data.training_data(), small(dims=(DIM,), projection="rotation"), NullTracker())
    assert nothing.stages == []
    config = small(dims=(DIM,), projection="rotation", schedule="parallel")
    assert train(data.training_data(), config, NullTracker()).stages == []
    torch.testing.assert_close(model_of(nothing).encode(data.docs_ND), data.docs_ND)


def test_progress_is_told_stage_by_stage(data: Generated) -> None:
    lines: list[str] = []
    train(data.training_data(), small(epochs=1), NullTracker(), Hooks(say=lines.append))
    assert len(lines) == 10
    assert lines[0] == "choosing a closed form to start from, on 3 folds of the judgements"
    assert lines[1].startswith("start: within(")
    assert lines[2].startswith("first pass, stage 1 of 4: 24 -> 24 dims, linear, ")
    assert re.search(r", mean dev score of the prefixes in training \d\.\d{4}$", lines[2])
    assert lines[-1].startswith("refit pass, stage 4 of 4: 8 -> 4 dims, ")


@pytest.mark.parametrize("judged", [True, False])
def test_a_training_warns_of_nothing(data: Generated, judged: bool) -> None:
    torch.set_warn_always(True)  # else torch warns once a process, perhaps in an earlier test
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(data.training_data(judged), small(epochs=1), NullTracker())
    finally:
        torch.set_warn_always(False)


def test_without_judgements_and_without_alpha_there_is_nothing_to_learn(data: Generated) -> None:
    with pytest.raises(InputError, match="alpha: without judgements"):
        train(data.training_data(judged=False), small(alpha=0), NullTracker())


def test_a_dim_above_the_data_is_refused(data: Generated) -> None:
    with pytest.raises(InputError, match="dims: 25 is more than the 24 dims of the data"):
        train(data.training_data(), small(dims=(25,)), NullTracker())


@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("last", ["linear", "residual_mlp"])
def test_smaller_dims_on_top_of_a_model_leave_those_it_has_alone(data: Generated, judged: bool, last: Any) -> None:
    base = train(
        data.training_data(),
        small(dims=(12, 8), epochs=1, projection=last, hidden_dim=16, alpha=0.1, lookahead=0),
        NullTracker(),
    )
    before = model_of(base)
    config = small(dims=(12, 8, 4), epochs=6, top_k=10, projection="rotation", guard=False)
    trained = train(data.training_data(judged), config, NullTracker(), base=base.stages)
    assert [(stage["d_in"], stage["dim"]) for stage in trained.metrics["stages"]] == [(8, 4)]
    assert {stage["projection"] for stage in trained.metrics["stages"]} == {"rotation"}
    assert all(stage["epochs"] for stage in trained.metrics["stages"])
    assert [stage.dim for stage in trained.stages] == [24, 12, 8, 4]
    after = model_of(trained)
    for dim in (DIM, 12, 8):
        old_ND, new_ND = before.encode(data.docs_ND, dim), after.encode(data.docs_ND, dim)
        torch.testing.assert_close(new_ND @ new_ND.T, old_ND @ old_ND.T, atol=1e-5, rtol=0)
    old, new = (
        ndcg_of(model.encode(data.docs_ND), model.encode(data.queries_QD), data.test, [4]) for model in (before, after)
    )
    assert new[4] > old[4], "the first half of eight dims were not made to be used alone"


def test_dev_tells_of_the_dims_of_the_base_too(data: Generated, run: tuple[Trained, Records]) -> None:
    base = run[0]
    trained = train(data.training_data(), small(dims=(2,), epochs=2), NullTracker(), base=base.stages)
    # between those that were asked for, the base passed through 12 dims
    assert set(trained.metrics["dev"]["ndcg@10"]) == {"24", "12", "8", "4", "2"}
    model, dims = model_of(base), [DIM, 12, *DIMS]
    before = ndcg_of(model.encode(data.docs_ND), model.encode(data.queries_QD), data.dev, dims)
    assert [trained.metrics["dev"]["ndcg@10"][str(dim)] for dim in dims] == pytest.approx(
        [before[dim] for dim in dims], abs=1e-3
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dims=(12, 10, 4)), "dims: the base model has no prefix of 10 dims, and only dims below its smallest, 8"),
        (dict(dims=(25, 4)), "dims: the base model has no prefix of 25 dims"),
        (dict(dims=(24, 12, 8)), "dims: none is below 8, the smallest block of the base model; add a smaller one"),
        (dict(dims=(4,), projection="linear"), "projection: linear would change the base model's dims"),
        (dict(dims=(4,), projection="residual_mlp"), "projection: residual_mlp would change the base model's dims"),
    ],
)
def test_what_a_base_cannot_give_is_refused(data: Generated, changes: dict[str, Any], message: str) -> None:
    base = [
        FrozenStage(dim, "rotation", {"weight": torch.eye(d_in), "logits": torch.zeros(d_in)})
        for d_in, dim in ((24, 12), (12, 8))
    ]
    with pytest.raises(InputError, match=re.escape(message)):
        plan_training(TrainingShape(DIM, labelled=True), small(**changes), base)
    with pytest.raises(InputError, match=re.escape(message)):
        train(data.training_data(), small(**changes), NullTracker(), base=base)


def test_dims_that_a_base_has_need_not_be_named_again() -> None:
    base = [FrozenStage(8, "linear", {"weight": torch.eye(24), "logits": torch.zeros(24)})]
    for dims in ((24, 8, 3), (3,), (8, 3)):
        plan = plan_training(TrainingShape(DIM, labelled=True), small(dims=dims), base)
        assert [(stage.d_in, stage.dim) for stage in plan if stage.pass_name == "first"] == [(8, 4), (4, 3)]


def test_all_dims_at_once_are_one_stage(data: Generated) -> None:
    records = Records()
    trained = train(data.training_data(), small(schedule="parallel"), records)
    [stage] = trained.metrics["stages"]
    assert (stage["d_in"], stage["dim"]) == (DIM, 4)
    assert stage["projection"] == "linear"
    assert {record["epoch"] for record in records.steps if record["pass"] == "first"} <= set(range(4 * 5))
    model = model_of(trained)
    found = ndcg_of(model.encode(data.docs_ND), model.encode(data.queries_QD), data.test, [DIM, *DIMS])
    pca_DD = principal_rotation(resident(data.docs_ND), Group())
    pca = ndcg_of(data.docs_ND @ pca_DD.T, data.queries_QD @ pca_DD.T, data.test, list(DIMS))
    assert all(found[dim] > pca[dim] + 0.05 for dim in DIMS)


def test_a_stage_that_looks_ahead_prepares_the_next(data: Generated) -> None:
    start = {}
    for lookahead in (0, 0.3):
        config = small(projection="rotation", epochs=12, patience=12, refit=False, lookahead=lookahead)
        reached: list[StageReached] = []
        train(data.training_data(), config, NullTracker(), Hooks(on_stage=reached.append))
        # after the stage 12 -> 8, four dims have had no stage yet
        start[lookahead] = reached[1].scores
    assert start[0.3][4] > start[0][4] + 0.02


@pytest.mark.parametrize("init", ["pca", "random"])
def test_what_has_been_looked_ahead_to_stays_together_at_a_stages_start(data: Generated, init: str) -> None:
    # at this rate a stage stays where it starts
    config = small(dims=(16, 8, 4, 2), init=init, projection="rotation", guard=False, epochs=1, lr=1e-12)
    first, *prepared = train(data.training_data(), config, NullTracker()).stages
    assert first.tensors["weight"][:8, 8:].abs().max() > 0.01
    for stage, cuts in zip(prepared, ((0, 2, 4, 8, 16), (0, 2, 4, 8), (0, 2, 4)), strict=True):
        weight = stage.tensors["weight"]
        blocks = [weight[low:high, low:high] for low, high in pairwise(cuts)]
        torch.testing.assert_close(weight, torch.block_diag(*blocks), atol=1e-6, rtol=0)
        logits = stage.tensors["logits"]
        assert (logits.diff() < 0).all(), "ADS starts from their order"


def test_an_earlier_prefix_is_held_to_what_its_own_stage_left(data: Generated, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[StageTraining] = []

    class Seen(StageTraining):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            seen.append(self)

    monkeypatch.setattr("smec_core.training.trainer.StageTraining", Seen)
    config = small(dims=(12, 8, 4), projection="rotation", refit=False)
    train(data.training_data(), config, NullTracker())
    # a rotation from all dims to all dims is no stage
    twelve, eight, four = seen
    assert twelve.plan.floors == {}
    after_12, after_8 = (training.learner.guard.best_scores for training in (twelve, eight))
    assert eight.plan.floors == {DIM: after_12[DIM] - 0.005, 12: after_12[12] - 0.005}
    assert four.plan.floors == {**eight.plan.floors, 8: after_8[8] - 0.005}
    assert after_8[8] != after_12[8]


def test_without_ads_a_stage_keeps_its_first_dims() -> None:
    # what matters comes last
    data = generate(torch.arange(16, 24), DIM, docs=300, queries=600, noise_scale=1.0, mixed=False)
    kept = {}
    for off in ({}, {"gumbel_noise": 0.0, "ads_lr_factor": 0.0}):
        config = small(dims=(8,), projection="linear", init="identity", lookahead=0, guard=False, **off)
        _, halved, _ = train(data.training_data(), config, NullTracker()).stages
        kept[bool(off)] = set(halved.tensors["weight"][:12].abs().argmax(1).tolist())
    assert kept[True] == set(range(12))
    assert kept[False] >= set(range(16, 24))
