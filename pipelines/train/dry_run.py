"""`smec train --dry-run`: the plan of a training, timed by a few real steps, and what it holds. Makes nothing."""

import os
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import psutil
import torch
from joblib import cpu_count
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipelines.console import say, show, warn
from pipelines.runtime.cluster import threads_of
from pipelines.runtime.settings import ClusterSettings
from pipelines.storage.run_folder import RunFolder
from pipelines.train.checkpoints import has_checkpoint
from pipelines.train.worker import KEPT_CHECKPOINTS
from smec_core.config import TrainConfig
from smec_core.data.scan import Scanned
from smec_core.data.uri import public_uri
from smec_core.distributed.resident import Node
from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage
from smec_core.training.context import TrainingData
from smec_core.training.plan import StagePlan, plan_training
from smec_core.training.rehearsal import SampledRows, StageTime, rehearse
from smec_core.training.scanned import ScannedData
from smec_core.training.warm import WarmStart

FIRST_ROWS = 16_384


def dry_run(
    settings: ClusterSettings,
    config: TrainConfig,
    scanned: ScannedData,
    run_folder: RunFolder,
    identity: dict[str, Any],
    base: Sequence[FrozenStage],
    warm_start: WarmStart | None,
) -> dict[str, Any]:
    """Prints what a training does, and how long this machine takes for it.

    Args:
        settings: workers and memory.
        config: settings of the method.
        scanned: the rows to learn from.
        run_folder: the run's folder, which need not be there.
        identity: what decides the run's result.
        base: stages that are trained already.
        warm_start: the champion that the stages start from.

    Returns:
        `run` and `finished`; if not, also `workers`, `stages`, `seconds` (of reading, and least and most of training),
        `memory` and `disk` in bytes, and `warnings`.

    Raises:
        InputError: the run's name is that of another; GPUs are wanted that this machine, which is to train, does not
            have.
    """
    run_folder.check(identity)
    if run_folder.is_finished:
        say(f"run {run_folder.name} is finished already in {public_uri(run_folder.uri)}; nothing will be trained")
        return {"run": run_folder.name, "finished": True}
    node = _node(settings)
    docs, queries = (_first(table, node) for table in (scanned.docs, scanned.queries))
    data = TrainingData(docs, queries, *scanned.labels, node, is_self_taught=scanned.is_self_taught)
    plan = plan_training(data.shape(config), config, base, warm_start)
    before = torch.get_num_threads()
    torch.set_num_threads(threads_of(settings))
    try:
        times = rehearse(data, config, plan, base, warm_start)
    finally:
        torch.set_num_threads(before)
    found: dict[str, Any] = {
        "run": run_folder.name,
        "finished": False,
        "workers": settings.worker_range[0],
        "stages": [_as_json(stage) for stage in times],
        "seconds": {
            "reading": round(scanned.seconds, 1),
            "training": {
                name: round(sum(stage.seconds[place] for stage in times), 1)
                for place, name in enumerate(("least", "most"))
            },
        },
        **_space(config, scanned, plan),
    }
    found["warnings"] = _warnings(settings, run_folder, found["memory"])
    _print(found)
    for text in found["warnings"]:
        warn(text)
    return found


def _node(settings: ClusterSettings) -> Node:
    """This machine and the device that a worker here would use."""
    workers, gpus = settings.worker_range[0], torch.cuda.device_count()
    if settings.gpu == "on" and gpus < workers and not os.environ.get("RAY_ADDRESS"):
        raise InputError(f"gpu: {workers} GPU(s) wanted, but this machine has {gpus}; auto and off train on CPUs")
    return Node(device=torch.device("cpu" if settings.gpu == "off" or gpus < workers else "cuda"))


def _first(table: Scanned, node: Node) -> SampledRows:
    """The first rows, which stand in for all."""
    return SampledRows(torch.from_numpy(table.x_KD[:FIRST_ROWS]), table.drawn or len(table.x_KD), node)


def _as_json(stage: StageTime) -> dict[str, Any]:
    plan, (least, most) = stage.plan, stage.steps
    return {
        "pass": plan.pass_name,
        "d_in": plan.d_in,
        "dim": plan.dim,
        "projection": plan.projection,
        "epoch_steps": plan.rhythm.epoch_steps,
        "steps": {"least": least, "most": most},
        "step_ms": round(1e3 * stage.step, 3),
        "seconds": {"least": round(stage.seconds[0], 1), "most": round(stage.seconds[1], 1)},
    }


def _space(config: TrainConfig, scanned: ScannedData, plan: Sequence[StagePlan]) -> dict[str, Any]:
    """The bytes of the rows that a node holds, and of the checkpoints."""
    rows, dim = len(scanned.docs.x_KD) + len(scanned.queries.x_KD), scanned.dim
    # as they are, what a stage takes and what it keeps
    widths = [
        (stage.d_in if stage.number else 0) + stage.dim
        for stage, later in pairwise(plan)
        # nothing is kept of the last stage of a pass
        if later.pass_name == stage.pass_name
    ]
    held = 4 * (rows * (dim + max(widths, default=0)) + config.copied_docs(scanned.drawn) * dim)
    # weights, average, two moments, best state and start; of the stages before: their weights
    training = max((6 * stage.d_in**2 for stage in plan), default=0)
    stages = sum(stage.d_in**2 for stage in plan)
    return {
        "memory": {"rows_of_a_node": held, "available": psutil.virtual_memory().available},
        # one more is being written
        "disk": {"checkpoints": 4 * (KEPT_CHECKPOINTS + 1) * (training + stages)},
    }


def _warnings(settings: ClusterSettings, run_folder: RunFolder, memory: dict[str, Any]) -> list[str]:
    """What the figures do not tell."""
    workers, threads, cores = settings.worker_range[0], threads_of(settings), cpu_count()
    texts = []
    if has_checkpoint(run_folder):
        texts.append("the run goes on from a checkpoint, so it takes less than this")
    if os.environ.get("RAY_ADDRESS"):
        return [*texts, "times are those of this machine; the cluster of RAY_ADDRESS may have others"]
    if workers * threads > cores:
        texts.append(
            f"workers: {workers} of {threads} CPU(s) take turns on {cores} cores, and wait for each "
            "other; fewer are faster"
        )
    if memory["rows_of_a_node"] > memory["available"]:
        texts.append(
            f"memory: the rows take {_mib(memory['rows_of_a_node'])}, {_mib(memory['available'])} are available; set "
            "sample_rows or memory_budget lower"
        )
    if settings.gpu == "wait" and torch.cuda.device_count() < workers:
        texts.append(f"gpu: a training would wait for {workers} GPU(s); times are those of CPUs")
    return texts


def _print(found: dict[str, Any]) -> None:
    seconds, memory, disk = found["seconds"], found["memory"], found["disk"]
    table = Table(title=f"run {found['run']}, as one worker on this machine takes it now", box=SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    # where the terminal is narrow it goes on two lines, and no figure is cut short
    table.add_column("projection")
    for name in ("steps", "ms", "least", "most"):
        table.add_column(name, justify="right", no_wrap=True)
    for pass_name, stages in groupby(found["stages"], key=lambda stage: stage["pass"]):
        table.add_row(f"{pass_name} pass", style="dim")
        for stage in stages:
            steps = sorted({stage["steps"]["least"], stage["steps"]["most"]})
            table.add_row(
                f"{stage['d_in']} -> {stage['dim']}",
                stage["projection"],
                " - ".join(map(str, steps)),
                f"{stage['step_ms']:.0f}",
                *(_time(stage["seconds"][name]) for name in ("least", "most")),
            )
    table.add_section()
    table.add_row("reading", *[""] * 3, *[_time(seconds["reading"])] * 2)
    both = [_time(seconds["reading"] + seconds["training"][name]) for name in ("least", "most")]
    table.add_row("total", *[""] * 3, *both, style="bold")
    show(table)
    if found["workers"] > 1:
        say(f"{found['workers']} workers share each step; on as many free cores they take less than this")
    say("the start of Ray and MLflow, and the evaluation at the end, come on top")
    say(f"rows of a node: {_mib(memory['rows_of_a_node'])}; checkpoints on disk: {_mib(disk['checkpoints'])}")


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
