"""A second training of the all-dims stage, from the unchanged vectors, where the first leaves its start far behind."""

from collections.abc import Callable
from dataclasses import replace

import torch

from smec_core.training.closed import ClosedStart
from smec_core.training.context import PassContext
from smec_core.training.plan import CLOSED_TIMES, StagePlan
from smec_core.training.trained import StageOutcome

MUCH_GAIN = 0.1
"""nDCG@10 on dev. With dense judgements a stage can gain .4 on a closed form, and end higher still when it starts from
the unchanged vectors; where it gains less, a second training is time lost."""
FROM_CLOSED = "from_closed"
"""In a checkpoint: the pass that holds the stage as it was trained from the closed form, until the other is trained."""


def from_better_start(
    context: PassContext,
    plan: StagePlan,
    closed: ClosedStart,
    passes: dict[str, list[StageOutcome]],
    train: Callable[[StagePlan], StageOutcome],
    say: Callable[[str], None],
) -> StageOutcome:
    """Trains the stage from the closed form and, where it gains much on that, from the identity. Collective.

    Much is more than MUCH_GAIN. The second one is taken where it is better on dev by more than `guard_tolerance`, and
    falls below no reference that the first does not. The choice is kept in `closed.chosen`, by which a pass without dev
    goes.

    Args:
        context: what the stages share; its start is that of the closed form, or the one chosen.
        plan: the stage.
        closed: the closed form.
        passes: what checkpoints keep of finished stages.
        train: trains the stage from where the context starts.
        say: takes a line of progress.
    """
    dev, dim = context.dev, plan.dim
    # the steps of a full stage: there the rate comes down while it still learns
    plain = replace(plan, rhythm=replace(plan.rhythm, epochs=max(plan.rhythm.epochs // CLOSED_TIMES, 1)))
    if dev is None or context.config.schedule == "parallel":
        return train(plain if closed.starts_plain else plan)
    if FROM_CLOSED not in passes:
        first = train(plan)
        start = dev.weighted(context.references.scores[-1])[dim].mean().item()
        if plan.rhythm.epochs == 0 or first.scores[dim] - start <= MUCH_GAIN:
            return first
        passes[FROM_CLOSED] = [first]
        say(
            f"the first stage rose from {start:.4f} to {first.scores[dim]:.4f} on dev; it is trained from the "
            "unchanged vectors as well"
        )
    [first] = passes[FROM_CLOSED]
    before = context.closed_DD, context.is_pooled
    context.closed_DD, context.is_pooled = torch.eye(plan.d_in), False
    second = train(plain)
    del passes[FROM_CLOSED]
    losses = [context.references.losses(dev.score(one.stage.apply, plan.d_in, [dim]), [dim]) for one in (first, second)]
    is_better = second.scores[dim] - first.scores[dim] > context.config.guard_tolerance and losses[1] <= losses[0]
    taken = "the second is kept" if is_better else "the first is kept"
    say(f"{first.scores[dim]:.4f} on dev from the closed form, {second.scores[dim]:.4f} from the vectors; {taken}")
    seconds = first.seconds + second.seconds
    if is_better:
        closed.chosen["start"] = "identity"
        return replace(second, seconds=seconds)
    context.closed_DD, context.is_pooled = before
    return replace(first, seconds=seconds)
