"""Patterns, presets, and the table of rules before a run."""

import pickle
from functools import partial

import pytest
import torch
from draws import draw
from networks import plain, residual, settled, vgg
from torch import nn

from lightning_xai.relevance import LRP, composites, rule_table, rules
from lightning_xai.relevance.composites import Operation, RuleList

PRESETS = [
    composites.EpsilonPlus(),
    composites.EpsilonPlusFlat(),
    composites.EpsilonAlpha2Beta1(),
    composites.EpsilonAlpha2Beta1Flat(),
    composites.EpsilonGammaBox(-3.0, 3.0),
    composites.EpsilonGammaBox([-3.0, -2.0, -1.0], [3.0, 2.0, 1.0], gamma=0.1),
    composites.DeepTaylor(),
    composites.DeepTaylor(-3.0, 3.0),
    composites.AttnLRP(),
    composites.GuidedBackprop(),
    composites.Deconvnet(),
    composites.ExcitationBackprop(),
    RuleList([("first", rules.Flat()), ("*", rules.ZPlus())]),
]


def assigned(model, x, composite):
    return {module: rule for module, _, rule in rule_table(model, x, composite).rows}


@pytest.mark.parametrize("preset", PRESETS, ids=repr)
def test_presets_explain_pickle_and_compare(preset):
    again = pickle.loads(pickle.dumps(preset))
    assert again == preset
    assert repr(again) == repr(preset)
    found = LRP(preset)(settled(residual()), draw(2, 3, 20, 20), 1)
    assert found.isfinite().all()
    assert found.any()


def test_the_table_of_a_preset(tmp_path):
    found = rule_table(settled(vgg()), draw(2, 3, 16, 16), composites.EpsilonPlusFlat(epsilon=0.25, conv_epsilon=0.5))
    assert str(found).splitlines() == [
        "module  operation   rule",
        "0       conv2d      Flat()",
        "1       batch_norm  folded into conv2d in '0'",
        "2       relu        Pass()",
        "3       conv2d      ZPlus(epsilon=0.5, bias=True)",
        "4       batch_norm  folded into conv2d in '3'",
        "5       relu        Pass()",
        "7       conv2d      ZPlus(epsilon=0.5, bias=True)",
        "8       relu        Pass()",
        "11      linear      Epsilon(epsilon=0.25)",
        "12      relu        Pass()",
        "14      linear      Epsilon(epsilon=0.25)",
    ]
    written = found.to_csv(tmp_path / "rules.csv").read_text(encoding="utf-8").splitlines()
    assert written[:3] == ["module,operation,rule", "0,conv2d,Flat()", "1,batch_norm,folded into conv2d in '0'"]


def test_patterns_by_place_name_wildcard_and_function():
    model, x = plain().double(), draw(1, 3, 16, 16)
    mine = RuleList(
        [
            ("last", rules.Zero()),
            ("first convolution", rules.WSquare()),
            ("conv2d", rules.Gamma(0.5)),
            ("[4-6]", rules.ZPlus()),
            ("*", rules.Epsilon(0.1)),
        ]
    )
    assert assigned(model, x, mine) == {
        "0": "WSquare(epsilon=1e-06)",
        "1": "Pass()",
        "2": "Gamma(gamma=0.5, epsilon=1e-06)",
        "3": "Pass()",
        "5": "ZPlus(epsilon=1e-06, bias=True)",
        "6": "Pass()",
        "7": "Zero()",
    }


def test_a_module_name_covers_what_is_inside_and_kinds_can_be_names():
    operation = Operation("conv2d", "convolution", "norm.linear.0")
    for pattern, fits in {
        "name:norm": True,
        "norm": False,
        "norm.linear": True,
        "norm.lin": False,
        "norm.*": True,
        "*.0 convolution": True,
        "*.0 linear": False,
        "convolution first": False,
    }.items():
        assert composites.matches(pattern, operation) is fits, pattern


def test_the_last_operation_is_the_one_nearest_to_the_score():
    """An auxiliary head that runs later does not reach the score."""
    body, head, side = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)
    model = nn.Module()
    model.body, model.head, model.side = body, head, side

    def forward(x):
        x = body(x).relu()
        main = head(x)
        side(x)
        return main

    model.forward = forward
    found = assigned(model, torch.randn(2, 4), RuleList([("last", rules.Zero()), ("*", rules.ZPlus())]))
    assert found["head"] == "Zero()"
    assert found["body"] == found["side"] == "ZPlus(epsilon=1e-06, bias=True)"


def test_every_stem_that_the_input_reaches_is_first():
    left, right, head = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(4, 2)
    model = nn.Module()
    model.left, model.right, model.head = left, right, head
    model.forward = lambda x: head(torch.cat([left(x), right(x)], 1).mean((2, 3)))
    found = assigned(model, torch.randn(2, 2, 3, 3), composites.EpsilonPlusFlat())
    assert found == {"left": "Flat()", "right": "Flat()", "head": "Epsilon(epsilon=1e-06)"}


def test_what_nothing_matches_names_itself_and_the_remedy():
    model, x = plain().double(), draw(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"no rule for linear in '5'; .*RuleList\(\[\('linear', rules.Gradient\(\)\)"):
        rule_table(model, x, RuleList([("convolution", rules.ZPlus())]))


def test_a_rule_for_another_kind_is_refused():
    model, x = plain().double(), draw(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"gives Pass\(\) to conv2d in '0'.*rule for activation"):
        rule_table(model, x, RuleList([("convolution", rules.Pass()), ("*", rules.Epsilon())]))


def test_names_that_do_not_exist_list_the_near_misses():
    model, x = nn.Sequential(), torch.randn(1, 4)
    model.add_module("encoder", nn.Linear(4, 4))
    model.add_module("decoder", nn.Linear(4, 2))
    for word in ("encodr", "name:encodr"):
        with pytest.raises(ValueError, match=r"encodr' is unknown. Did you mean 'encoder'"):
            rule_table(model, x, RuleList([(word, rules.ZPlus()), ("*", rules.Epsilon())]))
    with pytest.raises(ValueError, match=r"'convolutoin' is unknown. Did you mean 'convolution'"):
        rule_table(model, x, RuleList([("convolutoin", rules.ZPlus())]))


@pytest.mark.parametrize(
    "given", [["convolution"], [("convolution", "zplus")], [(rules.ZPlus(), "*")], [("", rules.ZPlus())]]
)
def test_what_is_no_list_of_pairs(given):
    with pytest.raises(TypeError, match="list of pairs"):
        RuleList(given)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="at least one pair"):
        RuleList([])
    with pytest.raises(TypeError, match=r"got a rule; one for all is RuleList.*ZPlus"):
        LRP(rules.ZPlus())
    with pytest.raises(ValueError, match="both low and high"):
        composites.DeepTaylor(low=0.0)
    with pytest.raises(ValueError, match="low must not exceed high"):
        composites.EpsilonGammaBox(1.0, 0.0)


@pytest.mark.parametrize(
    "make",
    [
        partial(composites.EpsilonPlus, epsilon=-1.0),
        partial(composites.EpsilonPlusFlat, conv_epsilon=-1.0),
        partial(composites.EpsilonAlpha2Beta1, epsilon=-1.0),
        partial(composites.EpsilonAlpha2Beta1Flat, conv_epsilon=-1.0),
        partial(composites.EpsilonGammaBox, 0.0, 1.0, gamma=-1.0),
        partial(composites.DeepTaylor, epsilon=-1.0),
        partial(composites.AttnLRP, epsilon=-1.0),
        partial(composites.ExcitationBackprop, epsilon=-1.0),
    ],
    ids=lambda make: make.func.__name__,
)
def test_the_constructor_checks_the_numbers_of_its_rules(make):
    with pytest.raises(ValueError, match=r"(epsilon|gamma) must be a number >= 0, got -1"):
        make()


@pytest.mark.parametrize("pattern", ["last relu", "first activation", "sum relu", "relu conv2d"])
def test_pattern_that_can_match_nothing_is_refused(pattern):
    with pytest.raises(ValueError, match=rf"the pattern '{pattern}' fits no operation"):
        RuleList([(pattern, rules.Gradient()), ("*", rules.Zero())])


def test_rule_for_a_kind_that_does_not_exist_is_refused():
    class Strange(rules.Rule):
        applies = frozenset({"soft_max"})

    with pytest.raises(ValueError, match="applies to soft_max, which is no kind"):
        RuleList([("*", Strange())])


def test_a_mapping_is_a_list_too():
    pairs = [("convolution", rules.ZPlus()), ("linear", rules.Epsilon())]
    assert RuleList(dict(pairs)) == RuleList(pairs)


def test_pass_for_a_batch_norm_that_stands_alone():
    model = settled(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False)))
    x = draw(3, 4)
    passing = RuleList([("affine_norm", rules.Pass()), ("linear", rules.Zero())])
    found = LRP(passing)(model, x, 1)
    hidden = model[0](x) * model[1].weight[1]
    torch.testing.assert_close(found, hidden.detach())


def test_a_relu6_has_the_name_of_its_function_and_its_own():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU6(), nn.Linear(4, 2)), torch.ones(1, 3)
    for word in ("hardtanh", "relu6", "activation"):
        table = rule_table(model, x, RuleList([("linear", rules.Zero()), (word, rules.Gradient())]))
        assert table.rows[1] == ("1", "hardtanh", "Gradient()")
