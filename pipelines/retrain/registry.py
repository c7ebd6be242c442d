"""A series of models in MLflow's registry: versions, why each was promoted or refused, and who is champion.

Other than the record of a training, which may be lost, what is in force must be known: whatever fails here raises.
"""

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import FileInfo, Metric, Run, RunTag
from mlflow.exceptions import MlflowException

import smec_core
from pipelines.runtime.preflight import check_store
from pipelines.storage.files import sizes_of
from pipelines.storage.run_folder import RunFolder
from pipelines.tracking.files import FINGERPRINT_TAG, log_model, log_model_files
from pipelines.tracking.recorder import ERROR_TAG, LONGEST_TAG, STATE_FILE
from pipelines.tracking.server import experiment_of, kept_run, prepare_mlflow, run_of
from smec_core.data.uri import open_filesystem, public_uri
from smec_core.errors import InputError, SmecError, one_line
from smec_core.masking import mask
from smec_core.shown import safe_line
from smec_core.temporary import temporary_folder

CHAMPION, CHALLENGER = "champion", "challenger"
ARTIFACTS = "artifacts/model"
"""Where a logged model has the files of the model folder."""
LOGGED = "models:/"
"""How the source of a version begins, before the id of its logged model."""


class Registry:
    """The registered model of one name, on the server of MLFLOW_TRACKING_URI."""

    def __init__(self, name: str, is_empty: bool = False) -> None:
        """Opens it, and its database where it is one; nothing is asked of a server yet.

        Args:
            name: of the registered model.
            is_empty: whether its database is not there yet, and is not to be made.

        Raises:
            InputError: in a Ray job, no server is named; or the file of the database cannot be opened.
            SmecError: the database does not answer.
        """
        self._name, self._is_empty = name, is_empty
        if "MLFLOW_TRACKING_URI" not in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            raise InputError(
                "MLFLOW_TRACKING_URI: is not set, and MLflow's own default lies in the job's folder, which goes away "
                "with it; set it to your MLflow server, here (smec submit sends it along) or on the cluster's machines"
            )
        if is_empty:
            return
        try:
            check_store(mlflow.get_registry_uri())
        except SmecError as error:
            raise type(error)(f"MLflow's registry at {self.address} fails: {error}") from error

    @property
    def address(self) -> str:
        """Of the registry, without credentials."""
        return public_uri(mlflow.get_registry_uri())

    @cached_property
    def _client(self) -> MlflowClient:
        # a client opens its store at once
        prepare_mlflow()
        return MlflowClient()

    def register(self, run_folder: RunFolder, fingerprint: str, tags: Mapping[str, str]) -> str:
        """The version of a finished training's model, made where there is none of this fingerprint yet.

        Args:
            run_folder: the training's folder.
            fingerprint: of its model.
            tags: of the version.

        Raises:
            SmecError: the registry cannot be reached.
        """
        with self._reaching():
            try:
                self._client.create_registered_model(self._name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            # neither the name nor a fingerprint has quotes
            known = f"name = '{self._name}' and tag.`{FINGERPRINT_TAG}` = '{fingerprint}'"
            for version in self._client.search_model_versions(known):
                return str(version.version)
            run_id, model_id = self._logged(run_folder, fingerprint)
            version = self._client.create_model_version(
                self._name,
                f"models:/{model_id}",
                run_id,
                {FINGERPRINT_TAG: fingerprint, **tags},
                model_id=model_id,
            )
            return str(version.version)

    def _logged(self, run_folder: RunFolder, fingerprint: str) -> tuple[str, str]:
        """Ids of the training's run and of its model there; both are made where the server has missed them."""
        state = run_folder.read(STATE_FILE) or {}
        run = kept_run(self._client, state.get("run_id"))
        made_here = run is None
        if run is None:
            experiment_id = experiment_of(self._client).experiment_id
            run = run_of(self._client, experiment_id, state.get("training", fingerprint), run_folder.name, {})
        model_id = self._model_of(run, fingerprint)
        if model_id is None:
            try:
                with temporary_folder() as made:
                    folder = _fetched(run_folder, made)
                    log_model(self._client, run.info.run_id, folder, smec_core.load(folder))
            except BaseException:
                with suppress(Exception):
                    self._client.set_terminated(run.info.run_id, "FAILED")
                raise
            if made_here or ERROR_TAG not in run.data.tags:
                # of a run that has missed more than its model the status stays
                self._client.set_terminated(run.info.run_id)
            model_id = self._model_of(self._client.get_run(run.info.run_id), fingerprint)
        return run.info.run_id, str(model_id)

    def _model_of(self, run: Run, fingerprint: str) -> str | None:
        """Id of the run's model of this fingerprint: a training that was killed at its end may have logged two."""
        for output in run.outputs.model_outputs if run.outputs else []:
            try:
                tags = self._client.get_logged_model(output.model_id).tags
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                continue
            if tags.get(FINGERPRINT_TAG) == fingerprint:
                return str(output.model_id)
        return None

    def note(self, version: str, tags: Mapping[str, str], figures: Sequence[Metric]) -> None:
        """Tags a version and the run that trained it, and adds figures to that run.

        Raises:
            SmecError: the registry cannot be reached.
        """
        with self._reaching():
            for key, value in tags.items():
                self._client.set_model_version_tag(self._name, version, key, safe_line(value, LONGEST_TAG))
            run_id = self._client.get_model_version(self._name, version).run_id
            if run_id:
                notes = [RunTag(key, safe_line(value, LONGEST_TAG)) for key, value in tags.items()]
                self._client.log_batch(run_id, metrics=figures, tags=notes)

    def challenge(self, version: str) -> None:
        """Lets the alias `challenger` name a version.

        Raises:
            SmecError: the registry cannot be reached.
        """
        with self._reaching():
            self._client.set_registered_model_alias(self._name, CHALLENGER, version)

    def has(self, version: str, fingerprint: str) -> bool:
        """Whether a version is there, with that model.

        Raises:
            SmecError: the registry cannot be reached.
        """
        if self._is_empty:
            return False
        with self._reaching():
            try:
                found = self._client.get_model_version(self._name, version)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise
            return bool(found.tags.get(FINGERPRINT_TAG) == fingerprint)

    def fetch(self, version: str, fingerprint: str, folder: Path) -> Path | None:
        """Copies the model of a version into a local folder, and gives where; None where that model is not to be had.

        Args:
            version: of the registered model.
            fingerprint: of the model that it must be.
            folder: an empty one.
        """
        try:
            source = f"models:/{self._name}/{version}"
            made = mlflow.artifacts.download_artifacts(source, dst_path=str(folder))
        except Exception:
            # whatever the store is made of: the caller says what is missing
            return None
        stored = next((found.parent for found in sorted(Path(made).rglob("adapter.safetensors"))), None)
        with suppress(InputError):
            if stored is not None and smec_core.load(stored).fingerprint == fingerprint:
                return stored
        return None

    def lacks(self, version: str, folder: str) -> str | None:
        """What a version's files lack, by their sizes, of a model that is stored; None where they are all there.

        Args:
            version: of the registered model.
            folder: of the model, path or URI.

        Raises:
            SmecError: the registry cannot be reached.
        """
        stored = sizes_of(*open_filesystem(folder))
        with self._reaching():
            source = self._client.get_model_version(self._name, version).source or ""
            if not source.startswith(LOGGED):
                # not of ours
                return None
            try:
                return self._lacks(source.removeprefix(LOGGED), stored)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return "has lost its logged model"

    def _lacks(self, model_id: str, stored: Mapping[str, int]) -> str | None:
        def listed(path: str) -> list[FileInfo]:
            try:
                return list(self._client.list_logged_model_artifacts(model_id, path))
            except FileNotFoundError:
                return []

        # one that was deleted still has files, but gives none of them
        self._client.get_logged_model(model_id)
        problem = f"lacks {ARTIFACTS}"
        # earlier versions gave the folder another name
        for folder in (one.path for one in listed(posixpath.dirname(ARTIFACTS)) if one.is_dir):
            found = {posixpath.basename(one.path): one.file_size for one in listed(folder)}
            if not (wrong := [name for name, size in stored.items() if found.get(name) != size]):
                return None
            has = f"has {found[wrong[0]]:,} bytes instead of {stored[wrong[0]]:,} in" if wrong[0] in found else "lacks"
            problem = f"{has} {folder}/{wrong[0]}"
        return problem

    def log_again(self, version: str, run_folder: RunFolder, fingerprint: str) -> str:
        """Puts a stored model's files in the place of those that a version has lost.

        Args:
            version: of the registered model.
            run_folder: where the model is stored.
            fingerprint: of the model.

        Returns:
            The version that has it now: another one where the old one's logged model is gone.

        Raises:
            SmecError: the registry cannot be reached.
        """
        with self._reaching(), temporary_folder() as made:
            folder = _fetched(run_folder, made)
            source = self._client.get_model_version(self._name, version).source or ""
            try:
                logged = self._client.get_logged_model(source.removeprefix(LOGGED))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                # by which it would be found
                self._client.delete_model_version_tag(self._name, version, FINGERPRINT_TAG)
            else:
                log_model_files(self._client, logged, folder, smec_core.load(folder))
                return version
        return self.register(run_folder, fingerprint, {})

    @property
    def champion(self) -> str | None:
        """The version that the alias `champion` names.

        Raises:
            SmecError: the registry cannot be reached.
        """
        if self._is_empty:
            return None
        with self._reaching():
            try:
                version = self._client.get_registered_model(self._name).aliases.get(CHAMPION)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
            return None if version is None else str(version)

    def set_alias(self, version: str) -> bool:
        """Lets the alias `champion` name a version, which then is no challenger any more; whether it named another.

        Raises:
            SmecError: the registry cannot be reached.
        """
        with self._reaching():
            aliases = self._client.get_registered_model(self._name).aliases
            differs = str(aliases.get(CHAMPION)) != version
            if differs:
                self._client.set_registered_model_alias(self._name, CHAMPION, version)
            if str(aliases.get(CHALLENGER)) == version:
                self._client.delete_registered_model_alias(self._name, CHALLENGER)
            return differs

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except SmecError:
            # the storage's, not the registry's
            raise
        except Exception as error:
            # of whatever the store is made of: HTTP, SQL, files
            where, why = mask(mlflow.get_registry_uri()), safe_line(one_line(error), 300)
            raise SmecError(
                f"MLflow's registry at {where} fails: {why}; what is in force stays so; run again when it answers"
            ) from error


def _fetched(run_folder: RunFolder, made: Path) -> Path:
    """A copy of a run's model, in a folder of the name that MLflow is to have for it."""
    folder = made / posixpath.basename(ARTIFACTS)
    folder.mkdir()
    run_folder.fetch_model(folder)
    return folder
