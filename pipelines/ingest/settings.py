"""What `smec ingest` takes."""

from typing import Literal

from pydantic import Field

from smec_core.config import Settings


class IngestSettings(Settings):
    """Embed text into a dataset, on Ray Data.

    SOURCE is a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv), or holds Parquet as datasets on the
    Hugging Face hub do: corpus/*.parquet, queries/*.parquet (_id or id, title, text), qrels/test.tsv or .parquet.
    Queries that no qrels name are left out where there are judgements for training; else all are encoded, since a
    training can learn from those that no split names.

    The encoder's own prompts for queries and documents are used; --set query_prompt='"query: "' (and document_prompt)
    gives another.

    A killed run goes on with the same command; until the dataset is whole, it lies in OUTPUT.partial. Where it is there
    already, nothing is done; one of another text, encoder or setting is refused.

    Example: smec ingest beir/scifact data/scifact --encoder sentence-transformers/all-mpnet-base-v2
    """

    source: str
    """Folder or URI of text: corpus, queries (each .jsonl as BEIR has it, or Parquet) and qrels (.tsv or Parquet)."""
    output: str
    """Folder or URI of the dataset to write. A finished one of the same text, encoder and settings is left as it is,
    an unfinished one gone on with; anything else there is refused."""
    encoder: str
    """sentence-transformers model: a folder, or a name on the Hugging Face hub."""
    query_prompt: str | None = None
    """Text to put before each query; by default the prompt that the encoder's configuration names `query`."""
    document_prompt: str | None = None
    """Text to put before each document; by default the encoder's prompt `document` or `passage`."""
    batch_size: int = Field(64, ge=1)
    """Texts that the encoder takes at a time."""
    rows_per_file: int = Field(8192, ge=1)
    """Rows of a Parquet file; one file is one task, so fewer rows spread a small corpus over more workers, and lose
    less to a kill."""
    workers: int | None = Field(None, ge=1)
    """Encoders side by side; by default one per GPU, or one per CPU of the cluster where there is none."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Encode on GPUs: auto uses what the cluster has, one for each encoder."""
