"""The guard: which state counts, and when a stage stops.

Shapes: Q dev queries.
"""

import pytest
import torch
from torch import Tensor

from smec_core.training.guard import Guard, Loss, References

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


def test_a_loss_is_more_than_the_tolerance_and_its_error_on_a_part() -> None:
    masks = [torch.arange(QUERIES) < 4, torch.arange(QUERIES) >= 4]
    references = References([scores(0.5), scores(0.3)], masks, tolerance=0.01)
    assert references.losses(scores(0.49), [2, 4]) == set()
    # the first part alone, against the first reference alone
    values = scores(0.5)
    values[2][:4] -= 0.1
    assert references.losses(values, [2, 4]) == {Loss(0, 0, 2)}
    assert references.losses(values, [4]) == set()
    # as much in the mean, but as likely as not by chance
    assert references.losses(scores(0.45, spread=0.5), [2]) == set()


def test_a_state_may_have_the_losses_of_the_start_and_no_others() -> None:
    guard = make_guard()
    guard.update(0, scores(0.3), {Loss(0, 1, 2)})
    again = make_guard()
    again.restore(guard.state())
    for one in (guard, again):
        assert not one.update(1, scores(0.9), {Loss(0, 1, 2), Loss(1, 0, 2)})[0]
        assert one.update(2, scores(0.5), {Loss(0, 1, 2)})[0]
        assert one.update(3, scores(0.6))[0]
