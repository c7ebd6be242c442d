"""The pages of the experiments that score trainings: tables, figures and findings.

`scores` is a frame of `dataset`, `method`, `seed`, `dim`, `measure`, `value`; `timings` one of `dataset`, `method`,
`seed`, `seconds`, `steps`, `parameters`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipelines.experiment.methods import NO_MEMORY, PARTS, SMEC
from pipelines.experiment.page import Page, ResultTable, file_name, gain_text
from pipelines.tracking.plots import finish
from pipelines.train import MAIN_MEASURE, Scored, gains
from smec_core.evaluation.metrics import MEASURES
from smec_core.evaluation.significance import p_text, randomisation_p, seed_interval

SIGNIFICANT = 0.05
SHOWN = 5e-5
"""What is smaller reads 0.0000."""
MEAN = "mean"
_TITLES = {"ndcg@10": "nDCG@10", "recall@10": "recall@10", "recall@100": "recall@100", "mrr@10": "MRR@10"}


@dataclass(frozen=True)
class Results:
    """What the trainings of one experiment gave.

    Attributes:
        found: by dataset and method, a training a seed.
        seeds: of the trainings.
        seen: by dataset, whether each test query (Q) has a relevant document that training has seen.
    """

    found: Mapping[str, Mapping[str, Sequence[Scored]]]
    seeds: Sequence[int]
    seen: Mapping[str, np.ndarray] = field(default_factory=dict)

    def parts(self) -> dict[str, "Results"]:
        """The same of the queries that training has seen a relevant document of, and of the others.

        Datasets whose queries are all one or the other are left out.
        """
        mixed = {dataset: seen_Q for dataset, seen_Q in self.seen.items() if seen_Q.any() and not seen_Q.all()}
        found: dict[str, Results] = {}
        for label in ("seen", "unseen") if mixed else ():
            keep = {dataset: seen_Q if label == "seen" else ~seen_Q for dataset, seen_Q in mixed.items()}
            some = {
                dataset: {
                    name: [one.of(keep_Q) for one in all_seeds] for name, all_seeds in self.found[dataset].items()
                }
                for dataset, keep_Q in keep.items()
            }
            found[label] = Results(some, self.seeds)
        return found

    def scores(self) -> pd.DataFrame:
        """Every mean over queries, a row each."""
        rows = [
            {"dataset": dataset, "method": name, "seed": seed, "dim": dim, "measure": measure, "value": value_Q.mean()}
            for dataset, methods in self.found.items()
            for name, trainings in methods.items()
            for seed, training in zip(self.seeds, trainings, strict=True)
            for measure, by_dim in training.values.items()
            for dim, value_Q in sorted(by_dim.items(), reverse=True)
        ]
        return pd.DataFrame(rows)

    def timings(self) -> pd.DataFrame:
        """What every training took, a row each."""
        rows = [
            {
                "dataset": dataset,
                "method": name,
                "seed": seed,
                "seconds": training.seconds,
                "steps": training.steps,
                "parameters": training.parameters,
            }
            for dataset, methods in self.found.items()
            for name, trainings in methods.items()
            for seed, training in zip(self.seeds, trainings, strict=True)
        ]
        return pd.DataFrame(rows)

    def with_mean(self) -> pd.DataFrame:
        """`scores`, and where there are several datasets their unweighted mean as one more, at the dims they share."""
        scores = self.scores()
        if len(self.found) == 1:
            return scores
        shared = scores[scores.groupby("dim")["dataset"].transform("nunique") == len(self.found)]
        keys = ["method", "seed", "dim", "measure"]
        mean = shared.groupby(keys, sort=False, as_index=False)["value"].mean().assign(dataset=MEAN)
        return pd.concat([scores, mean[scores.columns]])


def quality_tables(results: Results, measures: Sequence[str] = MEASURES) -> list[ResultTable]:
    """A table for each dataset and measure: methods by dims, mean and 95 % interval over the seeds."""
    scores = results.with_mean()
    tables = []
    for dataset in dict.fromkeys(scores["dataset"]):
        for measure in measures:
            some = scores[(scores["dataset"] == dataset) & (scores["measure"] == measure)]
            where = "mean over the datasets" if dataset == MEAN else str(dataset)
            where += f"; ± 95 % over {len(results.seeds)} seeds" if len(results.seeds) > 1 else ""
            tables.append(
                ResultTable(f"{file_name(dataset)}-{file_name(measure)}", f"{_TITLES[measure]}, {where}", _by_dim(some))
            )
    return tables


def _by_dim(scores: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for method in dict.fromkeys(scores["method"]):
        of_method = scores[scores["method"] == method]
        row: dict[str, str] = {"method": str(method)}
        for dim in sorted(set(of_method["dim"]), reverse=True):
            value_S = of_method[of_method["dim"] == dim]["value"].to_numpy()
            half = seed_interval(value_S)
            row[str(dim)] = f"{value_S.mean():.4f}" + (f" ± {half:.4f}" if half >= SHOWN else "")
        rows.append(row)
    return pd.DataFrame(rows)


def part_tables(results: Results) -> list[ResultTable]:
    """nDCG@10 of seen and of unseen queries, for the datasets that have both."""
    tables = []
    for label, part in results.parts().items():
        scores = part.scores()
        for dataset, methods in part.found.items():
            value_Q = next(iter(next(iter(methods.values()))[0].values[MAIN_MEASURE].values()))
            some = scores[(scores["dataset"] == dataset) & (scores["measure"] == MAIN_MEASURE)]
            over = f"; ± 95 % over {len(part.seeds)} seeds" if len(part.seeds) > 1 else ""
            caption = f"nDCG@10, {dataset}, {len(value_Q)} {label} queries{over}"
            tables.append(ResultTable(f"{file_name(dataset)}-{label}", caption, _by_dim(some)))
    return tables


def gain_tables(results: Results, over_smec: bool = False) -> list[ResultTable]:
    """Gains of SMEC over every other method, or of every other over SMEC: on all, seen and unseen queries."""
    parts = [("all", results), *results.parts().items()]
    return [gain_table(part, dataset, label, over_smec) for label, part in parts for dataset in part.found]


def gain_table(results: Results, dataset: str, label: str = "all", over_smec: bool = False) -> ResultTable:
    """Gains on one dataset, each query's being its mean over seeds.

    Half the 95 % interval over the queries follows, and * where the paired randomisation test gives p < .05.
    """
    methods = results.found[dataset]
    rows = []
    for name, trainings in methods.items():
        if name == SMEC:
            continue
        row = {"method": name}
        for dim in sorted(next(iter(trainings)).values[MAIN_MEASURE], reverse=True):
            gain_Q = gains(trainings, methods[SMEC], dim) * (1 if over_smec else -1)
            star = "*" if randomisation_p(gain_Q) < SIGNIFICANT else ""
            row[str(dim)] = f"{gain_text(gain_Q)}{star}"
        rows.append(row)
    caption = "nDCG@10 less that of SMEC" if over_smec else "nDCG@10 of SMEC less that of the others"
    named, told = ("", "") if label == "all" else (f"-{label}", f", {label} queries")
    return ResultTable(
        f"{file_name(dataset)}-gains{named}",
        f"{caption}, {dataset}{told}; ± 95 % over queries, * p < {SIGNIFICANT:g} by a paired randomisation "
        "test of the means over seeds, not corrected for how many there are",
        pd.DataFrame(rows),
    )


def cost_table(results: Results) -> ResultTable:
    """Steps, seconds and parameters of each method, means over seeds and datasets."""
    timings = results.timings()
    rows = []
    for method in dict.fromkeys(timings["method"]):
        mean = timings[timings["method"] == method][["steps", "seconds", "parameters"]].mean()
        rows.append(
            {
                "method": method,
                "steps": f"{mean['steps']:.0f}",
                "seconds": f"{mean['seconds']:.1f}",
                "parameters": f"{mean['parameters']:.0f}",
            }
        )
    caption = "Budget: steps taken, seconds of training, parameters learnt"
    return ResultTable("cost", caption, pd.DataFrame(rows))


def _quality_figures(results: Results) -> dict[str, Figure]:
    scores = results.with_mean()
    bars = f", bars: 95 % over {len(results.seeds)} seeds" if len(results.seeds) > 1 else ""
    return {
        f"{file_name(dataset)}-quality": quality_figure(scores[scores["dataset"] == dataset], f"{dataset}{bars}")
        for dataset in dict.fromkeys(scores["dataset"])
    }


def quality_figure(scores: pd.DataFrame, title: str) -> Figure:
    """nDCG@10 against dims, a line a method, with the 95 % interval over seeds."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.add_subplot()
    some = scores[scores["measure"] == MAIN_MEASURE]
    for number, method in enumerate(dict.fromkeys(some["method"])):
        of_method = some[some["method"] == method]
        dims = sorted(set(of_method["dim"]))
        values = [of_method[of_method["dim"] == dim]["value"].to_numpy() for dim in dims]
        halves = [seed_interval(value_S) for value_S in values]
        axes.errorbar(
            dims,
            [value_S.mean() for value_S in values],
            yerr=[0.0 if np.isnan(half) else half for half in halves],
            label=str(method),
            color=f"C{number % 10}",
            linestyle="-" if number < 10 else "--",
            linewidth=2.4 if method == SMEC else 1.2,
            marker="o",
            markersize=3,
        )
    axes.set_xscale("log", base=2)
    dims = sorted(set(some["dim"]))
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()
    axes.set_xlabel("dims kept")
    axes.set_ylabel("nDCG@10")
    axes.set_title(title, fontsize=10)
    finish(axes, size=7)
    return figure


def compare_page(results: Results) -> Page:
    """SMEC beside its peers."""
    tables = quality_tables(results) + part_tables(results)
    tables += [*gain_tables(results), cost_table(results)]
    findings = [finding for dataset in results.found for finding in standing(results, dataset)]
    return Page(
        "SMEC beside other ways to make embeddings small",
        "All methods see the same vectors and are scored on test; those that learn from judgements have the same, stop "
        "on the same dev queries and learn, where refit is on, again with those of dev; smec-paper has them from the "
        "start, for a fixed number of steps, and smec-fast trains nothing: it is a closed form. The adaptors' "
        "published forms have temperature 1 and Matryoshka-Adaptor's steps and patience; their tuned forms have SMEC's "
        "temperature, only the ranking loss where they learn from "
        "judgements, and may take as many steps as a full stage for each dim of SMEC's chain (Matryoshka-Adaptor in "
        "each of its two phases, Search-Adaptor divided among its dims), as parallel-mrl does: one linear map from a "
        "PCA start, with the losses of all dims at once. Below, p is that of a "
        "paired randomisation test against the method that is best on test, not corrected for that choice.",
        findings,
        tables,
        _quality_figures(results),
        {"scores": results.scores(), "timings": results.timings()},
    )


def standing(results: Results, dataset: str) -> list[str]:
    """How SMEC stands against the best of the others at every dim."""
    methods = results.found[dataset]
    above: list[str] = []
    level: list[str] = []
    below: list[str] = []
    for dim in sorted(methods[SMEC][0].values[MAIN_MEASURE], reverse=True):
        value = {name: float(np.mean([one.mean(dim) for one in some])) for name, some in methods.items()}
        best = max((name for name in methods if name != SMEC), key=lambda name: value[name])
        gain_Q = gains(methods[SMEC], methods[best], dim)
        gain, p = float(gain_Q.mean()), randomisation_p(gain_Q)
        told = f"{dim} ({gain:+.4f} against {best}, {p_text(p)})"
        if abs(gain) < SHOWN:
            level.append(f"{dim} ({best})")
        else:
            (above if gain > 0 else below).append(told)
    found = {
        "SMEC has the highest mean nDCG@10": above,
        "SMEC is level with the best of the others": level,
        "SMEC is below the best of the others": below,
    }
    return [f"{dataset}: {text} at {', '.join(where)}." for text, where in found.items() if where]


def ablation_page(results: Results) -> Page:
    """SMEC with its parts added one by one, and removed one by one."""
    changes = "; ".join(
        f"{part}: " + ", ".join(f"{name}={value}" for name, value in changed.items()) for part, changed in PARTS.items()
    )
    tables = quality_tables(results, (MAIN_MEASURE,)) + part_tables(results)
    tables += gain_tables(results, over_smec=True)
    return Page(
        "What each part of SMEC brings",
        "From plain MRL upwards the parts are added one by one; `without` takes one away from all. Off means "
        f"{changes}. With all dims at once there is nothing to look ahead to nor to select, so `without SMRL` is "
        "without look-ahead and ADS, too; without the closed form, every stage may take the steps of a full one, "
        "and without a guard all are linear. Polish is all training: without it the closed form is the model.",
        [],
        [*tables, cost_table(results)],
        _quality_figures(results),
        {"scores": results.scores(), "timings": results.timings()},
    )


def queue_page(results: Results) -> Page:
    """Memories of different sizes: quality, time, bytes."""
    timings = results.timings().assign(per_step=lambda frame: 1000 * frame["seconds"] / frame["steps"])
    mean = timings.groupby(["dataset", "method"], sort=False)["per_step"].mean()
    rows = []
    for dataset, methods in results.found.items():
        for name, (training, *_) in methods.items():
            slots = 0 if name == NO_MEMORY else int(name)
            mebibytes = slots * max(training.values[MAIN_MEASURE]) * np.dtype(np.float32).itemsize / 2**20
            rows.append(
                {
                    "queue_size": name,
                    "dataset": str(dataset),
                    # without steps, as where the closed form is kept, there is no such time
                    "ms a step": f"{mean[dataset, name]:.1f}" if np.isfinite(mean[dataset, name]) else "–",
                    "vectors, MiB": f"{mebibytes:.1f}",
                }
            )
    return Page(
        "Size of the S-XBM memory",
        "SMEC with memories of different sizes. A slot holds one frozen document vector of float32; a memory larger "
        "than the corpus holds all of it.",
        [],
        [
            *quality_tables(results, (MAIN_MEASURE,)),
            *part_tables(results),
            ResultTable(
                "cost",
                "Time of the whole training (dev scores, too) divided by its steps, and the size of the "
                "vectors in the memory, over all workers",
                pd.DataFrame(rows),
            ),
        ],
        {},
        {"scores": results.scores(), "timings": results.timings()},
    )
