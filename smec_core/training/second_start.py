"""The stage of all dims, trained from the vectors as they are as well where it leaves the closed form far behind."""

from collections.abc import Callable
from dataclasses import replace

import torch

from smec_core.training.closed import ClosedStart
from smec_core.training.context import PassContext
from smec_core.training.plan import CLOSED_TIMES, StagePlan
from smec_core.training.trained import StageOutcome

MUCH_GAIN = 0.1
"""nDCG@10 on dev. With dense judgements a stage can gain .4 on a closed form, and more from the vectors as they are;
where it gains less, a second training is time lost."""
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
    """Trains the stage from the closed form or from the identity, whichever is better on dev. Collective.

    The choice is kept in `closed.chosen`, by which a pass without dev goes.

    Args:
        context: what the stages share; its start is that of the closed form, or the one chosen.
        plan: the stage.
        closed: the closed form.
        passes: what checkpoints keep of finished stages.
        train: trains the stage from where the context starts.
        say: takes a line of progress.
    """
    # the steps of a full stage: there the rate comes down while it still learns
    plain = replace(plan, rhythm=replace(plan.rhythm, epochs=max(plan.rhythm.epochs // CLOSED_TIMES, 1)))
    if context.dev is None or plan.d_in > plan.dim:
        return train(plain if closed.starts_plain else plan)
    if FROM_CLOSED not in passes:
        found = train(plan)
        start = context.dev.weighted(context.references.scores[-1])[plan.dim].mean().item()
        if plan.rhythm.epochs == 0 or found.scores[plan.dim] - start <= MUCH_GAIN:
            return found
        passes[FROM_CLOSED] = [found]
        reached = f"{start:.4f} on dev from the closed form to {found.scores[plan.dim]:.4f}"
        say(f"{reached}, so much that the vectors as they are may be the better start; trained from there, too")
    [found] = passes[FROM_CLOSED]
    before = context.closed_DD, context.is_pooled
    context.closed_DD, context.is_pooled = torch.eye(plan.d_in), False
    other = train(plain)
    del passes[FROM_CLOSED]
    if other.scores[plan.dim] - found.scores[plan.dim] > context.config.guard_tolerance:
        closed.chosen["start"] = "identity"
        return other
    context.closed_DD, context.is_pooled = before
    return found
