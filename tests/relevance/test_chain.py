"""Rules that take large outputs a few samples at a time find what they find at once."""

import pytest
import torch
from networks import module, residual, settled, vgg
from torch import nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn import functional

from lightning_xai._guard import set_forward_context
from lightning_xai.relevance import LRP, chain, composites, rules
from lightning_xai.relevance.maps import Convolution

RULES = {
    "epsilon": rules.Epsilon(0.1),
    "z+": rules.ZPlus(),
    "alpha-beta": rules.AlphaBeta(alpha=3.0, beta=2.0),
    "gamma": rules.Gamma(gamma=0.5),
}


def network():
    """Inputs of both signs and of one, groups, a transpose, and what may hand relevance to a convolution: all kinds."""
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU6(inplace=True)]
    layers += [nn.Conv2d(6, 6, 3, stride=2, groups=3), nn.GELU(), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)]
    layers += [nn.ConvTranspose2d(4, 5, 3, stride=2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5 * 7 * 5, 3)]
    return settled(nn.Sequential(*layers))


def runs(monkeypatch, samples_at_once, find):
    """What is found, and the batches that the transposed convolutions were given."""
    batches = []
    transpose = Convolution._transpose

    def noted(self, s, *rest):
        batches.append(len(s))
        return transpose(self, s, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Convolution, "_transpose", noted)
        patch.setattr(chain, "SLICE_BYTES", samples_at_once * 6 * 8 * 6 * 8)  # of the first, largest output
        return find(), batches


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_slices_make_no_difference(rule, monkeypatch):
    model, x = network(), torch.randn(5, 3, 8, 6, dtype=torch.float64)
    lrp = LRP(composites.RuleList([("linear", rules.Epsilon()), ("convolution", rule), ("*", rules.Pass())]))
    whole, of_all = runs(monkeypatch, 5, lambda: lrp(model, x, 1))
    sliced, of_some = runs(monkeypatch, 2, lambda: lrp(model, x, 1))
    torch.testing.assert_close(sliced, whole, rtol=1e-12, atol=1e-13)
    assert set(of_all) == {5}
    assert {2, 1, 5} <= set(of_some)  # small outputs are taken whole


def test_slices_tell_the_ledger_the_same(monkeypatch):
    model, x = network(), torch.randn(5, 3, 8, 6, dtype=torch.float64)
    lrp = LRP(composites.EpsilonAlpha2Beta1())
    (_, whole), _ = runs(monkeypatch, 5, lambda: lrp.with_ledger(model, x, 1))
    (_, sliced), batches = runs(monkeypatch, 2, lambda: lrp.with_ledger(model, x, 1))
    assert 2 in batches
    for name in ("biases", "epsilon", "received"):
        torch.testing.assert_close(getattr(sliced, name), getattr(whole, name), rtol=1e-11, atol=1e-12)


def images(*shape):
    return torch.randn(*(shape or (5, 3, 8, 6)), dtype=torch.float64)


def convolutions(between):
    """Convolutions in a row, ``between`` putting together the second with what makes the activation before it."""
    torch.manual_seed(0)
    first, second, third = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 3)

    def forward(x):
        return third(functional.gelu(between(first(x), second))).mean((2, 3))

    return module(forward, first=first, second=second, third=third).double().requires_grad_(False)


def in_a_row(y, second):
    return second(torch.relu(y))


def test_operations_that_follow_each_other_take_samples_together(monkeypatch):
    model, x, lrp = convolutions(in_a_row), images(), LRP(composites.EpsilonPlus())
    assert runs(monkeypatch, 5, lambda: lrp(model, x, 1))[1] == [5, 5, 5]
    assert runs(monkeypatch, 2, lambda: lrp(model, x, 1))[1] == [2, 2, 2, 2, 2, 2, 1, 1, 1]


def beside_the_activation(y, second):
    return second(torch.relu(y)) + y


def beside_its_result(y, second):
    a = torch.relu(y)
    return a + second(a)


def beside_its_result_first(y, second):
    a = torch.relu(y)
    return second(a) + a


@pytest.mark.parametrize("between", [beside_the_activation, beside_its_result, beside_its_result_first])
def test_what_others_read_is_taken_by_itself(between, monkeypatch):
    model, x, lrp = convolutions(between), images(), LRP(composites.EpsilonPlus())
    found, expected = (runs(monkeypatch, samples, lambda: lrp(model, x, 1))[0] for samples in (1, 5))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_an_activation_with_a_rule_of_its_own_is_no_part_of_a_chain(monkeypatch):
    rule = composites.RuleList([("relu", rules.Deconv()), ("activation", rules.Pass()), ("*", rules.ZPlus())])
    model, x = convolutions(in_a_row), images()
    found, expected = (runs(monkeypatch, samples, lambda: LRP(rule)(model, x, 1))[0] for samples in (1, 5))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_products_whose_first_axis_is_not_that_of_samples_are_taken_whole(monkeypatch):
    torch.manual_seed(0)
    first, second = images(7, 12), images(4, 7)
    model, x, lrp = module(lambda x: (second @ torch.relu(first @ x.t())).t()), images(5, 12), LRP()
    found, expected = (runs(monkeypatch, samples, lambda: lrp(model, x, 1))[0] for samples in (0, 5))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


SHOW = {
    "a hook": lambda seen, y: y.register_hook(seen.append),
    "retain_grad": lambda seen, y: (y.retain_grad(), seen.append(y)),
    "a hook of the node": lambda seen, y: y.grad_fn.register_prehook(lambda grads: seen.extend(grads)),
    "a hook of several tensors": lambda seen, y: register_multi_grad_hook((y,), lambda grads: seen.extend(grads)),
}


@pytest.mark.parametrize("show", SHOW.values(), ids=SHOW)
@pytest.mark.parametrize("early", [True, False])
def test_a_gradient_that_somebody_is_shown_is_whole(show, early, monkeypatch):
    x, lrp = images(), LRP(composites.EpsilonPlus())
    maps, seen = [], []

    def shown(y, second):
        if early:
            show(seen, y)
        a = torch.relu(y)
        if not early:
            show(seen, a)
        return second(a)

    for samples in (1, 5):
        maps.append(runs(monkeypatch, samples, lambda: lrp(convolutions(shown), x, 1))[0])
    torch.testing.assert_close(*maps, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(*(t if t.grad_fn is None else t.grad for t in seen), rtol=1e-12, atol=1e-13)


def test_a_node_behind_which_operations_follow_each_other_is_shown_whole_gradients(monkeypatch):
    x, lrp, seen = images(), LRP(composites.EpsilonPlus()), []

    def shown(y, second):
        y = second(torch.relu(y))
        y.grad_fn.register_hook(lambda down, _: (seen.append(down[0]), (2 * down[0], *down[1:]))[1])
        return y

    maps = [runs(monkeypatch, samples, lambda: lrp(convolutions(shown), x, 1))[0] for samples in (1, 5)]
    torch.testing.assert_close(*maps, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(*seen, rtol=1e-12, atol=1e-13)


def test_a_score_may_look_at_gradients_inside_the_model(monkeypatch):
    x, kept, maps = images(), [], []

    def between(y, second):
        kept.append(torch.relu(y))
        return second(kept[-1])

    def score(output, target):
        kept[-1].register_hook(lambda g: 2 * g)
        return output[:, 0]

    for samples in (1, 5):
        lrp = LRP(composites.EpsilonPlus(), score=score)
        found = runs(monkeypatch, samples, lambda lrp=lrp: lrp(convolutions(between), x, 1))[0]
        maps.append(found)
    torch.testing.assert_close(*maps, rtol=1e-12, atol=1e-13)


class Wider(rules.Epsilon):
    """Answers in another type than it was asked in."""

    def linear(self, step):
        return super().linear(step).double()


class Follower(rules.Rule):
    """Answers with what the activation behind it has made, which is not its own."""

    reads_relevance = True

    def linear(self, step):
        return step.activation_output


@pytest.mark.parametrize("rule", [Wider(), Follower()])
def test_rules_may_answer_with_other_types_and_with_what_they_were_given(rule, monkeypatch):
    kept = []

    def between(y, second):
        kept.append(torch.relu(second(torch.relu(y))))
        kept.append(kept[-1].detach().clone())
        return kept[-2]

    composite = composites.RuleList([("second", rule), ("convolution", rules.Epsilon(0.1)), ("*", rules.Pass())])
    model, x = convolutions(between).float(), images(1, 3, 8, 6).float()
    found, expected = (runs(monkeypatch, samples, lambda: LRP(composite)(model, x, 1))[0] for samples in (0, 5))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for left, before in zip(kept[::2], kept[1::2], strict=True):
        torch.testing.assert_close(left.detach(), before, rtol=0, atol=0)


class Broadcast(rules.Rule):
    """Answers with one number for all."""

    def linear(self, step):
        return step.g.sum()


@pytest.mark.parametrize("samples", [1, 5])
def test_a_rule_that_answers_in_another_shape_is_refused(samples, monkeypatch):
    composite = composites.RuleList([("second", Broadcast()), ("*", rules.Epsilon())])
    with pytest.raises(ValueError, match=r"shaped like step\.x, \[\d, 6, 8, 6\], got \[\]"):
        runs(monkeypatch, samples, lambda: LRP(composite)(convolutions(in_a_row), images(), 1))


def test_what_waits_holds_no_history(monkeypatch):
    """It would be held in a circle, for good where another branch fails meanwhile."""

    class Looks(rules.Epsilon):
        def linear(self, step):
            seen.extend((step.x.grad_fn, step.y.grad_fn, step.g.grad_fn))
            return super().linear(step)

    seen = []
    runs(monkeypatch, 5, lambda: LRP(composites.RuleList([("*", Looks())]))(convolutions(in_a_row), images(), 1))
    assert set(seen) == {None}


def test_heavy_weights_are_read_once_for_all_samples(monkeypatch):
    model, x, lrp = convolutions(in_a_row), images(), LRP(composites.EpsilonPlus())
    monkeypatch.setattr(chain, "WEIGHT_BYTES", 6 * 6 * 9 * 8 - 1)  # of the second convolution; the third has fewer
    assert runs(monkeypatch, 2, lambda: lrp(model, x, 1))[1] == [2, 2, 2, 2, 1, 1, 2, 2, 1]


def test_anomaly_mode_finds_nothing(monkeypatch):
    model, x, lrp = convolutions(in_a_row), images(), LRP(composites.EpsilonPlus())
    expected, _ = runs(monkeypatch, 2, lambda: lrp(model, x, 1))
    with torch.autograd.set_detect_anomaly(True):
        found, _ = runs(monkeypatch, 2, lambda: lrp(model, x, 1))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_values_of_another_type_are_rounded_alike(monkeypatch):
    model, x, lrp = convolutions(in_a_row).float(), images().float(), LRP(composites.EpsilonPlus())
    with set_forward_context(lambda: torch.autocast("cpu", torch.bfloat16)):
        maps = [runs(monkeypatch, samples, lambda: lrp(model, x, 1))[0] for samples in (0, 5)]
    torch.testing.assert_close(*maps, rtol=1e-5, atol=1e-6)


def test_rules_of_the_first_layer_look_once_at_what_all_samples_share(monkeypatch):
    model, x = network(), torch.rand(5, 3, 8, 6, dtype=torch.float64)
    _, batches = runs(monkeypatch, 2, lambda: LRP(composites.EpsilonPlusFlat())(model, x, 1))
    assert batches[-1] == 5


def test_the_transposed_operation_of_stacked_inputs_keeps_their_layout():
    images = torch.randn(2, 4, 5, 6).to(memory_format=torch.channels_last)
    weight = torch.randn(7, 4, 1, 1)
    convolution = Convolution((1, 1), (0, 0), (1, 1), 1)
    s = torch.randn(2, 7, 5, 6).to(memory_format=torch.channels_last)
    stacked = convolution.stacked(weight, -weight)
    for found in convolution.transpose_stacked(s, stacked, images):
        assert found.stride(1) == 1
    for found in convolution.transpose_stacked(s.contiguous(), stacked, images.contiguous()):
        assert found.stride(3) == 1


SWITCHED = {
    "flat": composites.EpsilonPlusFlat(),
    "alpha-beta": composites.EpsilonAlpha2Beta1(),
    "gamma and box": composites.EpsilonGammaBox(-4.0, 4.0),
    "epsilon": composites.AttnLRP(0.1),
    "last": composites.RuleList([("last", rules.Zero()), ("*", rules.ZPlus())]),
}


@pytest.mark.parametrize("preset", SWITCHED.values(), ids=SWITCHED)
@pytest.mark.parametrize("build", [network, lambda: settled(residual()), lambda: settled(vgg())])
def test_switched_off_the_maps_are_the_same(build, preset, monkeypatch):
    model, x = build(), images(3, 3, 16, 16) if build is not network else images()
    on, _ = runs(monkeypatch, 1, lambda: LRP(preset)(model, x, 1))
    monkeypatch.setattr(chain, "ENABLED", False)
    off, batches = runs(monkeypatch, 1, lambda: LRP(preset)(model, x, 1))
    assert on.abs().max() > 0
    torch.testing.assert_close(on, off, rtol=1e-10, atol=1e-12 * float(off.abs().max()))
    assert set(batches) <= {len(x)}  # nothing is taken in slices
