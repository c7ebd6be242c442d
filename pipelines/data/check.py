"""`smec check`: reads a whole dataset, refuses what breaks the data contract, and says what it holds."""

from typing import Any

from rich.table import Table

from pipelines.console import say, show, warn
from pipelines.data.scan import read_all
from pipelines.data.settings import CheckSettings
from smec_core.data.dataset import Dataset
from smec_core.data.grades import HEAVY_TAIL, shown


def run(settings: CheckSettings) -> dict[str, Any]:
    """Validates every row and prints a summary."""
    dataset = Dataset.open(settings.data, settings.max_unknown, columns=settings.columns)
    read_all(dataset)
    dataset.train_judgements()
    summary = dataset.summary()
    table = Table(title=f"{summary['uri']}: {dataset.dim} dims, fingerprint {dataset.fingerprint}")
    for name in ("part", "rows", "judgements", "relevant", "unknown ids", "repeated", "seen queries"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name in ("corpus", "queries"):
        table.add_row(name, str(summary[name]["rows"]), "", "", "", "", "")
    for name, split in summary["splits"].items():
        figures = (split[figure] for figure in ("queries", "judgements", "relevant", "unknown", "repeated"))
        seen = f"{split['seen']} of {split['queries']}" if "seen" in split else ""
        table.add_row(f"qrels/{name}", *map(str, figures), seen)
    show(table)
    if summary["splits"]:
        show(scores_table(summary["splits"]))
    if any(split.get("seen") for split in summary["splits"].values()):
        say(
            "seen queries share a relevant document with queries that a training learns from; how well they do says "
            "little about documents that are new"
        )
    for name, split in summary["splits"].items():
        _tell_of_scores(f"qrels/{name}", split)
    if dataset.unsupervised:
        say(dataset.unsupervised)
    return summary


def scores_table(splits: dict[str, Any]) -> Table:
    """How the scores of some splits are spread, from what their summaries have as `scores`."""
    table = Table("part", "scores (how many), or quantiles of those above 0")
    for name, split in splits.items():
        scores = split["scores"]
        if "values" in scores:
            text = ", ".join(f"{value} ({count})" for value, count in scores["values"].items())
        else:
            text = ", ".join(f"{quantile} {shown(value)}" for quantile, value in scores["quantiles"].items())
        table.add_row(f"qrels/{name}", text)
    return table


def _tell_of_scores(part: str, split: dict[str, Any]) -> None:
    if split["repeated"]:
        say(
            f"{part}: {split['repeated']} judgements repeat a pair of query and document, of which the highest score "
            "counts; to count them all, add them up and store one row a pair"
        )
    if split["scores"]["tail"] > HEAVY_TAIL:
        warn(
            f"{part}: the largest score is {split['scores']['tail']:.0f} times the lowest tenth of those above 0 (more "
            f"than {HEAVY_TAIL}), as with counts of clicks. Training on such counts takes their logarithm and gives "
            "each query the same weight, but nDCG takes them as they are and looks almost only at a query's largest "
            "count; if the others should matter as well, store log2(1 + count) or grades of 1 to 3"
        )
