"""A real S3 server that refuses: what may be read is read, and the rest is told of in one line."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from pipelines.storage.publish import Draft
from pipelines.storage.run_folder import RunFolder
from smec_core.data.dataset import Dataset
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.uri import join_uri, open_filesystem, public_uri, shown_path
from smec_core.errors import InputError, SmecError, StoreError, StoreUnreachable
from tests.builders import write_dataset
from tests.conftest import GuardedBucket


def test_a_role_of_its_own_folder_reads_the_dataset_there(guarded_s3: GuardedBucket) -> None:
    dataset = Dataset.open(guarded_s3.uri("team/data"))
    assert (dataset.corpus.rows, dataset.queries.rows, set(dataset.splits)) == (60, 40, {"train", "test"})
    assert sum(len(block.ids) for block in dataset.corpus.blocks()) == 60
    # nor may it ask for a key of the folder's own name
    assert EmbeddingTable.open(guarded_s3.uri("team/data/corpus")).rows == 60
    # nor for the bucket vectors.parquet, whose contents it may not list either
    assert EmbeddingTable.open(guarded_s3.uri("vectors")).rows == 60
    assert len(dataset.fingerprint) == 16


def test_what_the_role_may_not_read_is_refused(guarded_s3: GuardedBucket) -> None:
    for uri in (guarded_s3.uri("other/data"), guarded_s3.uri("other/data").replace("@guarded", "@nobody")):
        with pytest.raises(
            InputError, match=r"other/data.*: cannot be (read|listed) \(.*ACCESS_DENIED.*; check the ad"
        ):
            Dataset.open(uri)
    # whatever the words in its name
    with pytest.raises(StoreError, match=r"internal/timeout.*: cannot be read \(.*ACCESS_DENIED"):
        Dataset.open(guarded_s3.uri("internal/timeout"))
    filesystem, path = open_filesystem(guarded_s3.uri("team/data/new"))
    with pytest.raises(StoreError, match=r"team/data/new: cannot be written \(.*ACCESS_DENIED"):
        filesystem.open_output_stream(path)


def test_a_wrong_key_is_refused_and_not_shown(guarded_s3: GuardedBucket) -> None:
    wrong = guarded_s3._replace(secret="wrong/secret+of=mine")
    with pytest.raises(InputError) as refused:
        Dataset.open(wrong.uri("team/data"))
    assert "wrong" not in str(refused.value)


def test_a_server_that_does_not_answer_is_worth_another_try(guarded_s3: GuardedBucket) -> None:
    uri = guarded_s3._replace(address="127.0.0.1:9").uri("team/data")
    filesystem, path = open_filesystem(uri)
    with pytest.raises(StoreUnreachable, match=r"team/data: cannot be read now \(.*; run again") as failed:
        filesystem.get_file_info(path)
    assert isinstance(failed.value, SmecError) and failed.value.exit_code == 1
    for write in (RunFolder(uri, "run").create, lambda: Draft.open(uri, {})):
        with pytest.raises(StoreUnreachable, match=r"cannot be (read|written) now"):
            write()


def test_a_damaged_file_is_named_by_its_uri(s3: Callable[[str], str], tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", docs=24, queries=40, dim=8, files=1) / "corpus/part-0.parquet"
    filesystem, folder = open_filesystem(s3("a/corpus"))
    place = public_uri(s3("a/corpus"))

    def put(content: bytes) -> None:
        with filesystem.open_output_stream(f"{folder}/0.parquet") as sink:
            sink.write(content)

    put(data.read_bytes()[:-100])
    with pytest.raises(InputError) as unreadable:
        EmbeddingTable.open(s3("a/corpus"))
    null = pq.read_table(data).set_column(0, "id", [[None, *(f"d{row}" for row in range(23))]])
    pq.write_table(null, tmp_path / "null.parquet")
    put((tmp_path / "null.parquet").read_bytes())
    with pytest.raises(InputError) as null_id:
        list(EmbeddingTable.open(s3("a/corpus")).blocks())
    for error in (unreadable, null_id):
        assert str(error.value).startswith(f"{place}/0.parquet: ")
    assert shown_path(pickle.loads(pickle.dumps(filesystem)), f"{folder}/x") == f"{place}/x"
    assert shown_path(pafs.LocalFileSystem(), "/data/x") == "/data/x"


def test_file_systems_travel_to_other_processes(s3: Callable[[str], str]) -> None:
    filesystem, path = open_filesystem(s3("folder"))
    with filesystem.open_output_stream(f"{path}/file") as sink:
        sink.write(b"content")
    copy = pickle.loads(pickle.dumps(filesystem))
    assert copy == filesystem
    with copy.open_input_stream(f"{path}/file") as source:
        # by which a reader sees that a file was replaced
        assert source.metadata()["ETag"]
        assert source.read() == b"content"
    with pytest.raises(FileNotFoundError):
        copy.open_input_file(f"{path}/missing")


NAMES = [
    "a#b",
    "a%20b",
    "a b",
    "a+b",
    "ü",
    "a;b",
    "a=1&b=2",
    "a'b",
    'a"b',
    "(a)",
    "a\\b",
    "100%",
    "%41",
    "a:b",
    "a@b",
    "*",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_key_is_what_the_user_wrote(s3: Callable[[str], str], name: str, tmp_path: Path) -> None:
    filesystem, root = pafs.FileSystem.from_uri(s3(""))
    table = pq.read_table(
        write_dataset(tmp_path / "data", docs=24, queries=40, dim=8, files=1) / "corpus/part-0.parquet"
    )
    # beside it what other readings of the name would lead to
    for other in dict.fromkeys(["a", "a b", "A", "aXb", name]):
        rows = table if other == name else table.slice(0, 3)
        pq.write_table(rows, f"{root}/{other}/0.parquet", filesystem=filesystem)
    assert EmbeddingTable.open(s3(name)).rows == 24
    assert EmbeddingTable.open(join_uri(s3(""), name)).rows == 24
