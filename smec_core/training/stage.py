"""Training of one stage: all its candidates on the same batches and the same memory neighbours.

Where there are ranks enough, each candidate has a team of them, which train it at the same time as the others; what is
searched is searched by all.
"""

from collections.abc import Callable, Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

from smec_core.config import Projection
from smec_core.distributed.group import Group
from smec_core.distributed.resident import Rows
from smec_core.evaluation.dev_set import QueryScores
from smec_core.model.ads import gumbel
from smec_core.model.pca import principal_rotation
from smec_core.training.candidate import Candidate
from smec_core.training.checkpoint import Checkpoint, same_device
from smec_core.training.context import Gradient, PassContext, StageSpec
from smec_core.training.guard import Z_OTHER, is_real
from smec_core.training.memory import CrossBatchMemory
from smec_core.training.sampling import in_reach
from smec_core.training.step import Clock, load_step

LOG_EVERY = 20


class StageTraining:
    """A stage in training; stands between two steps whenever it is saved.

    Attributes:
        candidates: one for each kind, on every rank.
        active: those that have not stopped.
        memory: S-XBM.
        epoch: epochs done.
        batch: steps of the epoch done.
    """

    def __init__(
        self, run: PassContext, spec: StageSpec, y_docs: Rows, y_queries: Rows, resumed: Checkpoint | None = None
    ) -> None:
        """Prepares the stage, or takes it up where a checkpoint left it. Collective."""
        self._run, self._spec, self._y_docs, self._y_queries = run, spec, y_docs, y_queries
        # the start is part of what a candidate restores
        is_new = resumed is None and spec.start is None
        start_II = _start(run, spec, y_docs) if is_new else torch.eye(spec.d_in)
        self.candidates = [Candidate(run, spec, kind, start_II, run.group) for kind in spec.kinds]
        self.active = list(self.candidates)
        slots = run.config.queue_size if run.config.unsupervised_weight(run.labelled) else 0
        self.memory = CrossBatchMemory(slots, run.x_docs.dim, run.group, run.config.memory, run.device)
        self.epoch = self.batch = 0
        if resumed is not None and resumed.progress is not None:
            self._restore(resumed)
        self._assign()
        self._at_start: QueryScores = {}
        if run.dev is not None and any(candidate.stage.preserves_cosines for candidate in self.candidates):
            unchanged = [dim for dim in spec.scored if dim >= spec.d_in]
            self._at_start = run.dev.score(lambda y_Nd: y_Nd, spec.d_in, unchanged)
        if resumed is None:
            self._score()

    def _restore(self, resumed: Checkpoint) -> None:
        assert resumed.progress is not None
        self.epoch, self.batch = resumed.progress.epoch, resumed.progress.batch
        for candidate in self.candidates:
            candidate.restore_kept(resumed.progress.guards[candidate.kind], self._run.device)
            if candidate.kind in resumed.candidates:
                candidate.restore(resumed.candidates[candidate.kind])
        self.active = [candidate for candidate in self.candidates if candidate.kind in resumed.candidates]
        self.memory.restore(resumed.memory, self._run.x_docs)

    def _assign(self) -> None:
        """Gives each active candidate a team of its own where there are ranks for that, else all ranks."""
        group = self._run.group
        apart = self._run.config.memory == "global" and 1 < len(self.active) <= group.size
        for number, candidate in enumerate(self.active):
            candidate.team = group.teams(len(self.active))[number] if apart else group

    def _share(self) -> None:
        """Brings what a team alone knows of its candidate to all ranks."""
        for candidate in self.active:
            if candidate.team.size < self._run.group.size:
                # by way of the CPU: other ranks may have other GPUs
                state = same_device(candidate.state(), torch.device("cpu")) if candidate.team.rank == 0 else None
                state = self._run.group.object_from(state, candidate.team.first)
                if candidate.team.rank < 0:
                    candidate.restore(state)

    @property
    def _own(self) -> list[Candidate]:
        return [candidate for candidate in self.active if candidate.team.rank >= 0]

    def checkpoint(self) -> Checkpoint:
        """What this rank has to say of the stage."""
        spoken_for = [candidate for candidate in self._own if candidate.team.rank == 0]
        return Checkpoint(None, {c.kind: c.state() for c in spoken_for}, [self.memory.shard()])

    def run(self, save: Callable[["StageTraining"], None], every: int | None) -> None:
        """Trains until each candidate has converged or its epochs are done. Collective.

        Args:
            save: called with the stage as it stands between two steps.
            every: steps of the run between two such calls; None for none.
        """
        run, spec = self._run, self._spec
        log = _StepLog(run, spec, self.memory)
        epochs = spec.epochs if spec.stop is None else spec.stop
        # without dev the last state is the one that counts
        every_epochs = run.config.scoring_epochs(spec.epochs, run.sampler.epoch_steps) if run.dev else epochs
        while self.active and self.epoch < epochs:
            batches = run.sampler.epoch(run.key(spec.number, 1, self.epoch))
            steps = in_reach(islice(batches, self.batch, None), run.x_docs, self.memory)
            clock = Clock()
            for batch in steps:
                team = self._own[0].team
                step = load_step(run, team, batch, self.memory, self._y_docs, self._y_queries, spec.old_docs, clock)
                noise_I = gumbel(spec.d_in, run.generator(spec.number, 2, self.epoch, self.batch)).to(run.device)
                # without judgements, the first step meets an empty memory
                trained = self.active if step.weight_sum or step.live_pairs else []
                for candidate in trained:
                    if candidate.team.rank >= 0:
                        candidate.train_step(run, step, run.config.gumbel_noise * noise_I)
                        if run.on_gradient is not None and candidate.kind == "linear":
                            gradient_II = candidate.stage.matrix.grad
                            assert gradient_II is not None
                            run.on_gradient(Gradient(spec.dim, self.epoch, gradient_II))
                clock.lap("compute")
                rows = step.queries + step.docs
                self.batch += 1
                run.step += 1
                run.rows += rows
                log.add(trained, self.epoch, rows, clock)
                if every and run.step % every == 0:
                    log.flush()
                    save(self)
                clock = Clock()
            log.flush()
            self.epoch, self.batch = self.epoch + 1, 0
            if self.epoch % every_epochs == 0 or self.epoch == epochs:
                self._score()

    def _score(self) -> None:
        for candidate in self.active:
            figures = candidate.score(self._run, self._spec, self.epoch, self._at_start)
            if figures:
                self._run.tracker.log(_label(self._run, self._spec, candidate.kind, self.epoch) | figures)
        if self._run.dev is not None and any(candidate.guard.stopped for candidate in self.active):
            self._share()
            self.active = [candidate for candidate in self.active if not candidate.guard.stopped]
            self._assign()

    def ranked(self) -> list[Candidate]:
        """The candidate to keep first: the best on dev, but a harmless one where the gain over it is not real."""
        ranked = sorted(self.candidates, key=lambda candidate: -candidate.guard.best_score)
        for candidate in ranked:
            if candidate.stage.preserves_cosines and not is_real(
                ranked[0].guard.best_Q - candidate.guard.best_Q, Z_OTHER
            ):
                return [candidate, *(other for other in ranked if other is not candidate)]
        return ranked


def _start(run: PassContext, spec: StageSpec, y_docs: Rows) -> Tensor:
    if run.config.init == "random":
        generator = run.generator(spec.number, 3)
        sizes = [high - low for low, high in pairwise((0, *spec.prepared, spec.d_in))]
        blocks = [torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for size in sizes]
        return run.group.from_first_(torch.block_diag(*blocks))
    if run.config.init == "identity" or (spec.dim == spec.d_in and not spec.parallel):
        return torch.eye(spec.d_in)
    return principal_rotation(y_docs, run.group, spec.prepared)


def _label(run: PassContext, spec: StageSpec, kind: Projection, epoch: int) -> dict[str, float | int | str]:
    return {"pass": run.pass_name, "stage": spec.dim, "projection": kind, "epoch": epoch, "step": run.step}


class _StepLog:
    """Step records, sent some steps at a time: reading a loss waits for the device, and perhaps for other ranks."""

    def __init__(self, run: PassContext, spec: StageSpec, memory: CrossBatchMemory) -> None:
        self._run, self._spec, self._memory = run, spec, memory
        self._waiting: list[tuple[dict[str, float | int | str], Group, Tensor, float]] = []
        self._fills: list[Tensor | None] = []

    def add(self, candidates: Sequence[Candidate], epoch: int, rows: int, clock: Clock) -> None:
        fill = self._memory.fill() if self._memory.slots else None
        for candidate in candidates:
            self._fills.append(fill)
            record = _label(self._run, self._spec, candidate.kind, epoch) | clock.seconds
            record["rows_per_s"] = rows / sum(clock.seconds.values())
            lr = float(candidate.schedule.get_last_lr()[0])
            self._waiting.append((record, candidate.team, candidate.parts_2, lr))
        if len(self._waiting) >= LOG_EVERY:
            self.flush()

    def flush(self) -> None:
        for record, figures, fill in zip(
            [entry[0] for entry in self._waiting], self._figures(), self._fills, strict=True
        ):
            rank_part, unsup_part, lr = figures
            loss = rank_part + self._run.config.unsupervised_weight(self._run.labelled) * unsup_part
            parts = {"loss": loss, "rank_loss": rank_part, "unsup_loss": unsup_part}
            filled = {} if fill is None else {"memory_fill": float(fill)}
            self._run.tracker.log(record | {"tau": self._run.config.tau, "lr": lr} | parts | filled)
        self._waiting, self._fills = [], []

    def _figures(self) -> list[list[float]]:
        """Loss parts and learning rate of each record, from the team that has them."""
        found: list[list[float]] = [[*parts_2.tolist(), lr] for _, _, parts_2, lr in self._waiting]
        for team in {id(entry[1]): entry[1] for entry in self._waiting}.values():
            if team.size == self._run.group.size:
                continue
            theirs = self._run.group.object_from(found, team.first)
            found = [
                new if entry[1] is team else old for entry, old, new in zip(self._waiting, found, theirs, strict=True)
            ]
        return found
