"""`smec train`: scans a dataset, trains the chain in Ray Train workers, evaluates and stores the model."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines import signals
from pipelines.console import adopt_loggers, context, say, show
from pipelines.data.opened import open_dataset
from pipelines.data.source import Source, scan_data
from pipelines.runtime.cluster import connect, is_own, threads_of
from pipelines.runtime.evaluation import in_process, on_cluster
from pipelines.storage.apart import check_apart
from pipelines.storage.lease import Lease
from pipelines.storage.model_folder import check_replaceable
from pipelines.storage.run_folder import RunFolder, check_storage, digest
from pipelines.train.checkpoints import remove_checkpoints
from pipelines.train.driver import RayRun, with_threads
from pipelines.train.dry_run import dry_run
from pipelines.train.settings import TrainingSettings, TrainSettings
from smec_core.data.dataset import Dataset
from smec_core.data.uri import public_uri
from smec_core.errors import InputError, SmecError
from smec_core.evaluation.corpus_search import Parts, Work
from smec_core.evaluation.report import quality_tables
from smec_core.folders import replace_folder
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.temporary import temporary_folder
from smec_core.training.finish import Beside, Parents, finished_model, no_others
from smec_core.training.plan import plan_training
from smec_core.training.scanned import ScannedData
from smec_core.training.self_taught import shape_unread
from smec_core.training.trained import Trained

if TYPE_CHECKING:
    from pipelines.tracking.recorder import MlflowRecorder


def run(settings: TrainSettings) -> dict[str, Any]:
    """Trains a model and stores it.

    Returns:
        The model's metrics.json; of a dry run, what `dry_run` gives.

    Raises:
        InputError: bad settings or data.
        LeaseError: another process trains this run.
        SmecError: the training failed.
    """
    out = Path(settings.out)
    check_replaceable(out)
    check_apart({"out": settings.out, "storage": settings.storage}, [settings.data])
    check_storage(settings.storage)
    beside = out.absolute().parent / ".smec-runs"
    storage = settings.storage or str(beside)
    # a dry run makes nothing
    training = Training(settings, storage=None if settings.dry_run else storage)
    if training.dataset.unsupervised:
        say(training.dataset.unsupervised)
    run_folder = RunFolder(storage, training.name)
    if run_folder.local_path is not None and run_folder.local_path.resolve().is_relative_to(out.resolve()):
        raise InputError(
            f"storage: {run_folder.storage_path} lies in the model folder {out}, which is replaced as a whole; "
            "name another"
        )
    if settings.dry_run:
        return dry_run(
            settings,
            settings.method(),
            training.scanned,
            run_folder,
            training.identity,
            training.base_stages,
            training.warm_start,
        )
    training.finish(run_folder, beside / training.name)
    # hours may have passed
    check_replaceable(out)
    replace_folder(out, run_folder.fetch_model)
    metrics = load(out).metrics
    for table in quality_tables(metrics["evaluation"]):
        show(table)
    say(f"model: {out}", run=training.name)
    return metrics


class Training:
    """A training whose settings and data have been checked.

    Attributes:
        dataset: what it learns from.
        identity: what decides its result.
        name: of its run.
        base_stages: stages that are trained already, to which it adds.
        warm_start: the champion that it starts from; None where it starts from nothing.
        scanned: the rows that it learns from.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        series: str = "smec",
        read: tuple[Dataset, ScannedData] | None = None,
        storage: str | None = None,
        beside: Beside = no_others,
    ) -> None:
        """Opens the data and the models that it builds on.

        Args:
            settings: of the training.
            series: what the name begins with, where the settings give none.
            read: the dataset of the settings, without what is held out, and its scan, where it is read already.
            storage: where runs keep their state.
            beside: gives searches that share the pass over the corpus in which a model and baselines are evaluated.

        Raises:
            InputError: bad settings or data.
        """
        self._settings, self._config, self._beside = settings, settings.method(), beside
        self.dataset = _open(settings) if read is None else read[0]
        dim = self.dataset.dim
        self._parents = Parents.of(settings.base, settings.warm_start, dim)
        self.base_stages, self.warm_start = self._parents.base_stages, self._parents.warm_start
        plan_training(shape_unread(self.dataset, self._config), self._config, self.base_stages, self.warm_start)
        self.scanned = read[1] if read else scan_data(self.dataset, self._config, settings, storage)
        self.identity: dict[str, Any] = {
            "train": self._config.model_dump(mode="json"),
            "data": self.dataset.fingerprint,
        }
        self.identity |= self._parents.identity
        if settings.hold_out:
            self.identity["hold_out"] = settings.hold_out
        if self._config.memory == "local":
            least, most = settings.worker_range
            if least != most:
                raise InputError(
                    f"workers: {settings.workers}: with memory=local the result depends on how many there are; name "
                    "one number, or leave memory at global"
                )
            self.identity["workers"] = most
        self.identity |= self.scanned.identity
        self.name = settings.name or f"{series}-{digest(self.identity)}"

    def finish(self, run_folder: RunFolder, scratch: Path) -> None:
        """Trains where that is not done yet; then the run's folder has the model.

        Args:
            run_folder: the run's folder.
            scratch: local folder for what only this machine needs, where the run's folder is none.

        Raises:
            LeaseError: another process trains this run.
            SmecError: the training failed.
        """
        run_folder.create()
        with context(run=self.name), Lease(run_folder, on_lost=signals.interrupt) as lease:
            run_folder.claim(self.identity)
            if run_folder.is_finished:
                say(f"run {self.name} is finished already; its model is taken from {public_uri(run_folder.uri)}")
            else:
                self._settings = with_threads(self._settings, run_folder)
                self._train_on_ray(run_folder, run_folder.local_path or scratch, lease)

    def _train_on_ray(self, run_folder: RunFolder, scratch: Path, lease: Lease) -> None:
        """Trains, evaluates and stores the model in the run's folder."""
        settings, config, dataset = self._settings, self._config, self.dataset
        scratch.mkdir(parents=True, exist_ok=True)
        summary = dataset.summary()
        say(
            f"run {self.name}: {summary['corpus']['rows']} documents, {summary['queries']['rows']} queries, "
            f"{dataset.dim} dims, to {', '.join(map(str, config.dims))}"
        )
        used = self.scanned.used(config, is_warm=self.warm_start is not None)
        recorder = self._recorder(run_folder, scratch, lease, used)
        say(f"MLflow run {recorder.run_id} in {recorder.uri}")
        with temporary_folder() as made:
            model_folder = made / "model"
            try:
                history = made / "history.jsonl"
                run = RayRun(
                    settings,
                    config,
                    Source.of(self.scanned, config),
                    run_folder,
                    recorder,
                    base=self.base_stages,
                    warm_start=self.warm_start,
                    check=lease.check,
                )
                trained = run.fit(history)
                model_folder.mkdir()
                self._evaluated(trained, used).write(model_folder, history)
                _check_readable(model_folder)
                dataset.check_unchanged()
                lease.check()
                # in this order: what a kill leaves undone is done by the next start, which stops at a stored model
                recorder.finish(model_folder)
                run_folder.store_model(model_folder)
                remove_checkpoints(run_folder)
            except BaseException as error:
                recorder.fail(error, lease.lost)
                raise

    def _recorder(self, run_folder: RunFolder, scratch: Path, lease: Lease, used: dict[str, Any]) -> "MlflowRecorder":
        """Opens the run in MLflow; Ray, which takes as long, starts in the meantime."""
        settings, dataset = self._settings, self.dataset

        def start() -> "MlflowRecorder":
            # here and not above: half of the time is MLflow's import
            from pipelines.tracking.about import data_text
            from pipelines.tracking.recorder import MlflowRecorder

            adopt_loggers()
            dims = ", ".join(map(str, self._config.dims))
            return MlflowRecorder.start(
                config=settings.model_dump(mode="json") | used,
                run_folder=run_folder,
                scratch=scratch,
                about=f"Training of a SMEC model: {dataset.dim}-dim embeddings to {dims} dims. {data_text(dataset)}",
                data=dataset,
            )

        with ThreadPoolExecutor(1) as pool:
            started = pool.submit(start)
            try:
                connect(settings.worker_range[1] * threads_of(settings))
                return started.result()
            except BaseException as error:
                # what is wrong with MLflow, too, is not what is told
                with suppress(Exception):
                    started.result().fail(error, lease.lost)
                raise

    def _evaluated(self, trained: Trained, used: dict[str, Any]) -> Model:
        """The trained chain as a model that knows what made it and how good it is."""
        told = {"used": used, "run": self.name}
        return finished_model(
            trained,
            self.dataset,
            self.scanned,
            self._config,
            self._parents,
            told,
            say,
            self._settings.hold_out,
            self._parts(),
            self._beside,
        )

    def _parts(self) -> Parts:
        """How the corpus is searched: by as many tasks as there are workers, here where that is one on this machine."""
        settings = self._settings
        if not (settings.is_one_process and is_own()):
            return on_cluster(settings.worker_range[0], threads_of(settings))

        def here(work: Work, rows: int) -> list[Any]:
            threads = torch.get_num_threads()
            torch.set_num_threads(threads_of(settings))
            try:
                return in_process(work, rows)
            finally:
                torch.set_num_threads(threads)

        return here


def _open(settings: TrainingSettings) -> Dataset:
    """The data, without what is held out."""
    dataset = open_dataset(settings.data, exclude_self=settings.exclude_self, columns=settings.columns)
    return dataset.holding_out(settings.hold_out) if settings.hold_out else dataset


def _check_readable(folder: Path) -> None:
    """Refuses a model that nobody could use.

    Raises:
        SmecError: it cannot be read back.
    """
    try:
        load(folder)
    except InputError as error:
        raise SmecError(f"the trained model cannot be read back, so it is not kept: {error}") from error
