"""The page of `labels`: quality by the number of judged queries that a method learns from."""

import numpy as np
from matplotlib.figure import Figure

from pipelines.experiment.methods import SMEC
from pipelines.experiment.page import Page, file_name
from pipelines.experiment.tables import Results, cost_table, part_tables, quality_tables
from pipelines.tracking.plots import finish
from pipelines.train import MAIN_MEASURE


def labels_page(results: Results) -> Page:
    """SMEC and its peers by the number of judged queries that they learn from."""
    return Page(
        "How many judged queries it takes",
        "Each method learns from a seeded choice of the judged train queries, as many as its name says, a share of "
        "which decides when to stop; `all` is all of them, and a method without a number needs none. All are scored "
        "on the same test queries. Seen and unseen is said of all judged queries: where fewer are learnt from, fewer "
        "are seen.",
        [],
        [*quality_tables(results, (MAIN_MEASURE,)), *part_tables(results), cost_table(results)],
        {f"{file_name(dataset)}-labels": labels_figure(results, dataset) for dataset in results.found},
        {"scores": results.scores(), "timings": results.timings()},
    )


def labels_figure(results: Results, dataset: str) -> Figure:
    """nDCG@10, mean over dims and seeds, by the number of queries."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, dict[str, float]] = {}
    for name, trainings in results.found[dataset].items():
        method, _, queries = name.partition(", ")
        value = float(np.mean([one.mean(dim) for one in trainings for dim in one.values[MAIN_MEASURE]]))
        lines.setdefault(method, {})[queries] = value
    places = list(lines[SMEC])
    for number, (method, values) in enumerate(lines.items()):
        if list(values) == [""]:
            axes.axhline(values[""], label=method, color=f"C{number}", linestyle=":")
        else:
            axes.plot(places, [values[place] for place in places], marker="o", label=method, color=f"C{number}")
    axes.set_xlabel("judged queries")
    axes.set_ylabel("nDCG@10, mean over the dims")
    axes.set_title(dataset, fontsize=10)
    finish(axes, size=7)
    return figure
