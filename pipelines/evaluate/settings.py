"""What `smec evaluate` takes."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from smec_core.config import Settings, VectorType
from smec_core.data.columns import DEFAULT_NAMES, ColumnNames, LabelColumns

StoreName = Literal["exact", "faiss-hnsw", "lance", "pgvector"]
"""Vector stores that searches are measured in."""


def _funnel(value: Any) -> Any:
    """Reads 48:384."""
    if not isinstance(value, str):
        return value
    try:
        first, last = (int(dim) for dim in value.split(":"))
    except ValueError:
        raise ValueError("must be two dims, as 48:384") from None
    if not 1 <= first < last:
        raise ValueError("the first dims must be fewer than the second, as 48:384")
    return first, last


Funnel = Annotated[tuple[int, int], BeforeValidator(_funnel)]


class EvaluateSettings(Settings):
    """Score a model at every prefix: nDCG@10, recall, MRR. With --index: whole searches in a real vector store.

    --index measures quality, bytes a vector, the size of the index and milliseconds a query: of each of the model's
    dims, or of a funnel search beside the two plain ones it is made of. All but exact need the extra `stores` of
    smec-ray. pgvector loads into a schema of its own, which it drops, on the server that PGHOST, PGUSER, PGPASSWORD,
    PGDATABASE name.

    With --by, a column of the queries table: the same of the queries of each language, tenant or category.

    Example: smec evaluate --data data/products --model models/products --baselines --json figures.json

    Example: smec evaluate --data data/products --model models/products --baselines --by language

    Example: smec evaluate --data data/products --model models/products --index faiss-hnsw --funnel 48:384
    """

    data: str
    """Dataset folder or URI."""
    columns: ColumnNames = DEFAULT_NAMES
    """What the columns are called where they have other names: --set columns.id=sku."""
    model: str
    """Model folder."""
    split: Literal["train", "dev", "test", "held_out"] | None = None
    """Judgements to score by; default: test, else dev, else the nearest documents by the original embeddings. held_out:
    those of the queries that the model's training has left out (hold_out)."""
    max_unknown: float = Field(0.1, ge=0, le=1)
    """Share of a split's judgements that may name ids which the data does not hold; they are left out."""
    by: LabelColumns = Field([], json_schema_extra={"metavar": "COLUMN"})
    """Column of the queries table, as language: figures of the queries of each of its values, too; may be repeated."""
    baselines: bool = False
    """Score truncation, PCA and the original embeddings too."""
    exclude_self: bool = False
    """Never return the document that has the query's own id; always so for a model that was trained that way."""
    workers: int = Field(1, ge=1)
    """Ray tasks that search parts of the corpus side by side; 1: this process searches it, without Ray."""
    index: StoreName | None = None
    """Measure whole searches in this vector store: quality, bytes and time. pgvector takes the server from libpq's own
    environment variables (PGHOST, PGUSER, PGPASSWORD, ...)."""
    funnel: Funnel | None = Field(None, json_schema_extra={"metavar": "A:B"})
    """With `index`: search by the first dims, order the shortlist by the second ones as float32; 48:384. By default
    each of the model's dims is searched plainly."""
    dtype: VectorType = "float32"
    """With `index`: number type that all vectors are searched as; binary (signs) is followed by rescoring a shortlist
    with int8 vectors, in pgvector with float16."""
    shortlist: int = Field(100, ge=10)
    """With `index`: rows that rescoring or the second half of a funnel is given."""
    threads: int = Field(1, ge=1)
    """With `index`: threads of exact search and FAISS; with more than one, FAISS's graph is another one every time."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = self.model_fields_set
        if self.index is None and (found := given & {"funnel", "dtype", "shortlist", "threads"}):
            raise ValueError(f"{sorted(found)[0]}: needs --index, the store to search")
        if self.index is not None and (self.baselines or self.by or self.workers > 1):
            raise ValueError("index: goes without --baselines, --by and --workers; evaluate those apart")
        return self
