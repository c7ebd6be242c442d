"""What `smec experiment` takes."""

from typing import Any, Literal

from pydantic import Field, field_validator

from pipelines.runtime.settings import MethodOnly
from pipelines.storage.model_folder import LocalPath
from smec_core.data.columns import DEFAULT_NAMES, ColumnNames


class ExperimentSettings(MethodOnly):
    """Run one of the paper's experiments on any dataset, and write a page of figures and tables.

    compare: SMEC beside truncation, random projection, PCA, closed forms, Search-Adaptor, Matryoshka-Adaptor and MRL.
    ablation: its parts added and removed. labels: SMEC and some of the others with fewer judged queries.
    gradient-variance: MRL beside SMRL. ware: which dims ADS keeps. queue-size: the memory.

    Finished trainings are kept in OUT: the same command goes on with a killed one.

    Example: smec experiment compare --data data/products --dims 384,192,96 --seeds 3 --out results/products
    """

    experiment: Literal["compare", "ablation", "labels", "gradient-variance", "ware", "queue-size"]
    """Which experiment."""
    data: tuple[str, ...] = Field(min_length=1)
    """Dataset folders or URIs; several give the mean over them, too."""
    columns: ColumnNames = DEFAULT_NAMES
    """What the columns are called where they have other names: --set columns.id=sku."""
    out: LocalPath
    """Folder of the results; a rerun takes from it the trainings that are finished."""
    seeds: int = Field(3, ge=1)
    """How many seeds, from `seed` on."""
    methods: tuple[str, ...] | None = None
    """What to compare with SMEC; default: all that are installed, and in labels some of them."""
    labels: tuple[int, ...] | None = None
    """Of labels: from how many judged queries to learn, those that decide when to stop included; all are added.
    Default: 25,50,100,200,400,800."""
    direction: Literal["queries-to-corpus", "corpus-to-queries"] = "queries-to-corpus"
    """What searches what; corpus-to-queries turns the judgements round, as image to text on a text to image set."""

    latex: bool = False
    """Write each table as LaTeX, too."""

    @field_validator("data", "methods", "labels", mode="before")
    @classmethod
    def _parse_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(","))
        # YAML reads a single number as one
        return (value,) if isinstance(value, int) else value

    @field_validator("guard")
    @classmethod
    def _has_guard(cls, guard: bool) -> bool:
        if not guard:
            raise ValueError("an experiment stops trainings on dev, which guard=false switches off")
        return guard

    @field_validator("sample_rows")
    @classmethod
    def _has_all_rows(cls, rows: int | None) -> int | None:
        if rows is not None:
            raise ValueError("an experiment scores models on all documents, and learns from all of them; leave it out")
        return rows
