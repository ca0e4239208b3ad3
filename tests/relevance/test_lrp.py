"""What LRP promises whatever the network: in every spelling, in every context, and without a trace."""

import copy
import gc
import warnings
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from captum.attr import LRP as CaptumLRP
from networks import Spelled, bias_free, module, plain, residual, settled, vgg
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lightning_xai._guard import set_forward_context
from lightning_xai.perturbation import importance
from lightning_xai.relevance import (
    LRP,
    Deconvnet,
    DeepTaylor,
    ExcitationBackprop,
    GuidedBackprop,
    Saliency,
    composites,
    rule_table,
    rules,
)
from lightning_xai.scores import Probability

PLUS_ZERO = composites.RuleList([("convolution", rules.ZPlus()), ("linear", rules.Zero())])


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()) + 1e-15)


def state(model):
    return {
        "training": [part.training for part in model.modules()],
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "requires": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad for parameter in model.parameters()],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()],
        "names": [sorted(vars(part)) for part in model.modules()],
    }


def same(first, second):
    values, others = first.pop("values"), second.pop("values")
    assert first == second
    assert all(torch.equal(values[name], others[name]) for name in values)


# Spellings.


@pytest.mark.parametrize("convolutions", [rules.ZPlus(), rules.AlphaBeta(), rules.Gamma(), rules.Epsilon(0.1)])
def test_functions_in_place_and_modules_give_the_same(convolutions):
    model, x = settled(vgg()), draw(2, 3, 16, 16)
    composite = composites.RuleList([("first", rules.Flat()), ("convolution", convolutions), ("*", rules.Zero())])
    close(LRP(composite)(Spelled(model), x, 2), LRP(composite)(model, x, 2))


def test_in_place_sums_and_bare_sums_give_the_same():
    conv = nn.Conv2d(2, 2, 3, padding=1).double()
    norm = settled(nn.Sequential(nn.BatchNorm2d(2)))[0]
    head = nn.Linear(2, 3).double()

    def in_place(x):
        y = norm(conv(x))
        y += x
        y.mul_(0.5).relu_()
        return head(y.mean((2, 3)))

    def out_of_place(x):
        return head(functional.relu((norm(conv(x)) + x) * 0.5).mean((2, 3)))

    x = draw(3, 2, 4, 5)
    for composite in (composites.EpsilonPlus(), composites.EpsilonAlpha2Beta1(), composites.EpsilonPlusFlat()):
        first, second = (
            LRP(composite)(module(function, conv=conv, norm=norm, head=head), x, 1)
            for function in (in_place, out_of_place)
        )
        close(first, second)


def test_what_is_read_before_relu_changes_it_in_place_still_counts():
    conv, head = nn.Conv2d(2, 3, 1).double(), nn.Linear(3, 2).double()

    def read(x, relu):
        y = conv(x)
        before = y * 2
        return head((relu(y) + before).mean((2, 3)))

    x = draw(2, 2, 3, 3)
    maps = [
        LRP(composites.EpsilonPlus())(module(lambda x, r=relu: read(x, r), conv=conv, head=head), x, 1)
        for relu in (functional.relu, functional.relu_)
    ]
    close(*maps)


def test_a_module_used_twice_is_two_layers():
    layer, relu = nn.Linear(4, 4).double(), nn.ReLU()
    twice = module(lambda x: layer(relu(layer(x))), layer=layer, relu=relu)
    apart = nn.Sequential(layer, nn.ReLU(), copy.deepcopy(layer))
    x = draw(3, 4)
    composite = composites.RuleList([("linear", rules.AlphaBeta())])
    close(LRP(composite)(twice, x, 1), LRP(composite)(apart, x, 1))
    _, ledger = LRP(composite).with_ledger(twice, x, 1)
    assert list(ledger.layers) == ["layer", "relu", "layer#2"]


def test_network_that_reads_both_halves_of_an_input_is_conserved():
    encoder = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)).double()

    def siamese(x):
        first, second = (encoder(half) for half in x.unbind(1))
        return torch.cosine_similarity(first, second, 1).unsqueeze(1)

    x = draw(3, 2, 4)
    found, ledger = LRP(composites.AttnLRP(1e-12)).with_ledger(module(siamese, encoder=encoder), x, 0)
    close(found.flatten(1).sum(1), siamese(x)[:, 0].detach())
    close(found[:, 0].sum(1), found[:, 1].sum(1))  # half of each product for either side
    assert list(ledger.layers).count("encoder.0") == 1
    assert "encoder.0#2" in ledger.layers


def test_views_that_the_memory_layout_would_forbid():
    conv, head = nn.Conv2d(2, 3, 2), nn.Linear(27, 2)
    viewed = module(lambda x: head(conv(x).view(len(x), -1)), conv=conv, head=head)
    flat = nn.Sequential(conv, nn.Flatten(), head)
    x = torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(LRP()(viewed, x, 1), LRP()(flat, x, 1))


# Peers and closed forms.


def test_captums_epsilon_lrp():
    model, x = plain().double(), draw(3, 3, 16, 16)
    conv1, relu1, conv2, relu2, _, *dense = model
    peer = nn.Sequential(conv1, relu1, conv2, relu2)
    peer = module(lambda x: head(body(x).flatten(1)), body=(body := peer), head=(head := nn.Sequential(*dense)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its hooks
        expected = CaptumLRP(peer).attribute(x.clone().requires_grad_(), target=2).detach()
    everywhere = composites.RuleList([("*", rules.Epsilon(1e-9))])
    found = LRP(everywhere)(model, x, 2)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_deep_taylor_is_alpha_1_beta_0_inside_and_never_negative():
    model, x = bias_free(), torch.rand(4, 2, 8, 8, dtype=torch.float64)
    target = model(x).argmax(1)
    positive = model(x).amax(1) > 0
    own, first = rules.AlphaBeta(1.0, 0.0), rules.WSquare()
    stack = composites.RuleList([("first", first), ("convolution", own), ("linear", own)])
    found = DeepTaylor()(model, x, target)
    close(found, LRP(stack)(model, x, target))
    assert positive.any()
    assert found[positive].min() >= 0
    boxed = DeepTaylor(low=0.0, high=1.0)(model, x, target)
    assert boxed[positive].min() >= -1e-12


def test_backward_relus_are_the_gradient_without_relus():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 2)).double()
    x = draw(3, 2, 3, 3)
    for method in (GuidedBackprop(), Deconvnet()):
        close(method(model, x, 1), Saliency(absolute=False)(model, x, 1))


def test_backward_relus_are_found_in_every_spelling():
    model, x = settled(vgg()), draw(2, 3, 16, 16)
    for method in (GuidedBackprop(), Deconvnet()):
        expected = method(model, x, 1)
        assert not torch.allclose(expected, Saliency(absolute=False)(model, x, 1))
        clamped = (lambda v: v.clamp(0), lambda v: v.clamp_(min=0), lambda v: torch.clamp_min(v, 0.0))
        plain = (functional.relu, functional.relu_, torch.relu, torch.Tensor.relu, torch.Tensor.relu_)
        for relu in (*plain, *clamped, lambda v: torch.clip(v, min=0)):
            changed = copy.deepcopy(model)
            for index, layer in enumerate(changed):
                if isinstance(layer, nn.ReLU):
                    changed[index] = module(relu)
            close(method(changed, x, 1), expected)


@pytest.mark.parametrize(("low", "high", "bounded"), [(0, 6, True), (-1, 6, False), (0, 1, False)])
def test_backward_relus_know_relu6_by_its_bounds(low, high, bounded):
    layer = nn.Linear(3, 4, bias=False).double()
    x, seed = 9 * draw(7, 3), torch.tensor([3.0, 5.0, -4.0, -2.0], dtype=torch.float64)
    y = x @ layer.weight.detach().T
    inside = (y > low) & (y < high)
    guided = inside * (seed.clamp(min=0) if bounded else seed)
    deconv = seed.clamp(min=0).expand(y.shape) if bounded else guided
    assert (y > high).any()
    spelled = [nn.Hardtanh(low, high), nn.Hardtanh(low, high, inplace=True), module(lambda v: v.clamp(low, high))]
    spelled += [module(lambda v: v.clamp_(min=low, max=high)), *([nn.ReLU6(), nn.ReLU6(True)] if bounded else [])]
    for relu6 in spelled:
        model = nn.Sequential(layer, relu6)
        for method, g in ((GuidedBackprop, guided), (Deconvnet, deconv)):
            found = method(score=lambda output, _: output @ seed)(model, x, 0)
            close(found, g @ layer.weight.detach())


def test_excitation_backprop_is_a_distribution():
    model, x = bias_free(), torch.rand(4, 2, 8, 8, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.data.abs_()
    found = ExcitationBackprop(epsilon=0.0)(model, x, 2)
    assert found.min() >= 0
    close(found.flatten(1).sum(1), torch.ones(4, dtype=torch.float64))


def test_single_precision_and_channels_last_agree_with_double():
    model, x = settled(residual()), draw(2, 3, 20, 20)
    for composite in (
        composites.EpsilonPlusFlat(),
        composites.EpsilonAlpha2Beta1(),
        composites.EpsilonGammaBox(-4.0, 4.0),
    ):
        exact = LRP(composite)(model, x, 1)
        found = LRP(composite)(copy.deepcopy(model).float(), x.float(), 1)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        assert (found - exact).abs().max() <= 2e-5 * exact.abs().max()


# What the input goes through before the first layer, and beside it.


def test_first_layer_rules_reach_through_normalisation_padding_and_reshapes():
    conv, head = nn.Conv2d(3, 4, 3, bias=False).double(), nn.Linear(4, 2, bias=False).double()
    mean = draw(3, 1, 1)

    def network(x):
        return head(functional.relu(conv(x)).mean((2, 3)))

    def prepared(x):
        x = x.permute(0, 3, 1, 2)
        x = x.clone().sub_(mean).div_(0.5)
        return network(functional.pad(x, (1, 0, 0, 0)))

    x = draw(2, 5, 6, 3)
    inner = functional.pad((x.permute(0, 3, 1, 2) - mean) / 0.5, (1, 0, 0, 0))
    composite = composites.RuleList([("first", rules.Flat()), ("*", rules.Zero())])
    found = LRP(composite)(module(prepared, conv=conv, head=head), x, 1)
    expected = LRP(composite)(module(network, conv=conv, head=head), inner, 1)
    close(found, expected[..., 1:].permute(0, 2, 3, 1))


def test_an_input_that_enters_twice_gets_both_parts():
    conv, head = nn.Conv2d(2, 3, 1, bias=False).double(), nn.Linear(5, 2, bias=False).double()

    def network(x):
        return head(torch.cat([functional.relu(conv(x)), x], 1).mean((2, 3)))

    x = draw(3, 2, 4, 4)
    composite = composites.RuleList([("conv", rules.Flat()), ("*", rules.Zero())])
    model = module(network, conv=conv, head=head)
    found, ledger = LRP(composite).with_ledger(model, x, 1)
    close(found.flatten(1).sum(1), model(x)[:, 1].detach())
    assert ledger.balance.abs() < 1e-12
    direct = x * (head.weight[1, 3:] / 16).view(1, 2, 1, 1)

    def first_part(x):
        return head(functional.pad(functional.relu(conv(x)), (0, 0, 0, 0, 0, 2)).mean((2, 3)))

    through = LRP(composite)(module(first_part, conv=conv, head=head), x, 1)
    close(found, (direct + through).detach())


def test_rules_without_a_factor_x_are_refused_inside():
    model, x = plain().double(), draw(2, 3, 16, 16)
    hidden = composites.RuleList([("convolution", rules.Flat()), ("*", rules.Epsilon())])
    with pytest.raises(ValueError, match=r"Flat\(\) was given to conv2d in '2'.*pattern 'first'"):
        LRP(hidden)(model, x, 1)
    pooled = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 2, 7), nn.Flatten(), nn.Linear(8, 2)).double()
    normed = nn.Sequential(nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    for network, inputs in ((pooled, x), (normed, draw(2, 1, 2, 2))):
        with pytest.raises(ValueError, match=r"single-number .* EpsilonPlus\(\) in place of EpsilonPlusFlat"):
            LRP(composites.EpsilonPlusFlat())(network, inputs, 1)


# Contexts.


def test_outer_contexts_do_not_matter():
    model, x = settled(residual()), draw(2, 3, 20, 20)
    expected = LRP()(model, x, 1)
    with torch.no_grad():
        close(LRP()(model, x, 1), expected)
    with torch.inference_mode():
        close(LRP()(model, x.clone(), 1), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(LRP()(model, x, 1), expected)
    with set_forward_context(lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        found = LRP()(copy.deepcopy(model).float(), x.float(), 1)
    assert found.isfinite().all()
    assert torch.corrcoef(torch.stack([found.flatten().double(), expected.flatten()]))[0, 1] > 0.9


def test_wrappers_for_several_devices_and_the_compiler(tmp_path):
    model, x = settled(vgg()), draw(2, 3, 16, 16)
    expected = LRP()(model, x, 1)
    close(LRP()(nn.DataParallel(model), x, 1), expected)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        close(LRP()(nn.parallel.DistributedDataParallel(model), x, 1), expected)
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_modules_run_as_they_were_written():
    model, x = settled(vgg()), draw(2, 3, 16, 16)
    expected = LRP()(model, x, 1)
    close(LRP()(torch.compile(model, backend="eager"), x, 1), expected)
    nested = nn.Sequential(torch.compile(model[:7], backend="eager"), model[7:])
    close(LRP()(nested, x, 1), expected)
    named = [module for module, _, _ in rule_table(nested, x, composites.EpsilonPlus()).rows]
    assert named[:3] == ["0.0", "0.1", "0.2"]


def test_a_frozen_backbone_is_explained_too():
    model, x = settled(vgg()), draw(2, 3, 16, 16)

    def manager(x):
        with torch.no_grad():
            x = model[:7](x)
        return model[7:](x)

    decorated = torch.no_grad()(model.forward)
    for function in (manager, decorated):
        close(LRP()(module(function, model=model), x, 1), LRP()(model, x, 1))
    assert torch.is_grad_enabled()


def test_what_cannot_be_seen_is_refused_by_name():
    model, x = plain().double(), draw(2, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is deprecated
        traced = torch.jit.trace(model[:2], x)
    with pytest.raises(ValueError, match="module '0' is scripted"):
        LRP()(nn.Sequential(traced, model[2:]), x, 1)

    def inferring(x):
        with torch.inference_mode():
            x = model[:2](x)
        return model[2:](x)

    with pytest.raises(ValueError, match=r"inference_mode\(\) in its forward"):
        LRP()(module(inferring, model=model), x, 1)
    for reentrant in (True, False):

        def forward(x, reentrant=reentrant):
            return model[2:](checkpoint(model[:2], x, use_reentrant=reentrant))

        with pytest.raises(ValueError, match="gradient checkpointing off"):
            LRP()(module(forward, model=model), x, 1)


@pytest.mark.filterwarnings("ignore")  # of torch, about its own quantised modules
@pytest.mark.parametrize("composite", ["epsilon_plus", "guided_backprop"])
def test_operator_without_a_derivative_is_refused(composite):
    quantised = nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(4, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"operator that torch cannot differentiate, e\.g\. of a quantised module"):
        LRP(composite)(quantised, torch.randn(2, 4), 1)
    refused = pytest.raises(ValueError, match="quantised modules, which have no derivative")
    with refused:
        Saliency()(quantised, torch.randn(2, 4), 1)
    assert importance(quantised, torch.randn(2, 4), 1, regions=1, perturbation="negative").isfinite().all()


@pytest.mark.parametrize(
    "cut", [lambda x: x.detach(), lambda x: torch.from_numpy(x.detach().numpy()), lambda x: x.long().double()]
)
def test_no_path_from_the_input_to_the_score(cut):
    layer = nn.Linear(4, 3).double()
    with pytest.raises(ValueError, match="input does not reach its score"):
        LRP()(module(lambda x: layer(cut(x)), layer=layer), draw(2, 4), 1)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


def test_operations_that_no_rule_is_known_for():
    layer, x = nn.Linear(4, 3).double(), draw(2, 4)
    custom = module(lambda x: layer(Cube.apply(x)), layer=layer)
    with pytest.raises(ValueError, match=r"no rule for Cube.*autograd.Function"):
        LRP()(custom, x, 1)
    allowed = composites.RuleList([("Cube", rules.Gradient()), ("*", rules.Zero())])
    close(LRP(allowed)(custom, x, 1), (3 * x**3 * layer.weight[1]).detach())
    angle = module(lambda x: layer(torch.atan2(x, x.detach()) * x), layer=layer)
    with pytest.raises(ValueError, match=r"no rule for atan2 in the model itself; .*\('atan2', rules.Gradient\(\)\)"):
        LRP()(angle, x, 1)
    known = composites.RuleList([("atan2", rules.Gradient()), ("*", rules.Zero())])
    assert LRP(known)(angle, x, 1).isfinite().all()


# The input and the target.


def test_every_shape_of_inputs_and_independence_of_the_batch():
    shapes = {
        (4, 6): nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
        (4, 2, 7): nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)),
        (4, 2, 3, 4): nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)),
        (4, 1, 2, 3, 4): nn.Sequential(nn.Conv3d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)),
    }
    for shape, model in shapes.items():
        model, x = model.double(), draw(*shape)
        target = torch.tensor([0, 2, 1, 2])
        for method in (LRP(), DeepTaylor(), GuidedBackprop(), Deconvnet(), ExcitationBackprop()):
            found = method(model, x, target)
            assert found.shape == x.shape
            close(torch.cat([method(model, x[i : i + 1], target[i : i + 1]) for i in range(4)]), found)
            assert torch.equal(method(model, x, target), found)


def test_scores_of_all_kinds_are_shared_out():
    model, x = bias_free(), torch.rand(2, 2, 8, 8, dtype=torch.float64)
    everywhere = composites.RuleList([("*", rules.Zero())])
    output = model(x).detach()
    margin = output[:, 1] - output[:, [0, 2]].amax(1)
    close(LRP(everywhere, score="margin")(model, x, 1).flatten(1).sum(1), margin)
    _, ledger = LRP(everywhere, score="probability").with_ledger(model, x, 1)
    close(ledger.start, output.softmax(1)[:, 1])
    assert ledger.balance.abs() < 1e-12
    assert ledger.remainder["score"].abs() > 1e-3
    segmenting = nn.Conv2d(2, 3, 3, bias=False).double()
    found = LRP(everywhere)(segmenting, x, "predicted")
    assert found.shape == x.shape
    with pytest.raises(ValueError, match=r"out of range: .* 3 classes"):
        LRP()(model, x, 3)
    returning_two = module(lambda x: (model(x), x), model=model)
    with pytest.raises(ValueError, match="say which to explain"):
        LRP()(returning_two, x, 1)


def test_integer_inputs_are_refused():
    with pytest.raises(TypeError, match="floating-point"):
        LRP()(nn.Linear(3, 2), torch.ones(2, 3, dtype=torch.long), 0)


def test_nothing_is_left_on_the_model():
    model, x = settled(residual()).train(), draw(2, 3, 20, 20)
    model[0].weight.requires_grad_(False)
    model[-1].weight.grad = torch.ones_like(model[-1].weight)
    before = state(model)
    rng = torch.get_rng_state()
    for method in (LRP(), LRP(composites.EpsilonPlusFlat()), DeepTaylor(), GuidedBackprop()):
        method(model, x, 1)
    LRP().with_ledger(model, x, 1)
    nothing = composites.RuleList([("convolution", rules.Zero())])
    with pytest.raises(ValueError, match=r"no rule for linear in '8'"):
        LRP(nothing)(model, x, 1)
    same(before, state(model))
    assert torch.equal(rng, torch.get_rng_state())
    assert x.grad is None
    assert not x.requires_grad


def test_nothing_is_kept_of_a_pass():
    model, x = settled(vgg()), draw(2, 3, 16, 16)
    kept = []

    def look(layer, inputs, output):
        kept.append(weakref.ref(output))

    handles = [layer.register_forward_hook(look) for layer in model]
    for _ in range(3):
        LRP(composites.EpsilonPlusFlat())(model, x, 1)
        LRP().with_ledger(model, x, 1)
    for handle in handles:
        handle.remove()
    gc.collect()
    assert [ref() for ref in kept if ref() is not None] == []


def test_a_copy_that_cuts_relevance_off_is_refused():
    layer = nn.Linear(3, 2)
    cut = module(lambda x: copy.copy(layer(x)), layer=layer)
    with pytest.raises(ValueError, match="input does not reach its score"):
        LRP(composites.EpsilonPlus())(cut, torch.ones(1, 3), 0)


class Output(dict):
    """An output that is a dict with attributes, as large libraries return it."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:  # Python 3.10 looks for `__getstate__`
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Fields:
    logits: torch.Tensor
    hidden: object


class Pair(NamedTuple):
    logits: torch.Tensor
    hidden: object


class Outputs(list):
    """A list with a type of its own."""


@pytest.mark.parametrize("kind", [Output, Fields, Pair, SimpleNamespace, lambda **parts: Outputs(parts.values())])
def test_ledger_of_an_output_of_any_type_is_that_of_the_tensor(kind):
    net, x = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).double(), draw(2, 4)
    model = module(lambda x: kind(logits=net(x), hidden={"inner": x}), net=net)
    key = "logits" if kind in (Output, Fields, Pair, SimpleNamespace) else 0
    found = LRP(score=Probability(output=key)).with_ledger(model, x, 1)[1]
    expected = LRP(score=Probability()).with_ledger(net, x, 1)[1]
    assert abs(found.balance) < 1e-12
    close(found.remainder["score"], expected.remainder["score"])


def test_tensor_that_is_written_over_is_refused_with_the_remedy():
    net = plain().double()

    def forward(x):
        y = net(x).sigmoid()
        y[:, :2] = 0.5 * y[:, :2]
        return y

    with pytest.raises(ValueError, match=r"changes a tensor in place .* y = y\.clone\(\)"):
        LRP(composites.RuleList([("*", rules.Gradient())]))(module(forward, net=net), draw(2, 3, 16, 16), 1)
