"""`smec train --dry-run`: the plan of a training, timed by a few real steps, and what it holds. Makes nothing."""

import os
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from joblib import cpu_count
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipelines.console import say, show, warn
from pipelines.runtime.settings import ClusterSettings
from pipelines.storage.run_folder import RunFolder
from pipelines.train.checkpoints import has_checkpoint
from pipelines.train.worker import BUDGET_SHARE, KEPT_CHECKPOINTS
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import EmbeddingTable, unit_rows
from smec_core.data.uri import public_uri
from smec_core.distributed.resident import Node, choose_residency
from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage
from smec_core.training.context import TrainingData
from smec_core.training.plan import StagePlan, plan_training
from smec_core.training.rehearsal import SampledRows, StageTime, rehearse
from smec_core.training.warm import WarmStart

SAMPLE_ROWS = 16_384
# of the available memory, what Ray by default gives to tasks and not to its object store
TASK_SHARE = 0.7


def dry_run(
    settings: ClusterSettings,
    config: TrainConfig,
    dataset: Dataset,
    run_folder: RunFolder,
    identity: dict[str, Any],
    base: Sequence[FrozenStage],
    warm_start: WarmStart | None,
) -> dict[str, Any]:
    """Prints what a training does, and how long this machine takes for it.

    Args:
        settings: workers and memory.
        config: settings of the method.
        dataset: what to learn from.
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
    started = time.perf_counter()
    docs, queries = (_sampled(table, node) for table in (dataset.corpus, dataset.queries))
    held = len(docs.matrix_WD) + len(queries.matrix_WD)
    reading = (time.perf_counter() - started) * (docs.rows + queries.rows) / held
    data = TrainingData(docs, queries, *dataset.training_split(config), node)
    plan = plan_training(data.shape(config), config, base, warm_start)
    before = torch.get_num_threads()
    torch.set_num_threads(settings.cpus_per_worker)
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
            "reading": round(reading, 1),
            "training": {
                name: round(sum(stage.seconds[place] for stage in times), 1)
                for place, name in enumerate(("least", "most"))
            },
        },
        **_space(settings, config, dataset, plan),
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


def _sampled(table: EmbeddingTable, node: Node) -> SampledRows:
    """The first rows of a table."""
    blocks = table.blocks(0, min(table.rows, SAMPLE_ROWS))
    return SampledRows(torch.cat([torch.from_numpy(unit_rows(b.vectors_ND)) for b in blocks]), table.rows, node)


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


def _space(
    settings: ClusterSettings, config: TrainConfig, dataset: Dataset, plan: Sequence[StagePlan]
) -> dict[str, Any]:
    """Where the rows will be kept, and the bytes of them and of the checkpoints."""
    available = psutil.virtual_memory().available
    budget = int(BUDGET_SHARE * TASK_SHARE * available)
    if settings.memory_budget is not None:
        budget = int(settings.memory_budget * 2**30)
    # the nearest folder that is there: nothing is made
    scratch = Path(settings.scratch or tempfile.gettempdir()).absolute()
    scratch = next(folder for folder in (scratch, *scratch.parents) if folder.is_dir())
    docs, rows = dataset.corpus.rows, dataset.corpus.rows + dataset.queries.rows
    residency = choose_residency(
        rows, config.copied_docs(docs), dataset.dim, budget, settings.worker_range[0], scratch, settings.tier
    )
    # as they are, what a stage takes and what it keeps
    widths = [
        (stage.d_in if stage.number else 0) + stage.dim
        for stage, later in pairwise(plan)
        # nothing is kept of the last stage of a pass
        if later.pass_name == stage.pass_name
    ]
    held = 4 * (rows * (dataset.dim + max(widths, default=0)) + config.copied_docs(docs) * dataset.dim)
    # weights, average, two moments, best state and start; of the stages before: their weights
    training = max((6 * stage.d_in**2 for stage in plan), default=0)
    stages = sum(stage.d_in**2 for stage in plan)
    return {
        "memory": {
            "tier": residency.tier,
            "why": residency.reason,
            "rows_of_a_node": min(held, budget) if residency.tier == "streamed" else held,
            "available": available,
        },
        "disk": {
            "mapped": held if residency.tier == "mapped" else 0,
            # one more is being written
            "checkpoints": 4 * (KEPT_CHECKPOINTS + 1) * (training + stages),
        },
    }


def _warnings(settings: ClusterSettings, run_folder: RunFolder, memory: dict[str, Any]) -> list[str]:
    """What the figures do not tell."""
    workers, cores = settings.worker_range[0], cpu_count()
    texts = []
    if has_checkpoint(run_folder):
        texts.append("the run goes on from a checkpoint, so it takes less than this")
    if os.environ.get("RAY_ADDRESS"):
        return [*texts, "times are those of this machine; the cluster of RAY_ADDRESS may have others"]
    if workers * settings.cpus_per_worker > cores:
        texts.append(
            f"workers: {workers} of {settings.cpus_per_worker} CPU(s) take turns on {cores} cores, and wait for each "
            "other; fewer are faster"
        )
    if memory["tier"] == "memory" and memory["rows_of_a_node"] > memory["available"]:
        texts.append(
            f"memory: the rows take {_mib(memory['rows_of_a_node'])}, {_mib(memory['available'])} are available; a "
            "smaller memory_budget maps them from files"
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
    where = {"memory": "shared memory", "mapped": "mapped files", "streamed": "memory, the rest is read when needed"}
    say(f"rows of a node: {_mib(memory['rows_of_a_node'])} in {where[memory['tier']]}: {memory['why']}")
    say(f"disk: mapped files {_mib(disk['mapped'])}, checkpoints {_mib(disk['checkpoints'])}")


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
