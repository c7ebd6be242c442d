"""The Ray actor of `smec ingest`: one shard of texts a call, from its rows to its Parquet file."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipelines.ingest.encoder import Encoder, encode
from pipelines.ingest.rows import Place, Text
from pipelines.ingest.text import Shard, Texts, fingerprint
from pipelines.runtime.file_tasks import record, report_errors
from pipelines.storage.files import describe_file, new_file
from smec_core.data.parquet import ROW_GROUP_ROWS, embedding_column
from smec_core.errors import SmecError

# the encoder sorts this many texts by length, and progress is told after as many
SORTED_TEXTS = 1024
# in the footer of a finished file: the plan that it is of
PLAN_KEY = b"smec_ingest_plan"


class EncodeShard:
    """Encodes shards, and skips those that an earlier, killed run has finished; its first call loads the encoder."""

    def __init__(
        self,
        encoder: Encoder,
        texts: dict[str, Texts],
        judged: frozenset[str],
        target: Place,
        plan_digest: str,
        prompts: dict[str, str | None],
        batch_size: int,
        gpu: bool,
    ) -> None:
        self.encoder = encoder
        self.texts = texts
        self.judged = judged
        self.target = target
        self.plan_digest = plan_digest
        self.prompts = prompts
        self.batch_size = batch_size
        self.device = "cuda" if gpu else "cpu"
        self._model: Any = None

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Takes a shard as a dict, gives records as `run_file_tasks` reads them."""
        shard = Shard(**task)
        return report_errors(self._encode(shard), self.target.join(shard.target))

    def _encode(self, shard: Shard) -> Iterator[dict[str, Any]]:
        path = self.target.join(shard.target)
        if not is_finished(self.target.filesystem, path, shard.rows, self.plan_digest):
            texts = self._read(shard)
            vectors = []
            for start in range(0, len(texts), SORTED_TEXTS):
                piece = texts[start : start + SORTED_TEXTS]
                vectors.append(self._vectors(piece, shard.kind))
                yield record(rows=len(piece))
            self._write(path, texts, np.concatenate(vectors))
        yield record(done=describe_file(self.target.filesystem, path, shard.rows)._replace(name=shard.target))

    def _read(self, shard: Shard) -> list[Text]:
        found = self.texts[shard.kind].read(shard.start)
        texts = list(islice((text for text in found if shard.kind == "corpus" or text.id in self.judged), shard.rows))
        if fingerprint(texts) != shard.sha256:
            raise SmecError(f"{self.texts[shard.kind].path}: changed while it was read; run again")
        return texts

    def _vectors(self, texts: list[Text], kind: str) -> np.ndarray:
        if self._model is None:
            self._model = self.encoder.load(self.device)
        vectors_ND = encode(
            self._model, [text.text for text in texts], kind == "queries", self.prompts[kind], self.batch_size
        )
        # the comparison is false for NaN, too
        bad_N = ~(np.einsum("nd,nd->n", vectors_ND, vectors_ND) > 0)
        if bad_N.any():
            where = self.texts[kind].locate(texts[int(bad_N.argmax())].position)
            raise SmecError(f"{where}: the encoder gave NaN or a zero vector for this text")
        return vectors_ND

    def _write(self, path: str, texts: list[Text], vectors_ND: np.ndarray) -> None:
        columns = {"id": pa.array([text.id for text in texts], pa.string()), "embedding": embedding_column(vectors_ND)}
        table = pa.table(columns).replace_schema_metadata({PLAN_KEY: self.plan_digest})
        with new_file(self.target.filesystem, path) as sink:
            pq.write_table(table, sink, use_dictionary=False, row_group_size=ROW_GROUP_ROWS)


def is_finished(filesystem: pafs.FileSystem, path: str, rows: int, plan_digest: str) -> bool:
    """Whether a file is there, whole, and of this plan: not of one before it, whose last worker came too late."""
    try:
        metadata = pq.read_metadata(path, filesystem=filesystem)
    except (FileNotFoundError, pa.ArrowInvalid):
        return False
    marked = (metadata.metadata or {}).get(PLAN_KEY)
    return bool(metadata.num_rows == rows and marked == plan_digest.encode())
