"""A job of a series, killed before one of its durable steps:

python -m tests.pipelines.retrain.interrupted CONFIG retrain|rollback [POINT]

A step is everything that a reader, or the next start, can see of this process: a small file that is written, a folder
that is removed, a request that changes the registry. With no POINT it runs to its end. Prints the steps it did.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipelines.cli.settings import resolve
from pipelines.retrain import job as retrain
from pipelines.retrain import releases, rollback
from pipelines.retrain.settings import RetrainSettings, RollbackSettings
from pipelines.storage.lease import LEASE
from pipelines.storage.run_folder import RunFolder
from pipelines.tracking.recorder import STATE_FILE
from smec_core.data.versions import VERSION
from smec_core.errors import GateError

REGISTRY = (
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
)
STEP = "step: "


def main(config: str, job: str, point: int | None) -> None:
    done: list[str] = []

    def step(name: str) -> None:
        if len(done) == point:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(name)

    def before(owner: Any, name: str, say: Callable[..., str | None]) -> None:
        function = getattr(owner, name)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            if (what := say(*args)) is not None:
                step(f"{name} {what}")
            return function(*args, **kwargs)

        setattr(owner, name, stepped)

    def written(source: str | Path, target: str | Path) -> str | None:
        # as `new_file` does it; a lease is renewed, and MLflow's run is noted, whenever it is time
        is_ours = str(source).startswith(f"{target}.") and Path(target).name not in (LEASE, STATE_FILE)
        return Path(target).name if is_ours else None

    before(os, "replace", written)
    before(os, "link", written)
    before(os, "rename", lambda source, target: Path(target).name if VERSION.fullmatch(Path(target).name) else None)
    for name in REGISTRY:
        before(MlflowClient, name, lambda client, *args: " ".join(map(str, args[:2])))
    before(releases, "remove_version", lambda output, version: version)
    before(RunFolder, "remove", lambda folder: "run")
    try:
        if job == "rollback":
            rollback.run(resolve(RollbackSettings, {}, Path(config)))
        else:
            retrain.run(resolve(RetrainSettings, {}, Path(config)))
    except GateError as refused:
        print(refused)
    print("".join(f"{STEP}{name}\n" for name in done))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
