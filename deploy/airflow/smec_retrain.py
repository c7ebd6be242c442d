"""Retrains every night, as a job on a Ray cluster. For Airflow 3: set CONFIG and copy this file into the DAGs folder.

Airflow's workers need the command `smec`, which cannot be installed beside Airflow (both pin FastAPI), so in an
environment of its own, with what `make wheel` has left in dist:

    python3.11 -m venv /opt/smec
    /opt/smec/bin/pip install -c constraints.txt smec_ray-*.whl
    ln -s /opt/smec/bin/smec /usr/local/bin/smec

and in their environment:

    RAY_API_SERVER_ADDRESS   http://HOST:8265, the cluster's dashboard
    RAY_AUTH_MODE            token
    RAY_AUTH_TOKEN           the cluster's token, from the secrets of Airflow's own deployment
    MLFLOW_TRACKING_URI      the series' MLflow server

The task succeeds when a model was released, or there is nothing to do. It is skipped when the gate refused the new
model and the old one stays in force (exit code 3), or another run is working on the series (4). Bad settings or data
and damaged state (2) fail it at once, anything else after two more tries.

The job has the id of Airflow's run. A task that is tried again or cleared, after a lost worker or a timeout, follows
the job that still runs, or takes the result of the one that is done. Whoever marks a task as failed leaves its job
running; `ray job stop` with the id that the task's log names ends that.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import DAG, BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

CONFIG = "/shared/retrain.yaml"
"""Settings of the series, on the cluster. A file that Airflow's worker has at this path is sent along instead."""


class SmecRetrain(BaseOperator):
    """Runs `smec submit -- retrain`, and makes a task state of its exit code. No shell reads the run's id."""

    hook: SubprocessHook | None = None

    def execute(self, context: Context) -> None:
        """Follows the job to its end."""
        command = ["smec", "submit", f"--id={context['run_id']}", "--", "retrain", "--config", CONFIG]
        self.hook = SubprocessHook()
        ended = self.hook.run_command(command)
        message = f"exit code {ended.exit_code}: {ended.output}"
        if ended.exit_code in (3, 4):
            raise AirflowSkipException(message)
        if ended.exit_code == 2:
            raise AirflowFailException(message)
        if ended.exit_code != 0:
            raise AirflowException(message)

    def on_kill(self) -> None:
        """Ends the command; the job goes on."""
        if self.hook is not None:
            self.hook.send_sigterm()


with DAG(
    dag_id="smec_retrain",
    schedule="0 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
):
    SmecRetrain(task_id="retrain", execution_timeout=timedelta(hours=6))
