"""`smec train --dry-run`: how long a training will take, and whether it fits. Starts and makes nothing."""

import os
import tempfile
from collections.abc import Sequence
from itertools import groupby
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
from pipelines.train.worker import BUDGET_SHARE
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import unit_rows
from smec_core.data.uri import public_uri
from smec_core.distributed.resident import choose_residency
from smec_core.errors import InputError
from smec_core.model.adapter import FrozenStage
from smec_core.sizing.machine_speed import MachineSpeed, measure_speed
from smec_core.sizing.plan import (
    START_SECONDS,
    DataShape,
    Range,
    StagePlan,
    as_json,
    checkpoint_bytes,
    driver_bytes,
    evaluation_seconds,
    plan_stages,
    reading_seconds,
    resident_bytes,
    worker_bytes,
)
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
    """Prints what a training will take.

    Args:
        settings: workers and memory.
        config: settings of the method.
        dataset: what to learn from.
        run_folder: the run's folder, which need not be there.
        identity: what decides the run's result.
        base: stages that are trained already.
        warm_start: the champion that the stages start from.

    Returns:
        `run` and `finished`; if not, also `workers`, `stages`, `seconds` by part, `memory` and `disk` in bytes, and
        `warnings`.

    Raises:
        InputError: the run's name is that of another; GPUs are wanted that this machine, which is to train, does not
            have.
    """
    run_folder.check(identity)
    if run_folder.is_finished:
        say(f"run {run_folder.name} is finished already in {public_uri(run_folder.uri)}; nothing will be trained")
        return {"run": run_folder.name, "finished": True}
    data = DataShape.of(dataset, config)
    stages = plan_stages(data, config, base, warm_start)
    figures = _figures(settings, config, data, stages, *_speeds(settings, config, dataset, data))
    found = {"run": run_folder.name, "finished": False, **figures}
    found["warnings"] = _warnings(settings, run_folder, found)
    _print(found)
    for text in found["warnings"]:
        warn(text)
    return found


def _warnings(settings: ClusterSettings, run_folder: RunFolder, found: dict[str, Any]) -> list[str]:
    """What the figures do not tell, and what does not fit on this machine, if it is the one that trains."""
    workers, cores = found["workers"], cpu_count()
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
    wanted, available = found["memory"]["wanted"], found["memory"]["available"]
    if wanted > available:
        texts.append(
            f"memory: {_mib(wanted)} wanted, {_mib(available)} available; fewer workers or a smaller memory_budget "
            "take less"
        )
    if settings.gpu == "wait" and torch.cuda.device_count() < workers:
        texts.append(f"gpu: a training would wait for {workers} GPU(s); times are those of CPUs")
    return texts


def _speeds(
    settings: ClusterSettings, config: TrainConfig, dataset: Dataset, data: DataShape
) -> tuple[MachineSpeed, MachineSpeed]:
    """That of where steps run, and that of the CPU, which reads, takes the PCA and evaluates."""

    def read() -> int:
        rows = min(SAMPLE_ROWS, dataset.corpus.rows)
        return sum(unit_rows(block.vectors_ND).nbytes for block in dataset.corpus.blocks(0, rows))

    workers, gpus = settings.worker_range[0], torch.cuda.device_count()
    is_elsewhere = bool(os.environ.get("RAY_ADDRESS"))
    if settings.gpu == "on" and gpus < workers and not is_elsewhere:
        raise InputError(f"gpu: {workers} GPU(s) wanted, but this machine has {gpus}; auto and off train on CPUs")
    rows = data.step_rows(config, data.train)
    step, threads = max(round(rows.anchors + rows.items), 1), settings.cpus_per_worker
    cpu = measure_speed(step, data.dim, threads, torch.device("cpu"), read)
    if not is_elsewhere:
        # elsewhere, workers may have machines of their own
        cpu = cpu.slowed(max(1.0, workers * threads / cpu_count()))
    if settings.gpu == "off" or gpus < workers:
        return cpu, cpu
    # the CPU reads
    return measure_speed(step, data.dim, threads, torch.device("cuda"), read=lambda: 0), cpu


def _figures(
    settings: ClusterSettings,
    config: TrainConfig,
    data: DataShape,
    stages: Sequence[StagePlan],
    speed: MachineSpeed,
    cpu: MachineSpeed,
) -> dict[str, Any]:
    workers = settings.worker_range[0]
    records, training = [], Range(0, 0, 0)
    for stage in stages:
        seconds = stage.seconds(data, config, workers, speed, cpu)
        records.append(as_json(stage, stage.step_seconds(data, config, workers, speed), seconds))
        training = training.plus(seconds)
    parts = {
        "start": START_SECONDS,
        "reading": reading_seconds(data, cpu),
        "evaluation": evaluation_seconds(data, config, workers, cpu),
    }
    total = training.plus(sum(parts.values()))
    budget = int(
        settings.memory_budget * 2**30
        if settings.memory_budget is not None
        else BUDGET_SHARE * TASK_SHARE * psutil.virtual_memory().available
    )
    # the nearest folder that is there: nothing is made
    scratch = Path(settings.scratch or tempfile.gettempdir()).absolute()
    scratch = next(folder for folder in (scratch, *scratch.parents) if folder.is_dir())
    rows = data.docs + data.queries
    residency = choose_residency(rows, config.dev_docs(data.docs), data.dim, budget, workers, scratch, settings.tier)
    held = resident_bytes(data, config, stages)
    of_node = min(held, budget) if residency.tier == "streamed" else held
    worker, driver = worker_bytes(data, config, stages), driver_bytes(data, config)
    return {
        "workers": workers,
        "stages": records,
        "seconds": {
            **{name: round(value, 1) for name, value in parts.items()},
            "training": {name: round(value, 1) for name, value in training._asdict().items()},
            "total": {name: round(value, 1) for name, value in total._asdict().items()},
        },
        "memory": {
            "tier": residency.tier,
            "why": residency.reason,
            "rows_of_a_node": of_node,
            "worker": worker,
            "driver": driver,
            # on one machine; mapped files are not counted, they give way
            "wanted": workers * worker + driver + (0 if residency.tier == "mapped" else of_node),
            "available": psutil.virtual_memory().available,
        },
        "disk": {
            "mapped": held if residency.tier == "mapped" else 0,
            "checkpoints": checkpoint_bytes(stages),
        },
    }


def _print(found: dict[str, Any]) -> None:
    seconds, memory, disk = found["seconds"], found["memory"], found["disk"]
    table = Table(title=f"run {found['run']}, {found['workers']} worker(s), as this machine is now", box=SIMPLE_HEAD)
    table.add_column("stage", no_wrap=True)
    # where the terminal is narrow these go on two lines, and no figure is cut short
    table.add_column("tries")
    for name in ("steps", "ms", *Range._fields):
        table.add_column(name, justify="right", no_wrap=True)
    for pass_name, stages in groupby(found["stages"], key=lambda stage: stage["pass"]):
        table.add_row(f"{pass_name} pass", style="dim")
        for stage in stages:
            steps = sorted({stage["steps"]["least"], stage["steps"]["most"]})
            table.add_row(
                f"{stage['d_in']} -> {stage['dim']}",
                ", ".join(stage["projections"]),
                " - ".join(map(str, steps)),
                f"{stage['step_ms']:.0f}",
                *(_time(stage["seconds"][name]) for name in Range._fields),
            )
    table.add_section()
    for name in ("start", "reading", "evaluation"):
        table.add_row(name, *[""] * 3, *[_time(seconds[name])] * 3)
    table.add_row("total", *[""] * 3, *(_time(seconds["total"][name]) for name in Range._fields), style="bold")
    show(table)
    where = {"memory": "shared memory", "mapped": "mapped files", "streamed": "memory, the rest is read when needed"}
    lines = Table(title="memory and disk", show_header=False, box=SIMPLE_HEAD)
    lines.add_row("rows of a node", f"{_mib(memory['rows_of_a_node'])} in {where[memory['tier']]}: {memory['why']}")
    lines.add_row("a worker's own", _mib(memory["worker"]))
    lines.add_row("driver", _mib(memory["driver"]))
    lines.add_row("all of them", f"{_mib(memory['wanted'])}, of {_mib(memory['available'])} available on this machine")
    lines.add_row("disk", f"mapped files {_mib(disk['mapped'])}, checkpoints {_mib(disk['checkpoints'])}")
    show(lines)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
