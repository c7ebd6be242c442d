"""What Matryoshka-Adaptor and Search-Adaptor share: a recipe, and training with early stopping on dev.

Shapes: B queries, N documents, P positive pairs, D input dims.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from smec_core.config import TrainConfig
from smec_core.errors import SmecError
from smec_core.evaluation.dev_set import DevSet, make_dev_set
from smec_core.research.peers.peer import Step, read_step
from smec_core.training.context import TrainingData
from smec_core.training.sampling import LabelledSampler, UnlabelledSampler

SCORE_EVERY = 25


@dataclass(frozen=True)
class Recipe:
    """How an adaptor is trained, by Adam at a constant rate.

    Attributes:
        temperature: T of the ranking loss; None for that of the shared settings.
        steps: most steps of a phase; None for SMEC's (see `most_steps`).
        patience: steps without gain on dev after which a phase stops; None for a third of the most steps.
        lr: learning rate.
        hold: weight, beside the ranking loss, of the losses that hold on to the original.
    """

    temperature: float | None = None
    steps: int | None = None
    patience: int | None = None
    lr: float = 1e-3
    hold: float = 1.0


PUBLISHED = Recipe(temperature=1.0, steps=5000, patience=500)
"""That of Matryoshka-Adaptor (arXiv 2407.20243). Search-Adaptor's paper searches its settings for each data set and
names no steps: its published form has these, too."""
TUNED = Recipe(hold=0.0)
"""The temperature and the steps of SMEC. With that temperature, holding on to the original costs them more than it
keeps."""


class AdaptorTraining:
    """Data, dev set and seeds of a training of adaptors."""

    def __init__(self, data: TrainingData, config: TrainConfig, recipe: Recipe) -> None:
        """Prepares the first pass.

        Raises:
            SmecError: there are no judgements.
        """
        if data.train is None or data.dev is None:
            raise SmecError("the adaptors learn from judgements, and stop by some that are held out: the data has none")
        self.data, self.config, self.recipe = data, config, recipe
        self.temperature = config.temperature if recipe.temperature is None else recipe.temperature
        self.dev: DevSet = make_dev_set(data.queries, data.docs, data.dev, np.empty(0, np.int64), config, data.node)
        self.first = LabelledSampler(data.train, data.docs.drawn, config)
        self.refit = LabelledSampler(data.train.merge(data.dev), data.docs.drawn, config)
        self.unlabelled = UnlabelledSampler(np.arange(data.docs.drawn), config)
        self.steps = 0

    def seeded(self, make: Callable[[], nn.Module]) -> nn.Module:
        """A module whose initial weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return make().to(self.data.node.device)

    def score(self, encode: Callable[[Tensor], Tensor], dims: Sequence[int]) -> float:
        """Mean dev nDCG@10 over dims of a nested vector."""
        values = self.dev.score(encode, self.data.docs.dim, dims)
        return sum(value_Q.mean().item() for value_Q in values.values()) / len(values)

    def run(
        self,
        module: nn.Module,
        loss: Callable[[Step], Tensor],
        sampler: LabelledSampler | UnlabelledSampler,
        most: int,
        score: Callable[[], float] | None = None,
    ) -> int:
        """Trains a module in place.

        Args:
            module: what has the parameters.
            loss: of a step.
            sampler: gives the steps.
            most: steps to take, or with a score, to take at most.
            score: dev score of the module; the state that scores best is left in the module, that before the first
                step included.

        Returns:
            Steps after which that state came.
        """
        optimizer = torch.optim.Adam(module.parameters(), lr=self.recipe.lr)
        best, best_step, kept = (score() if score else -math.inf), 0, copy.deepcopy(module.state_dict())
        patience = self.recipe.patience or math.ceil(most / 3)
        for number, step in zip(range(1, most + 1), self._steps(sampler), strict=False):
            optimizer.zero_grad()
            loss(step).backward()
            optimizer.step()
            self.steps += 1
            if score is not None and (number % SCORE_EVERY == 0 or number == most):
                if (reached := score()) > best:
                    best, best_step, kept = reached, number, copy.deepcopy(module.state_dict())
                if number - best_step >= patience:
                    break
        if score is not None:
            module.load_state_dict(kept)
            return best_step
        return most

    def _steps(self, sampler: LabelledSampler | UnlabelledSampler) -> Iterator[Step]:
        is_refit, epoch = sampler is self.refit, 0
        while True:
            for batch in sampler.epoch((self.config.seed, int(is_refit), epoch)):
                yield read_step(self.data, batch)
            epoch += 1
