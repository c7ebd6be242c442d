import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from pipelines.cli.settings import check_flags, resolve
from pipelines.evaluate.settings import EvaluateSettings
from pipelines.experiment.settings import ExperimentSettings
from pipelines.retrain.settings import RollbackSettings
from pipelines.serve.settings import ServeSettings
from pipelines.storage.study import Step, Trial
from pipelines.submit.settings import SubmitSettings
from pipelines.train.settings import TrainSettings
from pipelines.tune.settings import TuneSettings
from pipelines.tune.tables import best_text
from pipelines.verify.settings import VerifySettings
from smec_core.config import PAPER_PRESET, Settings, TrainConfig
from smec_core.errors import InputError


class Sectioned(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = "a"
    train: TrainConfig


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("dims: 96,48\ntau: 0.5\ntemperature: 0.2\nepochs: 3\n")
    settings = resolve(TrainConfig, {"epochs": 7, "seed": None}, file, ["tau=0.7", "epochs=5"], PAPER_PRESET)
    assert settings.dims == (96, 48)
    assert (settings.temperature, settings.tau, settings.epochs) == (0.2, 0.7, 7)
    assert settings.gumbel_noise == PAPER_PRESET["gumbel_noise"]
    assert settings.seed == 0


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["taau=1"], "--set: unknown key 'taau'; did you mean 'tau'?"),
        (["tau=-1"], "tau: Input should be greater than 0 (given -1 by --set)"),
        (["tau"], "--set tau: expected key=value"),
        (["epochs=many"], "epochs: Input should be a valid integer"),
        (["queue_size=5", "top_k=10"], r"queue_size \(5\) must be at least top_k \(10\)"),
        (["dims=96,96"], "dims: a dim is named twice"),
        (["preset=fast"], "--set: unknown key 'preset'; a preset is given by a flag of smec train, --preset NAME"),
        (["from=model"], "--set: unknown key 'from'; what --from gives is called base here"),
    ],
)
def test_refusals_name_the_key_and_where_it_was_set(assignments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(given", r"\(given").replace("--set)", r"--set\)")):
        resolve(TrainConfig, {"dims": "48"} if "dims" not in assignments[0] else {}, None, assignments)


def test_a_missing_setting_says_how_to_give_it() -> None:
    with pytest.raises(InputError, match="dims: is required; give --dims or set it in --config"):
        resolve(TrainConfig, {"dims": None})
    with pytest.raises(InputError, match="dims: is required; set it in --config"):
        resolve(TrainConfig, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tau: [1", ":1: not valid YAML"),
        ("tau: 1\nepochs: 2\ntau: 2", ":3: tau is there twice"),
        ("- tau", ": must hold key: value lines"),
        ("tauu: 1", ": unknown key 'tauu'"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=f"train.yaml{message}"):
        resolve(TrainConfig, {"dims": "48"}, file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.yaml: cannot be read"):
        resolve(TrainConfig, {}, tmp_path / "absent.yaml")


def test_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("workers: 1:4\nseed: 010\nlr: 1e-3\nname: 2024-01-01\n")
    flags = {"dims": "48", "data": "data", "out": "model"}
    read = resolve(TrainSettings, flags, file)
    assert (read.worker_range, read.seed, read.lr, read.name) == ((1, 4), 10, 0.001, "2024-01-01")
    given = resolve(TrainSettings, flags, file, ["workers=1:2", "seed=0o10", "lr=5e-4", "gpu=off"])
    assert (given.worker_range, given.seed, given.lr, given.gpu) == ((1, 2), 8, 0.0005, "off")


def test_the_best_settings_of_a_study_are_read_back(tmp_path: Path) -> None:
    config = TrainConfig(dims=(96, 48))
    best = Trial(number=3, params={"lr": 1e-05, "tau": 1e16}, steps=[Step(place=0, quality=0.5, scores={}, seconds=1)])
    (tmp_path / "best.yaml").write_text(best_text(config, best, "study", "best.yaml"))
    read = resolve(TrainConfig, {}, tmp_path / "best.yaml")
    assert read == config.model_copy(update=best.params)


def test_sections_are_merged_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "retrain.yaml"
    file.write_text("train:\n  dims: 96,48\n  tau: 0.5\n")
    settings = resolve(Sectioned, {"name": "b"}, file, ["train.tau=0.7", "train={epochs: 3}"])
    assert (settings.name, settings.train.dims, settings.train.tau) == ("b", (96, 48), 0.7)
    assert settings.train.epochs == 3


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.taau=1", "--set: unknown key 'train.taau'; did you mean 'train.tau'?"),
        ("name.tau=1", "--set: unknown key 'name.tau'"),
        ("train=1", "--set: train: must hold key: value lines"),
        ("train.tau=-1", r"train.tau: Input should be greater than 0 (given -1 by --set)"),
        ("train.dims=0", "train.dims: every dim must be at least 1 (given 0 by --set)"),
        ("train.queue_size=1", "train: queue_size (1) must be at least top_k (10)"),
    ],
)
def test_refusals_in_a_section_name_the_whole_key(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        resolve(Sectioned, {}, None, ["train.dims=48", assignment])


def test_a_missing_setting_of_a_section_is_named() -> None:
    with pytest.raises(InputError, match=r"train\.dims: is required; set it in --config"):
        resolve(Sectioned, {}, None, ["train.tau=1"])


def test_flags_alone_are_checked_by_value_and_not_together() -> None:
    """As of a command whose other settings lie in a file on the cluster."""
    check_flags(EvaluateSettings, {"data": "/d", "model": None, "dtype": "int8"})
    with pytest.raises(InputError, match=r"dtype: Input should be 'float32', .* \(given 'int9' by flag\)"):
        check_flags(EvaluateSettings, {"data": "/d", "model": None, "dtype": "int9"})


@pytest.mark.parametrize(
    ("kind", "assignment", "message"),
    [
        (RollbackSettings, "to=1", "to: must be the name of a published version, as v0003 (given 1 by --set)"),
        (RollbackSettings, "gate.anchor=v7", "gate.anchor: must be the name of a published version, as v0003 (given"),
        (RollbackSettings, "name=my series", "name: must be of letters, digits, '.', '_' and '-', with a letter or"),
        (TuneSettings, "name=my study", "name: must be of letters, digits, '.', '_' and '-', with a letter or"),
        (ServeSettings, "route=smec/", "route: must be a path that begins with / and does not end with it, as /smec"),
        (SubmitSettings, "id=a b", "id: must be of letters, digits, "),
    ],
)
def test_what_a_text_must_be_is_told_in_words(kind: type[BaseModel], assignment: str, message: str) -> None:
    given = {"name": "a", "data": "d", "storage": "s", "train.dims": 8, "publish.output": "o", "publish.dim": 8}
    if kind is not RollbackSettings:
        given = {}
    flags = {name: value for name, value in given.items() if f"{name}=" not in assignment}
    with pytest.raises(InputError, match=re.escape(message)):
        resolve(kind, flags, None, [assignment])


@pytest.mark.parametrize(
    ("kind", "given", "key"),
    [
        (VerifySettings, {"path": ""}, "path"),
        (TrainSettings, {"data": "d", "dims": "8", "out": "m", "storage": ""}, "storage"),
        (ExperimentSettings, {"experiment": "compare", "data": "d,", "dims": "8", "out": "e"}, "data"),
        (
            RollbackSettings,
            {"name": "s", "data": "d", "storage": "r", "train.dims": "8", "publish.dim": 8, "publish.output": ""},
            "publish.output",
        ),
    ],
)
def test_an_empty_path_is_no_place(kind: type[Settings], given: dict[str, object], key: str) -> None:
    with pytest.raises(InputError, match=rf"^{re.escape(key)}: is empty; name a file or folder \(a variable"):
        resolve(kind, given)
