"""`smec tune`: searches settings of the method on Ray Tune, by dev figures alone."""

from pathlib import Path
from typing import Any

from pipelines import signals
from pipelines.console import context, say
from pipelines.data.opened import open_dataset
from pipelines.data.source import check_room, scan_data
from pipelines.storage.apart import check_apart
from pipelines.storage.lease import Lease
from pipelines.storage.model_folder import check_replaceable, make_out
from pipelines.storage.run_folder import RunFolder, check_storage, digest
from pipelines.storage.study import Objective
from pipelines.train import TrainSettings
from pipelines.train import run as train_model
from pipelines.tune.runner import BEST_FILE, StudyStart
from pipelines.tune.settings import TuneSettings
from smec_core.data.uri import public_uri
from smec_core.errors import InputError
from smec_core.masking import mask
from smec_core.training.plan import plan_training
from smec_core.training.schedule import prefix_dims
from smec_core.training.self_taught import shape_unread
from smec_core.yaml_file import read_mapping
from tune_spaces.space import describe, read_space

MODEL_FOLDER = "model"


def run(settings: TuneSettings) -> dict[str, Any]:
    """Runs a study, or goes on with it.

    Returns:
        What OUT/summary.json holds.

    Raises:
        InputError: bad settings, space or data.
        LeaseError: another process runs this study.
        SmecError: no trial finished.
    """
    out = Path(settings.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file; name a folder")
    check_apart({"out": settings.out, "storage": settings.storage}, [settings.data])
    if settings.storage is not None and mask(settings.storage) != settings.storage:
        # Tune pickles what opens it into a file there, and into files of Ray's
        raise InputError(
            f"storage: {mask(settings.storage)} holds a secret, which Ray Tune would write to files; leave it out, and "
            "give the machines a role, or the secret in their environment"
        )
    check_storage(settings.storage)
    if settings.train_best:
        check_replaceable(out / MODEL_FOLDER)
    dataset = open_dataset(settings.data, exclude_self=settings.exclude_self, columns=settings.columns)
    if settings.confirm and "test" not in dataset.splits:
        raise InputError(f"confirm: {public_uri(dataset.uri)} has no qrels/test to compare on")
    shape = shape_unread(dataset, settings.method())
    if dataset.unsupervised:
        say(dataset.unsupervised)
    # dev figures are those of the first pass
    config = settings.method().resolved(shape.labelled).model_copy(update={"refit": False})
    space = read_space(settings.space, config)
    if not config.guard:
        raise InputError("guard: trials are compared on dev, which guard=false switches off")
    plan_training(shape, config)
    objective = Objective.parse(settings.objective, config.dims)
    prefixes = prefix_dims(dataset.dim, config.dims)
    if objective.dim is not None and objective.dim not in prefixes:
        raise InputError(f"objective: {objective.dim} is none of the dims {', '.join(map(str, prefixes))}")
    make_out(out)
    storage = settings.storage or str(out.absolute() / ".smec-study")
    scanned = scan_data(dataset, config, settings.cluster(), storage)
    if settings.confirm and not scanned.has_all_rows(dataset):
        # before the search: the best are compared on test among all documents
        check_room([dataset], settings.worker_range[0] * settings.cpus_per_worker)
    identity = {
        "tune": config.model_dump(mode="json"),
        "space": describe(space),
        "objective": objective.model_dump(mode="json"),
        "data": dataset.fingerprint,
    } | scanned.identity
    name = settings.name or f"study-{digest(identity)}"
    study = RunFolder(storage, name)
    study.create()
    with context(run=name), Lease(study, on_lost=signals.interrupt) as lease:
        study.claim(identity)
        summary = StudyStart(settings, config, dataset, scanned, space, objective, study, out, lease).run()
    if settings.train_best:
        train_model(_best_settings(settings, out))
    return summary


def _best_settings(settings: TuneSettings, out: Path) -> TrainSettings:
    """A training of the best settings on all labels, on the same cluster."""
    method = read_mapping(out / BEST_FILE)
    cluster = settings.cluster().model_dump()
    return TrainSettings(
        **(cluster | method),
        data=settings.data,
        columns=settings.columns,
        storage=settings.storage,
        out=str(out / MODEL_FOLDER),
    )
