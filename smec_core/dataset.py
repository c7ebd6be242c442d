"""A dataset on disk or object storage: opened and validated by its ids and judgements, its vectors left where they are.

Shapes: N rows, D dims, J judgements.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from smec_core.config import TrainConfig
from smec_core.errors import InputError, one_line
from smec_core.judgements import Judgements
from smec_core.manifest import find_manifest
from smec_core.parquet import EmbeddingTable
from smec_core.parquet_files import find_parquet, stamp_of
from smec_core.uri import join_uri, open_filesystem, public_uri

SPLITS = ("train", "dev", "test")
HELD_OUT = "held_out"
MIN_TRAIN_QUERIES = 20
_HASH_BYTES = 1 << 22
_COLUMN_NAMES = {"query_id": ("query_id", "query-id"), "doc_id": ("doc_id", "corpus-id"), "score": ("score",)}


@dataclass(frozen=True)
class Dataset:
    """Corpus, queries and judgements of one dataset.

    Attributes:
        uri: folder or URI it was opened from.
        corpus: document embeddings.
        queries: query embeddings.
        splits: judgements of each split present.
        unknown_judgements: judgements left out of each split, because their query or document is not in the data.
    """

    uri: str
    corpus: EmbeddingTable
    queries: EmbeddingTable
    splits: dict[str, Judgements]
    unknown_judgements: dict[str, int]

    @classmethod
    def open(cls, uri: str, max_unknown: float = 0.1, exclude_self: bool = False) -> "Dataset":
        """Opens a dataset: footers, ids and judgements are read, vectors are not.

        Args:
            uri: folder or URI with corpus, queries and qrels.
            max_unknown: share of a split's judgements that may name ids which the data does not hold.
            exclude_self: the document that has a query's own id is the query itself; see `Judgements.own_doc_of`.

        Raises:
            InputError: anything that breaks the data contract, with file, row and column.
        """
        filesystem, root = open_filesystem(uri.rstrip("/"))
        # on an object store `smec ingest` writes in place, beside its plan, and the manifest last
        is_begun = filesystem.get_file_info(f"{root}.partial/plan.json").is_file
        if is_begun and find_manifest(filesystem, root) is None:
            raise InputError(f"{public_uri(uri)}: is not finished; run `smec ingest` again, which goes on with it")
        corpus, queries = EmbeddingTable.open(join_uri(uri, "corpus")), EmbeddingTable.open(join_uri(uri, "queries"))
        if corpus.dim != queries.dim:
            raise InputError(f"{public_uri(uri)}: queries have {queries.dim} dims, the corpus has {corpus.dim}")
        doc_ids, query_ids = corpus.ids(), queries.ids()
        own_doc_of = None
        if exclude_self:
            own_doc_of = pc.fill_null(pc.index_in(query_ids, value_set=doc_ids), -1).to_numpy().astype(np.int64)
        splits, unknown = {}, {}
        for split in SPLITS:
            if find_parquet(filesystem, f"{root}/qrels/{split}"):
                path = f"{root}/qrels/{split}.parquet"
                splits[split], unknown[split] = _read_qrels(
                    filesystem, path, query_ids, doc_ids, max_unknown, own_doc_of
                )
        return cls(uri, corpus, queries, splits, unknown)

    @property
    def dim(self) -> int:
        """D."""
        return self.corpus.dim

    @cached_property
    def fingerprint(self) -> str:
        """Hash (16 hex digits) of the bytes of every file: other data, another fingerprint."""
        filesystem, root = open_filesystem(self.uri.rstrip("/"))
        files = [part.path for table in (self.corpus, self.queries) for part in table.files]
        files += [f"{root}/qrels/{split}.parquet" for split in SPLITS if split in self.splits]
        total = hashlib.blake2b(digest_size=8)
        for path in files:
            total.update(path.removeprefix(root).encode() + b"\0")
            with filesystem.open_input_stream(path, buffer_size=0) as stream:
                while chunk := stream.read(_HASH_BYTES):
                    total.update(chunk)
        return total.hexdigest()

    def reversed(self) -> "Dataset":
        """The other direction: the documents search the queries.

        Of each split, queries that the split before it (train, dev, test) has too are left out: one document may be
        relevant to queries of several splits.

        Raises:
            InputError: a split has nothing left.
        """
        splits: dict[str, Judgements] = {}
        own_doc_of = None
        if any(judged.own_doc_of is not None for judged in self.splits.values()):
            index = pc.index_in(self.corpus.ids(), value_set=self.queries.ids())
            own_doc_of = pc.fill_null(index, -1).to_numpy().astype(np.int64)
        seen = np.empty(0, np.int64)
        for name, judged in self.splits.items():
            turned = Judgements.from_pairs(
                judged.doc_row_J, judged.query_row_Q[judged.query_J], judged.score_J, own_doc_of
            )
            splits[name] = turned.select(~np.isin(turned.query_row_Q, seen))
            if not len(splits[name].with_positives()):
                raise InputError(
                    f"{public_uri(self.uri)}/qrels/{name}.parquet: in the other direction no query is left that the "
                    "splits before it do not have"
                )
            seen = np.union1d(seen, turned.query_row_Q)
        return replace(self, corpus=self.queries, queries=self.corpus, splits=splits)

    def holding_out(self, share: float) -> "Dataset":
        """The same data with a share of its judged queries, of all splits, kept apart in a split of their own.

        Which they are is decided by a hash of the query id: the same in every version of the data, whatever split a
        query is in there. They are left out of train and dev.

        Args:
            share: of the queries.

        Raises:
            InputError: no query is held out.
        """
        id_Q = self.queries.ids().to_pylist()
        out_Q = np.array([hash_share(name, b"held out") < share for name in id_Q])
        held_out = [judged.select(out_Q[judged.query_row_Q]) for judged in self.splits.values()]
        kept = {
            name: judged if name == "test" else judged.select(~out_Q[judged.query_row_Q])
            for name, judged in self.splits.items()
        }
        merged = reduce(Judgements.merge, held_out).with_positives() if held_out else None
        if not merged:
            raise InputError(f"{public_uri(self.uri)}: none of the judged queries is held out by a share of {share}")
        # a dev split that has lost all its queries is none
        kept = {name: judged for name, judged in kept.items() if name != "dev" or len(judged)}
        apart = replace(self, splits={**kept, HELD_OUT: merged})
        if "fingerprint" in self.__dict__:
            # of the same files, which need not be read again
            apart.__dict__["fingerprint"] = self.fingerprint
        return apart

    def train_judgements(self) -> Judgements | None:
        """Judgements of the train queries that have a relevant document; None without train judgements.

        Raises:
            InputError: too few to train on.
        """
        if "train" not in self.splits:
            return None
        train = self.splits["train"].with_positives()
        if len(train) < MIN_TRAIN_QUERIES:
            raise InputError(
                f"{public_uri(self.uri)}/qrels/train.parquet: {len(train)} queries with a relevant document; training "
                f"needs at least {MIN_TRAIN_QUERIES}, or remove the file to train without judgements"
            )
        return train

    def training_split(self, config: TrainConfig) -> tuple[Judgements | None, Judgements | None]:
        """Judgements to learn from and to choose by; (None, None) without train judgements.

        Dev is the dataset's own, else the train queries whose id hashes below `config.dev_fraction`: the same queries
        in every version of the data. Of more than `config.dev_queries` those with the lowest hashes are dev; the others
        are learnt from, unless they are the dataset's own dev. Without the guard nothing is chosen, so nothing is held
        out.

        Raises:
            InputError: too few train queries, or the dataset was opened without the config's exclude_self.
        """
        train = self.train_judgements()
        if train is None:
            return None, None
        if config.exclude_self != (train.own_doc_of is not None):
            raise InputError(
                f"{public_uri(self.uri)}: open it with exclude_self={config.exclude_self}, which is what the config has"
            )
        if not config.guard:
            return train, None
        most = config.dev_queries
        if "dev" in self.splits:
            dev = self.splits["dev"].with_positives()
            if len(dev) <= most:
                return train, dev
            share_Q = self._hash_shares(dev)
            return train, dev.select(share_Q <= np.sort(share_Q)[most - 1])
        share_Q = self._hash_shares(train)
        ordered_Q = np.sort(share_Q)
        # at least one query on either side, whatever the hashes say
        threshold = np.clip(config.dev_fraction, ordered_Q[0], ordered_Q[min(most - 1, len(train) - 2)])
        return train.select(share_Q > threshold), train.select(share_Q <= threshold)

    def _hash_shares(self, judgements: Judgements) -> np.ndarray:
        """What decides of each judged query whether it is dev."""
        ids = self.queries.ids().take(pa.array(judgements.query_row_Q)).to_pylist()
        return np.array([hash_share(name) for name in ids])

    def summary(self) -> dict[str, Any]:
        """What the dataset holds, for people and for --json."""
        return {
            "uri": public_uri(self.uri),
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "corpus": {"rows": self.corpus.rows, "files": len(self.corpus.files)},
            "queries": {"rows": self.queries.rows, "files": len(self.queries.files)},
            "splits": {
                name: {
                    "queries": len(judged.with_positives()),
                    "judgements": len(judged.doc_row_J),
                    "relevant": int((judged.score_J > 0).sum()),
                    "unknown": self.unknown_judgements.get(name, 0),
                }
                for name, judged in self.splits.items()
            },
        }


def dataset_stamp(uri: str) -> str:
    """Hash (hex) of names, sizes and times of a dataset's files: where it is the same, nothing has changed."""
    filesystem, root = open_filesystem(uri.rstrip("/"))
    parts = ["corpus", "queries", *(f"qrels/{split}" for split in SPLITS)]
    return stamp_of(filesystem, [path for part in parts for path in find_parquet(filesystem, f"{root}/{part}")])


def hash_share(name: str, what_for: bytes = b"") -> float:
    """A number from 0 to 1 by which ids are chosen, another one for each purpose."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=what_for).digest()) / 2**64


def _read_qrels(
    filesystem: pafs.FileSystem,
    path: str,
    query_ids: pa.ChunkedArray,
    doc_ids: pa.ChunkedArray,
    max_unknown: float,
    own_doc_of: np.ndarray | None,
) -> tuple[Judgements, int]:
    try:
        table = pq.read_table(path, filesystem=filesystem)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({one_line(error)})") from error
    columns = {name: _qrels_column(path, table, name) for name in _COLUMN_NAMES}
    if not len(table):
        raise InputError(f"{path}: the split is empty; add judgements or remove the file")
    query_row = pc.index_in(columns["query_id"], value_set=query_ids)
    doc_row = pc.index_in(columns["doc_id"], value_set=doc_ids)
    known = pc.and_(pc.is_valid(query_row), pc.is_valid(doc_row))
    unknown = len(table) - pc.sum(known).as_py()
    if unknown > max_unknown * len(table):
        row = pc.index(known, False).as_py()
        missing = "query_id" if not query_row[row].is_valid else "doc_id"
        raise InputError(
            f"{path}: {unknown} of {len(table)} judgements name ids that the data does not hold, "
            f"first row {row}, column {missing}: {columns[missing][row].as_py()!r}"
        )
    score = pc.cast(columns["score"], pa.float32()).filter(known).to_numpy()
    query, doc = query_row.filter(known).to_numpy(), doc_row.filter(known).to_numpy()
    judged = Judgements.from_pairs(query, doc, score, own_doc_of)
    if not len(judged.with_positives()):
        raise InputError(f"{path}: no judgement has a score above 0; the split is empty")
    return judged, unknown


def _qrels_column(path: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    found = next((alias for alias in _COLUMN_NAMES[name] if alias in table.column_names), None)
    if found is None:
        raise InputError(f"{path}: column {name} is missing; it holds {', '.join(table.column_names) or 'no columns'}")
    column = table[found]
    fits = pa.types.is_integer(column.type) if name == "score" else pa.types.is_string(column.type)
    if pa.types.is_large_string(column.type) and name != "score":
        column, fits = column.cast(pa.string()), True
    if not fits:
        kind = "an integer" if name == "score" else "string"
        raise InputError(f"{path}: column {found} is {column.type}; it must be {kind}")
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise InputError(f"{path}: row {row}, column {found}: is null")
    return column
