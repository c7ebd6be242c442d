"""Search spaces: what is read, and what is refused with the line at fault."""

from pathlib import Path

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from smec_core.config import TrainConfig
from smec_core.errors import InputError
from tune_spaces.space import read_space, shipped_spaces

BASE = TrainConfig(dims=(8,)).resolved(labelled=True)


def _file(folder: Path, text: str) -> str:
    path = folder / "space.yaml"
    path.write_text(text)
    return str(path)


def test_the_kinds_of_range(tmp_path: Path) -> None:
    text = """
# what to search
tau: {uniform: [0.5, 2]}
lr: {loguniform: [1e-4, 1e-2]}
queue_size: {logint: [1000, 20000]}
top_k: {int: [1, 100]}
init: {choice: [closed, pca]}
"""
    assert read_space(_file(tmp_path, text), BASE) == {
        "tau": FloatDistribution(0.5, 2),
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "queue_size": IntDistribution(1000, 20000, log=True),
        "top_k": IntDistribution(1, 100),
        "init": CategoricalDistribution(["closed", "pca"]),
    }


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", ["smec", "full", "quick"])
def test_every_shipped_space_holds_the_defaults(name: str, labelled: bool) -> None:
    assert read_space(name, TrainConfig(dims=(8,)).resolved(labelled))
    assert read_space(str(shipped_spaces()[name]), BASE) == read_space(name, BASE)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("taau: {uniform: [1, 2]}", 1, "unknown setting 'taau'; did you mean 'tau'"),
        ("tau: {uniform: [0.5, 2]}\nalpha: {uniform: [2, 1]}", 2, "goes from 2 to 1"),
        ("tau: {uniform: [1, 1]}", 1, "goes from 1 to 1"),
        ("# K\ntop_k: {int: [5, 100]}\nqueue_size: {int: [50, 9000]}", 3, "can be 50 where top_k is up to 100"),
        ("queue_size: {choice: [5, 5000]}", 1, "can be 5 where top_k is up to 10"),
        ("top_k: {int: [5, 9000]}", 1, "can be 5000 where top_k is up to 9000"),
        ("tau: {uniform: [2, 4]}", 1, "leaves out 1.0, the default"),
        ("init: {choice: [identity, random]}", 1, "leaves out 'closed', the default"),
        ("init: {choice: [pca, fast]}", 1, "given 'fast'"),
        ("tau: {uniform: [-1, 2]}", 1, "greater than 0"),
        ("lr: {loguniform: [0, 1]}", 1, "needs a start above 0"),
        ("top_k: {int: [1.5, 20]}", 1, "1.5 is not a whole number"),
        ("queue_size: {loguniform: [1000, 20000]}", 1, "takes whole numbers; use int or logint"),
        ("top_k: {uniform: [5, 20]}", 1, "takes whole numbers; use int or logint"),
        ("tau: {uniform: [low, 2]}", 1, "'low' is not a number"),
        ("tau: {uniform: [0.5, 1, 2]}", 1, "has 3 ends"),
        ("init: {choice: pca}", 1, "needs a list"),
        ("tau: 3", 1, "must be one of uniform"),
        ("tau: {between: [1, 2]}", 1, "must be one of uniform"),
        ("tau: {uniform: [0.5, 2]}\ntau: {uniform: [0.5, 3]}", 2, "is there twice"),
        ("seed: {int: [0, 5]}", 1, "cannot be searched"),
        ("exclude_self: {choice: [true, false]}", 1, "exclude_self is how the data is read, the same for all trials"),
        ("compatible: {uniform: [0, 1]}", 1, "compatible is for a warm start, which no trial is"),
        ("epochs: {int: [1, 5]}", 1, "has no default to start from"),
    ],
)
def test_a_bad_space_is_refused_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_space(_file(tmp_path, text), BASE)
    assert f"space.yaml:{line}: " in str(refused.value)
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "just words", "- tau", "tau: {uniform: [1, 2"])
def test_what_is_no_space_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"space\.yaml(:1)?: "):
        read_space(_file(tmp_path, text), BASE)


def test_a_space_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a YAML file, or one of full, quick, smec"):
        read_space(str(tmp_path / "none.yaml"), BASE)


def test_a_default_of_ones_own_moves_the_range(tmp_path: Path) -> None:
    base = BASE.model_copy(update={"tau": 3.0})
    assert read_space(_file(tmp_path, "tau: {uniform: [2, 4]}"), base) == {"tau": FloatDistribution(2, 4)}


def test_choices_are_values_of_the_setting(tmp_path: Path) -> None:
    # a number in quotes is one, too
    space = read_space(_file(tmp_path, "lr: {choice: [0.002, 1e-3]}\nqueue_size: {choice: [5000, '6000']}"), BASE)
    assert space == {"lr": CategoricalDistribution([0.002, 0.001]), "queue_size": CategoricalDistribution([5000, 6000])}
    with pytest.raises(InputError, match="lr lists the same value twice"):
        read_space(_file(tmp_path, "lr: {choice: [0.002, '2e-3']}"), BASE)
