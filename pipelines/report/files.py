"""What the report uses of a model folder: config.json, metrics.json and history.jsonl, checked as they are read."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from pipelines.storage.study import SUMMARY_FILE
from smec_core.data.records import parse_record
from smec_core.data.seen import PARTS
from smec_core.errors import InputError
from smec_core.model.files import todays_names


class ConfigFile(BaseModel):
    """What the page uses of a model folder's config.json."""

    input_dim: int
    train: dict[str, Any] = {}
    used: dict[str, Any] = {}
    data: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    created: str | None = None


class Stage(BaseModel):
    """One stage of the chain: epochs and dev score of its best state, softmax(w) of its d_in dims, and its order."""

    d_in: int
    dim: int
    projection: str
    epochs: int
    dev_score: float | None = None
    seconds: float | None = None
    importance: list[float] = []
    order: dict[str, Any] | None = None


class Baselines(BaseModel):
    """Scores of what the model has to beat, by dim; full is the frozen embeddings' own score."""

    truncation: dict[int, float] = {}
    pca: dict[int, float] = {}
    full: float | None = None


Interval = tuple[float, float]


class Part(BaseModel):
    """Scores by dim of some of the queries; intervals, which older models lack, are those of 95 % over the queries."""

    queries: int | None = None
    intervals: dict[str, dict[int, Interval]] = {}
    ndcg: dict[int, float] = Field({}, alias="ndcg@10")
    neighbours: dict[int, float] = Field({}, validation_alias=AliasChoices("neighbour_recall@10", "agreement@10"))
    recall_10: dict[int, float] = Field({}, alias="recall@10")
    recall_100: dict[int, float] = Field({}, alias="recall@100")
    mrr_10: dict[int, float] = Field({}, alias="mrr@10")
    baselines: Baselines = Baselines()


class Evaluation(Part):
    """Scores on one split: of all queries, and where the model knows what it has learnt from of seen and unseen."""

    split: str | None = None
    seen: Part = Part()
    unseen: Part = Part()
    unseen_documents: Part = Part()
    advice: str | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """Its parts by what people call them, where they are more than the whole again."""
        found = {label: getattr(self, name) for name, label in PARTS.items()}
        found = {label: part for label, part in found.items() if part.queries and part.ndcg}
        return found if len(found) > 1 else {}


class MetricsFile(BaseModel):
    """What the page uses of a model folder's metrics.json."""

    dev: dict[str, dict[int, float]] = {}
    stages: list[Stage] = []
    start: dict[str, Any] = {}
    evaluation: Evaluation | None = None
    training: dict[str, Any] = {}


class Record(BaseModel):
    """One line of history.jsonl: a step (has a loss) or a scored epoch (epoch = epochs trained, 0 the start)."""

    run: Literal["first", "refit", "warm"] = Field(alias="pass")
    stage: int
    projection: str
    epoch: int
    step: int
    loss: float | None = None
    dev_score: float | None = None
    data: float = Field(0.0, alias="seconds/data")
    search: float = Field(0.0, alias="seconds/search")
    compute: float = Field(0.0, alias="seconds/compute")


Schema = TypeVar("Schema", bound=BaseModel)


def read(path: Path, schema: type[Schema]) -> Schema:
    """One JSON file of the folder.

    Raises:
        InputError: it is missing, or not what training writes.
    """
    try:
        content = path.read_bytes()
        if path.name == SUMMARY_FILE:
            parse_record(content, str(path), "run smec tune again, which writes it anew")
        return schema.model_validate_json(todays_names(content))
    except FileNotFoundError:
        raise InputError(f"{path}: not there; {path.parent} is no finished model folder, train it again") from None
    except ValidationError as error:
        raise InputError(f"{path}: {_problem(error)}") from None


def read_history(path: Path) -> list[Record]:
    """The training's records; none where the folder has no history.

    Raises:
        InputError: a line is no record.
    """
    records: list[Record] = []
    if path.is_file():
        for number, line in enumerate(todays_names(path.read_bytes()).splitlines(), start=1):
            try:
                records.append(Record.model_validate_json(line))
            except ValidationError as error:
                raise InputError(f"{path}: line {number}: {_problem(error)}") from None
    return records


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return f"{f'key {key}: ' if key else ''}{first['msg']}; restore the file, or train the model again"
