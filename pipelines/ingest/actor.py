"""The Ray actor of `smec ingest`: one shard of texts a call, from its rows to its Parquet file."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.ingest.encoder import Encoder, encode
from pipelines.ingest.readers import Place, Text, Texts
from pipelines.ingest.text import Shard, fingerprint
from pipelines.runtime.file_tasks import record, report_errors
from pipelines.storage.files import new_file
from pipelines.storage.manifest import finish_task, finished_task
from smec_core.data.parquet import ROW_GROUP_ROWS, embedding_column
from smec_core.data.stored_files import describe
from smec_core.errors import SmecError

# the encoder sorts this many texts by length, and progress is reported after as many
SORTED_TEXTS = 1024


class Job(NamedTuple):
    """What all shards share.

    Attributes:
        encoder: the encoder.
        texts: the reader of `corpus` and that of `queries`.
        judged: ids of the queries to encode; None for all.
        target: the folder of the dataset.
        plan_digest: hash of what decides the dataset's bytes.
        prompts: text before each document and each query; None for the encoder's own.
        batch_size: texts at a time.
    """

    encoder: Encoder
    texts: dict[str, Texts]
    judged: frozenset[str] | None
    target: Place
    plan_digest: str
    prompts: dict[str, str | None]
    batch_size: int


class EncodeShard:
    """Encodes shards, and skips those that an earlier, killed run has finished; its first call loads the encoder."""

    def __init__(self, job: Job, gpu: bool) -> None:
        self.job = job
        self.device = "cuda" if gpu else "cpu"
        self._model: Any = None

    def __call__(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Takes a shard as a dict, gives records as `run_file_tasks` reads them."""
        shard = Shard(**task)
        return report_errors(self._encode(shard), self.job.target.shown(shard.target))

    def _encode(self, shard: Shard) -> Iterator[dict[str, Any]]:
        target = self.job.target
        path = target.join(shard.target)
        files = finished_task(target.filesystem, target.path, shard.target, self.job.plan_digest)
        if files is None:
            texts = self._read(shard)
            vectors = []
            for start in range(0, len(texts), SORTED_TEXTS):
                piece = texts[start : start + SORTED_TEXTS]
                vectors.append(self._vectors(piece, shard.kind))
                yield record(rows=len(piece))
            self._write(path, texts, np.concatenate(vectors))
            files = [describe(target.filesystem, path, shard.target, shard.rows)]
            finish_task(target.filesystem, target.path, shard.target, files, self.job.plan_digest)
        yield record(done=files[0])

    def _read(self, shard: Shard) -> list[Text]:
        source = self.job.texts[shard.kind]
        judged = self.job.judged if shard.kind == "queries" else None
        found = (text for text in source.read(shard.start) if judged is None or text.id in judged)
        texts = list(islice(found, shard.rows))
        if fingerprint(texts) != shard.sha256:
            raise SmecError(f"{source.place}: changed while it was read; run again")
        return texts

    def _vectors(self, texts: list[Text], kind: str) -> np.ndarray:
        job = self.job
        if self._model is None:
            self._model = job.encoder.load(self.device)
        contents = [text.text for text in texts]
        vectors_ND = encode(self._model, contents, kind == "queries", job.prompts[kind], job.batch_size)
        # the comparison is false for NaN, too
        bad_N = ~(np.einsum("nd,nd->n", vectors_ND, vectors_ND) > 0)
        if bad_N.any():
            where = job.texts[kind].locate(texts[int(bad_N.argmax())].position)
            raise SmecError(f"{where}: the encoder gave NaN or a zero vector for this text")
        return vectors_ND

    def _write(self, path: str, texts: list[Text], vectors_ND: np.ndarray) -> None:
        columns = {"id": pa.array([text.id for text in texts], pa.string()), "embedding": embedding_column(vectors_ND)}
        with new_file(self.job.target.filesystem, path) as sink:
            pq.write_table(
                pa.table(columns), sink, use_dictionary=False, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True
            )
