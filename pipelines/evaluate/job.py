"""`smec evaluate`: the quality of a stored model at every prefix, beside truncation, PCA and the full embeddings."""

from typing import Any

from pipelines.console import show
from pipelines.data.opened import open_dataset, read_segments
from pipelines.evaluate.settings import EvaluateSettings
from pipelines.runtime.evaluation import in_process, on_cluster
from smec_core.data.dataset import HELD_OUT
from smec_core.evaluation.evaluate import check_fit, corpus_baselines, default_split, evaluate, with_held_out
from smec_core.evaluation.report import quality_tables
from smec_core.model.files import load


def run(settings: EvaluateSettings) -> dict[str, Any]:
    """Evaluates a model, or whole searches with it, prints the table and returns the figures.

    Raises:
        InputError: no model, bad data, or a split that is not there.
        SmecError: the data were changed meanwhile.
    """
    model = load(settings.model)
    exclude_self = settings.exclude_self or bool(model.config.get("train", {}).get("exclude_self"))
    dataset = open_dataset(settings.data, settings.max_unknown, exclude_self, settings.columns)
    if settings.split == HELD_OUT:
        dataset = with_held_out(dataset, model, settings.model)
    split = settings.split or default_split(dataset)
    if settings.index is not None:
        from pipelines.evaluate import index

        figures = index.run(settings, dataset, model, split)
        dataset.check_unchanged()
        return figures
    parts = in_process if settings.workers == 1 else on_cluster(settings.workers)
    # before a pass over the corpus
    check_fit(dataset, model, split)
    segments = [found for [found] in read_segments(dataset, settings.by, [split])]
    baselines = corpus_baselines(dataset, parts) if settings.baselines else None
    report = evaluate(dataset, model, split, baselines, parts, segments=segments)
    dataset.check_unchanged()
    for table in quality_tables(report):
        show(table)
    return report
