"""Settings: what is refused, with a message that names the setting."""

from typing import Any

import pytest
from pydantic import ValidationError

from smec_core.config import PAPER_PRESET, TrainConfig


def refusal(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        TrainConfig(**{"dims": (4,), **values})
    (error,) = caught.value.errors()
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


@pytest.mark.parametrize(
    ("given", "dims"),
    [("384,192, 96", (384, 192, 96)), ("96", (96,)), (96, (96,)), ([96, 384, 192], (384, 192, 96)), ("96,", (96,))],
)
def test_dims_come_as_text_numbers_or_lists_in_any_order(given: Any, dims: tuple[int, ...]) -> None:
    assert TrainConfig(dims=given).dims == dims


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dims": ()}, "dims: Tuple should have at least 1 item"),
        ({"dims": ""}, "dims: Tuple should have at least 1 item"),
        ({"dims": (4, 0)}, "dims: Value error, every dim must be at least 1"),
        ({"dims": "4,8,4"}, "dims: Value error, a dim is named twice"),
        ({"dims": "4,many"}, "dims.1: Input should be a valid integer"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"projection": "free"}, "projection: Input should be 'auto', 'linear', 'rotation'"),
        ({"init": "zero"}, "init: Input should be 'closed', 'pca', 'identity' or 'random'"),
        ({"hidden_dim": 0}, "hidden_dim: Input should be greater than or equal to 1"),
        ({"tau": 0}, "tau: Input should be greater than 0"),
        ({"gumbel_noise": -0.1}, "gumbel_noise: Input should be greater than or equal to 0"),
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"alpha": -1}, "alpha: Input should be greater than or equal to 0"),
        ({"top_k": 0}, "top_k: Input should be greater than or equal to 1"),
        ({"queue_size": 0}, "queue_size: Input should be greater than or equal to 1"),
        ({"queue_size": 5, "top_k": 6}, "queue_size (5) must be at least top_k (6)"),
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1"),
        ({"positives": 0}, "positives: Input should be greater than or equal to 1"),
        ({"hard_negatives": -1}, "hard_negatives: Input should be greater than or equal to 0"),
        ({"negatives": -1}, "negatives: Input should be greater than or equal to 0"),
        ({"epochs": -1}, "epochs: Input should be greater than or equal to 0"),
        ({"lr": 0}, "lr: Input should be greater than 0"),
        ({"ads_lr_factor": -1}, "ads_lr_factor: Input should be greater than or equal to 0"),
        ({"ema_decay": 1}, "ema_decay: Input should be less than 1"),
        ({"patience": 0}, "patience: Input should be greater than or equal to 1"),
        ({"guard_tolerance": -0.1}, "guard_tolerance: Input should be greater than or equal to 0"),
        ({"dev_fraction": 1}, "dev_fraction: Input should be less than 1"),
        ({"dev_fraction": 0}, "dev_fraction: Input should be greater than 0"),
        ({"dev_corpus": 99}, "dev_corpus: Input should be greater than or equal to 100"),
        ({"schedule": "parallel", "projection": "selection"}, "schedule=parallel selects no dims"),
        ({"temprature": 1}, "temprature: Extra inputs are not permitted"),
    ],
)
def test_bad_settings_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    assert message in refusal(**values)


@pytest.mark.parametrize("name", ["lr", "tau", "alpha"])
def test_numbers_must_be_finite(name: str) -> None:
    assert refusal(**{name: float("inf")}) == f"{name}: Input should be a finite number"
    assert name in refusal(**{name: float("nan")})


def test_settings_cannot_be_changed_afterwards() -> None:
    config = TrainConfig(dims=(4,))
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


def test_paper_preset_is_a_valid_config() -> None:
    config = TrainConfig(dims=(4,), **PAPER_PRESET)
    assert (config.temperature, config.projection, config.guard, config.init) == (1.0, "linear", False, "identity")


@pytest.mark.parametrize(
    ("changes", "judged", "whole", "unjudged"),
    [
        ({}, 0, 0, 0.1),
        ({"alpha": 0.2}, 0.2, 0, 0.2),
        ({"alpha": 0.2, "alpha_whole": 0.5}, 0.2, 0.5, 0.2),
    ],
)
def test_weights_of_the_unsupervised_loss(
    changes: dict[str, Any], judged: float, whole: float, unjudged: float
) -> None:
    config = TrainConfig(dims=(4,), **changes)
    assert config.unsupervised_weight(labelled=True) == judged
    assert config.unsupervised_weight(labelled=True, is_whole=True) == whole
    assert config.unsupervised_weight(labelled=False) == unjudged


def test_documents_are_copied_for_dev_and_for_a_teacher() -> None:
    def copied(**changes: Any) -> int:
        return TrainConfig(dims=(4,), dev_corpus=100, **changes).copied_docs(1000)

    assert copied(alpha=0.3) == 1100
    assert copied(alpha=0.3, guard=False) == 1000
    for changes in (
        {},
        {"unsupervised": "cosines", "alpha": 0.1},
        {"epochs": 0},
        {"schedule": "parallel", "alpha": 0.1},
    ):
        assert copied(**changes) == 100
    assert copied(schedule="parallel", alpha_whole=0.1) == 1100


def test_more_neighbours_are_used_without_judgements_unless_named() -> None:
    default, named = TrainConfig(dims=(4,)), TrainConfig(dims=(4,), top_k=7)
    assert default.neighbours(labelled=False) > default.neighbours(labelled=True)
    assert named.neighbours(labelled=False) == named.neighbours(labelled=True) == 7


def test_the_help_of_exclude_self_names_what_it_does_without_judgements() -> None:
    # tests of self_taught hold it to that
    text = " ".join((TrainConfig.model_fields["exclude_self"].description or "").split())
    assert "it matters only where the full vectors teach (`unsupervised`), which then never find a query's own" in text
