"""Vectors that `smec compress` and `smec retrain` have published, as programs and vector stores read them.

Shapes: N rows of a batch, d dims of a vector, b = ceil(d / 8) bytes of signs.
"""

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from smec_core.config import VectorType
from smec_core.data.parquet import READ_ROWS
from smec_core.data.parquet_files import ParquetRows
from smec_core.data.records import checksum_of
from smec_core.data.stored_files import files_of, problem_of
from smec_core.data.table_files import stamp_of_file
from smec_core.data.tables import MANIFEST
from smec_core.data.uri import join_uri, public_uri
from smec_core.data.versions import (
    COPY_AGAIN,
    in_force,
    manifest_of_version,
    manifest_to_read,
    open_folder,
    stored_dims,
)
from smec_core.errors import DamagedError, InputError, SmecError
from smec_core.model.files import load
from smec_core.model.model import Model
from smec_core.model.vector_types import RESCORE


class Changes(NamedTuple):
    """Files of a version beside those of an earlier one, by name; one that was made anew is both `new` and `gone`.

    Attributes:
        same: of both, with the same bytes.
        new: of the version only.
        gone: of the earlier one only.
    """

    same: tuple[str, ...]
    new: tuple[str, ...]
    gone: tuple[str, ...]


class Published:
    """A version of a published folder: what it holds, and its rows. `smec_core.published` opens one.

    What is read is compared with the version's manifest: sizes at once, and each file before its rows are read, by its
    bytes where it is not the very file that was written.

    Attributes:
        folder: path or URI of the published folder.
        version: name of the version, as v0003.
        key: name that no other vectors of any folder have, as v0003_96_5d41402a; for a store's tables.
        dtype: number type of the vectors: float32, float16, int8 or binary (signs as bits).
        dim: d, dims of a vector.
        dims: at which a vector may be cut, the largest first: those of the version and of its model, up to `dim`;
            normalise it then.
        scale: an int8 vector times this is about the vector; None of float32 and float16.
        rows: how many there are.
        files: the names of its files, in the order of the rows.
        manifest: all that `_manifest.json` says.
    """

    def __init__(
        self, folder: str, manifest: dict[str, Any], dim: int | None, model: str | Path | Model | None
    ) -> None:
        self.folder, self.manifest = public_uri(folder), manifest
        self.version: str = manifest["version"]
        self.dtype: VectorType = manifest["dtype"]
        self.rows: int = manifest["rows"]
        stored = stored_dims(manifest)
        # 8.0 would pass, and make another key
        if dim is not None and (not isinstance(dim, int | np.integer) or dim not in stored):
            raise InputError(f"dim is {dim}, but {self._place} holds vectors of {', '.join(map(str, stored))} dims")
        self.dim: int = stored[0] if dim is None else int(dim)
        self.key = f"{self.version}_{self.dim}_{checksum_of(manifest)[:8]}"
        self.dims = tuple(prefix for prefix in manifest["dims"] if prefix <= self.dim)
        self.scale: float | None = manifest.get("int8_scales", {}).get(str(self.dim))
        self._uri, self._model = folder, model
        self._filesystem, self._root = open_folder(join_uri(folder, self.version))
        self._known: dict[str, str] = {}
        # other dims, and rows that were set apart, lie in folders of their own
        inside = str(self.dim) if len(stored) > 1 else ""
        self._files = {
            file.name: file
            for file in files_of(manifest, f"{self._place}/{MANIFEST}")
            if posixpath.dirname(file.name) == inside
        }
        self.files = tuple(self._files)
        self._check_sizes(inside)

    def __repr__(self) -> str:
        return (
            f"Published({self._place}: {self.rows:,} rows; {self.dim} dims, {self.dtype}; ids {self.id_type}; "
            f"model {self.manifest['model_fingerprint'][:12]})"
        )

    @property
    def _place(self) -> str:
        return f"{self.folder.rstrip('/')}/{self.version}"

    @cached_property
    def schema(self) -> pa.Schema:
        """Names and types of all columns, as `arrow` gives them."""
        with self._reading(self.files[0]) as opened:
            return opened.schema.remove_metadata()

    @property
    def id_type(self) -> pa.DataType:
        """Type of the ids, as they were in the input."""
        return self.schema.field("id").type

    @property
    def columns(self) -> tuple[str, ...]:
        """The other columns that the version holds, as `smec compress` has kept them of its input."""
        return tuple(name for name in self.schema.names if name not in ("id", *self._vectors))

    @property
    def _vectors(self) -> tuple[str, ...]:
        return ("embedding", RESCORE) if self.dtype == "binary" else ("embedding",)

    @cached_property
    def model(self) -> Model:
        """The model that made the vectors, and must encode the queries: `version.model.encode(queries, version.dim)`.

        Loaded when it is first asked for, from where it was at that time, or the place that was given to `published`.

        Raises:
            InputError: it is not there any more, or another one is.
        """
        given = self.manifest["model"] if self._model is None else self._model
        cure = f"give the one that made {self._place}: published({self.folder!r}, model=...)"
        try:
            model = given if isinstance(given, Model) else load(given)
        except DamagedError:
            raise
        except InputError as error:
            raise InputError(f"{error}; {cure}") from error
        if model.fingerprint != self.manifest["model_fingerprint"]:
            place = "the model given" if isinstance(given, Model) else public_uri(str(given))
            raise InputError(
                f"{place}: has the fingerprint {model.fingerprint[:12]}, but {self._place} was made by the model "
                f"{self.manifest['model_fingerprint'][:12]} ({self.manifest['model']}); {cure}"
            )
        return model

    def batches(
        self, *columns: str, batch_rows: int = READ_ROWS, files: Sequence[str] | None = None
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """All rows in their order, some at a time, as ids and vectors.

        Args:
            columns: which vectors: `embedding` by default, `rescore`, the int8 vectors beside binary ones, or both.
            batch_rows: most rows of a batch.
            files: names of those to read; by default all.

        Yields:
            ids (N,): numbers where they are numbers in the files, else objects of type str; then of each column the
            vectors, which are not to be written to: (N, d) float32 or float16 of norm 1; (N, d) int8; times `scale`
            they are about the same; or (N, b) uint8 of binary, the first number in the highest bit, as
            numpy.unpackbits reads it.

        Raises:
            InputError: no such column of vectors, or no such file.
            DamagedError: a file is not what was written.
            SmecError: the version was removed or replaced meanwhile.
        """
        columns = columns or ("embedding",)
        for name in columns:
            if name not in self._vectors:
                there = " and ".join(self._vectors)
                raise InputError(f"{self._place}: column {name}: {self.dtype} vectors are in {there}")
        for batch in self.arrow(["id", *dict.fromkeys(columns)], batch_rows, files):
            found = (batch[name] for name in columns)
            yield _ids(batch["id"]), *(one.flatten().to_numpy().reshape(-1, one.type.list_size) for one in found)

    def read(self, *columns: str) -> tuple[np.ndarray, ...]:
        """All rows at once, as `batches` gives them some at a time.

        Raises:
            InputError: there are none; or, as the others, what `batches` raises.
        """
        if not self.rows:
            raise InputError(f"{self._place}: holds no rows")
        return tuple(np.concatenate(parts) for parts in zip(*self.batches(*columns), strict=True))

    def arrow(
        self, columns: Sequence[str] | None = None, batch_rows: int = READ_ROWS, files: Sequence[str] | None = None
    ) -> pa.RecordBatchReader:
        """All rows in their order, as Arrow batches with all that was kept beside the vectors.

        Args:
            columns: to read, in this order; by default all, as in `schema`.
            batch_rows: most rows of a batch.
            files: names of those to read; by default all.

        Raises:
            InputError: no such column or file, also while it is read: a column that is another one in a later file.
            DamagedError: while it is read: a file is not what was written.
            SmecError: while it is read: the version was removed or replaced.
        """
        wanted = self.schema.names if columns is None else list(columns)
        if missing := [name for name in wanted if name not in self.schema.names]:
            raise InputError(f"{self._place}: column {missing[0]} is missing; it holds {', '.join(self.schema.names)}")
        names = self.files if files is None else tuple(files)
        if strange := [name for name in names if name not in self._files]:
            raise InputError(f"{self._place}: has no file {strange[0]}")
        if batch_rows < 1:
            raise InputError(f"batch_rows is {batch_rows}; give at least 1")
        schema = pa.schema([self.schema.field(name) for name in wanted])
        batches = (batch for name in names for batch in self._batches(name, schema, batch_rows))
        return pa.RecordBatchReader.from_batches(schema, batches)

    def changes(self, earlier: "Published") -> Changes:
        """What is new since an earlier version, so that a store need not load all rows again.

        `smec compress` takes over what it made of unchanged input files, byte by byte. Of another model, dim or number
        type all files are new.

        Args:
            earlier: the version that the store holds.
        """
        same = [name for name, file in self._files.items() if file.sha256 == earlier._sha256(name)]
        new = [name for name in self.files if name not in same]
        return Changes(tuple(same), tuple(new), tuple(name for name in earlier.files if name not in same))

    def _sha256(self, name: str) -> str | None:
        return self._files[name].sha256 if name in self._files else None

    def _batches(self, name: str, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
        with self._reading(name) as opened:
            for field in schema:
                kind = opened.schema.field(field.name).type if field.name in opened.schema.names else "missing"
                if kind != field.type:
                    here, there = f"{self._place}/{name}: column {field.name}", f"{field.type} in {self.files[0]}"
                    raise InputError(f"{here} is {kind}, but {there}; leave it out")
            for _, batch in opened.batches(schema.names, batch_rows):
                yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    @contextmanager
    def _reading(self, name: str) -> Iterator[ParquetRows]:
        """Opens a file that is what was written, and looks at its end whether it still is."""
        path, shown = f"{self._root}/{name}", f"{self._place}/{name}"
        try:
            stamp = stamp_of_file(self._filesystem, path)
            if not stamp or stamp != self._known.get(name):
                if problem := problem_of(self._filesystem, self._root, self._files[name]):
                    raise DamagedError(shown, problem, COPY_AGAIN)
                self._known[name] = stamp
            with ParquetRows(self._filesystem, path) as opened:
                yield opened
            if stamp_of_file(self._filesystem, path) != stamp:
                raise DamagedError(shown, "was changed while it was read", COPY_AGAIN)
        except FileNotFoundError as error:
            self._check_there()
            raise DamagedError(shown, "is missing", COPY_AGAIN) from error
        except (OSError, SmecError):
            self._check_there()
            raise

    def _check_sizes(self, inside: str) -> None:
        # one listing: asking an object store for each file takes long where they are many
        folder = pafs.FileSelector(posixpath.join(self._root, inside).rstrip("/"), allow_not_found=True)
        sizes = {info.base_name: info.size for info in self._filesystem.get_file_info(folder)}
        for file in self._files.values():
            size, place = sizes.get(posixpath.basename(file.name)), f"{self._place}/{file.name}"
            if size is None:
                raise DamagedError(place, "is missing", COPY_AGAIN)
            if size != file.bytes:
                raise DamagedError(place, f"has {size:,} bytes instead of {file.bytes:,}", COPY_AGAIN)

    def _check_there(self) -> None:
        """Refuses to go on where the version is not there any more, or another one has its name."""
        with suppress(InputError):
            if manifest_of_version(self._uri, self.version) == self.manifest:
                return
        raise SmecError(
            f"{self._place}: was removed or replaced while it was read, and {in_force(self._uri).name or 'nothing'} is "
            "in force now; open the folder again"
        )


def published(
    folder: str | Path,
    *,
    version: str | int | None = None,
    dim: int | None = None,
    model: str | Path | Model | None = None,
) -> Published:
    """Opens vectors that `smec compress` or `smec retrain` has published, to load them into a store.

    Args:
        folder: the published folder, a path or URI (`s3://`, ...): what `--output` or `publish.output` named.
        version: name of a version, as v0001, or its number; by default the one in force. It stays what it is while
            later ones come.
        dim: which vectors, where the version has several (`--dim 384,96`); by default those of the most dims.
        model: the model that made it, or its folder or URI, where that is not where it was then.

    Raises:
        InputError: nothing is published there, or no such version or dim; or (DamagedError) files are missing or not
            what was written, as in a copy that was made by half.

    Example:
        >>> version = smec_core.published("compressed")
        >>> version.version, version.rows, version.dim, version.dtype, str(version.id_type), version.columns
        ('v0001', 300, 8, 'int8', 'string', ('price',))
        >>> for ids, vectors in version.batches():
        ...     print(ids[:2], vectors.shape, vectors.dtype)
        ['0' '1'] (300, 8) int8
        >>> version.arrow(["id", "price"]).read_all().num_rows
        300
        >>> version.model.encode(queries, version.dim).shape
        (100, 8)
    """
    uri = str(folder)
    if isinstance(version, int | np.integer):
        version = f"v{version:04d}"
    if not isinstance(version, str | None):
        raise InputError(f"version is {version!r}; give a name, as v0001, or its number")
    while True:
        seen = in_force(uri).content
        try:
            return Published(uri, manifest_to_read(uri, version), dim, model)
        except InputError:
            # where a later version has come into force meanwhile, this one may have been removed
            if version is not None or in_force(uri).content == seen:
                raise


def _ids(column: pa.Array) -> np.ndarray:
    """Ids as numpy has them."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.to_numpy(zero_copy_only=False)
