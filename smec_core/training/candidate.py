"""One projection kind of a stage in training.

Shapes: B queries of this rank, L documents of this rank, N documents, U neighbours, R rows of this rank, I dims the
stage takes, d dims of a prefix.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from smec_core.config import Projection, TrainConfig
from smec_core.distributed.group import Group
from smec_core.evaluation.dev_set import QueryScores, Scores
from smec_core.model.adapter import FrozenStage, Stage
from smec_core.model.ads import initial_logits, keep_places, sample_selection
from smec_core.training.checkpoint import Tree, same_device
from smec_core.training.context import PassContext, StageSpec
from smec_core.training.guard import Z_OTHER, Z_PRESERVING, Guard
from smec_core.training.losses import rank_loss, unsupervised_loss
from smec_core.training.schedule import one_cycle
from smec_core.training.step import Step

# Rotating kept dims among themselves changes no cosine: there the gradient is rounding noise, which Adam's usual 1e-8
# would scale up to full steps, in directions that differ with the number of workers
ADAM_EPS = 1e-6


@dataclass
class CandidateResult:
    """What one candidate reached: after how many epochs its best state came, and its dev scores then."""

    epochs: int
    dev_score: float
    scores: Scores


class Candidate:
    """A trainable stage with all that training it takes.

    Attributes:
        stage: the stage.
        average: the moving average of its weights, which is what is scored and kept.
        guard: when to stop, and what was best.
        best: the state that counts: the best on dev, without dev the last.
        parallel: prefixes that are trained at once; none for a stage of the chain.
        ahead: smaller dims that a stage of the chain trains, too.
        is_warm: whether it started from a trained stage, whose dims stay in their places.
        team: the ranks that train it.
        parts_2: ranking and unsupervised loss of the last step, on the ranks of the team.
    """

    def __init__(self, run: PassContext, spec: StageSpec, kind: Projection, start_II: Tensor, team: Group) -> None:
        config = run.config
        is_ordered = bool(spec.parallel or spec.prepared) or (config.init == "pca" and kind != "selection")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.generator(spec.number, 0).initial_seed())
            start_II = torch.eye(spec.d_in) if kind == "selection" else start_II.cpu()
            logits_I = initial_logits(spec.d_in, ordered=is_ordered)
            stage = Stage(kind, spec.dim, start_II, logits_I, config.hidden_dim)
        self.stage = (stage if spec.start is None else Stage.resumed(spec.start)).to(run.device)
        lr = config.peak_lr(run.labelled)
        groups = [
            {"params": self.stage.projection_parameters(), "lr": lr},
            {"params": [self.stage.logits], "lr": config.ads_lr_factor * lr},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, eps=ADAM_EPS, fused=True)
        self.average = copy.deepcopy(self.stage)
        self.schedule = one_cycle(self.optimizer, spec.epochs, run.sampler.epoch_steps)
        held = {spec.dim: config.guard_tolerance} if spec.ahead else {}
        z_threshold = Z_PRESERVING if self.stage.preserves_cosines else Z_OTHER
        self.guard = Guard(spec.counted, spec.floors, held, config.stage_patience(spec.epochs), z_threshold)
        self.parallel, self.ahead = spec.parallel, spec.ahead
        self.is_warm = spec.start is not None
        self.best = self.average.freeze(self._in_place)
        self.team = team
        self.parts_2 = torch.zeros(2)

    @property
    def kind(self) -> Projection:
        """Its kind of projection."""
        return self.stage.projection

    @property
    def _in_place(self) -> bool:
        """Whether outputs stay where they are trained: what follows counts on their places."""
        return bool(self.ahead) or self.is_warm

    def train_step(self, run: PassContext, step: Step, noise_I: Tensor) -> None:
        """Forward, backward, reduce over the team, update; leaves the loss parts in `parts_2`."""
        rank_sum, unsup_sum = self._losses(run, step, noise_I)
        rank_mean = rank_sum / max(step.weight_sum, 1e-12)
        unsup_mean = unsup_sum / max(step.live_pairs, 1)
        self.parts_2 = torch.stack([rank_mean.detach(), unsup_mean.detach()])
        self.optimizer.zero_grad()
        (rank_mean + run.config.unsupervised_weight(run.labelled) * unsup_mean).backward()
        self._reduce()
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            for mean, latest in zip(self.average.parameters(), self.stage.parameters(), strict=True):
                mean.lerp_(latest, 1 - run.config.ema_decay)

    def _losses(self, run: PassContext, step: Step, noise_I: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the ranking and of the unsupervised loss over what this rank counts, at the prefixes in training."""
        config, stage = run.config, self.stage
        order, gate_d = self._select(config, noise_I)
        is_compatible = step.old_NI is not None
        new_only = stage.dim < stage.d_in and stage.preserves_cosines and not self.parallel and not is_compatible
        f_RI = stage.project(step.y_RI, order[: stage.dim] if new_only else order)
        queries_BI, docs_LI, items_UI = f_RI.split(step.parts)
        own = [(docs_LI, step.docs), (queries_BI, step.queries)][: 2 if step.counts_all_anchors else 1]
        docs_NI, *gathered = self.team.gather_rows(*own)

        changes_all = is_compatible or not stage.preserves_cosines
        gated, whole = [], [(width, 1.0) for width in self.parallel if width < stage.d_in or changes_all]
        if not self.parallel:
            share = config.lookahead_weight(run.labelled)
            gated = [] if stage.dim == stage.d_in else [(stage.dim, 1.0), *((width, share) for width in self.ahead)]
            whole = [] if new_only else [(stage.d_in, 1.0)]
        rank_sum, unsup_sum = torch.zeros((), device=run.device), torch.zeros((), device=run.device)
        for gate, prefixes in ((gate_d, gated), (None, whole)):
            if not prefixes:
                continue
            d_NI, m_UI, q_BI, *all_q = (
                f if gate is None else f[:, : stage.dim] * gate for f in (docs_NI, items_UI, queries_BI, *gathered)
            )
            if step.weight_sum:
                rank_sum = rank_sum + rank_loss(q_BI, d_NI, prefixes, step.ranked, config.temperature)
            if step.weight_sum and step.old_NI is not None:
                old_sum = rank_loss(q_BI, step.old_NI, prefixes, step.ranked, config.temperature)
                rank_sum = rank_sum + config.compatible * old_sum
            if step.live_pairs:
                anchors_AI = torch.cat([*all_q, d_NI] if step.counts_all_anchors else [q_BI, d_NI[step.own_docs]])
                unsup_sum = unsup_sum + unsupervised_loss(anchors_AI, m_UI, prefixes, step.pairs)
        return rank_sum, unsup_sum

    def _select(self, config: TrainConfig, noise_I: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs to keep, first those that are kept, and the gates of these."""
        stage = self.stage
        if self.is_warm:
            # the stages that follow start at weights that were made for these places
            return torch.arange(stage.d_in, device=noise_I.device), torch.ones(stage.dim, device=noise_I.device)
        order, gate_d = sample_selection(stage.logits, stage.dim, config.tau, 0 * noise_I if self.parallel else noise_I)
        if self.ahead:
            place = order[: stage.dim].argsort()
            order, gate_d = keep_places(order, stage.dim), gate_d[place]
        return order, gate_d

    def _reduce(self) -> None:
        if self.team.size == 1:
            return
        parameters = [p for p in self.stage.parameters() if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # one collective for everything that the ranks must agree on
        flat = self.team.sum_(torch.cat([g.flatten() for g in grads] + [self.parts_2]))
        *summed, self.parts_2 = flat.split([g.numel() for g in grads] + [2])
        for parameter, grad in zip(parameters, summed, strict=True):
            parameter.grad = grad.view_as(parameter)

    def score(self, run: PassContext, spec: StageSpec, epoch: int, at_start: QueryScores) -> dict[str, float]:
        """Scores the average on dev and keeps it if it is the best; without dev the last is kept. Collective.

        Args:
            run: what the stages share.
            spec: the stage.
            epoch: epochs done.
            at_start: scores of prefixes as they were before the stage, which a harmless projection cannot change.

        Returns:
            Its dev figures; none without dev.
        """
        frozen = self._frozen(run)
        if run.dev is None:
            self.best, self.guard.best_epoch = frozen, epoch
            return {}
        values = at_start if self.stage.preserves_cosines else {}
        dims = [dim for dim in spec.scored if dim not in values]
        apply = frozen.keep if dims[-1] <= frozen.dim else frozen.apply
        values = values | run.dev.score(apply, spec.d_in, dims)
        is_best, total = self.guard.update(epoch, values)
        if is_best:
            self.best = frozen
        return {f"dev_{run.dev.measure}": values[spec.dim].mean().item(), "dev_score": total}

    def _frozen(self, run: PassContext) -> FrozenStage:
        frozen = self.average.freeze(self._in_place)
        if self.team.size < run.group.size:
            for tensor in frozen.tensors.values():
                run.group.from_first_(tensor, self.team.first)
        return frozen

    def tried(self) -> CandidateResult:
        """What it reached so far."""
        return CandidateResult(self.guard.best_epoch, float(self.guard.best_score), self.guard.best_scores)

    def state(self) -> Tree:
        """What its training goes on from."""
        return {
            "stage": self.stage.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def restore(self, state: Tree) -> None:
        """Goes on from such a state."""
        self.stage.load_state_dict(state["stage"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def kept(self) -> Tree:
        """What all ranks know of it: guard and best state."""
        return {"guard": self.guard.state(), "best": self.best.tensors}

    def restore_kept(self, kept: Tree, device: torch.device) -> None:
        """Takes up such a record."""
        self.guard.restore(kept["guard"])
        self.best = FrozenStage(self.best.dim, self.best.projection, same_device(kept["best"], device))
