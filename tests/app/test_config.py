"""Every config file builds what it names, and says what the class says."""

import dataclasses
import inspect
import re
from importlib.resources import files

import pytest
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from lightning_xai import ExplanationMonitor, Pictures, Segments, Windows, regions, relevance, scores
from lightning_xai.app.attributions import build_attribution
from lightning_xai.app.run import build_monitor
from lightning_xai.attribution import Attribution
from lightning_xai.evaluation import RandomMap
from lightning_xai.metrics import Importance, Relevance, Speed, Synergy
from lightning_xai.perturbation import PerturbationImportance, kinds
from lightning_xai.relevance import composites

CONF = files("lightning_xai.conf")
EVEN = regions.Slice(step=2)
FILES = sorted(
    f"{group.name}/{file.name.removesuffix('.yaml')}"
    for group in CONF.iterdir()
    if group.is_dir() and group.name != "hydra" and not group.name.startswith("__")
    for file in group.iterdir()
)
MANDATORY = {
    "regions/segments": ["regions.labels=[[0,1],[1,1]]"],
    "metrics/unit_ablation": ["metrics.unit_ablation.layer=net.4"],
    "metrics/top_samples": ["metrics.top_samples.layer=net.4"],
    "metrics/dissection": [
        "metrics.dissection.layer=net.4",
        "metrics.dissection.concepts=[ink]",
        "metrics.dissection.threshold=0.5",
        "metrics.dissection.segmenter={_target_:torch.Tensor.long,_partial_:true}",
    ],
    "score/unit": ["score.layer=net.4", "score.unit=1"],
    "perturbation/channel_vector": ["perturbation.vector=[0.5]"],
    "perturbation/custom": ["perturbation.factor=0.5"],
    "perturbation/custom_sum": ["perturbation.summand=0.5"],
    "select/custom": ["regions.select.keep=[true,false]"],
    "select/first": ["regions.select.n=3"],
    "rule/rule_list": ["rule.rules={linear:{_target_:lightning_xai.relevance.rules.Epsilon}}"],
}
NOT_INSTALLED = ("logger/mlflow", "logger/wandb")
APPENDED = ("select", "experiment", "maximization")

KINDS = [
    kind
    for _, kind in inspect.getmembers(kinds, inspect.isclass)
    if issubclass(kind, kinds.Perturbation) and not inspect.isabstract(kind)
]
# A demonstration on images in [0, 1]: windows fade away altogether, or are replaced by other digits.
OTHER_VALUES = {
    ("negative", "delta"): 1.0,
    ("channel_vector", "vector"): "???",
    ("custom", "factor"): "???",  # 1 and 0 would change nothing
    ("custom_sum", "summand"): "???",
    ("replace", "background"): {"_target_": "lightning_xai.app.data.mnist_images", "count": 100},
}


METHODS = [
    kind
    for _, kind in inspect.getmembers(relevance, inspect.isclass)
    if issubclass(kind, Attribution) and not inspect.isabstract(kind)
]
PRESETS = [
    kind
    for _, kind in inspect.getmembers(composites, inspect.isclass)
    if issubclass(kind, composites.Composite) and not inspect.isabstract(kind)
]
NAMED_OTHERWISE = {
    "RawOutput": "value",
    "PerturbationImportance": "importance",
}  # by the name that every function takes
METHODS_OF_THEIR_OWN = {"deconvnet", "guided_backprop", "excitation_backprop"}  # these presets are attributions


def snake_case(name):
    words = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name.replace("ReLU", "Relu"))
    return NAMED_OTHERWISE.get(name) or re.sub("([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def chosen(file):
    group, name = file.split("/")
    return [f"{'+' if group in APPENDED else ''}{group}={name}", *MANDATORY.get(file, [])]


def test_there_are_files():
    assert len(FILES) > 50
    assert {"perturbation/blur", "score/margin", "experiment/blurred_margin"} <= set(FILES)


@pytest.mark.parametrize("file", sorted({*FILES} - {*NOT_INSTALLED}))
def test_every_file_builds_what_it_names(file, composed):
    config = composed(*chosen(file))
    monitor = build_monitor(config)
    assert monitor.metrics
    group = file.split("/")[0]
    if group in ("model", "data", "logger"):
        assert type(instantiate(config[group])).__name__ == config[group]._target_.rpartition(".")[2]
    if group == "trainer":
        assert instantiate(config.trainer, logger=False).max_epochs == 3


@pytest.mark.parametrize("file", NOT_INSTALLED)
def test_a_logger_whose_package_is_missing_takes_its_arguments(file, composed):
    entry = composed(*chosen(file)).logger
    arguments = {name: value for name, value in entry.items() if name != "_target_"}
    assert set(arguments) <= set(inspect.signature(get_object(entry._target_)).parameters)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_has_a_file_with_its_defaults(kind, composed):
    name = snake_case(kind.__name__)
    entry = OmegaConf.to_container(composed(f"perturbation={name}").perturbation)
    strengths = entry.pop("strengths")
    assert get_object(entry.pop("_target_")) is kind
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    assert entry == {field: OTHER_VALUES.get((name, field), default) for field, default in defaults.items()}
    assert (strengths is None) == (kind.strength is None)


def test_every_other_perturbation_is_an_alias(composed):
    names = {snake_case(kind.__name__) for kind in KINDS}
    assert {file.split("/")[1] for file in FILES if file.startswith("perturbation/")} - names == {"mean", "zero"}
    for name, kind in {"mean": kinds.ChannelMean(), "zero": kinds.Constant(0.0)}.items():
        assert build_monitor(composed(f"perturbation={name}")).metrics["importance"].requests[0].perturbation == kind


@pytest.mark.parametrize(
    ("place", "built", "filled_in"),
    [
        ("monitor", ExplanationMonitor, {"metrics"}),
        ("monitor.pictures", Pictures, set()),
        ("regions", Windows, set()),
        ("score", scores.Probability, set()),
    ],
)
def test_what_the_default_config_builds_shows_every_argument(place, built, filled_in, composed):
    entry = composed()
    for name in place.split("."):
        entry = entry[name]
    assert {*entry} - {"_target_", "_convert_"} == {*inspect.signature(built).parameters} - filled_in


SELECTIONS = [entry for name in regions.__all__ if inspect.isclass(entry := getattr(regions, name))]
NAMES = {
    "score": {*scores.BY_NAME, "unit", "box"},
    "select": {snake_case(entry.__name__) for entry in SELECTIONS if regions.Selection in entry.__mro__[1:]},
}


@pytest.mark.parametrize("group", NAMES)
def test_every_choice_of_an_open_set_has_a_file(group):
    assert {file.split("/")[1] for file in FILES if file.startswith(f"{group}/")} == NAMES[group]


# What the config makes of the choices.


def test_strengths_are_the_states_of_speed(composed):
    speed = build_monitor(composed("perturbation.strengths=[.1,.2,.3]")).metrics["speed"]
    assert [request.perturbation for request in speed.requests] == [kinds.Negative(delta) for delta in (0.1, 0.2, 0.3)]
    assert speed.abscissae == [0.1, 0.2, 0.3]


def test_the_default_explains_by_all(composed):
    metrics = build_monitor(composed()).metrics
    assert {Importance, Speed, Synergy, Relevance} <= {type(metric) for metric in metrics.values()}
    assert len({metric.plan for metric in metrics.values() if hasattr(metric, "plan")}) == 1
    assert metrics["relevance"].attribution == relevance.LRP(composites.EpsilonPlus())
    assert metrics["relevance"].regions == Windows(4)


@pytest.mark.parametrize("kind", ["mean", "blur perturbation.strengths=null"])
def test_without_strengths_speed_is_left_out_with_a_word(kind, composed, capsys):
    assert "speed" not in build_monitor(composed(*f"perturbation={kind}".split())).metrics
    assert "speed is left out" in capsys.readouterr().out


MISFITS = {
    "regions.stride=2": "Windows(size=4, stride=2) overlap: sets of features need windows",
    "perturbation=bidirectional perturbation.combine=central": "Bidirectional(combine='central') gives a difference",
    "score=comb_classes": "score='comb_classes' is a difference to the clean input",
}


@pytest.mark.parametrize("choices", MISFITS)
def test_a_default_metric_that_does_not_fit_is_left_out_with_one_line(choices, composed, capsys):
    metrics = build_monitor(composed(*choices.split())).metrics
    assert metrics.keys() == {"importance", "speed", "synergy", "relevance", "reactivation"}
    out = capsys.readouterr().out
    assert out.startswith(f"faithfulness and random are left out: {MISFITS[choices]}")
    assert out.count("\n") == 1


@pytest.mark.parametrize("choices", [*MISFITS, "metrics.faithfulness.steps=0"])
def test_a_metric_by_name_that_does_not_fit_is_an_error(choices, composed):
    words = re.escape(MISFITS.get(choices, "steps must be at least 1"))
    with pytest.raises(ValueError, match=f"metrics.faithfulness: {words}"):
        build_monitor(composed("metrics=[importance,faithfulness]", *choices.split()))


def test_a_wrong_argument_of_a_default_metric_is_an_error(composed):
    with pytest.raises(ValueError, match=r"metrics.faithfulness: steps must be at least 1"):
        build_monitor(composed("metrics.faithfulness.steps=0"))
    with pytest.raises(TypeError, match=r"metrics.speed.optional must be True or False"):
        build_monitor(composed("metrics.speed.optional=often"))
    with pytest.raises(ValueError, match=r"metrics.speed: ChannelMean has no strength to vary"):
        build_monitor(composed("perturbation=mean", "metrics=speed"))


def test_the_floor_is_measured_like_the_attribution(composed):
    metrics = build_monitor(composed("metrics=faithfulness", "metrics.faithfulness.steps=4")).metrics
    assert metrics["random"].attribution == RandomMap(seed=0)
    assert metrics["random"].question == metrics["faithfulness"].question
    assert metrics["random"].core.steps == 4


DEFAULT_METRICS = ["importance", "speed", "synergy", "relevance", "reactivation", "faithfulness", "random"]


@pytest.mark.parametrize("name", DEFAULT_METRICS)
def test_every_default_metric_can_be_left_out_alone(name, composed):
    every = build_monitor(composed()).metrics
    left = build_monitor(composed(f"~metrics.{name}")).metrics
    assert [*left] == [other for other in every if other != name]
    assert {other: metric.question for other, metric in left.items() if hasattr(metric, "question")} == {
        other: metric.question for other, metric in every.items() if hasattr(metric, "question") and other != name
    }


def test_the_default_metrics_are_those_that_can_be_left_out(composed):
    assert [*composed().metrics] == DEFAULT_METRICS


def test_drift_of_a_network_that_is_explained_once_is_said(composed, capsys):
    build_monitor(composed("metrics=drift"))
    assert "drift compares epochs" in capsys.readouterr().out
    build_monitor(composed("metrics=drift", "monitor.every_n_epochs=1"))
    assert capsys.readouterr().out == ""


def test_consistency_has_a_floor_that_is_asked_the_same_beside_that_of_faithfulness(composed):
    metrics = build_monitor(composed("metrics=[consistency,faithfulness]", "metrics.consistency.count=1")).metrics
    assert metrics["consistency"].question == metrics["random_consistency"].question
    assert metrics["faithfulness"].question == metrics["random"].question
    assert metrics["random_consistency"].count == 1


def test_a_metric_keeps_what_its_own_entry_says(composed):
    config = composed("+metrics.importance.score=logit", "score=margin", "metrics.synergy.anchor=3")
    metrics = build_monitor(config).metrics
    assert metrics["importance"].requests[0].score == scores.Logit()
    assert metrics["speed"].requests[0].score == scores.Margin()
    assert metrics["synergy"].requests[0].pairing == 3
    assert config.perturbation.strengths == [0.25, 0.5, 0.75, 1.0]  # left as it was, to be written down


@pytest.mark.parametrize(
    ("overrides", "regions"),
    [
        (
            ["regions.size=[2,3]", "+select=slice", "regions.select.step=2"],
            Windows((2, 3), select=EVEN),
        ),
        (["regions.scope=[[0,8],[4,20]]"], Windows(4, scope=((0, 8), (4, 20)))),
        (["+experiment=blurred_margin"], Windows(6, stride=3)),
    ],
)
def test_regions_of_a_config(overrides, regions, composed):
    assert build_monitor(composed(*overrides)).metrics["importance"].plan.regions == regions


def test_a_nested_list_is_a_label_map(composed):
    regions = build_monitor(composed("regions=segments", "regions.labels=[[0,0,1],[2,2,1]]")).metrics["importance"].plan
    assert isinstance(regions.regions, Segments)
    assert regions.regions.bind((1, 1, 2, 3)).count == 3


# Relevance.


def defaults_of(kind):
    """A class's fields and their defaults, as a config says them."""
    found = {}
    for field in dataclasses.fields(kind):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory
        found[field.name] = "???" if default is dataclasses.MISSING else default
    return found


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_attribution_has_a_file_with_its_defaults(kind, composed):
    config = composed(f"attribution={snake_case(kind.__name__)}")
    attribution = build_attribution(config)
    assert type(attribution) is kind
    assert attribution == kind()
    assert {*config.attribution} - {"_target_", "_convert_"} == defaults_of(kind).keys()
    assert (config.get("rule") is None) == (kind is not relevance.LRP)


@pytest.mark.parametrize("kind", PRESETS, ids=lambda kind: kind.__name__)
def test_every_preset_has_a_file_with_its_defaults(kind, composed):
    name = snake_case(kind.__name__)
    if name in METHODS_OF_THEIR_OWN:
        assert f"rule/{name}" not in FILES
        assert f"attribution/{name}" in FILES
        return
    config = composed(*chosen(f"rule/{name}"))
    rule = build_attribution(config).composite
    assert type(rule) is kind
    assert {*config.rule} - {"_target_", "_convert_"} == defaults_of(kind).keys()
    if kind not in (composites.RuleList, composites.EpsilonGammaBox):
        assert rule == kind()


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ([], PerturbationImportance(Windows(4), kinds.Negative(1.0))),
        (
            ["score=margin", "regions.stride=2"],
            PerturbationImportance(Windows(4, 2), kinds.Negative(1.0), score="margin"),
        ),
        (["attribution.score=logit"], PerturbationImportance(Windows(4), kinds.Negative(1.0), score="logit")),
    ],
)
def test_importance_is_an_attribution_over_the_choices_of_the_config(overrides, found, composed):
    config = composed("attribution=importance", *overrides)
    assert build_attribution(config) == found
    assert build_monitor(config).metrics["relevance"].attribution == found
    assert {*config.attribution} - {"_target_"} == {*inspect.signature(PerturbationImportance).parameters}
    assert config.get("rule") is None


def test_there_are_no_other_files():
    for group, kinds_ in (("attribution", [*METHODS, PerturbationImportance]), ("rule", PRESETS)):
        files = {file.split("/")[1] for file in FILES if file.startswith(f"{group}/")}
        assert files <= {snake_case(kind.__name__) for kind in kinds_}


def test_a_rule_and_its_numbers(composed):
    config = composed("rule=epsilon_plus_flat", "rule.epsilon=1e-3")
    expected = relevance.LRP(composites.EpsilonPlusFlat(epsilon=1e-3))
    assert build_monitor(config).metrics["relevance"].attribution == expected
    assert build_attribution(composed("rule.epsilon=0.5")) == relevance.LRP(composites.EpsilonPlus(epsilon=0.5))


def test_a_list_of_rules_of_ones_own(composed):
    pairs = (
        "[[first,{_target_:lightning_xai.relevance.rules.Flat}],['*',{_target_:lightning_xai.relevance.rules.Epsilon}]]"
    )
    composite = build_attribution(composed("rule=rule_list", f"rule.rules={pairs}")).composite
    assert composite.rules == (("first", relevance.rules.Flat()), ("*", relevance.rules.Epsilon()))


def test_a_rule_goes_with_lrp_only(composed):
    for overrides in (
        ["attribution=saliency", "rule=epsilon_plus"],
        ["rule=epsilon_plus_flat", "attribution=grad_cam"],
    ):
        with pytest.raises(ValueError, match=r"rule=... says how attribution=lrp passes relevance on, and .* no rules"):
            build_monitor(composed(*overrides))


def test_an_attribution_inside_another(composed):
    other = "+attribution.attribution={_target_:lightning_xai.relevance.GradCAM,layer:net.3}"
    found = build_attribution(composed("attribution=smooth_grad", "~attribution.attribution", other))
    assert found == relevance.SmoothGrad(relevance.GradCAM(layer="net.3"))


@pytest.mark.parametrize(
    ("overrides", "read"),
    [
        ([], scores.Logit()),
        (["score=comb_classes"], scores.Logit()),
        (["score=margin", "score.output=1"], scores.Margin(output=1)),
        (["score=margin", "attribution.score=sigmoid"], scores.Sigmoid()),
    ],
)
def test_attributions_explain_the_score_of_the_config(overrides, read, composed):
    assert build_attribution(composed(*overrides)).score == read
    outside = [override for override in overrides if not override.startswith("attribution.")]
    inside = build_attribution(composed("attribution=smooth_grad", *outside)).attribution
    assert inside.score == (read if "attribution.score" not in str(overrides) else scores.Margin())


def test_an_experiment_sets_several_groups(composed):
    request = build_monitor(composed("+experiment=blurred_margin")).metrics["importance"].requests[0]
    assert (request.perturbation, request.score) == (kinds.Blur(3.0), scores.Margin())
