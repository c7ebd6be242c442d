"""The report page, from model folders like those that training writes."""

import json
import math
import random
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from pipelines.report.job import run
from pipelines.report.settings import ReportSettings
from smec_core.errors import InputError

DIMS = (768, 384, 192, 96, 48, 24)
MODEL = dict(zip(DIMS, (0.755, 0.748, 0.746, 0.739, 0.686, 0.539), strict=True))
TRUNCATION = dict(zip(DIMS, (0.628, 0.619, 0.586, 0.517, 0.447, 0.301), strict=True))
PCA = dict(zip(DIMS, (0.628, 0.629, 0.622, 0.583, 0.503, 0.373), strict=True))
BASELINES = {"truncation": TRUNCATION, "pca": PCA, "full": 0.628}
EVALUATION = {
    "split": "test",
    "ndcg@10": MODEL,
    "recall@10": {dim: score + 0.11 for dim, score in MODEL.items()},
    "recall@100": {dim: min(score + 0.2, 0.98) for dim, score in MODEL.items()},
    "mrr@10": {dim: score - 0.03 for dim, score in MODEL.items()},
    "baselines": BASELINES,
}
WITHOUT_JUDGEMENTS = {
    "split": None,
    "neighbour_recall@10": dict(zip(DIMS, (1.0, 0.93, 0.85, 0.74, 0.58, 0.39), strict=True)),
    "baselines": {
        "pca": dict(zip(DIMS, (1.0, 0.94, 0.84, 0.71, 0.53, 0.33), strict=True)),
        "truncation": dict(zip(DIMS, (1.0, 0.74, 0.57, 0.39, 0.21, 0.1), strict=True)),
    },
}


def write_model_folder(folder: Path, evaluation: dict[str, Any] | None, dims: tuple[int, ...] = DIMS) -> Path:
    """Writes config.json, metrics.json and history.jsonl with curves of the shapes that training gives."""
    rng = random.Random(0)
    stages: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    chain = list(zip((dims[0], *dims), dims, strict=False))

    def train(run_name: str, d_in: int, dim: int, projection: str, epochs: int, steps: int, peak: int) -> float:
        key = {"pass": run_name, "stage": dim, "projection": projection}
        gain, best = 0.1 if projection == "linear" else 0.06, 0.0
        for epoch in range(epochs + 1):
            climb = gain * (1 - math.exp(-epoch / 2)) - 0.012 * max(0, epoch - peak)
            score = MODEL.get(dim, 0.6) + MODEL.get(d_in, 0.6) - 0.12 + climb + rng.uniform(-0.003, 0.003)
            if run_name == "first":
                records.append(
                    key | {"epoch": epoch, "step": len(records), "dev_ndcg@10": score / 2, "dev_score": score}
                )
            best = max(best, score) if epoch <= peak else best
            for step in range(steps if epoch < epochs else 0):
                level = (2.2 if projection == "linear" else 1.0) * (0.9 * math.exp(-(epoch + step / steps) / 3) + 0.35)
                records.append(
                    key
                    | {
                        "epoch": epoch,
                        "step": len(records),
                        "loss": level * rng.uniform(0.85, 1.15),
                        "lr": 1e-3,
                        "tau": 1.0,
                    }
                    | {"rank_loss": level * 0.95, "unsup_loss": level * 0.5, "rows_per_s": 9000 + rng.random()}
                    | {"seconds/data": 0.002, "seconds/search": 0.006 + dim / 4e5, "seconds/compute": 0.01 + d_in / 5e4}
                )
        return best

    for d_in, dim in chain:
        peak = rng.randint(3, 7)
        projection = "linear" if d_in == dim else "rotation"
        score = train("first", d_in, dim, projection, peak + 5, 7, peak)
        for record in reversed(records):  # the kept state is a recorded one
            if record.get("stage") == dim and record["epoch"] == peak and "dev_score" in record:
                score = record["dev_score"]
        logits = sorted((rng.gauss(0, 0.5) + (1.2 if rank < dim else 0) for rank in range(d_in)), reverse=True)
        total = sum(math.exp(logit) for logit in logits)
        importance = [math.exp(logit) / total for logit in logits]
        stages.append(
            {"d_in": d_in, "dim": dim, "projection": projection, "seconds": 11.2 + d_in / 60}
            | {"epochs": peak, "dev_score": score, "importance": importance}
        )
    for (d_in, dim), stage in zip(chain, stages, strict=True):
        train("refit", d_in, dim, stage["projection"], stage["epochs"], 9, 99)
    dev_measure = "neighbour_recall@10" if "neighbour_recall@10" in (evaluation or {}) else "ndcg@10"
    metrics = {
        "dev": {dev_measure: {dim: MODEL[dim] + 0.02 for dim in dims}},
        "stages": stages,
        "training": {"seconds": 96.4, "steps": len(records), "rows_per_s": 9120.5, "workers": 2, "device": "cpu"}
        | {"parameters": 786432},
    }
    config = {
        "format": 1,
        "input_dim": dims[0],
        "dims": dims,
        "train": {"dims": dims[1:], "seed": 0, "projection": "auto", "lr": 0.001, "temperature": 0.05, "guard": True}
        | {
            "alpha": 0.1,
            "top_k": 10,
            "queue_size": 5000,
            "batch_size": 128,
            "epochs": 15,
            "patience": 5,
            "init": "pca",
        },
        "data": {
            "uri": "s3://search/embeddings/scifact",
            "fingerprint": "9f2c41d07be35a68",
            "rows": 5183,
            "queries": 1109,
            "splits": {"train": {"queries": 809, "unknown": 0}, "test": {"queries": 300, "unknown": 1}},
        },
        "versions": {"smec": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "created": "2026-03-02T10:15:00+00:00",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps(metrics | ({"evaluation": evaluation} if evaluation else {})))
    (folder / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


class Page(HTMLParser):
    """A page as a reader has it: visible text, the chart ids, and everything an element would load or link to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.policy, self.ids, self.links, self.tags = "", "", set[str](), list[str](), list[str]()
        source = path.read_text(encoding="utf-8")
        self.figures = json.loads(re.findall(r"Object\.entries\((\{.*\})\)\)\n", source)[-1])
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster")
        ]
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""
        self.ids |= {value or "" for name, value in attrs if name == "id"}

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] not in (["script"], ["style"]):
            self.text += " ".join(data.split()) + " "


def report(folder: Path) -> tuple[dict[str, Any], Page]:
    out = folder.parent / "page" / "report.html"
    figures = run(ReportSettings(folder=str(folder), out=str(out)))
    assert [path.name for path in out.parent.iterdir()] == ["report.html"]
    return figures, Page(out)


def traces(page: Page, chart: str) -> dict[str, dict[float, float]]:
    return {trace["name"]: dict(zip(trace["x"], trace["y"], strict=True)) for trace in page.figures[chart]["data"]}


def test_headline_is_the_smallest_dim_that_keeps_everything(tmp_path: Path) -> None:
    figures, page = report(write_model_folder(tmp_path / "model", EVALUATION))
    assert figures["headline"] == "48 dims keep 109% of the full-dimension nDCG@10 at 6.25% of the bytes"
    assert figures["headline"] in page.text
    assert [row["dim"] for row in figures["dims"]] == list(DIMS)
    row = {"dim": 96, "bytes": 384, "compression": 8.0, "model": 0.739, "truncation": 0.517, "pca": 0.583}
    # a model of an earlier version has no intervals
    assert figures["dims"][3] == row | {"kept": pytest.approx(0.739 / 0.628), "interval": None, "kept_interval": None}
    assert "95 %" not in page.text


def with_intervals(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The evaluation with intervals: the gain on PCA is sure above 24 dims, that on the original ones above 48."""
    intervals = {
        "ndcg@10": {dim: [score - 0.02, score + 0.02] for dim, score in MODEL.items()},
        "kept": {dim: [score / 0.628 - 0.1, score / 0.628 + 0.1] for dim, score in MODEL.items()},
        "pca": {dim: [MODEL[dim] - PCA[dim] - 0.19, MODEL[dim] - PCA[dim] + 0.19] for dim in DIMS[3:]}
        | {dim: [0.01, 0.2] for dim in DIMS[:3]},
    }
    return evaluation | {"queries": 120, "intervals": intervals}


def test_what_the_page_claims_stands_with_its_interval_over_the_queries(tmp_path: Path) -> None:
    figures, page = report(write_model_folder(tmp_path / "model", with_intervals(EVALUATION)))
    assert (
        figures["headline"] == "48 dims keep 109% (99.2% to 119%) of the full-dimension nDCG@10 at 6.25% of the bytes"
    )
    assert figures["dims"][4]["kept_interval"] == pytest.approx((0.686 / 0.628 - 0.1, 0.686 / 0.628 + 0.1))
    for text in (
        "Measured with 120 queries",
        "0.739 ± 0.020",
        "−0.007 to +0.373, against PCA at 48 dims",
        "99.2% to 119%",
        "Bars are 95 % intervals",
    ):
        assert text in page.text
    # what the queries cannot tell apart speaks neither for nor against
    assert "Above PCA at 768, 384 and 192 dims" in page.text
    assert "No clear difference from PCA at 96, 48 and 24 dims" in page.text
    assert "Better than the original 768 dims at 768, 384, 192 and 96 dims." in page.text
    assert "No clear difference from the original 768 dims at 48 dims: the 95 % interval includes 100%." in page.text
    assert "Below the original embeddings at 24 dims (85.8%)." in page.text
    for chart, half in (("quality", 0.02), ("compression", 10.0)):
        [model] = [trace for trace in page.figures[chart]["data"] if trace["name"] == "this model"]
        assert model["error_y"]["array"] == [pytest.approx(half, abs=1e-4)] * len(DIMS)
        go.Figure(page.figures[chart])


def test_seen_and_unseen_queries_have_a_table_and_losses_on_them_are_said(tmp_path: Path) -> None:
    def part(queries: int, shift: float) -> dict[str, Any]:
        scores = {dim: score + shift for dim, score in MODEL.items()}
        gains = {dim: [scores[dim] - PCA[dim] - 0.01, scores[dim] - PCA[dim] + 0.01] for dim in DIMS}
        intervals = {"ndcg@10": {dim: [score - 0.03, score + 0.03] for dim, score in scores.items()}, "pca": gains}
        return {"queries": queries, "ndcg@10": scores, "baselines": BASELINES, "intervals": intervals}

    evaluation = with_intervals(EVALUATION) | {"seen": part(80, 0.05), "unseen": part(40, -0.3)}
    _, page = report(write_model_folder(tmp_path / "model", evaluation))
    for text in ("Seen and unseen documents", "80 queries", "40 queries", "0.789 ± 0.030", "0.439 ± 0.030"):
        assert text in page.text
    assert "Below PCA on 40 unseen queries at 24 dims" in page.text
    # of too few queries nothing is concluded, and one part alone would be the whole again
    few = evaluation | {"unseen": part(29, -0.3)}
    assert "Below PCA on" not in report(write_model_folder(tmp_path / "few", few))[1].text
    alone = evaluation | {"seen": {"queries": 0}}
    assert "Seen and unseen documents" not in report(write_model_folder(tmp_path / "alone", alone))[1].text


def test_importance_is_sorted_on_either_side_of_the_cut(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION)
    metrics = json.loads((folder / "metrics.json").read_text())
    for stage in metrics["stages"]:
        # as a stage that looks ahead leaves them: kept and dropped ones each in their places
        kept, dropped = stage["importance"][: stage["dim"]], stage["importance"][stage["dim"] :]
        random.Random(0).shuffle(kept)
        random.Random(1).shuffle(dropped)
        stage["importance"] = kept + dropped
    (folder / "metrics.json").write_text(json.dumps(metrics))
    _, page = report(folder)
    shown = traces(page, "importance-96")
    ordered = [*shown["kept"].items(), *shown["dropped"].items()]
    assert [rank for rank, _ in ordered] == list(range(1, 193))
    assert [share for _, share in ordered] == sorted((share for _, share in ordered), reverse=True)
    layout = page.figures["importance-96"]["layout"]
    assert layout["yaxis"]["type"] == "log"
    assert 96 < layout["shapes"][0]["x0"] < 97


def test_why_a_higher_curve_was_not_kept_is_said_in_words(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION)
    metrics = json.loads((folder / "metrics.json").read_text())
    for stage in metrics["stages"]:
        stage["dev_score"] = 9.0
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "do not count" not in report(folder)[1].text
    for stage in metrics["stages"][:2]:
        stage["dev_score"] = 1.0
    (folder / "metrics.json").write_text(json.dumps(metrics))
    _, page = report(folder)
    assert page.text.count("do not count") == 2
    assert "linear map above the star do not count: their gain over the start may be luck, or they cost" in page.text
    assert "rotation above the star do not count: they cost an earlier prefix" in page.text
    for stage in metrics["stages"]:
        stage["order"] = {"name": "pca"}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "rotation above the star do not count: their gain over the start may be luck" in report(folder)[1].text


def test_the_configuration_shows_what_the_data_decided(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION)
    config = json.loads((folder / "config.json").read_text())
    config["train"]["lr"], config["used"] = None, {"lr": 0.002, "alpha": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    _, page = report(folder)
    assert "lr 0.002 (default for this data)" in page.text
    assert page.text.count("default for this data") == 1


def test_page_holds_every_part(tmp_path: Path) -> None:
    _, page = report(write_model_folder(tmp_path / "model", EVALUATION))
    for text in (
        "0.739",
        "0.583",
        "3,072",
        "768 → 384",
        "9,120",
        "queue_size",
        "9f2c41d07be35a68",
        "2.13.0",
        "recall@100",
    ):
        assert text in page.text
    assert "Below the original embeddings at 24 dims (85.8%)." in page.text
    assert traces(page, "quality")["PCA"][96] == 0.583
    assert set(traces(page, "quality")) == {"this model", "truncation", "PCA", "full dims"}
    assert traces(page, "compression")["this model"][8.0] == pytest.approx(100 * 0.739 / 0.628, abs=0.01)
    assert set(traces(page, "loss-96")) == {"rotation", "replay"}
    assert set(page.figures) <= page.ids
    for figure in page.figures.values():
        go.Figure(figure)  # raises on anything plotly does not know
    assert "train (queries 809, unknown 0), test (queries 300, unknown 1)" in page.text


def test_page_loads_nothing_from_outside(tmp_path: Path) -> None:
    _, page = report(write_model_folder(tmp_path / "model", EVALUATION))
    assert page.links == []
    assert "link" not in page.tags and "iframe" not in page.tags
    assert "default-src 'none'" in page.policy  # the browser refuses what plotly.js might ask for


def test_text_from_the_files_is_never_markup(tmp_path: Path) -> None:
    evil = '</script><img src="https://example.org/x" onerror=alert(1)>'
    folder = write_model_folder(tmp_path / "<i>model", EVALUATION | {"split": evil})
    for name in ("config.json", "metrics.json", "history.jsonl"):
        text = (folder / name).read_text()
        for value in ("rotation", "auto", "s3://search/embeddings/scifact", "cpu", "2.13.0", "9f2c41d07be35a68"):
            text = text.replace(json.dumps(value), json.dumps(evil))
        (folder / name).write_text(text)
    _, page = report(folder)
    assert page.text.count(evil) >= 7
    assert "img" not in page.tags and "i" not in page.tags and page.links == []
    assert all("<" not in name for name in traces(page, "loss-96"))


def test_without_judgements_neighbours_take_the_place_of_ndcg(tmp_path: Path) -> None:
    figures, page = report(write_model_folder(tmp_path / "model", WITHOUT_JUDGEMENTS))
    assert figures["headline"] == "384 dims find 93% of the full embeddings' ten nearest neighbours at 50% of the bytes"
    assert figures["measure"] == "neighbour recall@10"
    assert "Below PCA at 384 dims (−0.010)." in page.text
    assert "nDCG@10" not in page.text
    assert traces(page, "quality")["this model"][96] == 0.74
    assert "full dims" not in traces(page, "quality")


def test_without_baselines_the_model_is_its_own_measure(tmp_path: Path) -> None:
    evaluation = {key: value for key, value in EVALUATION.items() if key != "baselines"}
    figures, page = report(write_model_folder(tmp_path / "model", evaluation))
    assert figures["headline"] == "192 dims keep 98.8% of this model's nDCG@10 at 768 dims, at 25% of the bytes"
    assert "No baselines in this folder" in page.text
    assert set(traces(page, "compression")) == {"this model"}


def test_a_model_that_finds_nothing_is_said_to(tmp_path: Path) -> None:
    nothing = dict.fromkeys(MODEL, 0.0)
    baselines = {"full": 0.0, "truncation": nothing, "pca": nothing}
    figures, page = report(
        write_model_folder(tmp_path / "model", EVALUATION | {"ndcg@10": nothing, "baselines": baselines})
    )
    assert figures["headline"] == "No query found a relevant document"
    assert "nDCG@10 is 0 at every dim: are the judgements those of this corpus?" in page.text
    assert "PCA at every dim" not in page.text


def test_without_evaluation_the_dev_scores_are_shown_as_such(tmp_path: Path) -> None:
    _, page = report(write_model_folder(tmp_path / "model", None))
    assert "nDCG@10 0.766 on dev" in page.text
    assert "No test evaluation in this folder" in page.text


def test_one_stage_without_history(tmp_path: Path) -> None:
    evaluation = {"split": "test", "ndcg@10": {768: 0.755}, "baselines": {"full": 0.628}}
    folder = write_model_folder(tmp_path / "model", evaluation, dims=(768,))
    (folder / "history.jsonl").unlink()
    figures, page = report(folder)
    assert figures["headline"] == "nDCG@10 0.755 at 768 dims"
    assert "This folder has no history.jsonl" in page.text
    assert page.figures == {}


def test_kept_state_is_marked_where_the_stage_stopped(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION)
    stage = json.loads((folder / "metrics.json").read_text())["stages"][3]
    _, page = report(folder)
    mark = traces(page, "dev-96")["kept"]
    assert mark == {stage["epochs"]: pytest.approx(stage["dev_score"], abs=1e-5)}
    assert mark.items() <= traces(page, "dev-96")["rotation"].items()


def test_a_stage_that_kept_its_start_has_learned_no_importance(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["stages"][1]["epochs"] = 0
    (folder / "metrics.json").write_text(json.dumps(metrics))
    _, page = report(folder)
    dropping = [stage for stage in metrics["stages"] if stage["dim"] < stage["d_in"]]
    shown = {f"importance-{stage['dim']}" for stage in dropping if stage["epochs"]}
    assert len(shown) == len(dropping) - 1
    assert {name for name in page.figures if name.startswith("importance-")} == shown


def test_of_two_projections_that_an_earlier_version_tried_the_kept_one_is_shown(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION, dims=(768,))
    step = {
        "pass": "first",
        "stage": 768,
        "epoch": 0,
        "step": 0,
        "loss": 1.0,
        "seconds/compute": 3.0,
        "seconds/data": 1.0,
    }
    records = [step | {"projection": "linear"}, step | {"projection": "rotation"}]
    (folder / "history.jsonl").write_text("\n".join(map(json.dumps, records)))
    _, page = report(folder)
    assert set(traces(page, "loss-768")) == {"linear map"}
    bars = {bar["name"]: bar["x"] for bar in page.figures["time"]["data"]}
    assert bars == {"compute": [3.0], "memory search": [0.0], "data": [1.0]}
    assert "compute 75%, memory search 0%, data 25%" in page.text


def test_long_histories_are_thinned(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION, dims=(768,))
    step = {"pass": "first", "stage": 768, "projection": "linear", "loss": 2.0}
    lines = [json.dumps(step | {"epoch": row // 1000, "step": row}) for row in range(10_000)]
    (folder / "history.jsonl").write_text("\n".join(lines))
    _, page = report(folder)
    curve = traces(page, "loss-768")["linear map"]
    assert len(curve) == 200 and set(curve.values()) == {2.0} and 9.9 < max(curve) <= 10


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: folder.rename(folder.with_name("other")), "model: no such folder"),
        (lambda folder: (folder / "metrics.json").unlink(), "metrics.json: not there"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: Invalid JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json: key input_dim: Field required"),
        (lambda folder: (folder / "history.jsonl").write_text('{"pass": "first"}'), "history.jsonl: line 1: key stage"),
    ],
)
def test_unusable_folder_is_refused_in_one_line(tmp_path: Path, break_it: Callable[[Path], Any], message: str) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION)
    break_it(folder)
    with pytest.raises(InputError) as refusal:
        run(ReportSettings(folder=str(folder), out=str(tmp_path / "report.html")))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("out", "why"),
    [("taken", "this is a folder"), ("model/config.json/report.html", r"\S*/config\.json is a file; give another")],
)
def test_page_that_cannot_be_written_leaves_nothing(tmp_path: Path, out: str, why: str) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION)
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match=f"cannot write the report: {why}"):
        run(ReportSettings(folder=str(folder), out=str(tmp_path / out)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "taken"]


def test_the_page_says_where_training_brought_nothing(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", EVALUATION | {"advice": "keep your originals"})
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"start": {"name": "within", "kept": "closed"}}))
    _, page = report(folder)
    assert "Keep your originals." in page.text
    assert "The trained stages were no better on dev than the closed form, which this model is." in page.text
