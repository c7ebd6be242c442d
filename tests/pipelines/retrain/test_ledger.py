"""Which releases stay, and which is returned to."""

from pathlib import Path

import pytest

from pipelines.retrain import damage
from pipelines.retrain.ledger import Ledger, Release, Releases
from pipelines.storage.run_folder import RunFolder


def release(cycle: int, model: str) -> Release:
    return Release(cycle, cycle, f"series-{model}", model, "1", "/vectors", f"v{cycle:04d}", "", "")


def series(models: str) -> Releases:
    """A release for each letter, which names its model."""
    found = Releases()
    for cycle, model in enumerate(models, 1):
        found = found.with_new(release(cycle, model))
    return found


def cycles(releases: Releases) -> list[int]:
    return [one.cycle for one in releases.releases]


def test_an_earlier_model_stays_however_often_the_corpus_was_compressed_anew() -> None:
    assert cycles(series("abbbbb").kept(3)) == [1, 4, 5, 6]
    assert cycles(series("aabbcc").kept(2)) == [4, 5, 6]
    assert cycles(series("abcdef").kept(3)) == [4, 5, 6]


def test_what_is_in_force_stays_after_a_rollback() -> None:
    back = series("abcd").returned_to(release(1, "a"))
    assert (back.in_force, back.withdrawn) == (1, ("d",))
    assert cycles(back.kept(1)) == [1, 3, 4]


def test_a_decision_is_followed_once_whatever_is_dropped_afterwards() -> None:
    two, record = series("ab"), {"cycle": 2, "release": release(2, "b")._asdict()}
    assert not two._replace(decided=2).lack(record)
    assert two._replace(decided=1, releases=two.releases[:1]).lack(record)
    # rolled back from, and lost since
    assert not two._replace(decided=2, releases=two.releases[:1], in_force=1).lack(record)
    assert not two._replace(decided=1).lack({"cycle": 2, "release": None})
    # records of earlier versions do not say what was decided
    assert not two.lack(record) and two._replace(releases=two.releases[:1]).lack(record)
    assert not Releases().lack(None)


def test_a_withdrawn_model_takes_no_place_of_a_sound_one() -> None:
    back = series("ab").returned_to(release(1, "a"))
    assert cycles(back.with_new(release(3, "c")).kept(2)) == [1, 2, 3]
    newer = back.with_new(release(3, "c")).with_new(release(4, "d"))._replace(anchor=4)
    assert cycles(newer.kept(2)) == [3, 4]


def test_the_anchor_stays_however_many_releases_follow_and_a_withdrawn_model_is_none() -> None:
    anchored = series("abcdef")._replace(anchor=2)
    assert cycles(anchored.kept(2)) == [2, 5, 6]
    # its last corpus
    assert cycles(anchored.with_new(release(7, "b")._replace(trained_in=2)).kept(1)) == [7]
    back = series("abc")._replace(anchor=3).returned_to(release(2, "b"))
    assert back.anchored == release(2, "b")
    # records of earlier versions have none
    assert series("abc").anchored == release(3, "c")


def test_an_older_corpus_withdraws_no_model_and_a_return_takes_the_mark_away() -> None:
    assert series("aa").returned_to(release(1, "a")).withdrawn == ()
    there_and_back = series("ab").returned_to(release(1, "a")).returned_to(release(2, "b"))
    assert (there_and_back.in_force, there_and_back.withdrawn) == (2, ("a",))


def test_vectors_whose_name_another_release_has_now_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the whole published folder was gone, and versions have begun again."""
    monkeypatch.setattr(damage, "checksum_of_version", lambda out, name: "new")
    older, newer = (
        release(cycle, model)._replace(version="v0001", manifest=manifest)
        for cycle, model, manifest in ((1, "a", "old"), (2, "b", "new"))
    )
    [problem] = damage.vector_problems("/vectors", older, [older, newer])
    assert (problem.problem, problem.is_replaceable) == ("is another release's now", True)
    assert [one.problem for one in damage.vector_problems("/vectors", newer, [older, newer])] == ["is missing"]


def test_records_are_read_back(tmp_path: Path) -> None:
    ledger = Ledger(RunFolder(str(tmp_path), "series"))
    assert ledger.releases() == Releases()
    written = series("ab").returned_to(release(1, "a"))
    ledger.write_releases(written)
    assert ledger.releases() == written
