"""A cycle of a series: what is known when it starts, and its steps, from the data to the decision."""

import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.compress import CompressSettings, compress
from pipelines.console import say
from pipelines.data.opened import open_dataset
from pipelines.data.source import scan_data
from pipelines.retrain.anchor import Released, beats, find_anchor, gate_sides, look_at_known
from pipelines.retrain.damage import Damage
from pipelines.retrain.drift import (
    by_query,
    check_data,
    drift_since,
    encoder_of,
    refuses_data,
)
from pipelines.retrain.ledger import Release
from pipelines.retrain.releases import NOTHING_NEW, PROMOTED, REFUSED, REPAIRED, UNCHANGED, ReleaseManager
from pipelines.runtime.cluster import threads_of
from pipelines.runtime.evaluation import on_cluster
from pipelines.storage.publish import checksum_of_version
from pipelines.storage.run_folder import RunFolder, digest
from pipelines.tracking.files import metric
from pipelines.train import Training, TrainingSettings
from smec_core.data.dataset import HELD_OUT, Dataset, dataset_stamp
from smec_core.data.seen import joined
from smec_core.data.segments import Segments
from smec_core.data.uri import join_uri, public_uri
from smec_core.errors import SmecError
from smec_core.evaluation import gate
from smec_core.evaluation.corpus_search import Encode, JudgedSearch, search_judged
from smec_core.evaluation.drift import Reference
from smec_core.evaluation.evaluate import baseline_encoders
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.temporary import temporary_folder
from smec_core.training.scanned import ScannedData
from smec_core.training.schedule import prefix_dims

KEPT = ("run", "challenger", "encoder", "known_queries", "anchor_known_queries")
"""What of a record stays so while vectors and judgements do. The anchor is not: a rollback may have chosen another."""


class Cycle:
    """One cycle of a series: what is known when it starts, and its steps."""

    def __init__(self, manager: ReleaseManager) -> None:
        self.settings, self.ledger, self.lease = manager.settings, manager.ledger, manager.lease
        self.registry = manager.registry
        self.identity, self.stamp = digest(self.settings.identity()), dataset_stamp(self.settings.data)
        self.started = time.monotonic()

    @cached_property
    def last(self) -> dict[str, Any] | None:
        """The last decision, once the records are known to be whole."""
        return self.ledger.last_cycle()

    @property
    def number(self) -> int:
        """That of this cycle."""
        return 1 if self.last is None else self.last["cycle"] + 1

    @cached_property
    def dataset(self) -> Dataset:
        """The data as they are, opened when they are first needed."""
        settings = self.settings
        return open_dataset(settings.data, exclude_self=settings.train.exclude_self, columns=settings.columns)

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
    def champion(self) -> Released | None:
        """What is in force; None before the first release."""
        release = self.ledger.releases().champion
        return None if release is None else Released(release, load(self._run_folder(release).model_uri))

    @cached_property
    def anchor(self) -> Released | None:
        """The best so far, which the challenger is compared with, too: the champion itself where that is the best."""
        release, champion = find_anchor(self.ledger, self.settings), self.champion
        if release is None or champion is None or release.fingerprint == champion.release.fingerprint:
            return champion
        return Released(release, load(self._run_folder(release).model_uri))

    @property
    def fingerprint(self) -> str:
        """That of the data."""
        self.scanned  # noqa: B018 it has the fingerprint
        return self.learnt.fingerprint

    @property
    def dims(self) -> tuple[int, ...]:
        """The prefixes that the gate looks at."""
        return prefix_dims(self.dataset.dim, self.settings.train.dims)

    def unless_nothing_new(self, repaired: list[Damage], was_cut_short: bool) -> dict[str, Any] | None:
        """A record that says so, where neither data nor settings are new since the last decision.

        Args:
            repaired: what was damaged when this process started.
            was_cut_short: whether the last decision came into force only now: nobody has heard of it yet.
        """
        last = self.last
        if last is None or last["identity"] != self.identity:
            return None
        if last["stamp"] != self.stamp and not (was_cut_short and self._teaches_nothing_new):
            return None
        known = f"{self.settings.name}: data and settings are those of cycle {last['cycle']} ({last['reason']})"
        if was_cut_short:
            say(f"{known}, whose release was not in force yet")
            return last
        say(f"{known}; {f'repaired: {len(repaired)}' if repaired else 'there is nothing to do'}")
        return {**last, "outcome": REPAIRED if repaired else NOTHING_NEW}

    @cached_property
    def _teaches_nothing_new(self) -> bool:
        """Whether the last decision was on these settings, vectors and judgements, in whatever files."""
        last = self.last
        if last is None or last["identity"] != self.identity:
            return False
        # what a fingerprint is made of has no column of segments
        segments = self._segments and self._segments.digest
        return bool(last.get("segments") == segments and last["data"] == self.fingerprint)

    def decide(self) -> dict[str, Any]:
        """Reads, trains and compares; writes the decision, with all that it needs.

        Where files are new but vectors and judgements are the same, nothing is trained: the champion compresses them.

        Returns:
            The cycle's record.
        """
        if self.last is not None and self._teaches_nothing_new:
            reason = "unchanged: files are new, vectors and judgements are the same"
            # for a kill: clean is to leave what is made now
            self.ledger.begin_training(RunFolder(self.settings.storage, self.last["run"]), self.number)
            release = None if refuses_data(self.last, self.settings.gate.max_drop) else self._refresh(reason)
            record = self._record(
                drift=None, trained=False, **{key: self.last[key] for key in KEPT if key in self.last}
            )
            return self._close(record, UNCHANGED, reason, release)
        # an anchor that is named and not there is refused here, before anything is trained
        settings, champion, dataset, _ = self.settings, self.champion, self.learnt, (self.anchor, self._segments)
        reference, encoder = Reference.of(dataset.corpus.rows, self.scanned.docs), encoder_of(settings.data)
        drift = None
        if champion is not None:
            drift = drift_since(self.ledger, champion.release, settings.data, encoder, reference)
        run_folder, challenger, scores = self._train(reference)
        record = self._record(
            drift=None if drift is None else asdict(drift),
            anchor=None if self.anchor is None else self.anchor.release.trained_in,
            run=run_folder.name,
            challenger=challenger.fingerprint,
            encoder=encoder,
        )
        known = look_at_known(self.ledger, dataset, scores, champion, self.anchor, settings.gate.max_drop)
        record |= known.record
        if known.problem is not None:
            return self._close(record, REFUSED, known.problem, None)
        return self._challenge(record, run_folder, challenger, reference, scores)

    def _record(self, **found: Any) -> dict[str, Any]:
        """What this cycle was about, and what was found."""
        return {
            "cycle": self.number,
            "identity": self.identity,
            "stamp": self.stamp,
            "data": self.fingerprint,
            "gate_fraction": self.settings.gate.fraction,
            "segments": self._segments and self._segments.digest,
            "champion": None if self.champion is None else self.champion.release.fingerprint,
            **found,
        }

    @cached_property
    def _segments(self) -> Segments | None:
        """Those of the gate queries, where the gate is held by them; refuses what would be trained in vain."""
        champion = None
        if self.champion is not None:
            fraction = self.ledger.cycle(self.champion.release.trained_in)["gate_fraction"]
            champion = self.champion.model.dims, fraction
        return check_data(self.settings, self.learnt, self.dims, champion)

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
        seen_Q = self._seen_queries(dataset, challenger)
        verdict = gate.judge(scores, self.settings.gate, seen_Q, self._segments)
        record |= {"gate": verdict.as_json(), "registry_version": registry_version}
        figures = [metric(f"gate/{name}", mean, dim) for name, dim, mean in verdict.figures()]
        drift = record["drift"] or {}
        figures += [metric(f"drift/{name}", value) for name, value in drift.items() if value is not None]
        self.registry.note(registry_version, {"smec.gate": verdict.reason}, figures)
        if not verdict.holds:
            return self._close(record, REFUSED, verdict.reason, self._refresh(verdict.reason))
        say(f"gate {verdict.reason}")
        reached = by_query(dataset, scores[gate.CHALLENGER])
        if self.anchor is None or beats(self.ledger, self.anchor.release, scores, reached):
            record["anchor"] = self.number
        self.ledger.keep_reference(self.number, reference, reached)
        version = self.compress(run_folder)
        release = Release(
            cycle=self.number,
            trained_in=self.number,
            run=run_folder.name,
            fingerprint=challenger.fingerprint,
            registry_version=registry_version,
            output=self.settings.publish.place,
            version=version,
            reason=verdict.reason,
            created=_now(),
            manifest=checksum_of_version(self.settings.publish.output, version),
        )
        return self._close(record, PROMOTED, verdict.reason, release)

    def _seen_queries(self, dataset: Dataset, challenger: Model) -> np.ndarray | None:
        """Whether any compared model has learnt from a relevant document of each gate query; None: not known."""
        others = {one.release.run: one.model.seen for one in (self.champion, self.anchor) if one is not None}
        seen = joined([challenger.seen, *others.values()])
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
            sides = gate_sides(baselines, model, self.champion, self.anchor, bool(settings.train.compatible))
            searches.append(JudgedSearch(self.learnt.splits[HELD_OUT], sides, self.dims))
            return searches

        training = Training(TrainingSettings(**values), settings.name, (self.learnt, self.scanned), beside=beside)
        run_folder = RunFolder(settings.storage, training.name)
        self.ledger.begin_training(run_folder, self.number)
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
        manifest = checksum_of_version(self.settings.publish.output, version)
        now, reason = _now(), f"new corpus ({reason})"
        return release._replace(
            cycle=self.number, output=output, version=version, reason=reason, created=now, manifest=manifest
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
