"""A series of models in MLflow's registry: versions, why each was promoted or refused, and who is champion.

Other than the record of a training, which may be lost, what is in force must be known: whatever fails here raises.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException

import smec_core
from pipelines.runtime.preflight import check_store
from pipelines.storage.run_folder import RunFolder
from pipelines.tracking.files import FINGERPRINT_TAG, log_model
from pipelines.tracking.recorder import ERROR_TAG, LONGEST_TAG, STATE_FILE
from pipelines.tracking.server import experiment_of, kept_run, prepare_mlflow
from smec_core.data.uri import mask, public_uri
from smec_core.errors import InputError, SmecError, one_line
from smec_core.temporary import temporary_folder

CHAMPION, CHALLENGER = "champion", "challenger"


class Registry:
    """The registered model of one name, on the server of MLFLOW_TRACKING_URI."""

    def __init__(self, name: str) -> None:
        """Opens it, and its database where it is one; nothing is asked of a server yet.

        Args:
            name: of the registered model.

        Raises:
            InputError: in a Ray job, no server is named; or the file of the database cannot be opened.
            SmecError: the database does not answer.
        """
        self._name = name
        if "MLFLOW_TRACKING_URI" not in os.environ and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            raise InputError(
                "MLFLOW_TRACKING_URI: is not set, and MLflow's own default lies in the job's folder, which goes away "
                "with it; set it to your MLflow server, here (smec submit sends it along) or on the cluster's machines"
            )
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
        run = kept_run(self._client, (run_folder.read(STATE_FILE) or {}).get("run_id"))
        made_here = run is None
        if run is None:
            experiment = experiment_of(self._client)
            run = self._client.create_run(experiment.experiment_id, run_name=run_folder.name)
        model_id = self._model_of(run, fingerprint)
        if model_id is None:
            try:
                with temporary_folder() as made:
                    run_folder.fetch_model(made)
                    log_model(self._client, run.info.run_id, made, smec_core.load(made))
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
            if self._client.get_logged_model(output.model_id).tags.get(FINGERPRINT_TAG) == fingerprint:
                return str(output.model_id)
        return None

    def note(self, version: str, tags: Mapping[str, str], figures: Sequence[Metric]) -> None:
        """Tags a version and the run that trained it, and adds figures to that run.

        Raises:
            SmecError: the registry cannot be reached.
        """
        with self._reaching():
            for key, value in tags.items():
                self._client.set_model_version_tag(self._name, version, key, value)
            run_id = self._client.get_model_version(self._name, version).run_id
            if run_id:
                notes = [RunTag(key, value[:LONGEST_TAG]) for key, value in tags.items()]
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
        with self._reaching():
            try:
                found = self._client.get_model_version(self._name, version)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise
            return bool(found.tags.get(FINGERPRINT_TAG) == fingerprint)

    def fetch(self, version: str, folder: Path) -> Path | None:
        """Copies the model of a version into a local folder, and gives where; None where it is not to be had."""
        try:
            source = f"models:/{self._name}/{version}"
            made = mlflow.artifacts.download_artifacts(source, dst_path=str(folder))
        except Exception:
            # whatever the store is made of: the caller says what is missing
            return None
        return next((found.parent for found in sorted(Path(made).rglob("adapter.safetensors"))), None)

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
            raise SmecError(
                f"MLflow's registry at {mask(mlflow.get_registry_uri())} fails: {mask(one_line(error))[:300]}; what is "
                "in force stays so; run again when it answers"
            ) from error
