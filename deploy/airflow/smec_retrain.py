"""Retrains every night, as a job on a Ray cluster. For Airflow 3: copy this file into the DAGs folder.

The workers of Airflow need the wheel and the constraints of `make wheel`, and in their environment:

    RAY_API_SERVER_ADDRESS   http://HOST:8265, the cluster's dashboard
    RAY_AUTH_MODE            token
    RAY_AUTH_TOKEN           the cluster's token, from the secrets of Airflow's own deployment

A run that Airflow tries again, after a lost worker or a timeout of its own, follows the job that still runs, or takes
the result of the one that is done: its id is that of Airflow's run.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="smec_retrain",
    schedule="0 3 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
):
    BashOperator(
        task_id="retrain",
        # /shared/retrain.yaml lies on the cluster; one on Airflow's workers would be sent along
        bash_command='exec smec submit --id "$RUN_ID" -- retrain --config /shared/retrain.yaml',
        # whoever starts a run by hand chooses its id, so no shell reads it as a part of the command
        env={"RUN_ID": "{{ run_id }}"},
        append_env=True,
        # not failures: 3, the gate refused the new model and the old one stays in force; 4, another run is at it
        skip_on_exit_code=[3, 4],
        execution_timeout=timedelta(hours=6),
    )
