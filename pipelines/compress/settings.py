"""What `smec compress` takes."""

from typing import Literal

from pydantic import Field

from smec_core.config import Dims, Settings, VectorType
from smec_core.data.columns import DEFAULT_NAMES, ColumnNames


class CompressSettings(Settings):
    """Compress embeddings with a model, on Ray Data, into a new version of a published folder.

    Example: smec compress --model models/products --input data/products/corpus --output vectors --dim 96
    """

    model: str
    """Model folder, as `smec train` writes it."""
    input: str
    """Parquet file, or folder or URI of Parquet files, with the columns id and embedding; other columns are kept.
    DATA/corpus is the corpus of a dataset, also where that is the file DATA/corpus.parquet.
    With `upgrade` also a published folder, of which the version in force is taken."""
    columns: ColumnNames = DEFAULT_NAMES
    """What id and embedding are called in the input, where they have other names: --set columns.id=sku. In the output
    they are id and embedding."""
    output: str
    """Published folder or URI: every run adds a version (v0001, ...) and points CURRENT at it, unless the one in force
    is the same already. The output for unchanged input files is copied from that."""
    dim: Dims | None = Field(None, json_schema_extra={"metavar": "D,D,..."})
    """Dims to keep, one or several, as 384,96; the model's dims keep their measured quality. Vectors of one dim are
    nested: cut them to a smaller one and normalise. Several have a folder of files each, 384/ and 96/. With `upgrade`,
    the default is the stored dims."""
    upgrade: bool = False
    """The input is what the model that this one extends (`smec train --from`) made of the originals, not these."""
    dtype: VectorType = "float32"
    """Number type of the vectors written. int8 has one scale for all numbers of a vector (the model's, by dim), so
    cosines need none. binary is the signs as bits, with int8 vectors beside (column `rescore`) to rank results by."""
    on_bad_row: Literal["fail", "quarantine"] = "fail"
    """A row without a sound id and vector ends the run, or goes to _quarantine/ of the version, with the reason."""
    max_bad_rows: float = Field(0.01, ge=0, le=1)
    """Share of the rows that may be set apart; more than that publishes nothing."""
    batch_rows: int = Field(8192, ge=1)
    """Rows an actor holds and multiplies at a time."""
    rows_per_file: int = Field(500_000, ge=1)
    """Files of more rows are cut between row groups into several, for workers to share."""
    workers: int | None = Field(None, ge=1)
    """Actors side by side; by default one per CPU of the cluster, and never more than there are pieces."""
    gpu: Literal["auto", "on", "off"] = "auto"
    """Multiply on GPUs: auto uses what the cluster has, its GPUs shared evenly by the actors."""
