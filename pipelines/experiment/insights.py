"""The pages of the experiments that look into trainings: which dims they keep, and their gradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pipelines.experiment.page import Page, ResultTable, file_name
from pipelines.tracking.plots import finish
from pipelines.train import MAIN_MEASURE


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
        "A linear map is trained by the losses of all dims at once (parallel, MRL) and stage by stage (sequential, "
        "SMRL). For two consecutive dims s < d, block 0-s are the weights of the smaller one, s-d those that the "
        "larger one adds; for SMRL in the stage that trains d. Variance is that of a weight's gradient over the "
        "steps of an epoch, mean over the weights.",
        findings,
        tables,
        figures,
        {"gradients": mean, "by-dim": sizes},
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
