"""`smec retrain`: trains a challenger on the current data, and releases it if it is better than the champion.

Safe to be run by any scheduler, as often as it likes: where nothing is new, it ends at once. Each step can be done
again with the same result, so a killed run is simply run again; what is in force changes in the last step only.
"""

import time
from _thread import interrupt_main
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from pipelines.compress import CompressSettings, compress
from pipelines.console import context, say
from pipelines.data.source import ScannedData, scan_data
from pipelines.retrain.drift import check_data, drift_since, encoder_of, known_queries, problem_of_known
from pipelines.retrain.ledger import Ledger, QueryScores, Release
from pipelines.retrain.releases import NOTHING_NEW, PROMOTED, REFUSED, UNCHANGED, ReleaseManager, export_figures
from pipelines.retrain.settings import RetrainSettings
from pipelines.runtime.cluster import threads_of
from pipelines.runtime.evaluation import on_cluster
from pipelines.storage.lease import Lease
from pipelines.storage.run_folder import RunFolder, digest
from pipelines.tracking.files import metric
from pipelines.train import Training, TrainingSettings
from smec_core.data.dataset import HELD_OUT, Dataset, dataset_stamp
from smec_core.data.seen import joined
from smec_core.data.uri import join_uri, public_uri
from smec_core.errors import GateError, SmecError
from smec_core.evaluation import gate
from smec_core.evaluation.corpus_search import Encode, JudgedSearch, Sides, search_judged
from smec_core.evaluation.drift import Reference
from smec_core.evaluation.evaluate import baseline_encoders
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.temporary import temporary_folder
from smec_core.training.schedule import prefix_dims


def run(settings: RetrainSettings) -> dict[str, Any]:
    """Runs a cycle where data or settings are new.

    Returns:
        The cycle's record: `outcome`, `drift`, `gate`, `release` and others; `outcome` is `nothing new` where there
        was nothing to do.

    Raises:
        GateError: the challenger, or the data, was refused.
        InputError: bad settings or data, or vectors of another embedding model.
        LeaseError: another process retrains this series.
        SmecError: something failed; what was in force stays so, and the next run goes on.
    """
    folder = RunFolder(settings.storage, settings.name)
    folder.create()
    with (
        context(run=settings.name),
        Lease(folder, interrupt_main, f"series {settings.name}", "retrained", "name") as lease,
    ):
        manager = ReleaseManager(settings, Ledger(folder), lease)
        cycle = _Cycle(manager)
        was_cut_short = manager.follow_last_decision(cycle.compress)
        if not was_cut_short:
            manager.reconcile(cycle.compress)
        record = cycle.unless_nothing_new()
        if record is None:
            record = cycle.decide()
            manager.follow_last_decision(cycle.compress)
        elif was_cut_short:
            # nobody has heard of it yet
            record = manager.ledger.last_cycle() or record
        export_figures(settings.name, record)
    if record["outcome"] == REFUSED:
        stays = "the champion stays" if record["champion"] else "nothing is released"
        if record["release"] is not None:
            stays += f", with the corpus as it is now in {record['release']['version']}"
        raise GateError(f"{settings.name}: {record['reason']}; {stays}", record)
    if record["outcome"] != NOTHING_NEW and record["release"] is not None:
        say(f"{settings.name}: {record['release']['version']} is in force")
    return record


class _Champion(NamedTuple):
    """What is in force."""

    release: Release
    model: Model


class _Cycle:
    """One cycle of a series: what is known when it starts, and its steps."""

    def __init__(self, manager: ReleaseManager) -> None:
        self.settings, self.ledger, self.lease = manager.settings, manager.ledger, manager.lease
        self.registry = manager.registry
        self.identity, self.stamp = digest(self.settings.identity()), dataset_stamp(self.settings.data)
        self.last = self.ledger.last_cycle()
        self.number = 1 if self.last is None else self.last["cycle"] + 1
        self.started = time.monotonic()

    @cached_property
    def dataset(self) -> Dataset:
        """The data as they are, opened when they are first needed."""
        settings = self.settings
        return Dataset.open(settings.data, exclude_self=settings.train.exclude_self, columns=settings.columns)

    @cached_property
    def learnt(self) -> Dataset:
        """The same without the gate queries, which are a split of their own."""
        return self.dataset.holding_out(self.settings.gate.fraction)

    @cached_property
    def scanned(self) -> ScannedData:
        """The rows to learn from, read when they are first needed."""
        say(f"{self.settings.name}, cycle {self.number}: reading {self.dataset.corpus.rows:,} documents")
        return scan_data(self.learnt, self.settings.train.method(), self.settings.train, self.settings.storage)

    @cached_property
    def champion(self) -> _Champion | None:
        """What is in force; None before the first release."""
        release = self.ledger.releases().champion
        return None if release is None else _Champion(release, load(self._run_folder(release).model_uri))

    @property
    def fingerprint(self) -> str:
        """That of the data."""
        self.scanned  # noqa: B018 it has the fingerprint
        return self.learnt.fingerprint

    @property
    def dims(self) -> tuple[int, ...]:
        """The prefixes that the gate looks at."""
        return prefix_dims(self.dataset.dim, self.settings.train.dims)

    def unless_nothing_new(self) -> dict[str, Any] | None:
        """A record that says so, where neither data nor settings are new since the last decision."""
        last = self.last
        if last is None or last["identity"] != self.identity:
            return None
        if last["stamp"] != self.stamp:
            self._refuse_in_vain()
            if last["data"] != self.fingerprint:
                return None
        say(
            f"{self.settings.name}: data and settings are those of cycle {last['cycle']} ({last['reason']}); "
            "there is nothing to do"
        )
        return {**last, "outcome": NOTHING_NEW}

    def decide(self) -> dict[str, Any]:
        """Reads, trains and compares; writes the decision, with all that it needs.

        Returns:
            The cycle's record.
        """
        settings, champion = self.settings, self.champion
        self._refuse_in_vain()
        dataset = self.learnt
        reference, encoder = Reference.of(dataset.corpus.rows, self.scanned.docs), encoder_of(settings.data)
        drift = None
        if champion is not None:
            drift = drift_since(self.ledger, champion.release, settings.data, encoder, reference)
        run_folder, challenger, scores = self._train(reference)
        record: dict[str, Any] = {
            "cycle": self.number,
            "identity": self.identity,
            "stamp": self.stamp,
            "data": self.fingerprint,
            "encoder": encoder,
            "gate_fraction": settings.gate.fraction,
            "champion": None if champion is None else champion.release.fingerprint,
            "drift": None if drift is None else asdict(drift),
            "known_queries": None,
            "run": run_folder.name,
            "challenger": challenger.fingerprint,
        }
        if champion is not None:
            known = known_queries(self.ledger, champion.release, _by_query(dataset, scores[gate.CHAMPION]))
            record["known_queries"] = known
            if problem := problem_of_known(known, settings.gate.max_drop):
                return self._close(record, REFUSED, problem, None)
        return self._challenge(record, run_folder, challenger, reference, scores)

    def _refuse_in_vain(self) -> None:
        champion = None
        if self.champion is not None:
            fraction = self.ledger.cycle(self.champion.release.trained_in)["gate_fraction"]
            champion = self.champion.model.dims, fraction
        check_data(self.settings, self.learnt, self.dims, champion)

    def _challenge(
        self,
        record: dict[str, Any],
        run_folder: RunFolder,
        challenger: Model,
        reference: Reference,
        scores: dict[str, dict[int, np.ndarray]],
    ) -> dict[str, Any]:
        """The gate, and what follows from it."""
        dataset, champion = self.learnt, self.champion
        if champion is not None and challenger.fingerprint == champion.release.fingerprint:
            reason = "unchanged: the new data give the champion again"
            return self._close(record, UNCHANGED, reason, self._refresh(reason))
        if challenger.fingerprint in self.ledger.releases().withdrawn:
            reason = "REFUSED: it is the very model that was rolled back from"
            return self._close(record, REFUSED, reason, self._refresh(reason))
        tags = {"smec.data_fingerprint": record["data"], "smec.cycle": str(self.number)}
        registry_version = self.registry.register(run_folder, challenger.fingerprint, tags)
        self.registry.challenge(registry_version)
        say(f"{self.settings.name} version {registry_version} in MLflow's registry is the challenger")
        verdict = gate.judge(scores, self.settings.gate, self._seen_queries(dataset, challenger))
        record |= {"gate": verdict.as_json(), "registry_version": registry_version}
        figures = [metric(f"gate/{name}", mean, dim) for name, dim, mean in verdict.figures()]
        drift = record["drift"] or {}
        figures += [metric(f"drift/{name}", value) for name, value in drift.items() if value is not None]
        self.registry.note(registry_version, {"smec.gate": verdict.reason}, figures)
        if not verdict.holds:
            return self._close(record, REFUSED, verdict.reason, self._refresh(verdict.reason))
        say(f"gate {verdict.reason}")
        self.ledger.keep_reference(self.number, reference, _by_query(dataset, scores[gate.CHALLENGER]))
        release = Release(
            cycle=self.number,
            trained_in=self.number,
            run=run_folder.name,
            fingerprint=challenger.fingerprint,
            registry_version=registry_version,
            output=self.settings.publish.place,
            version=self.compress(run_folder),
            reason=verdict.reason,
            created=_now(),
        )
        return self._close(record, PROMOTED, verdict.reason, release)

    def _seen_queries(self, dataset: Dataset, challenger: Model) -> np.ndarray | None:
        """Whether champion or challenger has learnt from a relevant document of each gate query; None: not known."""
        champion = [] if self.champion is None else [self.champion.model.seen]
        seen = joined([challenger.seen, *champion])
        return None if seen is None else seen.seen_queries(dataset.splits[HELD_OUT], dataset.ids[0])

    def _close(self, record: dict[str, Any], outcome: str, reason: str, release: Release | None) -> dict[str, Any]:
        """Writes the decision. From here on it stands, whatever happens."""
        record |= {
            "outcome": outcome,
            "reason": reason,
            "release": None if release is None else release._asdict(),
            "decided": _now(),
            "seconds": round(time.monotonic() - self.started, 3),
        }
        if dataset_stamp(self.settings.data) != self.stamp:
            raise SmecError(
                f"{public_uri(self.settings.data)}: changed while it was used; nothing is decided, run again"
            )
        self.lease.check()
        self.ledger.write_cycle(record)
        return record

    def _gate_search(self, challenger: Model, baselines: dict[str, Encode]) -> JudgedSearch:
        """Challenger, champion and baselines, by the gate queries."""
        champion = self.champion
        systems = baselines | {gate.CHALLENGER: challenger.encode}
        if champion is not None:
            systems[gate.CHAMPION] = champion.model.encode
        sides = {name: Sides.same(encode) for name, encode in systems.items()}
        if champion is not None and self.settings.train.compatible:
            sides[gate.OLD_DOCUMENTS] = Sides(queries=challenger.encode, documents=champion.model.encode)
        return JudgedSearch(self.learnt.splits[HELD_OUT], sides, self.dims)

    def _train(self, reference: Reference) -> tuple[RunFolder, Model, dict[str, dict[int, np.ndarray]]]:
        """Trains the challenger, or takes the one that an interrupted cycle has trained.

        Returns:
            Its run, the model, and the nDCG@10 of each gate query by system and dim.
        """
        settings = self.settings
        values = {name: getattr(settings.train, name) for name in type(settings.train).model_fields if name != "start"}
        if settings.train.start == "warm" and self.champion is not None:
            values["warm_start"] = self._run_folder(self.champion.release).model_uri
        else:
            if settings.train.start == "warm":
                say(f"{settings.name}: there is no champion yet, so the first model is trained fresh")
            # nor are there old documents
            values["compatible"] = 0.0
        values |= {"data": settings.data, "storage": settings.storage, "hold_out": settings.gate.fraction}
        searches: list[JudgedSearch] = []

        def beside(model: Model, baselines: dict[str, Encode]) -> list[JudgedSearch]:
            searches.append(self._gate_search(model, baselines))
            return searches

        training = Training(TrainingSettings(**values), settings.name, (self.learnt, self.scanned), beside=beside)
        run_folder = RunFolder(settings.storage, training.name)
        self.ledger.begin_training(run_folder)
        with temporary_folder() as scratch:
            training.finish(run_folder, scratch)
        challenger = load(run_folder.model_uri)
        if not searches:
            # an interrupted cycle has evaluated it, and did not come to compare
            parts = on_cluster(settings.train.worker_range[0], threads_of(settings.train))
            search_judged(self.learnt, beside(challenger, baseline_encoders(reference.moment_DD)), parts)
        return run_folder, challenger, searches[0].scores()

    def _run_folder(self, release: Release) -> RunFolder:
        return RunFolder(self.settings.storage, release.run)

    def compress(self, run_folder: RunFolder) -> str:
        """The finished version of the corpus, which is not in force yet."""
        settings, publish = self.settings, self.settings.publish
        figures = compress(
            CompressSettings(
                model=run_folder.model_uri,
                input=join_uri(settings.data, "corpus"),
                columns=settings.columns,
                output=publish.output,
                dim=publish.dim,
                dtype=publish.dtype,
                gpu="auto" if settings.train.gpu == "wait" else settings.train.gpu,
            )
        )
        version: str = figures["version"]
        return version

    def _refresh(self, reason: str) -> Release | None:
        """A release of the champion with the current corpus; None if there is no champion, or nothing to refresh."""
        if self.champion is None or not self.settings.publish.refresh:
            return None
        release, output = self.champion.release, self.settings.publish.place
        version = self.compress(self._run_folder(release))
        if (output, version) == (release.output, release.version):
            return None
        return release._replace(
            cycle=self.number, output=output, version=version, reason=f"new corpus ({reason})", created=_now()
        )


def _by_query(dataset: Dataset, by_dim: Mapping[int, np.ndarray]) -> QueryScores:
    """The score of each gate query, by its id and dim."""
    query_ids = dataset.ids[1].ids_of(dataset.splits[HELD_OUT].query_row_Q)
    return {
        name: {str(dim): float(value_Q[row]) for dim, value_Q in by_dim.items()} for row, name in enumerate(query_ids)
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
