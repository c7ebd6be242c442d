"""The real client of the Hugging Face Hub against a server that answers as the Hub does."""

import pickle
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from smec_core.data.dataset import Dataset, dataset_stamp
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.tables import find_table
from smec_core.data.uri import open_filesystem
from smec_core.errors import InputError, SmecError, StoreError, StoreUnreachable
from tests.builders import write_dataset
from tests.hub import DATASET, REPO, TOKEN, Hub

URI = f"hf://datasets/{REPO}/v1"


@pytest.fixture
def data(hub: Hub, tmp_path: Path) -> Path:
    folder = write_dataset(tmp_path / "data", docs=60, queries=40, dim=8)
    hub.push(folder)
    return folder


def test_a_dataset_of_the_hub_is_that_of_its_files(data: Path, hub: Hub) -> None:
    here, there = Dataset.open(str(data)), Dataset.open(URI)
    assert there.corpus.rows == 60 and len(there.corpus.files) == 3
    assert there.fingerprint == here.fingerprint
    there.check_unchanged()
    for revision in ("main", "refs/convert/parquet", f"{1:040d}"):
        assert Dataset.open(URI.replace(REPO, f"{REPO}@{revision}")).fingerprint == here.fingerprint
    assert EmbeddingTable.open(f"{URI}/corpus/part-0.parquet").rows == 20


def test_what_is_open_is_one_commit_and_a_push_is_seen(data: Path, hub: Hub) -> None:
    opened, stamp = Dataset.open(URI), dataset_stamp(URI)
    # a commit that changes none of these files changes no stamp
    hub.push(data)
    assert dataset_stamp(URI) == stamp
    target = data / "corpus/part-1.parquet"
    content = target.read_bytes()
    target.write_bytes((data / "corpus/part-2.parquet").read_bytes())
    hub.push(data)
    ids = opened.corpus.ids().to_pylist()
    assert ids == [f"d{row}" for row in range(60)]
    assert dataset_stamp(URI) != stamp
    with pytest.raises(SmecError, match="changed while it was used"):
        opened.check_unchanged()
    target.write_bytes(content)
    hub.push(data)
    opened.check_unchanged()


def test_it_travels_to_other_processes_with_its_token(data: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private.add(DATASET)
    with pytest.raises(InputError, match=r"v1: the Hub has no such dataset.*set HF_TOKEN"):
        open_filesystem(URI)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    filesystem, path = open_filesystem(URI)
    monkeypatch.delenv("HF_TOKEN")
    copy = pickle.loads(pickle.dumps(filesystem))
    assert copy == filesystem
    assert [name.rpartition("/")[2] for name in find_table(copy, f"{path}/corpus")] == [
        f"part-{number}.parquet" for number in range(3)
    ]
    assert TOKEN not in repr(filesystem) + repr(filesystem.handler) + path


def test_a_wrong_token_is_refused_and_not_shown(data: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.private.add(DATASET)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(InputError) as refused:
        open_filesystem(URI)
    assert "hf_another" not in str(refused.value)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("hf://someone/model", "no such model, .*a dataset is hf://datasets/USER/NAME"),
        ("hf://spaces/someone/app", "only datasets and models are read from the Hub"),
        ("hf://datasets/someone", "is not of the form hf://datasets/USER/NAME"),
        (f"{URI}?token=x", "hf:// has no options; the token is read from HF_TOKEN"),
        ("hf://datasets/nobody/nothing/v1", "the Hub has no such dataset"),
        (URI.replace(REPO, f"{REPO}@gone"), "no such revision"),
        (f"hf:/datasets/{REPO}", "is half a URI"),
    ],
)
def test_what_is_no_dataset_there_is_refused(data: Path, hub: Hub, uri: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as refused:
        Dataset.open(uri)
    assert "token=x" not in str(refused.value)


def test_a_missing_table_is_told(data: Path, hub: Hub) -> None:
    with pytest.raises(InputError, match=r"none: there is no such file or folder"):
        EmbeddingTable.open(f"{URI}/none")
    with pytest.raises(InputError, match=r"v1/queries.parquet: lies in a subfolder"):
        EmbeddingTable.open(f"hf://datasets/{REPO}")
    filesystem, path = open_filesystem(URI)
    with pytest.raises(FileNotFoundError):
        filesystem.open_input_file(f"{path}/none")
    with pytest.raises(FileNotFoundError):
        filesystem.get_file_info(pafs.FileSelector(f"{path}/none"))


def test_a_hub_that_fails_is_no_empty_folder(data: Path, hub: Hub) -> None:
    filesystem, path = open_filesystem(URI)
    # which the client does not try again
    hub.fails, hub.status = "/tree/", 403
    with pytest.raises(StoreError, match=r"v1/corpus: the Hub refuses it \(.*; check the name and HF_TOKEN"):
        find_table(filesystem, f"{path}/corpus")
    hub.fails, hub.status = "/revision/", 503
    with pytest.raises(StoreUnreachable, match=r"v1: the Hub cannot serve it now \(.*; run again"):
        open_filesystem(URI)


def test_the_hub_is_not_written(data: Path, hub: Hub) -> None:
    filesystem, path = open_filesystem(URI)
    for write in (filesystem.open_output_stream, filesystem.create_dir, filesystem.delete_dir, filesystem.delete_file):
        with pytest.raises(StoreError, match=r"v1/new: the Hub is only read; write to another place"):
            write(f"{path}/new")
