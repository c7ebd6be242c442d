"""How the gradients of a shared matrix behave when all dims are trained at once, and when one by one.

The paper's argument for SMRL (section 3.1, figures 2 and 3): in MRL the weights of the first dims serve every loss, the
loss of a small dim has the larger gradient (about 1 / delta(d)^2, delta(d) being the norm of the first d dims), and so
gradients of different weights differ in size and vary more.

Shapes: B queries, N documents, D input dims, d dims of a prefix.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.model.pca import principal_rotation
from smec_core.research.peers.peer import read_step
from smec_core.training.callbacks import Gradient
from smec_core.training.context import TrainingData
from smec_core.training.sampling import LabelledSampler
from smec_core.training.schedule import prefix_dims
from smec_core.training.tracker import NullTracker
from smec_core.training.trainer import Hooks, train

FREE = {
    "projection": "linear",
    "init": "pca",
    "favour": "all",
    "lookahead": 0.0,
    "gumbel_noise": 0.0,
    "ads_lr_factor": 0.0,
}
"""One linear map whose rows keep their places, so that what is compared is the schedule alone."""
BATCHES = 16
_Block = tuple[int, int, int]
"""The larger dim, first and last row."""


class _Moments:
    """Mean size and variance over the steps of an epoch of the gradient of a block of rows."""

    def __init__(self, epoch: int, like: Tensor) -> None:
        self.epoch, self.steps, self.size = epoch, 0, 0.0
        self.sum, self.squares = torch.zeros_like(like).double(), torch.zeros_like(like).double()

    def add(self, gradient: Tensor) -> None:
        self.steps += 1
        self.size += gradient.abs().mean().item()
        self.sum += gradient
        self.squares += gradient.double().square()

    def figures(self) -> dict[str, float]:
        mean = self.sum / self.steps
        variance = (self.squares / self.steps - mean.square()).clamp_min(0)
        return {"epoch": self.epoch, "mean_gradient": self.size / self.steps, "variance": variance.mean().item()}


class _Watch:
    """Collects the moments of some blocks, and of each only those of its latest epoch."""

    def __init__(self, blocks: Mapping[int, Sequence[tuple[int, int]]], is_parallel: bool) -> None:
        self._blocks, self._is_parallel = blocks, is_parallel
        self._open: dict[_Block, _Moments] = {}
        self._done: list[tuple[_Block, dict[str, float]]] = []

    def __call__(self, gradient: Gradient) -> None:
        for big in self._blocks if self._is_parallel else {gradient.dim} & self._blocks.keys():
            for low, high in self._blocks[big]:
                key, rows = (big, low, high), gradient.weight_II[low:high]
                if key not in self._open or self._open[key].epoch != gradient.epoch:
                    self._close(key)
                    self._open[key] = _Moments(gradient.epoch, rows)
                self._open[key].add(rows)

    def _close(self, key: _Block) -> None:
        if key in self._open:
            self._done.append((key, self._open.pop(key).figures()))

    def figures(self) -> list[tuple[_Block, dict[str, float]]]:
        """Figures of every block and epoch, epoch by epoch."""
        for key in list(self._open):
            self._close(key)
        return self._done


def gradient_variance(data: TrainingData, config: TrainConfig) -> list[dict[str, Any]]:
    """Trains by both schedules and watches the weights of each dim and of the dims that come on top in the next.

    Returns:
        A record for each schedule, pair of blocks (rows [0, s) and [s, d) for consecutive dims s < d) and epoch:
        `mean_gradient` (mean absolute value), `variance` over the steps of the epoch (mean over the weights), for
        sequential of the stage that trains d; and `best_epoch`, after which dev was best.
    """
    dims = sorted(config.dims)
    blocks = {big: [(0, small), (small, big)] for small, big in pairwise(dims)}
    records = []
    for schedule in ("parallel", "sequential"):
        watch = _Watch(blocks, schedule == "parallel")
        settings = TrainConfig.model_validate(config.model_dump() | FREE | {"schedule": schedule, "refit": False})
        trained = train(data, settings, NullTracker(), Hooks(on_gradient=watch))
        epochs = {stage["dim"]: stage["epochs"] for stage in trained.metrics["stages"]}
        for (big, low, high), figures in watch.figures():
            best = epochs[dims[0] if schedule == "parallel" else big]
            records.append({"schedule": schedule, "dim": big, "block": f"{low}-{high}", "best_epoch": best} | figures)
    return records


def gradient_by_dim(data: TrainingData, config: TrainConfig) -> list[dict[str, Any]]:
    """Gradient of the ranking loss of each dim alone, at the start, over the weights that all dims share.

    Returns:
        A record a dim: `gradient_norm` (Frobenius, of the rows of the smallest dim), `delta` (mean norm of the first d
        dims of the unit vectors) and `inverse_square`, 1 / delta^2.
    """
    assert data.train is not None
    dims = prefix_dims(data.docs.dim, config.dims)
    start_DD = torch.eye(data.docs.dim) if config.init == "identity" else principal_rotation(data.docs, data.node.group)
    sampler = LabelledSampler(data.train, data.docs.drawn, config)
    norms, deltas = dict.fromkeys(dims, 0.0), dict.fromkeys(dims, 0.0)
    batches = [batch for batch, _ in zip(sampler.epoch((config.seed, 0)), range(BATCHES), strict=False)]
    for batch in batches:
        step = read_step(data, batch)
        for dim in dims:
            weight_DD = start_DD.to(data.node.device).requires_grad_()
            q_Bd, d_Nd = (x @ weight_DD[:dim].T for x in (step.x_BD, step.x_ND))
            loss = step.rank_loss(q_Bd, d_Nd, [dim], config.temperature)
            (gradient_DD,) = torch.autograd.grad(loss, weight_DD)
            norms[dim] += gradient_DD[: dims[-1]].norm().item() / len(batches)
            deltas[dim] += torch.cat([q_Bd, d_Nd]).norm(dim=1).mean().item() / len(batches)
    return [
        {"dim": dim, "gradient_norm": norms[dim], "delta": deltas[dim], "inverse_square": deltas[dim] ** -2}
        for dim in dims
    ]
