"""What MLflow is told of figures on judgements that a model has learnt from."""

from pipelines.tracking.about import reached_text
from pipelines.tracking.files import _evaluation_curves


def test_figures_on_what_was_learnt_from_stand_beside_those_of_the_first_pass() -> None:
    evaluation = {"split": "dev", "queries": 300, "learnt": True, "ndcg@10": {"8": 0.5}, "advice": "the model has ..."}
    assert _evaluation_curves(evaluation)["quality/dev_learnt/ndcg@10"] == {"8": 0.5}
    assert "on dev, which it has learnt from, 300 queries" in reached_text({"evaluation": evaluation})
    plain = {name: value for name, value in evaluation.items() if name != "learnt"}
    assert _evaluation_curves(plain)["quality/dev/ndcg@10"] == {"8": 0.5}
    assert "on dev, 300 queries" in reached_text({"evaluation": plain})
