"""deploy/prometheus/smec-alerts.yaml: rules of Prometheus on metrics that there are."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.runtime.prometheus import RETRAIN_FIGURES, TRAIN_GAUGES

REPOSITORY = Path(__file__).resolve().parents[2]
EXPORTED = {f"ray_{name}": {"run"} for name in TRAIN_GAUGES}
EXPORTED |= {f"ray_smec_retrain_{figure}": {"name"} for figure in RETRAIN_FIGURES}


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((REPOSITORY / "deploy/prometheus/smec-alerts.yaml").read_text())
    assert set(content) == {"groups"}
    [group] = content["groups"]
    assert set(group) == {"name", "rules"}
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def test_there_is_an_alert_for_what_needs_a_person(rules: list[dict[str, Any]]) -> None:
    assert [rule["alert"] for rule in rules] == [
        "SmecGateRefused",
        "SmecRetrainOverdue",
        "SmecDriftHigh",
        "SmecTrainingStalled",
    ]
    for rule in rules:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert set(rule["annotations"]) <= {"summary", "description"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert re.fullmatch(r"\d+[smhd]", rule.get("for", "0s"))


def test_every_metric_in_an_alert_is_exported_with_the_labels_that_it_uses(rules: list[dict[str, Any]]) -> None:
    for rule in rules:
        used = re.findall(r"\b(?:ray_)?smec_\w+", rule["expr"])
        assert used, rule["alert"]
        assert set(used) <= set(EXPORTED)
        labels = {label for name in used for label in EXPORTED[name]}
        grouped = re.findall(r"by \((\w+)\)", rule["expr"])
        shown = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
        assert set(grouped) == labels
        assert set(shown) <= labels
        assert rule["expr"].count("(") == rule["expr"].count(")")
