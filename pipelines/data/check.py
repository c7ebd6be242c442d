"""`smec check`: reads a whole dataset, refuses what breaks the data contract, and says what it holds."""

from typing import Any

from rich.table import Table

from pipelines.console import say, show, warn
from pipelines.data.opened import open_dataset, read_segments
from pipelines.data.scan import read_all
from pipelines.data.settings import CheckSettings
from smec_core.data.grades import HEAVY_TAIL, shown
from smec_core.data.segments import Segments, segment_name
from smec_core.evaluation.report import MOST_SEGMENTS
from smec_core.shown import safe_line


def run(settings: CheckSettings) -> dict[str, Any]:
    """Validates every row and prints a summary."""
    dataset = open_dataset(settings.data, settings.max_unknown, columns=settings.columns)
    # a column that is missing is told of before all rows are read
    segments = read_segments(dataset, settings.by, dataset.splits)
    read_all(dataset)
    dataset.train_judgements()
    summary = dataset.summary()
    table = Table(title=f"{summary['uri']}: {dataset.dim} dims, fingerprint {dataset.fingerprint}")
    for name in ("part", "rows", "judgements", "relevant", "unknown ids", "seen queries"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name in ("corpus", "queries"):
        table.add_row(name, str(summary[name]["rows"]), "", "", "", "")
    for name, split in summary["splits"].items():
        figures = (split[figure] for figure in ("queries", "judgements", "relevant", "unknown"))
        seen = f"{split['seen']} of {split['queries']}" if "seen" in split else ""
        table.add_row(f"qrels/{name}", *map(str, figures), seen)
    show(table)
    if summary["splits"]:
        show(scores_table(summary["splits"]))
    for column, found in zip(settings.by, segments, strict=True):
        by_split = dict(zip(dataset.splits, found, strict=True))
        summary.setdefault("segments", {})[column] = _show_segments(column, by_split)
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


def _show_segments(column: str, by_split: dict[str, Segments]) -> list[dict[str, Any]]:
    """How many queries of each split a value has; the table has the first values of all that is returned."""
    if not by_split:
        say(f"{safe_line(column)} divides judged queries, and there are none")
        return []
    counts: dict[str | None, dict[str, int]] = {}
    for split, found in by_split.items():
        for value, rows in zip(found.values, found.rows, strict=True):
            counts.setdefault(value, dict.fromkeys(by_split, 0))[split] = len(rows)
    order = sorted(counts, key=lambda value: -sum(counts[value].values()))
    left = f", of which the {MOST_SEGMENTS} largest" if len(order) > MOST_SEGMENTS else ""
    table = Table(title=f"judged queries by {column}, {len(order)} segments{left}")
    table.add_column(column, overflow="fold")
    for split in by_split:
        table.add_column(split, justify="right")
    for value in order[:MOST_SEGMENTS]:
        table.add_row(segment_name(value), *map(str, counts[value].values()))
    show(table)
    return [{"value": value, "queries": counts[value]} for value in order]


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
