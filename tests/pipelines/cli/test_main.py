"""What a user reads and a scheduler sees: one line and an exit code for each kind of bad input."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.cli import app
from pipelines.cli.help import _fields, _help
from pipelines.cli.main import COMMANDS, GROUPS, make_command
from smec_core.errors import GateError
from tests.builders import write_dataset
from tests.smec_core.model.test_model import make_model


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", docs=60, queries=60, dim=8)


def smec(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def _edit(path: Path, change: Callable[[list[Any]], object], kind: pa.DataType | None = None) -> None:
    table = pq.read_table(path)
    vectors = table["embedding"].to_pylist()
    change(vectors)
    column = pa.array(vectors, kind or pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.schema.get_field_index("embedding"), "embedding", column), path)


def _set_value(value: float) -> Callable[[Path], None]:
    def change(data: Path) -> None:
        _edit(data / "corpus" / "part-1.parquet", lambda rows: rows[4].__setitem__(2, value))

    return change


def _shorten(data: Path) -> None:
    _edit(data / "corpus" / "part-1.parquet", lambda rows: rows[4].pop())


def _null(data: Path) -> None:
    _edit(data / "corpus" / "part-1.parquet", lambda rows: rows.__setitem__(4, None))


def _zero(data: Path) -> None:
    _edit(data / "corpus" / "part-1.parquet", lambda rows: rows.__setitem__(4, [0.0] * 8))


def _integers(data: Path) -> None:
    path = data / "corpus" / "part-1.parquet"
    _edit(path, lambda rows: rows.__setitem__(slice(None), [[1] * 8] * len(rows)), pa.list_(pa.int32()))


def _repeat_id(data: Path) -> None:
    path = data / "corpus" / "part-1.parquet"
    table = pq.read_table(path)
    ids = ["d0", *table["id"].to_pylist()[1:]]
    pq.write_table(table.set_column(0, "id", pa.array(ids)), path)


def _drop_column(data: Path) -> None:
    path = data / "queries.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["id"]), path)


def _qrels(data: Path, change: Callable[[pa.Table], pa.Table], split: str = "train") -> None:
    path = data / "qrels" / f"{split}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def _few_queries(data: Path) -> None:
    _qrels(data, lambda table: table.slice(0, 19))


def _unknown_ids(data: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        ids = [f"x{i}" if i % 2 else name for i, name in enumerate(table["doc_id"].to_pylist())]
        return table.set_column(1, "doc_id", pa.array(ids))

    _qrels(data, change)


def _empty_split(data: Path) -> None:
    _qrels(data, lambda table: table.slice(0, 0), "test")


def _score_text(data: Path) -> None:
    _qrels(data, lambda table: table.set_column(2, "score", pa.array(["1"] * len(table))))


BAD_INPUT = {
    "differing dims": (_shorten, ["part-1.parquet: row 4, column embedding", "7 dims", "8"]),
    "null row": (_null, ["part-1.parquet: row 4, column embedding", "null"]),
    "NaN": (_set_value(float("nan")), ["part-1.parquet: row 4, column embedding", "NaN or infinity"]),
    "infinity": (_set_value(float("inf")), ["part-1.parquet: row 4, column embedding", "NaN or infinity"]),
    "zero vector": (_zero, ["part-1.parquet: row 4, column embedding", "zero vector"]),
    "wrong type": (_integers, ["part-1.parquet: column embedding", "list of float16, float32 or float64"]),
    "duplicate id": (_repeat_id, ["part-1.parquet: row 0, column id: 'd0'", "part-0.parquet: row 0"]),
    "missing column": (_drop_column, ["queries.parquet: column id is missing"]),
    "few train queries": (_few_queries, ["train.parquet: 19 queries", "at least 20"]),
    "unknown ids": (
        _unknown_ids,
        ["train.parquet", "name ids that the data does not hold", "row 1, column doc_id: 'x1'"],
    ),
    "empty split": (_empty_split, ["test.parquet: the split is empty"]),
    "score not a number": (_score_text, ["train.parquet: column score is string", "must be a number"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_data_is_refused_with_one_line(case: str, dataset: Path) -> None:
    spoil, expected = BAD_INPUT[case]
    spoil(dataset)
    code, _, errors = smec("check", str(dataset))
    assert code == 2
    [line] = errors.strip().splitlines()
    assert line.startswith("smec: ")
    for part in expected:
        assert part in line


@pytest.mark.parametrize("missing", ["corpus", "queries.parquet"])
def test_a_missing_part_is_named(missing: str, dataset: Path) -> None:
    (dataset / missing).rename(dataset / "elsewhere")
    code, _, errors = smec("check", str(dataset))
    assert code == 2
    assert missing.removesuffix(".parquet") in errors
    assert "there is no such file or folder; expected" in errors


def test_check_says_what_a_good_dataset_holds(dataset: Path, tmp_path: Path) -> None:
    code, printed, _ = smec("check", str(dataset), "--json", str(tmp_path / "check.json"))
    assert code == 0
    figures = json.loads((tmp_path / "check.json").read_text())
    assert (figures["dim"], figures["corpus"]["rows"], figures["queries"]["rows"]) == (8, 60, 60)
    assert figures["fingerprint"] in printed
    assert figures["splits"]["train"]["queries"] + figures["splits"]["test"]["queries"] == 60


def _score(path: Path, scores: np.ndarray) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("score"), "score", pa.array(scores)), path)


def test_check_says_how_many_test_queries_are_seen_in_training(tmp_path: Path) -> None:
    # every document is relevant to three queries
    data = write_dataset(tmp_path / "data", docs=20, queries=60, dim=8)
    code, printed, errors = smec("check", str(data), "--json", str(tmp_path / "check.json"))
    assert code == 0
    train, test = (pq.read_table(data / f"qrels/{name}.parquet")["doc_id"].to_pylist() for name in ("train", "test"))
    seen = sum(doc in train for doc in test)
    assert seen > 0
    assert f"{seen} of {len(test)}" in printed
    assert "seen queries share a relevant document with queries that a training learns from" in errors
    assert json.loads((tmp_path / "check.json").read_text())["splits"]["test"]["seen"] == seen


def test_check_says_how_scores_are_spread(dataset: Path) -> None:
    path = dataset / "qrels" / "train.parquet"
    rows = pq.read_metadata(path).num_rows
    _score(path, np.arange(rows) % 3 + 1)
    code, printed, errors = smec("check", str(dataset))
    assert code == 0 and not errors
    assert f"1 ({rows // 3}), 2 ({rows // 3}), 3 ({rows // 3})" in printed

    _score(path, np.arange(rows) + rows)
    code, printed, errors = smec("check", str(dataset))
    assert code == 0 and not errors, "grades of a long scale are no counts"
    assert f"min {rows}, p10" in printed and f"max {2 * rows - 1}" in printed


def test_check_warns_of_scores_that_are_counts_and_of_repeated_pairs(dataset: Path, tmp_path: Path) -> None:
    path = dataset / "qrels" / "train.parquet"
    rows = pq.read_metadata(path).num_rows
    counts = np.minimum(np.random.default_rng(0).zipf(1.3, rows), 10**6)
    _score(path, counts)
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 2)]), path)
    code, printed, errors = smec("check", str(dataset), "--json", str(tmp_path / "check.json"))
    assert code == 0
    assert f"max {counts.max()}" in printed
    repeated, warning = errors.strip().splitlines()
    assert repeated.startswith("qrels/train: 2 judgements repeat a pair") and "the highest score counts" in repeated
    times = f"{counts.max() / np.quantile(counts, 0.1):.0f} times the lowest tenth of those above 0"
    assert warning.startswith("warning: qrels/train: the largest score is") and times in warning
    assert "store log2(1 + count) or grades of 1 to 3" in warning
    figures = json.loads((tmp_path / "check.json").read_text())["splits"]
    assert (figures["train"]["repeated"], figures["test"]["repeated"]) == (2, 0)
    assert figures["train"]["scores"]["quantiles"]["max"] == counts.max()
    assert figures["test"]["scores"]["values"] == {"1": figures["test"]["relevant"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dims", "16"], "dims: 16 is more than the 8 dims of the data"),
        (["--dims", "4", "--set", "taau=1"], "did you mean 'tau'"),
        (["--dims", "4", "--workers", "0"], "workers: must be a number of at least 1, or MIN:MAX"),
        (["--dims", "4", "--preset", "papers"], "--preset papers: unknown"),
        (["--dims", "-4"], "dims: every dim must be at least 1"),
        (["--dims", "4", "--name", "../up"], "name: must be of letters, digits, '.'"),
        (["--dims", "4", "--storage", "nowhere://bucket/runs"], "nowhere://bucket/runs: cannot open this URI"),
        ([], "dims: is required"),
    ],
)
def test_bad_usage_of_train_is_refused_before_anything_starts(
    arguments: list[str], message: str, dataset: Path, tmp_path: Path
) -> None:
    code, _, errors = smec("train", "--data", str(dataset), "--out", str(tmp_path / "model"), *arguments)
    assert code == 2
    assert message in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_folder_that_is_not_a_model_is_never_overwritten(dataset: Path) -> None:
    code, _, errors = smec("train", "--data", str(dataset), "--dims", "4", "--out", str(dataset))
    assert code == 2
    assert "is not a model folder" in errors
    assert (dataset / "queries.parquet").exists()


@pytest.mark.parametrize(
    ("input_", "output", "message"),
    [
        ("data", "out", "data: is a dataset, and one table of it is wanted; give "),
        ("nope", "out", "nope: there is no such file or folder; expected "),
        ("data/corpus", "model", "model is no published folder, it holds "),
        ("data/corpus", "data", "data is no published folder, it holds "),
    ],
)
def test_places_that_were_mistaken_are_refused_before_anything_is_compressed(
    input_: str, output: str, message: str, dataset: Path, tmp_path: Path
) -> None:
    make_model().save(tmp_path / "model")
    before = sorted(tmp_path.rglob("*"))
    places = {"--model": "model", "--input": input_, "--output": output}
    code, _, errors = smec(
        "compress", "--dim", "4", *(part for k, v in places.items() for part in (k, f"{tmp_path}/{v}"))
    )
    assert (code, sorted(tmp_path.rglob("*"))) == (2, before)
    assert message in errors


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with places that cannot be written to; `closed` is closed to root, too."""
    folder, access = tmp_path / "work", os.access
    (folder / "closed").mkdir(parents=True)
    (folder / "notes").write_text("mine")
    (folder / "dangling").symlink_to("notes/gone")
    (folder / "loop").symlink_to("loop")
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place).name != "closed" and access(place, mode))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("out", "why"),
    [
        ("notes", "is a file; nothing of it is overwritten"),
        ("notes/deep/model", "notes is a file"),
        ("dangling", "notes is a file"),
        ("loop", "is a link to itself"),
        (".", "holds the working directory"),
        ("/", "holds the working directory"),
        ("/proc", "is a mount point"),
        ("closed/deep/model", "closed may not be written to"),
    ],
)
def test_a_model_that_could_not_be_put_in_its_place_is_refused_at_once(
    out: str, why: str, dataset: Path, work: Path
) -> None:
    storage = work / "runs"
    code, _, errors = smec("train", "--data", str(dataset), "--dims", "4", "--out", out, "--storage", str(storage))
    assert code == 2
    assert errors.startswith("smec: out: ")
    assert why in errors
    assert not storage.exists()


def test_a_run_in_the_model_folder_is_refused_also_behind_a_link(dataset: Path, work: Path) -> None:
    (work / "real").mkdir()
    (work / "link").symlink_to("real")
    code, _, errors = smec("train", "--data", str(dataset), "--dims", "4", "--out", "link", "--storage", "real/runs")
    assert code == 2
    assert "lies in the model folder link, which is replaced as a whole" in errors


def test_figures_go_through_links_and_into_pipes(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "figures.json").write_text("old")
    (tmp_path / "link").symlink_to("figures.json")
    (tmp_path / "later").symlink_to("new/figures.json")
    for name in ("link", "later"):
        assert smec("check", str(dataset), "--json", str(tmp_path / name))[0] == 0
        assert (tmp_path / name).is_symlink()
        assert "fingerprint" in json.loads((tmp_path / name).read_text())
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # so that neither end waits for the other
    end = os.open(pipe, os.O_RDWR)
    assert smec("check", str(dataset), "--json", str(pipe))[0] == 0
    assert pipe.is_fifo()
    assert "fingerprint" in json.loads(os.read(end, 1 << 16))
    os.close(end)


@pytest.mark.parametrize("into_a_file", [True, False])
def test_figures_follow_what_is_printed(into_a_file: bool, dataset: Path, tmp_path: Path) -> None:
    # as /dev/stdout is, which a mistake would remove from the machine
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    words = [sys.executable, "-m", "smec_core", "check", str(dataset)]
    plain = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    with (tmp_path / "printed").open("w") as file:
        out = file if into_a_file else subprocess.PIPE
        done = subprocess.run([*words, "--json", str(tmp_path / "stdout")], stdout=out, text=True, check=True)
    printed = (tmp_path / "printed").read_text() if into_a_file else done.stdout
    assert printed.startswith(plain)
    assert "fingerprint" in json.loads(printed.removeprefix(plain))


def test_figures_that_cannot_be_written_hide_no_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model().save(tmp_path / "model")
    file = tmp_path / "figures.json"

    def refuse(*_: object) -> None:
        # meanwhile somebody has made a folder of that name
        file.mkdir()
        error = GateError("refused", {"outcome": "refused"})
        raise error

    monkeypatch.setattr("pipelines.verify.job.run", refuse)
    code, _, errors = smec("verify", str(tmp_path), "--json", str(file))
    assert (code, errors.splitlines()[-1]) == (3, "smec: refused")
    assert errors.startswith(f"warning: json: {file} cannot be written (")


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize(
    ("json_file", "why"),
    [
        (".", "is a folder"),
        ("notes/figures.json", "cannot be written"),
        ("closed/figures.json", "closed may not be written to"),
    ],
)
def test_figures_that_could_not_be_written_are_told_of_before_the_work(
    json_file: str, why: str, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("pipelines.data.check.run")
    code, _, errors = smec("check", str(dataset), "--json", json_file)
    assert code == 2
    assert errors.startswith(f"smec: json: {json_file} ")
    assert why in errors


@pytest.mark.usefixtures("work")
def test_a_study_whose_results_could_not_be_written_is_refused_at_once(dataset: Path) -> None:
    code, _, errors = smec("tune", "--data", str(dataset), "--dims", "4", "--space", "quick", "--out", "closed")
    assert code == 2
    assert errors == "smec: out: closed may not be written to; name another folder\n"


def test_unexpected_failures_are_one_line_and_exit_1(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr("pipelines.data.check.run", broken)
    code, _, errors = smec("check", str(dataset))
    assert code == 1
    assert errors.strip() == "smec: unexpected RuntimeError: disk on fire; SMEC_DEBUG=1 shows where"


@pytest.mark.parametrize("message", ["", "job 7 goes on"])
def test_an_interrupt_is_one_line_and_exit_130(message: str, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt(*[message] if message else [])

    monkeypatch.setattr("pipelines.data.check.run", interrupted)
    code, _, errors = smec("check", str(dataset))
    assert (code, errors) == (130, f"smec: {message or 'interrupted'}\n")


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert smec("--version") == (0, f"smec {project['version']}\n", "")


def test_help_shows_every_command_in_one_group() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    shown = CliRunner().invoke(app, ["--help"]).stdout
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.about)}$", shown, re.MULTILINE)


def test_help_breaks_lines_where_the_terminal_ends_only() -> None:
    printed = CliRunner().invoke(app, ["train", "--help"], terminal_width=1000, max_content_width=1000).stdout
    [line] = [line for line in printed.splitlines() if "Precedence: flag" in line]
    assert line.strip().endswith("goes on from its last checkpoint.")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_every_setting(command: str) -> None:
    printed = CliRunner().invoke(app, [command, "--help"], terminal_width=1000, max_content_width=1000).stdout
    module, _, kind = COMMANDS[command].settings.partition(":")
    fields = getattr(importlib.import_module(module), kind).model_fields
    lines = [line.split() for line in printed.splitlines() if line.startswith("  ")]
    told = {words[0].strip("-").replace("-", "_").partition(".")[0] for words in lines if words}
    told |= {"base" if "from" in told else "", "train_best" if "refit" in told else ""}
    assert fields.keys() - told <= set(COMMANDS[command].arguments)
    assert "Example: smec" in printed


def test_a_compatible_challenger_starts_warm_whatever_the_file_says(tmp_path: Path) -> None:
    config = tmp_path / "retrain.yaml"
    config.write_text("train: {dims: 8, start: fresh}\n")
    _, _, errors = smec("retrain", "--compatible", "--config", str(config))
    # what is missing is all that is wrong
    assert "name: is required" in errors
    assert "compatible" not in errors


def test_help_shows_defaults_and_what_is_required() -> None:
    printed = CliRunner().invoke(app, ["compress", "--help"], terminal_width=1000, max_content_width=1000).stdout
    lines = {line.split()[0]: line for line in printed.splitlines() if line.startswith("  ")}
    assert lines["--output"].endswith("[required]")
    assert "  --dtype float32|float16|int8|binary\n" in printed
    assert "[default: float32]" in printed
    assert lines["batch_rows"].endswith("[default: 8192]")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_setting_says_what_it_is_where_it_is_not_given(name: str) -> None:
    code, text, _ = smec(name, "--help")
    assert code == 0
    module, _, kind = COMMANDS[name].settings.partition(":")
    command = make_command(name)
    switches = {option.name for option in command.params if isinstance(option, click.Option) and option.is_flag}
    printed = " ".join(text.split())
    for setting, field in _fields(getattr(importlib.import_module(module), kind)):
        if setting.replace(".", "__") in switches:
            continue
        said = _help(field)
        assert ("[required]" in said) == field.is_required()
        assert field.is_required() or any(word in said.lower() for word in ("default:", "by default"))
        # broken at hyphens, too
        assert said.replace(" ", "")[-40:] in printed.replace(" ", ""), setting


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_needs_no_heavy_import(name: str) -> None:
    script = (
        "import sys; from pipelines.cli.main import make_command; name = sys.argv[1]; name and make_command(name); "
        "heavy = {'torch', 'ray', 'mlflow', 'scipy', 'pandas', *([] if name else ['pyarrow'])}; "
        "print(*heavy & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script, name], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_names_the_commands() -> None:
    code, text, _ = smec("--help")
    assert code == 0
    for command in ("sample", "check", "ingest", "train", "evaluate", "compress", "export", "report"):
        assert command in text


def test_evaluate_names_the_splits_there_are(dataset: Path, tmp_path: Path) -> None:
    from smec_core.model.model import Model

    Model([], 8, {"dims": [8]}, {}).save(tmp_path / "model")
    code, _, errors = smec("evaluate", "--data", str(dataset), "--model", str(tmp_path / "model"), "--split", "dev")
    assert code == 2
    assert "there is no qrels/dev; splits present: train, test" in errors


def test_evaluate_divides_queries_by_columns(dataset: Path, tmp_path: Path) -> None:
    from smec_core.model.model import Model

    Model([], 8, {"dims": [8]}, {}).save(tmp_path / "model")
    queries = pq.read_table(dataset / "queries.parquet")
    queries = queries.append_column("language", pa.array(["de", "en\x1b[2J", None] * 20))
    pq.write_table(queries.append_column("tenant", pa.array([1, 2] * 30)), dataset / "queries.parquet")
    evaluate = ("evaluate", "--data", str(dataset), "--model", str(tmp_path / "model"))
    code, text, _ = smec(*evaluate, "--by", "language", "--by", "tenant", "--json", str(tmp_path / "f.json"))
    assert code == 0
    assert "ndcg@10 by language, 3 segments" in text
    assert r"en\x1b[2J" in text
    assert "\x1b" not in text
    found = json.loads((tmp_path / "f.json").read_text())
    assert list(found["segments"]) == ["language", "tenant"]
    assert {one["value"] for one in found["segments"]["language"]} == {"de", "en\x1b[2J", None}
    assert sum(one["queries"] for one in found["segments"]["tenant"]) == found["queries"]
    code, text, _ = smec("check", str(dataset), "--by", "language", "--json", str(tmp_path / "check.json"))
    assert code == 0 and "judged queries by language, 3 segments" in text and "\x1b" not in text
    told = json.loads((tmp_path / "check.json").read_text())
    for split, judged in told["splits"].items():
        assert sum(one["queries"][split] for one in told["segments"]["language"]) == judged["queries"]
    code, _, errors = smec(*evaluate, "--set", "by=lang")
    assert code == 2
    assert "column lang is missing; it holds id, embedding, language, tenant" in errors
    code, _, errors = smec(*evaluate, "--by", "language", "--index", "exact")
    assert code == 2
    assert "index: goes without --baselines, --by and --workers" in errors


def test_a_model_that_was_trained_without_the_queries_themselves_is_evaluated_so(dataset: Path, tmp_path: Path) -> None:
    from smec_core.model.model import Model

    # each document asks for its nearest other one
    documents = pq.read_table(dataset / "corpus")
    pq.write_table(documents, dataset / "queries.parquet")
    shutil.rmtree(dataset / "queries", ignore_errors=True)
    ids = documents["id"].to_pylist()
    x_ND = np.array(documents["embedding"].to_pylist())
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    nearest = (x_ND @ x_ND.T - 2 * np.eye(len(x_ND))).argmax(1)
    judged = {"query_id": ids, "doc_id": [ids[row] for row in nearest], "score": [1] * len(ids)}
    shutil.rmtree(dataset / "qrels")
    (dataset / "qrels").mkdir()
    pq.write_table(pa.table(judged), dataset / "qrels" / "test.parquet")
    found = []
    for exclude_self in (False, True):
        model = tmp_path / f"model-{exclude_self}"
        Model([], 8, {"dims": [8], "train": {"exclude_self": exclude_self}}, {}).save(model)
        code, _, _ = smec("evaluate", "--data", str(dataset), "--model", str(model), "--json", str(tmp_path / "f.json"))
        assert code == 0
        found.append(json.loads((tmp_path / "f.json").read_text())["mrr@10"]["8"])
    assert found == [pytest.approx(0.5), 1]
