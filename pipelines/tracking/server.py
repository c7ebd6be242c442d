"""The MLflow server: how patient its client is, and the experiment and runs that it holds."""

import logging
import os
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException

EXPERIMENT = "smec"
TRAINING_TAG = "smec.training"
# What the user set stands. MLflow's own patience, 7 retries of up to 120 s each, would hold a training up for minutes.
ENVIRONMENT = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "12",
}


def prepare_mlflow() -> None:
    """Sets how patient MLflow is, and what it says; what the user has set stands."""
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    # Else MLflow prints the run's address to stdout, password and all.
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a line for every retry


def kept_run(client: MlflowClient, run_id: str | None) -> Run | None:
    """A run, where the server has it and it was not deleted."""
    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def run_of(client: MlflowClient, experiment_id: str, training: str, name: str, tags: Mapping[str, str]) -> Run:
    """The run of a training in an experiment, made with a name and tags where it is missing.

    Args:
        client: of the store.
        experiment_id: where it is looked for, and made.
        training: the training's own id, kept in a tag, so that a run is found whose id was never written down.
        name: of a new run.
        tags: of a new run, which has them at once: a kill leaves no run that belongs to nothing.
    """
    found = client.search_runs([experiment_id], f"tags.`{TRAINING_TAG}` = '{training}'", max_results=1)
    return found[0] if found else client.create_run(experiment_id, tags={**tags, TRAINING_TAG: training}, run_name=name)


def experiment_of(client: MlflowClient, name: str = EXPERIMENT, offline: str | None = None) -> Experiment:
    """The experiment that the environment names, as MLflow itself reads it; else that of a name, made where missing.

    Args:
        client: of the store.
        name: of the experiment, where the environment names none.
        offline: artifact folder of a store of our own, in which MLFLOW_EXPERIMENT_ID means nothing.

    Raises:
        RuntimeError: the environment's MLFLOW_EXPERIMENT_ID is none of the server's, or not that of its
            MLFLOW_EXPERIMENT_NAME, or the experiment is deleted.
    """
    named, number = os.environ.get("MLFLOW_EXPERIMENT_NAME"), os.environ.get("MLFLOW_EXPERIMENT_ID")
    if not number or offline is not None:
        return _active(_named(client, named or name, offline))
    try:
        found = client.get_experiment(number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise RuntimeError(
            f"MLFLOW_EXPERIMENT_ID: there is no experiment {number}; name one that is, or unset it"
        ) from error
    if named and named != found.name:
        raise RuntimeError(
            f"MLFLOW_EXPERIMENT_ID: experiment {number} is {found.name!r}, but MLFLOW_EXPERIMENT_NAME is {named!r}; "
            "unset one of the two"
        )
    return _active(found)


def _named(client: MlflowClient, name: str, artifacts: str | None) -> Experiment:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name, artifacts))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another training made it in the meantime
                raise
            found = client.get_experiment_by_name(name)
    assert found is not None
    return found


def _active(found: Experiment) -> Experiment:
    if found.lifecycle_stage != "active":
        raise RuntimeError(
            f"experiment {found.name!r} is deleted: restore it, or name another in MLFLOW_EXPERIMENT_NAME"
        )
    return found
