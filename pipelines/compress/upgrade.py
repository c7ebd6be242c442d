"""The stored vectors that `smec compress --upgrade` starts from, and whether the model's base made them."""

import posixpath

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.console import say, warn
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.tables import MANIFEST
from smec_core.data.uri import join_uri, open_filesystem, public_uri, shown_path
from smec_core.data.versions import VERSION, manifest_of
from smec_core.errors import InputError
from smec_core.model.model import Model


def vectors_of_version(uri: str) -> str:
    """Where the vectors of a published version lie: in its folder of most dims, where it has a folder for each.

    Raises:
        InputError: they are of a type that is not upgraded.
    """
    manifest = manifest_of(*open_filesystem(uri)) or {}
    if manifest.get("dtype") in ("int8", "binary"):
        raise InputError(
            f"{public_uri(uri)}: {manifest['dtype']} vectors cannot be upgraded; give a float version, or the original "
            "embeddings"
        )
    folders = manifest.get("folders")
    return join_uri(uri, folders[0]) if folders else uri


def check_stored(model: Model, name: str, table: EmbeddingTable) -> None:
    """Refuses vectors that the model called `name` cannot upgrade.

    Raises:
        InputError: the model extends no other, or its base did not make these vectors.
    """
    if model.base is None:
        raise InputError(
            f"{name}: extends no other model, so it upgrades no vectors; leave out --upgrade and give the original "
            "embeddings"
        )
    base = model.base.fingerprint[:12]
    folder = posixpath.dirname(table.files[0].path)
    version = posixpath.dirname(folder)
    if posixpath.basename(folder).isdigit() and VERSION.fullmatch(posixpath.basename(version)):
        # a version of several dims has a folder each
        folder = version
    manifest = manifest_of(table.filesystem, folder)
    place = shown_path(table.filesystem, folder)
    if manifest is None:
        say(f"{place}: no {MANIFEST} says which model made these vectors; they are taken as those of the base {base}")
    elif manifest["model_fingerprint"] == model.fingerprint:
        raise InputError(f"{place}: the model {name} made these vectors itself; there is nothing to upgrade")
    elif manifest["model_fingerprint"] != model.base.fingerprint:
        raise InputError(
            f"{place}: the model {manifest['model_fingerprint'][:12]} ({manifest['model']}) made these vectors, but "
            f"{name} upgrades those of its base {base}; give vectors of that, or the original embeddings"
        )
    if stored_type(table) == pa.float16():
        warn("the stored vectors are float16; upgraded, they keep the rounding of that")


def stored_type(table: EmbeddingTable) -> pa.DataType:
    """Number type of the vectors in the first file."""
    kind = pq.read_schema(table.files[0].path, filesystem=table.filesystem).field("embedding").type
    return kind.value_type
