"""What a URI means, and how it may be shown."""

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from smec_core.data.uri import is_within, join_uri, open_filesystem, public_uri, without_slash
from smec_core.errors import InputError
from smec_core.masking import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:pass@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://me:p/a@ss@host/db", "postgresql://***@host/db"),
        ("http://me:pa'ss@host/x", "http://***@host/x"),
        ("neither 'http://host:80/x' nor 'http://me:p@y'", "neither 'http://host:80/x' nor 'http://***@y'"),
        ("request to https://token@host failed", "request to https://***@host failed"),
        ("postgresql://host/db?user=me&password=hunter2&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("s3://bucket/folder@v2", "s3://bucket/folder@v2"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_credentials_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert mask(text) == masked


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://bucket/a/../b", r"has '\.\.' in its path; write the path out"),
        ("s3://bucket/./a", r"has '\.' in its path; write the path out"),
        ("s3://bucket/a//b", "has '//' in its path; write one slash"),
        ("s3://bucket/a\nb", "has a control character in it"),
        ("s3://bucket#x/a", "has '#' outside the path"),
        ("s3://bucket/a?region=x#part", "has '#' outside the path"),
        ("s3://bucket/a?nonsense=1", "cannot open this URI .*Unexpected query parameter"),
        ("s3://bucket/a?scheme=ftp&region=x", "cannot open this URI .*Invalid S3 connection scheme"),
        ("s3:///a", "cannot open this URI .*Missing bucket name"),
        ("s3a://bucket/a", "cannot open this URI .*Unrecognized filesystem type"),
        ("https://host/a", "cannot open this URI .*Unrecognized filesystem type"),
        ("hdfs://host/a", "cannot open this URI"),
        ("file://host/a", "cannot open this URI"),
        ("file:///a?b", "end the path of a file:// URI"),
        ("file:///a#b", "end the path of a file:// URI"),
        ("://a", "cannot open this URI"),
        ("s3:/bucket/a", r"is half a URI; write s3://\.\.\., or \./s3:/bucket/a for a local path"),
        ("file:/a", "is half a URI; write file://"),
    ],
)
def test_a_uri_that_could_mean_something_else_is_refused(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        open_filesystem(uri)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "why"),
    [("x" * 300, "File name too long"), ("loop", "Too many levels of symbolic links"), ("a\0b", "null byte")],
)
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=rf"cannot be accessed \(.*({why})"):
        open_filesystem(f"{tmp_path}/{name}")


def test_a_refusal_shows_no_credentials() -> None:
    with pytest.raises(InputError) as refused:
        open_filesystem("s3://me:hunter2@bucket/a?nonsense=hunter2")
    assert "hunter2" not in str(refused.value)


def test_files_are_found_by_path_and_by_uri(tmp_path: Path) -> None:
    folder = tmp_path / "a b#c%20d"
    folder.mkdir()
    for uri in (str(folder), folder.as_uri()):
        filesystem, path = open_filesystem(uri)
        assert isinstance(filesystem, pafs.LocalFileSystem)
        assert path == str(folder)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://me:secret@bucket/a#b?region=x", "s3://bucket/a#b"),
        ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
        ("abfs://c:secret@account.dfs.core.windows.net/a", "abfs://account.dfs.core.windows.net/a"),
    ],
)
def test_a_uri_is_shown_without_credentials_and_options(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown


@pytest.mark.parametrize(
    ("uri", "joined"),
    [
        *(("a/b//", "a/b/x"), ("/", "/x"), ("//", "/x"), ("file:///", "file:///x"), ("file:///a/", "file:///a/x")),
        ("s3://bucket/a/?region=r", "s3://bucket/a/x?region=r"),
    ],
)
def test_slashes_at_the_end_do_not_matter(uri: str, joined: str) -> None:
    assert join_uri(uri, "x") == join_uri(without_slash(uri), "x") == joined


def test_the_root_is_the_root_and_nothing_is_no_place() -> None:
    assert [without_slash(path) for path in ("/", "//", "/a/", "")] == ["/", "/", "/a", ""]
    assert open_filesystem(without_slash("file:///"))[1] == "/"
    for use in (open_filesystem, lambda uri: join_uri(uri, "x")):
        with pytest.raises(InputError, match=r"^the path is empty; name a file or folder$"):
            use("")


@pytest.mark.parametrize(
    ("place", "folder", "within"),
    [
        ("d/corpus", "d/corpus/", True),
        ("d/corpus/../queries/a", "d/queries", True),
        ("d/corpus2", "d/corpus", False),
        ("link/a", "d", True),
        ("file://HERE/d%20e/a", "d e", True),
        ("s3a://bucket/d/a?region=x", "s3://key:secret@bucket/d/", True),
        ("s3://bucket/d2", "s3://bucket/d", False),
        ("s3://bucket/d/a?endpoint_override=one", "s3://bucket/d?endpoint_override=other", False),
        ("s3://bucket/d/a", "bucket/d", False),
        ("a", "/", True),
        ("a\0", "a", False),
    ],
)
def test_a_place_lies_in_a_folder_however_both_are_written(
    place: str, folder: str, within: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("d")
    assert is_within(place.replace("HERE", str(tmp_path)), folder) == within
