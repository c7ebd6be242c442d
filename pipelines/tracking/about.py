"""What a run in MLflow says of itself: where it comes from, what data it is about, and what it reached."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag
from mlflow.tracking.context import registry
from mlflow.types import DataType, Schema
from mlflow.types.schema import Array, ColSpec
from mlflow.utils.git_utils import get_git_commit
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_GIT_COMMIT

import smec_core
from pipelines.tracking.plots import MEASURES, main_measure
from smec_core.data.dataset import Dataset
from smec_core.data.seen import parts_of
from smec_core.data.uri import public_uri
from smec_core.evaluation.evaluate import default_split
from smec_core.shown import markdown, safe_line

LONGEST_NAME = 400
COLUMNS = Schema([ColSpec(DataType.string, "id"), ColSpec(Array(DataType.float), "embedding")])
"""Of corpus and queries."""


def source_tags() -> dict[str, str]:
    """Who runs what, by MLflow's own tags; the commit is that of smec where it runs from a git checkout."""
    tags: dict[str, str] = registry.resolve_tags()
    # MLflow's guess is the repository around the environment, which may be another project's
    tags.pop(MLFLOW_GIT_COMMIT, None)
    root = Path(smec_core.__file__).parents[1]
    if (root / ".git").exists() and (commit := get_git_commit(str(root))):
        tags[MLFLOW_GIT_COMMIT] = commit
    return tags


def dataset_inputs(dataset: Dataset) -> list[DatasetInput]:
    """The dataset as MLflow records it: what is learnt from, and what the model is evaluated on."""
    uri, summary = public_uri(dataset.uri), dataset.summary()
    rows = {"documents": dataset.corpus.rows, "queries": dataset.queries.rows, "dim": dataset.dim}
    uses = {"training": "train", "evaluation": default_split(dataset)}
    found = []
    for use, split in uses.items():
        judged = summary["splits"].get(split)
        profile: dict[str, Any] = dict(rows)
        if judged is not None:
            profile |= {"split": split, "judged_queries": judged["queries"], "judgements": judged["judgements"]}
        entity = DatasetEntity(
            # two datasets of one name and digest are one in MLflow
            name=f"{safe_line(uri.rstrip('/').rsplit('/', 1)[-1], LONGEST_NAME)}, {use}",
            digest=dataset.fingerprint,
            source_type=uri.partition("://")[0] if "://" in uri else "local",
            source=json.dumps({"uri": safe_line(uri)}),
            schema=json.dumps({"mlflow_colspec": COLUMNS.to_dict()}),
            profile=json.dumps(profile),
        )
        found.append(DatasetInput(entity, [InputTag(MLFLOW_DATASET_CONTEXT, use)]))
    return found


def data_text(dataset: Dataset) -> str:
    """The dataset in a sentence."""
    summary = dataset.summary()
    splits = [f"{judged['queries']:,} in {split}" for split, judged in summary["splits"].items()]
    rows = f"{summary['corpus']['rows']:,} documents and {summary['queries']['rows']:,} queries"
    judged = ", ".join(splits) or "none"
    return f"Data: {markdown(summary['uri'])}, {rows} of {dataset.dim} dims; queries with judgements: {judged}."


def reached_text(metrics: Mapping[str, Any]) -> str:
    """What a model reached, as a table in Markdown."""
    evaluation = metrics.get("evaluation")
    if not evaluation:
        return "Finished; the model was not evaluated."
    main = main_measure(evaluation)
    where = evaluation["split"] or "held-out documents"
    where += ", which it has learnt from" if evaluation.get("learnt") else ""
    baselines, intervals = evaluation.get("baselines", {}), evaluation.get("intervals", {}).get(main, {})
    compared = [name for name in ("truncation", "pca") if name in baselines]
    full = f"; {baselines['full']:.4f} with the original embeddings" if "full" in baselines else ""
    parts = parts_of(evaluation)
    told = [f"{label} ({part['queries']} queries)" for label, part in parts.items()]
    lines = [
        f"Reached, by {MEASURES[main]} on {where}, {evaluation.get('queries', '?')} queries{full}:",
        "",
        "| " + " | ".join(["dims", "this model", *(["95 % interval"] if intervals else []), *told, *compared]) + " |",
        "|---" * (2 + bool(intervals) + len(told) + len(compared)) + "|",
    ]
    for dim, score in evaluation[main].items():
        interval = [f"{intervals[dim][0]:.4f} to {intervals[dim][1]:.4f}"] if intervals else []
        cells = [
            dim,
            f"{score:.4f}",
            *interval,
            *(f"{part[main][dim]:.4f}" for part in parts.values()),
            *(f"{baselines[name].get(dim, float('nan')):.4f}" for name in compared),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
