"""What `smec check` and `smec sample` take."""

from pydantic import Field

from pipelines.storage.model_folder import LocalPath
from smec_core.config import Settings
from smec_core.data.columns import DEFAULT_NAMES, ColumnNames, LabelColumns


class CheckSettings(Settings):
    """Validate a dataset row by row and print what it holds.

    Example: smec check data/products
    """

    data: str
    """Dataset folder or URI."""
    columns: ColumnNames = DEFAULT_NAMES
    """What the columns are called where they have other names: --set columns.id=sku."""
    max_unknown: float = Field(0.1, ge=0, le=1)
    """Share of a split's judgements that may name ids which the data does not hold."""
    by: LabelColumns = Field([], json_schema_extra={"metavar": "COLUMN"})
    """Column of the queries table, as language: say how many judged queries each of its values has, too; may be
    repeated."""


MIN_PAIRS = 50


class SampleSettings(Settings):
    """Build a sample dataset from docstrings of Python and of the packages that smec installs; no download.

    Example: smec sample outputs/sample --size 4000
    """

    out: LocalPath
    """Folder to write: a new or empty one, or an earlier sample, which is kept if it is the same and else replaced."""
    size: int | None = Field(None, ge=MIN_PAIRS)
    """Most pairs to take, chosen by a hash; all of them (about 20 000) by default."""
    dim: int = Field(1024, ge=2)
    """Embedding dims."""
    seed: int = Field(0, ge=0)
    """Seed of the random projection and of which pairs `size` takes."""
