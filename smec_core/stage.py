"""Training of one stage: all its candidates on the same batches and the same memory neighbours.

Shapes: B queries, N documents, A anchors, K neighbours, U distinct neighbours, R = B + N + U rows, D input dims,
I dims the stage takes, d dims it keeps.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from smec_core.adapter import FrozenStage, Stage
from smec_core.ads import gumbel, initial_logits, sample_selection
from smec_core.config import Projection, TrainConfig
from smec_core.convergence import DevSet, Guard, Scores, is_real
from smec_core.group import Group, rows_of_rank
from smec_core.losses import rank_loss, unsupervised_loss
from smec_core.memory import CrossBatchMemory, Neighbours
from smec_core.pca import principal_rotation
from smec_core.resident import ResidentRows
from smec_core.sampling import Batch, LabelledSampler, UnlabelledSampler
from smec_core.schedule import one_cycle
from smec_core.tracker import Tracker

LOG_EVERY = 20
# Rotating kept dims among themselves changes no cosine: there the gradient is rounding noise, which Adam's usual 1e-8
# would scale up to full steps, in directions that differ with the number of workers
ADAM_EPS = 1e-6


@dataclass
class StageSpec:
    """What one stage is to do.

    Attributes:
        number: place in the chain, 0 for D -> D.
        d_in: dims it takes.
        dim: dims it keeps.
        kinds: projections to try; the best on dev is kept.
        epochs: most epochs, over which the learning rate runs its cycle.
        stop: epochs to train for in a replay; None in a first pass, where dev decides.
        floors: least dev score of each earlier configured prefix.
    """

    number: int
    d_in: int
    dim: int
    kinds: Sequence[Projection]
    epochs: int
    stop: int | None
    floors: Scores = field(default_factory=dict)


@dataclass
class StageResult:
    """What one candidate reached: its best state, after how many epochs, and its dev scores then."""

    stage: FrozenStage
    epochs: int
    dev_score: float
    scores: Scores


@dataclass
class Run:
    """What all stages of one pass share.

    Attributes:
        config: settings of the method.
        group: the ranks of the run.
        device: where the steps run.
        tracker: where figures go (rank 0 only).
        pass_name: `first` or `refit`.
        x_docs: frozen unit document vectors.
        x_queries: frozen unit query vectors.
        sampler: gives the steps of an epoch.
        dev: dev set; None to train for fixed epochs.
        labelled: whether there are judgements to learn from.
        step: steps taken in the run so far.
        rows: queries and documents that those steps were made of.
    """

    config: TrainConfig
    group: Group
    device: torch.device
    tracker: Tracker
    pass_name: str
    x_docs: ResidentRows
    x_queries: ResidentRows
    sampler: LabelledSampler | UnlabelledSampler
    dev: DevSet | None
    labelled: bool
    step: int = 0
    rows: int = 0

    def key(self, *numbers: int) -> tuple[int, ...]:
        """Seed of a random choice, by the pass and the numbers given."""
        return (self.config.seed, int(self.pass_name == "refit"), *numbers)


@dataclass
class Step:
    """One global step as this rank sees it: its own queries and anchors, all documents.

    Attributes:
        y_RI: kept blocks of its queries, of all documents, and of the distinct neighbours of its anchors.
        queries: how many of the rows are queries.
        doc_row_N: global rows of the documents.
        doc_anchors: places of the documents that are this rank's anchors; all its queries are anchors too.
        neighbours: what the memory found for the anchors.
        live_pairs: (anchor, neighbour) pairs of the global step.
        pair_query_P: place of the query of each positive pair of its queries.
        pair_doc_P: place of its document.
        weight_PN: weight of each (pair, document) in the ranking loss.
        weight_sum: sum of the weights of the global step.
    """

    y_RI: Tensor
    queries: int
    doc_row_N: Tensor
    doc_anchors: Tensor
    neighbours: Neighbours
    live_pairs: Tensor
    pair_query_P: Tensor
    pair_doc_P: Tensor
    weight_PN: Tensor
    weight_sum: float


class Candidate:
    """One projection kind of a stage in training."""

    def __init__(self, run: Run, spec: StageSpec, kind: Projection, start_II: Tensor) -> None:
        config = run.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_generator(run.key(spec.number, 0)).initial_seed())
            start_II = torch.eye(spec.d_in) if kind == "selection" else start_II.cpu()
            logits_I = initial_logits(spec.d_in, ordered=config.init == "pca" and kind != "selection")
            self.stage = Stage(kind, spec.dim, start_II, logits_I, config.hidden_dim).to(run.device)
        lr = config.peak_lr(run.labelled)
        groups = [
            {"params": self.stage.projection_parameters(), "lr": lr},
            {"params": [self.stage.logits], "lr": config.ads_lr_factor * lr},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, eps=ADAM_EPS)
        self.average = copy.deepcopy(self.stage)
        self.schedule = one_cycle(self.optimizer, spec.epochs, run.sampler.epoch_steps)
        self.guard = Guard(spec.dim, spec.d_in, spec.floors, config.stage_patience(spec.epochs))
        self.best = self.average.freeze()
        self.parts_2 = torch.zeros(2)

    @property
    def kind(self) -> Projection:
        """Its kind of projection."""
        return self.stage.projection

    def train_step(self, run: Run, step: Step, noise_I: Tensor) -> None:
        """Forward, backward, reduce over the ranks, update; leaves the loss parts in `parts_2`."""
        config, stage = run.config, self.stage
        order, gate_d = sample_selection(stage.logits, stage.dim, config.tau, noise_I)
        new_only = stage.dim < stage.d_in and stage.is_harmless
        f_R = stage.project(step.y_RI, order[: stage.dim] if new_only else order)
        prefixes = [] if stage.dim == stage.d_in else [f_R[:, : stage.dim] * gate_d]
        if not new_only:
            prefixes.append(f_R)
        rank_sum, unsup_sum = torch.zeros((), device=run.device), torch.zeros((), device=run.device)
        for f_Rd in prefixes:
            z_Rd = F.normalize(f_Rd, dim=1)
            docs = len(step.doc_row_N)
            q_Bd, d_Nd, m_Ud = z_Rd.split([step.queries, docs, len(z_Rd) - step.queries - docs])
            if step.weight_sum:
                rank_sum = rank_sum + rank_loss(
                    q_Bd, d_Nd, step.pair_query_P, step.pair_doc_P, step.weight_PN, config.temperature
                )
            if len(m_Ud):
                anchors_Ad = torch.cat([q_Bd, d_Nd[step.doc_anchors]])
                near = step.neighbours
                unsup_sum = unsup_sum + unsupervised_loss(anchors_Ad, m_Ud, near.where_AK, near.target_AK, near.live_AK)
        rank_mean = rank_sum / max(step.weight_sum, 1e-12)
        unsup_mean = unsup_sum / step.live_pairs.clamp_min(1)
        loss = rank_mean + config.alpha * unsup_mean
        self.parts_2 = torch.stack([rank_mean.detach(), unsup_mean.detach()])
        self.optimizer.zero_grad()
        # a rank with no anchors of its own still takes part in the reduction
        if loss.requires_grad:
            loss.backward()
        self._reduce(run.group)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            for mean, latest in zip(self.average.parameters(), stage.parameters(), strict=True):
                mean.lerp_(latest, 1 - config.ema_decay)

    def _reduce(self, group: Group) -> None:
        if group.size == 1:
            return
        parameters = [p for p in self.stage.parameters() if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        # one collective for everything that the ranks must agree on
        flat = group.sum_(torch.cat([g.flatten() for g in grads] + [self.parts_2]))
        *summed, self.parts_2 = flat.split([g.numel() for g in grads] + [2])
        for parameter, grad in zip(parameters, summed, strict=True):
            parameter.grad = grad.view_as(parameter)

    def score(self, run: Run, spec: StageSpec, epoch: int) -> None:
        """Scores the state on dev and keeps it if it is the best; without dev the last state is kept."""
        frozen = self.average.freeze()
        if run.dev is None:
            self.best, self.guard.best_epoch = frozen, epoch
            return
        values = run.dev.score(frozen.apply, spec.d_in, sorted({spec.dim, spec.d_in, *spec.floors}))
        is_best, total = self.guard.update(epoch, values)
        if is_best:
            self.best = frozen
        figures = {f"dev_{run.dev.measure}": values[spec.dim].mean().item(), "dev_score": total}
        run.tracker.log(_label(run, spec, self.kind, epoch) | figures)

    def result(self) -> StageResult:
        """The state that counts: the best on dev, without dev the last."""
        return StageResult(self.best, self.guard.best_epoch, float(self.guard.best_score), self.guard.best_scores)


def train_stage(
    run: Run, spec: StageSpec, y_docs: ResidentRows, y_queries: ResidentRows
) -> dict[Projection, StageResult]:
    """Trains every candidate of a stage, until each has converged or its epochs are done. Collective.

    Args:
        run: what the stages share.
        spec: the stage.
        y_docs: kept blocks of the documents.
        y_queries: kept blocks of the queries.

    Returns:
        The result of each kind, the one to keep first.
    """
    start_II = _start(run, spec, y_docs)
    candidates = [Candidate(run, spec, kind, start_II) for kind in spec.kinds]
    for candidate in candidates:
        candidate.score(run, spec, 0)
    memory = CrossBatchMemory(run.config.queue_size, y_docs.rows, run.x_docs.dim, spec.d_in, run.device)
    log = _StepLog(run, spec)
    active = candidates
    for epoch in range(spec.epochs if spec.stop is None else spec.stop):
        for number, batch in enumerate(run.sampler.epoch(run.key(spec.number, 1, epoch))):
            clock = _Clock()
            step = _load(run, batch, memory, y_docs, y_queries, clock)
            noise_I = gumbel(spec.d_in, _generator(run.key(spec.number, 2, epoch, number))).to(run.device)
            # without judgements, the first step meets an empty memory
            trained = active if step.weight_sum or step.live_pairs > 0 else []
            for candidate in trained:
                candidate.train_step(run, step, run.config.gumbel_noise * noise_I)
            clock.lap("compute")
            run.step += 1
            run.rows += len(batch.query_row_B) + len(batch.doc_row_N)
            log.add(trained, epoch, len(batch.query_row_B) + len(batch.doc_row_N), clock)
        log.flush()
        for candidate in active:
            candidate.score(run, spec, epoch + 1)
        if run.dev is not None:
            active = [candidate for candidate in active if not candidate.guard.stopped]
            if not active:
                break
    return {candidate.kind: candidate.result() for candidate in _ranked(candidates)}


def _ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidate to keep first: the best on dev, but a harmless one where the gain over it is not real."""
    ranked = sorted(candidates, key=lambda candidate: -candidate.guard.best_score)
    for candidate in ranked:
        if candidate.stage.is_harmless and not is_real(ranked[0].guard.best_Q - candidate.guard.best_Q):
            return [candidate, *(other for other in ranked if other is not candidate)]
    return ranked


def _start(run: Run, spec: StageSpec, y_docs: ResidentRows) -> Tensor:
    if run.config.init == "random":
        noise_II = torch.randn(spec.d_in, spec.d_in, generator=_generator(run.key(spec.number, 3)))
        return run.group.from_first_(torch.linalg.qr(noise_II)[0]).to(run.device)
    if run.config.init == "identity" or spec.dim == spec.d_in:
        return torch.eye(spec.d_in, device=run.device)
    return principal_rotation(y_docs.local_LD, run.group).to(run.device)


def _load(
    run: Run,
    batch: Batch,
    memory: CrossBatchMemory,
    y_docs: ResidentRows,
    y_queries: ResidentRows,
    clock: "_Clock",
) -> Step:
    """Brings the rows of a step here, searches the memory for this rank's anchors, then adds the documents to it."""
    rank, size = run.group.rank, run.group.size
    home = run.x_docs.local_LD.device
    doc_row_N = torch.from_numpy(batch.doc_row_N).to(home)
    x_docs_ND = run.x_docs.take(doc_row_N).to(run.device)
    y_docs_NI = y_docs.take(doc_row_N).to(run.device)
    query_row_B = torch.from_numpy(batch.query_row_B).to(home)
    own_B = slice(*rows_of_rank(len(query_row_B), rank, size))
    x_queries_BD = run.x_queries.take(query_row_B)[own_B].to(run.device)
    y_queries_BI = y_queries.take(query_row_B)[own_B].to(run.device)
    doc_row_N = doc_row_N.to(run.device)
    pairs = np.flatnonzero((batch.pair_query_P >= own_B.start) & (batch.pair_query_P < own_B.stop))
    clock.lap("data")

    doc_anchors = torch.arange(len(doc_row_N), device=run.device)[rank::size]
    row_A = torch.cat([torch.full((len(x_queries_BD),), -1, device=run.device), doc_row_N[doc_anchors]])
    neighbours = memory.search(
        torch.cat([x_queries_BD, x_docs_ND[doc_anchors]]), row_A, run.config.neighbours(run.labelled)
    )
    memory.push(doc_row_N, x_docs_ND, y_docs_NI)
    clock.lap("search")
    return Step(
        y_RI=torch.cat([y_queries_BI, y_docs_NI, neighbours.kept_UI]),
        queries=len(y_queries_BI),
        doc_row_N=doc_row_N,
        doc_anchors=doc_anchors,
        neighbours=neighbours,
        live_pairs=run.group.sum_(neighbours.live_AK.sum()),
        pair_query_P=torch.from_numpy(batch.pair_query_P[pairs] - own_B.start).to(run.device),
        pair_doc_P=torch.from_numpy(batch.pair_doc_P[pairs]).to(run.device),
        weight_PN=torch.from_numpy(batch.weight_PN[pairs]).to(run.device),
        weight_sum=float(batch.weight_PN.sum()),
    )


def _generator(key: tuple[int, ...]) -> torch.Generator:
    """A CPU generator seeded by a key, the same on every rank and device."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def _label(run: Run, spec: StageSpec, kind: Projection, epoch: int) -> dict[str, float | int | str]:
    return {"pass": run.pass_name, "stage": spec.dim, "projection": kind, "epoch": epoch, "step": run.step}


class _Clock:
    """Seconds spent by part of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds/{part}"] = now - self._last
        self._last = now


class _StepLog:
    """Step records, sent some steps at a time: reading a loss waits for the device."""

    def __init__(self, run: Run, spec: StageSpec) -> None:
        self._run, self._spec = run, spec
        self._waiting: list[tuple[dict[str, float | int | str], Tensor]] = []

    def add(self, candidates: Sequence[Candidate], epoch: int, rows: int, clock: _Clock) -> None:
        for candidate in candidates:
            record = _label(self._run, self._spec, candidate.kind, epoch) | clock.seconds
            record["tau"], record["lr"] = self._run.config.tau, float(candidate.schedule.get_last_lr()[0])
            record["rows_per_s"] = rows / sum(clock.seconds.values())
            self._waiting.append((record, candidate.parts_2))
        if len(self._waiting) >= LOG_EVERY:
            self.flush()

    def flush(self) -> None:
        for record, parts_2 in self._waiting:
            rank_part, unsup_part = parts_2.tolist()
            loss = rank_part + self._run.config.alpha * unsup_part
            self._run.tracker.log(record | {"loss": loss, "rank_loss": rank_part, "unsup_loss": unsup_part})
        self._waiting = []
