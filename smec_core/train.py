"""The whole training: a guarded first pass through the chain of stages, then its replay on all labels.

Runs in one process or on every rank of a process group; nothing here knows Ray or where figures are kept.

Shapes: D input dims.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from smec_core.adapter import FrozenStage
from smec_core.config import Projection, TrainConfig
from smec_core.convergence import HELD_OUT_DOCS, Scores, make_dev_set
from smec_core.group import Group
from smec_core.judgements import Judgements
from smec_core.pca import BLOCK_ROWS
from smec_core.resident import ResidentRows
from smec_core.sampling import LabelledSampler, UnlabelledSampler
from smec_core.schedule import chain_dims, prefix_dims
from smec_core.stage import Run, StageResult, StageSpec, train_stage
from smec_core.tracker import Tracker


@dataclass(frozen=True)
class TrainingData:
    """What one rank trains on.

    Attributes:
        docs: frozen unit document vectors, this rank's rows of them.
        queries: frozen unit query vectors, this rank's rows of them.
        train: judgements to learn from; None to train without judgements.
        dev: judgements to choose by; None without judgements, or where nothing is chosen.
    """

    docs: ResidentRows
    queries: ResidentRows
    train: Judgements | None
    dev: Judgements | None


@dataclass(frozen=True)
class StageOutcome:
    """One stage of a pass: the dims it takes, every candidate tried (the best first), and its seconds."""

    d_in: int
    tried: dict[Projection, StageResult]
    seconds: float

    @property
    def best(self) -> StageResult:
        """The candidate that goes on."""
        return next(iter(self.tried.values()))

    def metrics(self, stored: FrozenStage) -> dict[str, Any]:
        """What metrics.json keeps of it; `stored` is the stage as the last pass left it."""
        best = self.best
        record: dict[str, Any] = {
            "d_in": self.d_in,
            "dim": best.stage.dim,
            "projection": best.stage.projection,
            "epochs": best.epochs,
            "seconds": round(self.seconds, 3),
            "importance": [round(v, 8) for v in stored.tensors["logits"].softmax(0).tolist()],
        }
        if best.scores:
            record["dev_score"] = best.dev_score
            record["candidates"] = {
                kind: {"epochs": result.epochs, "dev_score": result.dev_score} for kind, result in self.tried.items()
            }
        return record


@dataclass(frozen=True)
class Trained:
    """The trained chain and how it came about."""

    stages: list[FrozenStage]
    metrics: dict[str, Any]


def train(
    data: TrainingData,
    config: TrainConfig,
    tracker: Tracker,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Trains the chain (paper section 3.1, with the guard and the replay). Collective.

    Args:
        data: what this rank holds.
        config: settings of the method.
        tracker: takes step and epoch records; give every rank but the first a NullTracker.
        device: where the steps run.
        say: takes one line of progress at a time.

    Raises:
        InputError: a dim above the data's dims.
    """
    started = time.perf_counter()
    chain = _Chain(data, config, tracker, torch.device(device), say)
    first = final = chain.run("first", None)
    if config.guard and config.refit and data.train is not None:
        final = chain.run("refit", [(outcome.best.stage.projection, outcome.best.epochs) for outcome in first])
    stages = [outcome.best.stage for outcome in final]
    seconds = time.perf_counter() - started
    metrics = {
        "dev": chain.dev_scores,
        "stages": [outcome.metrics(stage) for outcome, stage in zip(first, stages, strict=True)],
        "training": {
            "seconds": round(seconds, 3),
            "steps": chain.steps,
            "rows_per_s": round(chain.rows / max(seconds, 1e-9), 1),
            "workers": chain.group.size,
            "device": str(device),
            "parameters": sum(tensor.numel() for stage in stages for tensor in stage.tensors.values()),
        },
    }
    return Trained(stages, metrics)


class _Chain:
    """Runs the stages of a pass one after the other, each on the block that the one before it kept."""

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        tracker: Tracker,
        device: torch.device,
        say: Callable[[str], None],
    ) -> None:
        self.data, self.config, self.tracker, self.device, self.say = data, config, tracker, device, say
        self.group = Group()
        input_dim = data.docs.dim
        dims = chain_dims(input_dim, config.dims)
        self.shape = list(zip([input_dim, *dims], dims, strict=False))
        if config.projection in ("rotation", "selection") or data.train is None:
            # from D to D these change no cosine, and without judgements the original cosines are the target
            self.shape = [(d_in, dim) for d_in, dim in self.shape if d_in != dim]
        self.prefixes = prefix_dims(input_dim, config.dims)
        self.dev_scores: dict[str, dict[str, float]] = {}
        self.epochs = 0
        self.steps = self.rows = 0

    def run(self, pass_name: str, plan: list[tuple[Projection, int]] | None) -> list[StageOutcome]:
        """One pass; `plan` fixes the kind and the epochs of every stage, else dev decides."""
        run = self._prepare(pass_name, with_dev=self.config.guard and plan is None)
        if plan is None:
            # a replay has more labels and so more steps an epoch, but the same epochs
            self.epochs = self.config.stage_epochs(run.sampler.epoch_steps)
        y_docs, y_queries = self.data.docs, self.data.queries
        outcomes: list[StageOutcome] = []
        reached: Scores = {}
        for number, (d_in, dim) in enumerate(self.shape):
            kinds, stop = (self._kinds(d_in, dim), None) if plan is None else ([plan[number][0]], plan[number][1])
            floors = {prefix: score - self.config.guard_tolerance for prefix, score in reached.items()}
            started = time.perf_counter()
            tried = train_stage(run, StageSpec(number, d_in, dim, kinds, self.epochs, stop, floors), y_docs, y_queries)
            outcome = StageOutcome(d_in, tried, time.perf_counter() - started)
            outcomes.append(outcome)
            stage = outcome.best.stage
            y_docs, y_queries = self._keep(stage, y_docs), self._keep(stage, y_queries)
            if run.dev is not None:
                run.dev.advance(stage.apply, d_in)
            # an earlier prefix is held to what it had when its own stage ended, so that losses do not add up
            reached = {p: s for p, s in outcome.best.scores.items() if p in self.prefixes} | reached
            self._report(pass_name, number, outcome)
        if run.dev is not None:
            scores = run.dev.score(lambda y: y, self.data.docs.dim, self.prefixes)
            self.dev_scores = {run.dev.measure: {str(dim): scores[dim].mean().item() for dim in self.prefixes}}
        self.steps, self.rows = run.step, run.rows
        return outcomes

    def _kinds(self, d_in: int, dim: int) -> list[Projection]:
        if self.config.projection == "auto":
            return ["free"] if d_in == dim else ["rotation", "free"]
        return [self.config.projection]

    def _keep(self, stage: FrozenStage, rows: ResidentRows) -> ResidentRows:
        home = rows.local_LD.device
        blocks = (
            stage.apply(block.to(self.device))[:, : stage.dim].to(home) for block in rows.local_LD.split(BLOCK_ROWS)
        )
        return rows.with_local(torch.cat(list(blocks)) if len(rows.local_LD) else rows.local_LD[:, : stage.dim])

    def _prepare(self, pass_name: str, with_dev: bool) -> Run:
        data, config = self.data, self.config
        dev, held_out = None, np.empty(0, np.int64)
        if data.train is None:
            held_out = _held_out(data.docs.rows, config) if with_dev else held_out
            rows = np.setdiff1d(np.arange(data.docs.rows), held_out)
            sampler: LabelledSampler | UnlabelledSampler = UnlabelledSampler(rows, config)
        else:
            labels = data.train if with_dev or data.dev is None else data.train.merge(data.dev)
            sampler = LabelledSampler(labels.with_positives(), data.docs.rows, config)
        if with_dev:
            dev = make_dev_set(data.queries, data.docs, data.dev, held_out, config, self.group).to(self.device)
        return Run(
            config,
            self.group,
            self.device,
            self.tracker,
            pass_name,
            data.docs,
            data.queries,
            sampler,
            dev,
            data.train is not None,
            self.steps,
            self.rows,
        )

    def _report(self, pass_name: str, number: int, outcome: StageOutcome) -> None:
        best = outcome.best
        line = (
            f"{pass_name} pass, stage {number + 1} of {len(self.shape)}: {outcome.d_in} -> {best.stage.dim} dims, "
            f"{best.stage.projection}, {best.epochs} epochs kept, {outcome.seconds:.1f} s"
        )
        if best.scores:
            kinds = ", ".join(f"{kind} {result.dev_score / 2:.4f}" for kind, result in outcome.tried.items())
            line += f", mean dev score of the new and the previous prefix: {kinds}"
        self.say(line)


def _held_out(rows: int, config: TrainConfig) -> np.ndarray:
    count = min(max(int(rows * config.dev_fraction), 2), HELD_OUT_DOCS)
    return np.sort(np.random.default_rng((config.seed, 2)).choice(rows, count, replace=False))
