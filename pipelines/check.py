"""`smec check`: reads a whole dataset, refuses what breaks the data contract, and says what it holds."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.table import Table

from pipelines.console import say, show
from smec_core.columns import DEFAULT_NAMES, ColumnNames
from smec_core.dataset import Dataset


class CheckSettings(BaseModel):
    """What `smec check` takes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: str
    """Dataset folder or URI."""
    columns: ColumnNames = DEFAULT_NAMES
    """What the columns are called where they have other names: --set columns.id=sku."""
    max_unknown: float = Field(0.1, ge=0, le=1)
    """Share of a split's judgements that may name ids which the data does not hold."""


def run(settings: CheckSettings) -> dict[str, Any]:
    """Validates every row and prints a summary."""
    dataset = Dataset.open(settings.data, settings.max_unknown, columns=settings.columns)
    for part in (dataset.corpus, dataset.queries):
        for _ in part.blocks():
            pass
    dataset.train_judgements()
    summary = dataset.summary()
    table = Table(title=f"{summary['uri']}: {dataset.dim} dims, fingerprint {dataset.fingerprint}")
    for name in ("part", "rows", "judgements", "relevant", "unknown ids"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name in ("corpus", "queries"):
        table.add_row(name, str(summary[name]["rows"]), "", "", "")
    for name, split in summary["splits"].items():
        figures = (split["queries"], split["judgements"], split["relevant"], split["unknown"])
        table.add_row(f"qrels/{name}", *map(str, figures))
    show(table)
    if dataset.unsupervised:
        say(dataset.unsupervised)
    return summary
