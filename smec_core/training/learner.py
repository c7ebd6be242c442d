"""What a stage trains: its weights, how they learn, and the best of them.

Shapes: B queries of this rank, L documents of this rank, N documents, U neighbours, R rows of this rank, I dims the
stage takes, d dims of a prefix.
"""

import copy

import torch
from torch import Tensor

from smec_core.config import TrainConfig
from smec_core.evaluation.dev_set import QueryScores
from smec_core.model.adapter import FrozenStage, Stage
from smec_core.model.ads import initial_logits, keep_places, sample_selection
from smec_core.training.checkpoint import Tree, same_device
from smec_core.training.context import PassContext
from smec_core.training.distillation import listwise_loss
from smec_core.training.guard import Z_CLOSED, Z_OTHER, Z_PRESERVING, Guard
from smec_core.training.losses import rank_loss, unsupervised_loss
from smec_core.training.plan import StagePlan
from smec_core.training.schedule import one_cycle
from smec_core.training.step import Step

# Rotating kept dims among themselves changes no cosine: there the gradient is rounding noise, which Adam's usual 1e-8
# would scale up to full steps, in directions that differ with the number of workers
ADAM_EPS = 1e-6


class Learner:
    """A trainable stage with all that training it takes.

    Attributes:
        stage: the stage.
        average: the moving average of its weights, which is what is scored and kept.
        guard: when to stop, and what was best.
        best: the state that counts: the best on dev, without dev the last.
        losses: what it learns.
        parts_2: ranking and unsupervised loss of the last step.
    """

    def __init__(self, context: PassContext, plan: StagePlan, start_II: Tensor) -> None:
        config, kind = context.config, plan.projection
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.generator(plan.number, 0).initial_seed())
            start_II = torch.eye(plan.d_in) if kind == "selection" else start_II.cpu()
            logits_I = initial_logits(plan.d_in, ordered=plan.is_ordered and kind != "selection")
            stage = Stage(kind, plan.dim, start_II, logits_I, config.hidden_dim)
        self.stage = (stage if plan.champion is None else Stage.resumed(plan.champion)).to(context.device)
        lr = config.peak_lr(context.labelled)
        groups = [
            {"params": self.stage.projection_parameters(), "lr": lr},
            {"params": [self.stage.logits], "lr": config.ads_lr_factor * lr},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, eps=ADAM_EPS, fused=True)
        self.average = copy.deepcopy(self.stage)
        self.schedule = one_cycle(self.optimizer, plan.rhythm.epochs, plan.rhythm.epoch_steps)
        z_threshold = Z_PRESERVING if self.stage.preserves_cosines else Z_OTHER
        if plan.start == "closed" or (plan.start == "ordered" and self.stage.preserves_cosines):
            z_threshold = Z_CLOSED
        self.guard = Guard(plan.counted, plan.floors, plan.held, plan.rhythm.patience, z_threshold)
        self._plan, self._group, self.losses = plan, context.group, plan.losses
        self.best = self.average.freeze(plan.keeps_places)
        self.parts_2 = torch.zeros(2)

    def train_step(self, context: PassContext, step: Step, noise_I: Tensor) -> None:
        """Forward, losses, backward, sum over the ranks, update, average; leaves the loss parts in `parts_2`."""
        order, gate_d = self._select(context.config.tau, noise_I)
        needs_all = any(not term.is_gated for term in self.losses)
        f_RI = self.stage.project(step.y_RI, order if needs_all else order[: self.stage.dim])
        rank_sum, unsup_sum = self._loss_sums(context.config, step, f_RI, gate_d)
        rank_mean = rank_sum / max(step.weight_sum, 1e-12)
        unsup_mean = unsup_sum / max(step.unsup_weight, 1)
        self.parts_2 = torch.stack([rank_mean.detach(), unsup_mean.detach()])
        self.optimizer.zero_grad()
        (rank_mean + self._plan.alpha * unsup_mean).backward()
        self._reduce()
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            for mean, latest in zip(self.average.parameters(), self.stage.parameters(), strict=True):
                mean.lerp_(latest, 1 - context.config.ema_decay)

    def _select(self, tau: float, noise_I: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs to keep, first those that are kept, and the gates of these."""
        stage, plan = self.stage, self._plan
        if plan.champion is not None:
            # the stages that follow start at weights that were made for these places
            return torch.arange(stage.d_in, device=noise_I.device), torch.ones(stage.dim, device=noise_I.device)
        order, gate_d = sample_selection(stage.logits, stage.dim, tau, noise_I)
        if plan.ahead:
            place = order[: stage.dim].argsort()
            order, gate_d = keep_places(order, stage.dim), gate_d[place]
        return order, gate_d

    def _loss_sums(self, config: TrainConfig, step: Step, f_RI: Tensor, gate_d: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of the ranking and of the unsupervised loss over what this rank counts."""
        temperature = config.temperature
        queries_BI, docs_LI, items_UI = f_RI.split(step.parts)
        own = [(docs_LI, step.docs), (queries_BI, step.queries)][: 2 if step.counts_all_anchors else 1]
        docs_NI, *gathered = self._group.gather_rows(*own)
        rank_sum, unsup_sum = torch.zeros((), device=f_RI.device), torch.zeros((), device=f_RI.device)
        for term in self.losses:
            d_NI, m_UI, q_BI, *all_q = (
                f[:, : self.stage.dim] * gate_d if term.is_gated else f
                for f in (docs_NI, items_UI, queries_BI, *gathered)
            )
            if step.weight_sum:
                rank_sum = rank_sum + rank_loss(q_BI, d_NI, term.prefixes, step.ranked, temperature)
            if step.weight_sum and step.old_NI is not None:
                old_sum = rank_loss(q_BI, step.old_NI, term.prefixes, step.ranked, temperature)
                rank_sum = rank_sum + term.compatible * old_sum
            if step.unsup_weight and step.lists is not None:
                lists_sum = listwise_loss(d_NI, m_UI, term.prefixes, step.lists, config.list_temperature)
                unsup_sum = unsup_sum + lists_sum
            elif step.unsup_weight:
                anchors_AI = torch.cat([*all_q, d_NI] if step.counts_all_anchors else [q_BI, d_NI[step.own_docs]])
                unsup_sum = unsup_sum + unsupervised_loss(anchors_AI, m_UI, term.prefixes, step.pairs)
        return rank_sum, unsup_sum

    def _reduce(self) -> None:
        if self._group.size == 1:
            return
        parameters = [p for p in self.stage.parameters() if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # one collective for everything that the ranks must agree on
        flat = self._group.sum_(torch.cat([g.flatten() for g in grads] + [self.parts_2]))
        *summed, self.parts_2 = flat.split([g.numel() for g in grads] + [2])
        for parameter, grad in zip(parameters, summed, strict=True):
            parameter.grad = grad.view_as(parameter)

    def score(self, context: PassContext, epoch: int, at_start: QueryScores) -> dict[str, float]:
        """Scores the average on dev and keeps it if it is the best; without dev the last is kept. Collective.

        Args:
            context: what the stages of the pass share.
            epoch: epochs done.
            at_start: scores before the stage of prefixes that a projection which preserves cosines cannot change.

        Returns:
            Its dev figures; none without dev.
        """
        plan, frozen = self._plan, self.average.freeze(self._plan.keeps_places)
        if context.dev is None:
            self.best, self.guard.best_epoch = frozen, epoch
            return {}
        values = at_start if self.stage.preserves_cosines else {}
        dims = [dim for dim in plan.scored if dim not in values]
        apply = frozen.keep if dims[-1] <= frozen.dim else frozen.apply
        values = values | context.dev.score(apply, plan.d_in, dims)
        losses = context.references.losses(values, [dim for dim in dims if dim in plan.protected])
        is_best, total = self.guard.update(epoch, context.dev.weighted(values), losses)
        if is_best:
            self.best = frozen
        return {f"dev_{context.dev.measure}": values[plan.dim].mean().item(), "dev_score": total}

    def state(self) -> Tree:
        """State from which its training resumes; all ranks have the same."""
        return {
            "stage": self.stage.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "guard": self.guard.state(),
            "best": self.best.tensors,
        }

    def restore(self, state: Tree) -> None:
        """Resumes from that state."""
        self.stage.load_state_dict(state["stage"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.guard.restore(state["guard"])
        self.best = FrozenStage(
            self.best.dim, self.best.projection, same_device(state["best"], self.stage.logits.device)
        )
