"""Several attributions in one run: each by its name, built as if it were the only one."""

import pytest

from lightning_xai.app.attributions import build_attribution, side_by_side
from lightning_xai.app.folder import config_to_run_again
from lightning_xai.app.run import build_monitor
from lightning_xai.evaluation import RandomMap

FAITHFULNESS = "metrics.faithfulness.attribution"


def test_each_attribution_is_what_it_is_alone(composed):
    names = ["lrp", "gradient_x_input", "integrated_gradients", "saliency", "grad_cam", "importance"]
    how = ["score=margin", "regions.size=7", "perturbation=blur", "perturbation.strengths=null"]
    metrics = build_monitor(composed("metrics=comparison", *how)).metrics
    assert [*metrics] == [*names, "random"]
    for name in names:
        assert metrics[name].attribution == build_attribution(composed(f"attribution={name}", *how)), name
    assert metrics["random"].attribution == RandomMap()
    assert len({metric.question for metric in metrics.values()}) == 1


def test_choices_of_the_entry_hold_for_all_and_for_the_floor(composed):
    how = ["metrics=comparison", f"{FAITHFULNESS}=[lrp,saliency]", "metrics.faithfulness.steps=3", "rule=attn_lrp"]
    metrics = build_monitor(composed(*how)).metrics
    assert {name: metric.core.steps for name, metric in metrics.items()} == {"lrp": 3, "saliency": 3, "random": 3}
    assert type(metrics["lrp"].attribution.composite).__name__ == "AttnLRP"


def test_names_that_others_have_are_told_apart_by_the_metric(composed):
    lists = [f"+{FAITHFULNESS}=[lrp,importance]", "+metrics.relevance.attribution=[lrp,cam]"]
    found = composed(*lists).metrics
    assert [name for name in found if name not in ("speed", "synergy", "reactivation", "random")] == [
        "importance",
        "relevance_lrp",
        "cam",
        "faithfulness_lrp",
        "faithfulness_importance",
    ]


def test_a_config_without_lists_is_as_it_was(composed):
    config = composed()
    assert side_by_side(config) is config


def test_the_config_that_is_written_down_has_every_attribution(composed):
    text = config_to_run_again(composed("metrics=comparison", f"{FAITHFULNESS}=[saliency]"))
    assert "lightning_xai.relevance.Saliency" in text
    assert "faithfulness" not in text
    assert "override" not in text


@pytest.mark.parametrize(
    ("listed", "error", "words"),
    [
        ("[lrp,salience]", ValueError, f"{FAITHFULNESS} 'salience' is unknown. Did you mean 'saliency'"),
        ("[]", ValueError, "at least one"),
        ("[lrp,lrp]", ValueError, "each once"),
        ("[{_target_:my_module.Mine}]", TypeError, "by their names"),
        ("[3]", TypeError, "by their names"),
    ],
)
def test_lists_that_name_no_attributions_are_refused(composed, listed, error, words):
    with pytest.raises(error, match=words):
        composed("metrics=comparison", f"{FAITHFULNESS}={listed}")
