"""The tables, figures and findings of each experiment, from what its trainings gave.

`scores` is a frame of `dataset`, `method`, `seed`, `dim`, `measure`, `value`; `timings` one of `dataset`, `method`,
`seed`, `seconds`, `steps`, `parameters`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipelines.experiment_methods import NO_MEMORY, PARTS, SMEC
from pipelines.experiment_page import Page, ResultTable
from pipelines.pictures import finish
from pipelines.scoring import MAIN_MEASURE, Scored, gains
from smec_core.metrics import MEASURES
from smec_core.significance import query_interval, randomisation_p, seed_interval

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
    """

    found: Mapping[str, Mapping[str, Sequence[Scored]]]
    seeds: Sequence[int]

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
            where = "mean over the datasets" if dataset == MEAN else dataset
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


def gain_table(results: Results, dataset: str, over_smec: bool = False) -> ResultTable:
    """Gains of SMEC over every other method, or of every other over SMEC, each query's being its mean over seeds.

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
            row[str(dim)] = f"{gain_Q.mean():+.4f} ± {query_interval(gain_Q):.4f}{star}"
        rows.append(row)
    caption = "nDCG@10 less that of SMEC" if over_smec else "nDCG@10 of SMEC less that of the others"
    return ResultTable(
        f"{file_name(dataset)}-gains",
        f"{caption}, {dataset}; ± 95 % over queries, * p < {SIGNIFICANT:g} by a paired randomisation test of the means "
        "over seeds, not corrected for how many there are",
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
    caption = "Budget: steps taken (one that trains two candidates counts once), seconds of training, parameters learnt"
    return ResultTable("cost", caption, pd.DataFrame(rows))


def _quality_figures(results: Results) -> dict[str, Figure]:
    scores = results.with_mean()
    return {
        f"{file_name(dataset)}-quality": quality_figure(scores[scores["dataset"] == dataset], str(dataset))
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
    tables = quality_tables(results)
    tables += [gain_table(results, dataset) for dataset in results.found]
    tables.append(cost_table(results))
    findings = [finding for dataset in results.found for finding in _standing(results, dataset)]
    return Page(
        "SMEC beside other ways to make embeddings small",
        "All methods see the same vectors and are scored on test; those that learn from judgements have the same, stop "
        "on the same dev queries and learn, where refit is on, again with those of dev; smec-paper has them from the "
        "start, for a fixed number of steps. The adaptors' published forms have temperature 1 and Matryoshka-Adaptor's "
        "steps and patience; their tuned forms have SMEC's temperature, only the ranking loss where they learn from "
        "judgements, and may take as many steps as SMEC may for one kind of projection (Matryoshka-Adaptor in each of "
        "its two phases, Search-Adaptor divided among its dims). parallel-mrl is SMEC with the losses of all dims at "
        "once in place of its stages, as long as all stages together. Below, p is that of a paired randomisation test "
        "against the method that is best on test, not corrected for that choice.",
        findings,
        tables,
        _quality_figures(results),
        {"scores": results.scores(), "timings": results.timings()},
    )


def _standing(results: Results, dataset: str) -> list[str]:
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
        told = f"{dim} ({gain:+.4f} against {best}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'})"
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
    tables = quality_tables(results, (MAIN_MEASURE,))
    tables += [gain_table(results, dataset, over_smec=True) for dataset in results.found]
    return Page(
        "What each part of SMEC brings",
        "From plain MRL upwards the parts are added one by one; `without` takes one away from all. Off means "
        f"{changes}. With all dims at once there is nothing to look ahead to nor to select, so `without SMRL` is "
        "without look-ahead and ADS, too; without a guard there is no choice between projections.",
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
                    "ms a step": f"{mean[dataset, name]:.1f}",
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
            ResultTable(
                "cost",
                "Time of the whole training (all candidates, dev scores) divided by its steps, and the size of the "
                "vectors in the memory, over all workers",
                pd.DataFrame(rows),
            ),
        ],
        {},
        {"scores": results.scores(), "timings": results.timings()},
    )


def ware_page(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Page:
    """Achievement rates of ADS, truncation, PCA and MRL, and the quality of what they keep."""
    frame = _frame(records)
    tables, findings = [], []
    for (dataset, order), some in frame.groupby(["dataset", "dims"], sort=False):
        name = file_name(f"{dataset}-{order}")
        where = f"{dataset}, dims {order}"
        for value, caption in (
            ("rate", f"Share of the most important dims by WARE that are kept, {where}"),
            ("ndcg@10", f"nDCG@10 on dev of the dims that are kept, {where}"),
        ):
            pivot = some.pivot_table(index="method", columns="dim", values=value, sort=False)
            if value == "rate":
                pivot.loc["a random choice"] = some.groupby("dim", sort=False)["chance"].first()
            pivot = pivot[sorted(pivot.columns, reverse=True)].map(lambda one: f"{one:.3f}")
            pivot.columns = [str(dim) for dim in pivot.columns]
            tables.append(ResultTable(f"{name}-{file_name(value)}", caption, pivot.reset_index()))
        quality = some.groupby(["method", "dim"])[MAIN_MEASURE].mean().unstack("method")
        best = quality[["truncation", "ADS", "WARE"]].idxmax(axis=1).sort_index(ascending=False)
        told = [f"{method} at {', '.join(map(str, best.index[best == method]))}" for method in dict.fromkeys(best)]
        findings.append(f"{where}: of the choices among the dims as they come, the best on dev: {'; '.join(told)}.")
    return Page(
        "Which dims are kept",
        "WARE says how much the similarity of judged pairs depends on a dim. Truncation and ADS choose among the dims "
        "as they come (or after a random rotation, which leaves them in no order), and so does taking those of the "
        "largest WARE; PCA and MRL make new dims, of which the first are taken, so their rate says whether the "
        "important ones come first. ADS and MRL are trained from the dims as they are, without a guard, on train.",
        findings,
        tables,
        {},
        {"rates": frame},
    )


def gradient_page(
    by_step: Mapping[str, Sequence[Mapping[str, Any]]], by_dim: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Page:
    """Gradients of MRL and SMRL, and their size by dim."""
    frame, sizes = _frame(by_step), _frame(by_dim)
    tables, figures, findings = [], {}, []
    keys, values = ["dataset", "dim", "block", "schedule"], ["mean_gradient", "variance", "best_epoch"]
    # seeds stop after different epochs
    is_of_all = frame.groupby([*keys, "epoch"])["seed"].transform("nunique") == frame["seed"].nunique()
    mean = frame[is_of_all].groupby([*keys, "epoch"], sort=False, as_index=False)[values].mean()
    ends = frame.groupby([*keys, "seed"], sort=False)[values].agg(["first", "last"]).groupby(keys, sort=False).mean()
    for dataset in by_step:
        rows = []
        for key, some in ends.loc[[dataset]].iterrows():
            rows.append(
                dict(zip(keys[1:], map(str, key[1:]), strict=True))
                | {
                    "mean gradient, first epoch": f"{some['mean_gradient', 'first']:.3g}",
                    "variance, first epoch": f"{some['variance', 'first']:.3g}",
                    "variance, last epoch": f"{some['variance', 'last']:.3g}",
                    "best epoch": f"{some['best_epoch', 'first']:.1f}",
                }
            )
        tables.append(
            ResultTable(
                f"{file_name(dataset)}-gradients", f"Gradients of two blocks of weights, {dataset}", pd.DataFrame(rows)
            )
        )
        some = (
            sizes[sizes["dataset"] == dataset]
            .groupby("dim", sort=False, as_index=False)[["gradient_norm", "delta", "inverse_square"]]
            .mean()
        )
        shown = some.map(lambda value: f"{value:.4g}").assign(dim=some["dim"].astype(str))
        tables.append(
            ResultTable(f"{file_name(dataset)}-by-dim", f"Gradient of each dim's loss alone, {dataset}", shown)
        )
        figures[f"{file_name(dataset)}-variance"] = _variance_figure(mean[mean["dataset"] == dataset], str(dataset))
        first = mean[(mean["dataset"] == dataset) & (mean["epoch"] == 0)]
        total = first.groupby("schedule")["variance"].mean()
        above = "above" if total["parallel"] > total["sequential"] else "not above"
        findings.append(
            f"{dataset}: in the first epoch the gradient variance of MRL ({total['parallel']:.3g}, mean over blocks) "
            f"is {above} that of SMRL ({total['sequential']:.3g})."
        )
    return Page(
        "Gradients of MRL and of SMRL",
        "A free matrix is trained by the losses of all dims at once (parallel, MRL) and stage by stage (sequential, "
        "SMRL). For two consecutive dims s < d, block 0-s are the weights of the smaller one, s-d those that the "
        "larger one adds; for SMRL in the stage that trains d. Variance is that of a weight's gradient over the "
        "steps of an epoch, mean over the weights.",
        findings,
        tables,
        figures,
        {"gradients": frame, "by-dim": sizes},
    )


def _variance_figure(mean: pd.DataFrame, title: str) -> Figure:
    dims = sorted(set(mean["dim"]))
    figure = Figure(figsize=(3.4 * len(dims), 3.0), layout="constrained")
    for number, dim in enumerate(dims, start=1):
        axes = figure.add_subplot(1, len(dims), number)
        for (schedule, block), some in mean[mean["dim"] == dim].groupby(["schedule", "block"], sort=False):
            style = "-" if schedule == "parallel" else "--"
            label = f"{'MRL' if schedule == 'parallel' else 'SMRL'} {block}"
            axes.plot(some["epoch"], some["variance"], style, label=label, linewidth=1.2)
        axes.set_yscale("log")
        axes.set_title(f"{title}, weights up to {dim}", fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_ylabel("variance of the gradient", fontsize=8)
        finish(axes, size=7)
    return figure


def _frame(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    return pd.DataFrame([{"dataset": dataset, **record} for dataset, some in records.items() for record in some])


def file_name(text: str) -> str:
    """A name as it stands in names of files."""
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")
