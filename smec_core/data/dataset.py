"""A dataset on disk or object storage: opened and validated by its ids and judgements, its vectors left where they are.

Shapes: N rows, D dims, J judgements.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from smec_core.config import TrainConfig
from smec_core.data.columns import DEFAULT_NAMES, ColumnNames
from smec_core.data.fingerprint import check_of, content_fingerprint, hash_ids
from smec_core.data.folds import Labels, held_out_as_dev
from smec_core.data.grades import score_figures
from smec_core.data.ids import TableIds
from smec_core.data.judgements import Judgements
from smec_core.data.parquet import EmbeddingTable
from smec_core.data.qrels import QrelsFile, distinct, judgements_of, read_qrels
from smec_core.data.seen import SeenDocuments
from smec_core.data.table_files import stamp_of, states_of, stored_files
from smec_core.data.tables import TABLES, Table, check_dataset, check_names, find_qrels, find_table, refuse_draft
from smec_core.data.uri import join_uri, open_filesystem, public_uri, without_slash
from smec_core.errors import InputError, SmecError, StoreError

HELD_OUT = "held_out"
MIN_TRAIN_QUERIES = 20


@dataclass(frozen=True)
class Dataset:
    """Corpus, queries and judgements of one dataset.

    Attributes:
        leave_out: how to do without the judgements of a split, for messages.
        uri: folder or URI it was opened from.
        corpus: document embeddings.
        queries: query embeddings.
        splits: judgements of each split present.
        unknown_judgements: judgements left out of each split, because their query or document is not in the data.
        qrels: files of each split.
        ids: those of the documents, and of the queries, that judgements name.
        stamp: of all files when it was opened; see `dataset_stamp`.
    """

    leave_out: ClassVar[str] = "remove the file"
    uri: str
    corpus: EmbeddingTable
    queries: EmbeddingTable
    splits: dict[str, Judgements]
    unknown_judgements: dict[str, int]
    qrels: dict[str, Table]
    ids: tuple[TableIds, TableIds]
    stamp: str = ""

    @classmethod
    def open(
        cls,
        uri: str,
        max_unknown: float = 0.1,
        exclude_self: bool = False,
        columns: ColumnNames = DEFAULT_NAMES,
    ) -> "Dataset":
        """Opens a dataset: footers, ids and judgements are read, vectors are not.

        Args:
            uri: folder or URI with corpus, queries and qrels.
            max_unknown: share of a split's judgements that may name ids which the data does not hold.
            exclude_self: the document that has a query's own id is the query itself; see `Judgements.own_doc_of`.
            columns: what the columns are called.

        Raises:
            InputError: anything that breaks the data contract, with file, row and column.
        """
        filesystem, root = open_filesystem(without_slash(uri))
        refuse_draft(uri)
        check_dataset(filesystem, root)
        check_names(filesystem, root)
        # before anything is read
        stamp = dataset_stamp(uri)
        corpus, queries = (EmbeddingTable.open(join_uri(uri, name), names=columns) for name in TABLES)
        qrels = find_qrels(filesystem, root)
        files = {split: read_qrels(filesystem, table, columns) for split, table in qrels.items()}
        return cls.of(uri, corpus, queries, files, qrels, max_unknown, exclude_self, stamp)

    @classmethod
    def of(
        cls,
        uri: str,
        corpus: EmbeddingTable,
        queries: EmbeddingTable,
        judged: Mapping[str, list[QrelsFile]],
        qrels: dict[str, Table],
        max_unknown: float = 0.1,
        exclude_self: bool = False,
        stamp: str = "",
    ) -> Self:
        """Puts tables and the judgements of each split together; ids are read, vectors are not.

        Raises:
            InputError: they do not fit together.
        """
        if corpus.dim != queries.dim:
            raise InputError(f"{public_uri(uri)}: queries have {queries.dim} dims, the corpus has {corpus.dim}")
        read = [file for some in judged.values() for file in some]
        queries_too = queries.ids() if exclude_self else pa.chunked_array([], pa.string())
        doc_ids = TableIds.read(corpus, distinct([file.doc_id for file in read] + [queries_too]))
        query_ids = TableIds.read(queries, distinct([file.query_id for file in read]))
        own_doc_of = doc_ids.rows_of(queries_too) if exclude_self else None
        splits, unknown = {}, {}
        for split, some in judged.items():
            splits[split], unknown[split] = judgements_of(some, query_ids, doc_ids, max_unknown, own_doc_of)
        return cls(uri, corpus, queries, splits, unknown, qrels, (doc_ids, query_ids), stamp)

    @property
    def dim(self) -> int:
        """D."""
        return self.corpus.dim

    @cached_property
    def fingerprint(self) -> str:
        """Hash (16 hex digits) of ids, vectors and the files of judgements; reads every row where no scan has."""
        return self._fingerprint_of(
            [sum(check_of(hash_ids(b.ids), b.vectors_ND) for b in table.blocks()) for table in self.tables]
        )

    def take_checks(self, checks: Sequence[int]) -> None:
        """Makes the fingerprint of the sums of the hashes of all rows, of corpus and queries, that a scan has found."""
        self.__dict__["fingerprint"] = self._fingerprint_of(checks)

    @property
    def tables(self) -> tuple[EmbeddingTable, EmbeddingTable]:
        """Corpus and queries."""
        return self.corpus, self.queries

    def _fingerprint_of(self, checks: Sequence[int]) -> str:
        filesystem, _ = open_filesystem(without_slash(self.uri))
        found = [path for table in self.qrels.values() for path in table.paths]
        paths = [file for path in found for file in stored_files(filesystem, path)]
        return content_fingerprint(self._told(checks), filesystem, paths)

    def _told(self, checks: Sequence[int]) -> list[str]:
        """What the fingerprint says of the tables."""
        # the sum ignores order; the digest of ids does not
        told = [f"{ids.digest} {check % 2**64}" for ids, check in zip(self.ids, checks, strict=True)]
        names = "" if self.corpus.names == DEFAULT_NAMES else self.corpus.names.model_dump_json()
        return [names, str(self.dim), *told]

    def check_unchanged(self) -> None:
        """Refuses data that were changed since they were opened; to be called before a result of theirs is kept.

        Raises:
            SmecError: they were.
            StoreError: it cannot be told, since the store refuses.
        """
        try:
            is_same = dataset_stamp(self.uri) == self.stamp
        except StoreError:
            raise
        except (FileNotFoundError, InputError):
            is_same = False
        if not is_same:
            raise SmecError(f"{public_uri(self.uri)}: changed while it was used; nothing of it is kept, run again")

    def reversed(self) -> "Dataset":
        """The other direction: the documents search the queries.

        Of each split, queries that the split before it (train, dev, test) has too are left out: one document may be
        relevant to queries of several splits.

        Raises:
            InputError: a split has nothing left.
        """
        splits: dict[str, Judgements] = {}
        own_doc_of = None
        known = [judged.own_doc_of for judged in self.splits.values() if judged.own_doc_of is not None]
        if known:
            own_doc_of = np.full(self.corpus.rows, -1)
            is_doc_Q = known[0] >= 0
            own_doc_of[known[0][is_doc_Q]] = np.flatnonzero(is_doc_Q)
        seen = np.empty(0, np.int64)
        for name, judged in self.splits.items():
            turned = Judgements.from_pairs(
                judged.doc_row_J, judged.query_row_Q[judged.query_J], judged.score_J, own_doc_of
            )
            splits[name] = turned.select(~np.isin(turned.query_row_Q, seen))
            if not len(splits[name].with_positives()):
                raise InputError(
                    f"{self.split_name(name)}: in the other direction no query is left that the "
                    "splits before it do not have"
                )
            seen = np.union1d(seen, turned.query_row_Q)
        return replace(self, corpus=self.queries, queries=self.corpus, splits=splits, ids=self.ids[::-1])

    def holding_out(self, share: float) -> "Dataset":
        """The same data with a share of its judged queries, of all splits, kept apart in a split of their own.

        Which they are is decided by a hash of the query id: the same in every version of the data, whatever split a
        query is in there. They are left out of train and dev.

        Args:
            share: of the queries.

        Raises:
            InputError: no query is held out.
        """
        held_out, kept = [], {}
        for name, judged in self.splits.items():
            ids = self.ids[1].ids_of(judged.query_row_Q)
            out_Q = np.array([hash_share(one, b"held out") < share for one in ids], bool)
            held_out.append(judged.select(out_Q))
            kept[name] = judged if name == "test" else judged.select(~out_Q)
        merged = reduce(Judgements.merge, held_out).with_positives() if held_out else None
        if not merged:
            few = f"none of the judged queries is held out by a share of {share}; raise it"
            why = few if held_out else "there are no judgements, of which queries could be held out"
            raise InputError(f"{public_uri(self.uri)}: {why}")
        # a dev split that has lost all its queries is none
        kept = {name: judged for name, judged in kept.items() if name != "dev" or len(judged)}
        apart = replace(self, splits={**kept, HELD_OUT: merged})
        if "fingerprint" in self.__dict__:
            # of the same files, which need not be read again
            apart.__dict__["fingerprint"] = self.fingerprint
        return apart

    @property
    def unsupervised(self) -> str | None:
        """What to say before a training without judgements: they may lie there under another name."""
        if "train" in self.splits:
            return None
        found = ", ".join(self.qrels) or "no split at all"
        return f"{public_uri(self.uri)}: no judgements in qrels/train (found: {found}); a training is unsupervised"

    @property
    def unjudged_queries(self) -> int:
        """How many queries no split names."""
        judged = [judgements.query_row_Q for judgements in self.splits.values()]
        return self.queries.rows - len(np.unique(np.concatenate([np.empty(0, np.int64), *judged])))

    def split_name(self, split: str) -> str:
        """Where the judgements of a split lie, for messages."""
        form = self.qrels[split].form if split in self.qrels else f"{split}.parquet"
        return f"{public_uri(self.uri)}/qrels/{form}"

    def train_judgements(self) -> Judgements | None:
        """Judgements of the train queries that have a relevant document; None without train judgements.

        Raises:
            InputError: too few to train on.
        """
        if "train" not in self.splits:
            return None
        train = self.splits["train"].with_positives()
        if len(train) < MIN_TRAIN_QUERIES:
            left, cure = "", f"or {self.leave_out} to train without judgements"
            if HELD_OUT in self.splits:
                left = f" are left, as {len(self.splits[HELD_OUT])} are held out"
                cure = "so lower the share (hold_out, gate.fraction), or judge more queries"
            raise InputError(
                f"{self.split_name('train')}: {len(train)} queries with a relevant document{left}; training "
                f"needs at least {MIN_TRAIN_QUERIES}, {cure}"
            )
        return train

    def training_split(self, config: TrainConfig) -> Labels:
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
        return held_out_as_dev(train, self._hash_shares(train), config)

    def _hash_shares(self, judgements: Judgements) -> np.ndarray:
        """What decides of each judged query whether it is dev."""
        return np.array([hash_share(name) for name in self.ids[1].ids_of(judgements.query_row_Q)])

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
                    "repeated": judged.repeated,
                    "scores": score_figures(judged),
                    **({"seen": self._seen[name]} if name in self._seen else {}),
                }
                for name, judged in self.splits.items()
            },
        }

    @cached_property
    def _seen(self) -> dict[str, int]:
        """How many queries of each other split share a relevant document with those of the splits before it."""
        learnt, found = self.splits.get("train"), {}
        if learnt is None:
            return {}
        doc_ids, query_ids = self.ids
        for name in self.splits.keys() - {"train"}:
            judged = self.splits[name].with_positives()
            # a training learns from dev in the end, too
            before = learnt.merge(self.splits["dev"]) if "dev" in self.splits and name != "dev" else learnt
            found[name] = int(SeenDocuments.of(before, doc_ids, query_ids).seen_queries(judged, doc_ids).sum())
        return found


def dataset_stamp(uri: str) -> str:
    """Hash (hex) of names, sizes and stamps of a dataset's files: where it is the same, nothing has changed."""
    filesystem, root = open_filesystem(without_slash(uri))
    paths = [path for name in TABLES for path in find_table(filesystem, join_uri(root, name))]
    paths += [path for table in find_qrels(filesystem, root).values() for path in table.paths]
    return stamp_of(states_of(filesystem, paths))


def hash_share(name: str, what_for: bytes = b"") -> float:
    """A number from 0 to 1 by which ids are chosen, another one for each purpose."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=what_for).digest()) / 2**64
