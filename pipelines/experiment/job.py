"""`smec experiment`: the paper's comparisons on any dataset; figures, tables and a page are made by one command."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from pyarrow.fs import LocalFileSystem

from pipelines.console import Pace, say, show
from pipelines.data.opened import open_dataset
from pipelines.data.source import Source, check_room, scan_data
from pipelines.experiment.insights import gradient_page, ware_page
from pipelines.experiment.labels import labels_page
from pipelines.experiment.methods import FAISS_PCA, FEW_LABELS, S_XBM, ablation, compared, few_labels, queue_sizes
from pipelines.experiment.page import Page, describe, file_name, rich_table, write_page
from pipelines.experiment.settings import ExperimentSettings
from pipelines.experiment.tables import MEAN, Results, ablation_page, compare_page, queue_page
from pipelines.storage.apart import check_apart
from pipelines.storage.files import write_record
from pipelines.storage.model_folder import make_out
from pipelines.train import Kept, as_finished, train_and_score
from smec_core import __version__
from smec_core.config import TrainConfig
from smec_core.data.dataset import Dataset
from smec_core.data.judgements import Judgements
from smec_core.data.records import read_record
from smec_core.data.seen import SeenDocuments
from smec_core.data.uri import public_uri
from smec_core.distributed.resident import Node
from smec_core.errors import InputError
from smec_core.research.gradients import FREE, gradient_by_dim, gradient_variance
from smec_core.research.peers.peer import Peer
from smec_core.research.selection import UNGUARDED, achievement_rates
from smec_core.training.context import TrainingData
from smec_core.training.schedule import chain_dims

Record = dict[str, Any]
Measure = Callable[[TrainingData, TrainConfig], list[Record]]

TRAININGS = ".trainings"
"""In the folder of the results: finished trainings, from which a rerun goes on."""
ABOUT = "experiment.json"
"""In the folder of the results: which experiment it holds, on which data, by name and fingerprint."""


def run(settings: ExperimentSettings) -> dict[str, Any]:
    """Runs an experiment, or goes on with it, and writes its page.

    Returns:
        `findings`, sentences, and `tables`: by name, a record a row.

    Raises:
        InputError: bad settings or data.
        SmecError: a training failed.
    """
    config, out = settings.method(), Path(settings.out)
    check_apart({"out": settings.out}, settings.data)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    turned = "-reversed" if settings.direction == "corpus-to-queries" else ""
    datasets = {_name(uri) + turned: _open(uri, settings) for uri in settings.data}
    names = [MEAN, *map(file_name, datasets)]
    if len(set(names)) <= len(settings.data):
        raise InputError(
            f"data: files are named after the datasets, which must differ, also from {MEAN!r}: {', '.join(names[1:])}; "
            "rename a folder"
        )
    methods = _methods(settings, min(len(dataset.train_judgements() or ()) for dataset in datasets.values()))
    if settings.experiment == "compare" and settings.methods is None and FAISS_PCA not in methods:
        say(f"FAISS is not installed: {FAISS_PCA} is left out")
    make_out(out)
    check_room(datasets.values(), 1)
    # a bad row of the last one is found before the first training
    sources = {name: Source.of(scan_data(dataset, config), config) for name, dataset in datasets.items()}
    prints = {name: dataset.fingerprint for name, dataset in datasets.items()}
    _claim(out, {"experiment": settings.experiment, "data": dict(sorted(prints.items()))})
    found: dict[str, Any] = {}
    seen: dict[str, np.ndarray] = {}
    for name, dataset in datasets.items():
        source = sources[name]
        kept = Kept(out / TRAININGS, {"data": dataset.fingerprint, "version": __version__})
        if methods:
            judgements = dataset.splits["test"].with_positives()
            learnt = SeenDocuments.of(_learnt(source), *dataset.ids)
            seen[name] = learnt.seen_queries(judgements, dataset.ids[0])
            found[name] = train_and_score(source, methods, config, seeds, judgements, {"cpu": 1}, kept)
        else:
            measures = MEASURED[settings.experiment]
            found[name] = {one.__name__: _measure(source, config, seeds, one, kept) for one in measures}
    page = _page(settings.experiment, found, seeds, seen)
    described = [describe(*one) for one in datasets.items()]
    written = write_page(page, out, _command(settings), described, seeds, settings.latex)
    for table in page.tables:
        show(rich_table(table))
    for finding in page.findings:
        say(finding)
    say(f"page: {written}")
    tables = {table.name: table.frame.to_dict(orient="records") for table in page.tables}
    return {"findings": list(page.findings), "tables": tables}


def _claim(out: Path, about: Record) -> None:
    """Makes the folder that of one experiment on some data; its page and tables would replace those of another.

    Raises:
        InputError: it holds the results of another one.
    """
    file = out / ABOUT
    other = read_record(LocalFileSystem(), str(file), f"remove {out}, or take another folder")
    if other not in (None, about):
        raise InputError(f"out: {out} holds {_told(other)}; take another folder for {_told(about)}")
    write_record(LocalFileSystem(), str(file), about)


def _told(about: Record) -> str:
    data = about["data"]
    # a list of names only where an earlier version wrote it
    names = [f"{name} ({print_})" for name, print_ in data.items()] if isinstance(data, dict) else data
    return f"{about['experiment']} on {', '.join(names)}"


MEASURED: dict[str, tuple[Measure, ...]] = {
    "gradient-variance": (gradient_variance, gradient_by_dim),
    "ware": (achievement_rates,),
}
"""Experiments that look into trainings and do not score them."""
FIXED: dict[str, set[str]] = {
    "gradient-variance": {*FREE, "schedule", "refit"},
    "queue-size": {*S_XBM["S-XBM"], "queue_size"},
    "ware": {*UNGUARDED, "projection", "schedule"},
}
"""Settings that an experiment sets itself, in all that it trains."""


def _methods(settings: ExperimentSettings, judged: int) -> Mapping[str, Peer]:
    """What the experiment trains and scores, of so many judged queries; nothing for those that do not."""
    fixed = sorted(FIXED.get(settings.experiment, set()) & settings.model_fields_set)
    if fixed:
        raise InputError(f"{fixed[0]}: {settings.experiment} sets it itself; leave it out")
    if settings.experiment == "gradient-variance" and (len(settings.dims) < 2 or settings.epochs == 0):
        raise InputError(
            "gradient-variance: compares the gradients of two dims or more while they are trained; give two dims, and "
            "at least one epoch"
        )
    if settings.labels is not None and settings.experiment != "labels":
        raise InputError(f"labels: {settings.experiment} takes all judged queries; only labels takes a choice")
    if settings.experiment == "compare":
        return compared(settings.methods)
    if settings.experiment == "labels":
        return few_labels(settings.methods, settings.labels or FEW_LABELS, judged)
    if settings.methods is not None:
        raise InputError(
            f"methods: {settings.experiment} has methods of its own; only compare and labels take a choice"
        )
    if settings.experiment == "ablation":
        return ablation()
    return queue_sizes() if settings.experiment == "queue-size" else {}


def _learnt(source: Source) -> Judgements:
    """What the methods learn from, with what those that choose on dev replay."""
    train, dev = source.labels
    assert train is not None
    return train if dev is None else train.merge(dev)


def _page(experiment: str, found: Mapping[str, Any], seeds: Sequence[int], seen: Mapping[str, np.ndarray]) -> Page:
    if experiment == "ware":
        return ware_page({name: one["achievement_rates"] for name, one in found.items()})
    if experiment == "gradient-variance":
        by_step, by_dim = (
            {name: one[measure] for name, one in found.items()} for measure in ("gradient_variance", "gradient_by_dim")
        )
        return gradient_page(by_step, by_dim)
    results = Results(found, seeds, seen)
    pages = {"compare": compare_page, "ablation": ablation_page, "labels": labels_page, "queue-size": queue_page}
    return pages[experiment](results)


def _measure(source: Source, config: TrainConfig, seeds: Sequence[int], measure: Measure, kept: Kept) -> list[Record]:
    """The records of a measure with every seed."""
    seeded = {seed: config.model_copy(update={"seed": seed}) for seed in seeds}
    paths = {seed: kept.path(measure.__name__, measure.__name__, one) for seed, one in seeded.items()}
    found = {seed: kept.read(path) for seed, path in paths.items()}
    waiting = {_measure_here.remote(source, seeded[seed], measure): seed for seed in seeds if found[seed] is None}
    pace = Pace()
    for seed, records in as_finished(waiting):
        found[seed] = records
        kept.write(paths[seed], records)
        say(f"{measure.__name__}, seed {seed}: done; {pace.done(len(waiting))}")
    return [{"seed": seed, **record} for seed in seeds for record in found[seed]]


@ray.remote(num_cpus=1)
def _measure_here(source: Source, config: TrainConfig, measure: Measure) -> list[Record]:
    torch.set_num_threads(1)
    return measure(source.fetch(Node()), config)


def _name(uri: str) -> str:
    return public_uri(uri).rstrip("/").rsplit("/", 1)[-1]


def _open(uri: str, settings: ExperimentSettings) -> Dataset:
    dataset = open_dataset(uri, exclude_self=settings.exclude_self, columns=settings.columns)
    for split in ("train", "test"):
        if split not in dataset.splits:
            raise InputError(
                f"{public_uri(uri)}: there is no qrels/{split}; methods learn from train, and are scored on test"
            )
    if settings.direction == "corpus-to-queries":
        dataset = dataset.reversed()
    dataset.train_judgements()
    chain_dims(dataset.dim, settings.dims)
    return dataset


def _command(settings: ExperimentSettings) -> str:
    """The command line that gives these results."""
    words = ["smec", "experiment", settings.experiment, "--data", ",".join(map(_name, settings.data))]
    words += ["--dims", ",".join(map(str, settings.dims)), "--seeds", str(settings.seeds), "--out", "OUT"]
    shown = {"experiment", "data", "dims", "seeds", "out", "latex"}
    values = settings.model_dump(mode="json", exclude=shown, exclude_defaults=True)
    values |= {f"columns.{key}": name for key, name in values.pop("columns", {}).items()}
    for key, value in values.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += ["--set", f"{key}={text}"]
    return shlex.join(words)
