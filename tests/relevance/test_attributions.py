"""What every attribution by gradients, along paths, of noise and of layers promises."""

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch
from draws import draw
from torch import nn

from lightning_xai import metrics, relevance
from lightning_xai.attribution import Attribution
from lightning_xai.relevance import (
    CAM,
    AblationCAM,
    GradCAM,
    IntegratedGradients,
    ScoreCAM,
    SimpleTaylor,
    SmoothGrad,
    SquareGrad,
    VarGrad,
)
from lightning_xai.scores import CombClasses, Margin

SHAPES = {"table": (3, 6), "line": (3, 2, 7), "plane": (3, 2, 4, 5), "volume": (3, 2, 3, 4, 3)}
IDS = [12, 5, 30]
# All but those built on composites.
KINDS = [
    kind
    for _, kind in inspect.getmembers(relevance, inspect.isclass)
    if issubclass(kind, Attribution)
    and not inspect.isabstract(kind)
    and kind.__module__ != "lightning_xai.relevance.lrp"
]
SET = {
    "IntegratedGradients": {"steps": 5},
    "SimpleTaylor": {"root": 0.3},
    "SmoothGrad": {"draws": 3, "sigma": 0.3},
    "SquareGrad": {"draws": 3, "sigma": 0.3},
    "VarGrad": {"draws": 3, "sigma": 0.3},
    "LayerCAM": {"relu": False},  # a map that is 0 would agree with much
    "GradCAM": {"relu": False},
    "GradCAMPlusPlus": {"relu": False},
    "XGradCAM": {"relu": False},
    "ScoreCAM": {"relu": False},
    "AblationCAM": {"relu": False},
}
METHODS = {kind.__name__: kind(**SET.get(kind.__name__, {})) for kind in KINDS}
METHODS["IntegratedGradients in chunks"] = IntegratedGradients(steps=5, chunk_size=2, method="trapezoid")
METHODS["SimpleTaylor searched"] = SimpleTaylor(points=4, bisections=6, baseline=-3.0)
METHODS["SmoothGrad of GradCAM"] = SmoothGrad(GradCAM(relu=False), draws=3)
METHODS["ScoreCAM in chunks"] = ScoreCAM(chunk_size=1, relu=False)
CAMS = [name for name, method in METHODS.items() if "CAM" in name]
every_method = pytest.mark.parametrize("name", METHODS)


class Net(nn.Module):
    """A network of any number of axes, with what a careless explanation would leave marks on or trip over."""

    def __init__(self, shape):
        super().__init__()
        axes = len(shape) - 2
        if axes:
            convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
            norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
            self.features = nn.Sequential(
                nn.LeakyReLU(0.5, inplace=True),  # would change the inputs
                convolution(shape[1], 4, 3, padding=1),
                norm(4),
                nn.Softplus(),
                nn.Dropout(0.5),
            )
            self.classifier = nn.Linear(4, 3)
        else:
            self.features = nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Linear(shape[1], 5), nn.Tanh())
            self.classifier = nn.Linear(5, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.double()

    def forward(self, x):
        self.calls += 1
        torch.rand(1)
        features = self.features(x)
        return self.classifier(features.flatten(2).mean(2) if features.ndim > 2 else features)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


def cases():
    for name in METHODS:
        for shape in SHAPES:
            if not (shape == "table" and name in CAMS):
                yield pytest.param(name, SHAPES[shape], id=f"{name}-{shape}")


every_case = pytest.mark.parametrize(("name", "shape"), list(cases()))
plane = pytest.mark.parametrize("shape", [SHAPES["plane"]], ids=[""])
pytestmark = pytest.mark.filterwarnings("ignore:the score of the samples .* does not change its sign")


@pytest.fixture
def model(shape):
    return Net(shape)


@pytest.fixture
def x(shape):
    return draw(*shape)


@pytest.fixture
def y():
    return torch.tensor([0, 2, 1])


def test_the_table_holds_methods_of_every_module():
    homes = {kind.__module__.rpartition(".")[2] for kind in KINDS}
    assert homes == {"gradients", "taylor", "integrated", "smooth", "cam"}


@every_case
def test_map_is_shaped_like_the_inputs(name, shape, model, x, y):
    found = METHODS[name](model, x, y, IDS)
    assert found.shape == ((3, 1, *shape[2:]) if name in CAMS else shape)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert found.nan_to_num().abs().sum() > 0 or name == "SimpleTaylor searched"  # there may be no root


@every_case
def test_map_ignores_the_rest_of_the_batch(name, shape, model, x, y):
    together = METHODS[name](model, x, y, IDS)
    close(METHODS[name](model, x.flip(0), y.flip(0), IDS[::-1]), together.flip(0))
    for row in range(3):
        close(METHODS[name](model, x[[row]], y[[row]], IDS[row : row + 1]), together[[row]])


@every_method
@plane
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_map_ignores_the_gradient_mode(name, model, x, y, mode):
    expected = METHODS[name](model, x, y, IDS)
    with mode():
        assert torch.equal(METHODS[name](model, x + 0, y + 0, IDS).nan_to_num(), expected.nan_to_num())
        assert torch.is_grad_enabled() is (mode is torch.enable_grad)


@every_method
@plane
def test_target_takes_every_form_of_class_indices(name, model, x):
    predicted = model.eval()(x.clone()).argmax(1)
    close(METHODS[name](model, x, "predicted", IDS), METHODS[name](model, x, predicted, IDS))
    expected = METHODS[name](model, x, torch.tensor([1, 1, 1]), IDS)
    for target in (
        1,
        np.int64(1),
        [1, 1, 1],
        (1, np.int32(1), 1),
        np.array([1, 1, 1]),
        torch.ones(3, dtype=torch.uint8),
    ):
        close(METHODS[name](model, x, target, IDS), expected)
    close(METHODS[name](model, x[:1], torch.tensor(1), IDS[:1]), expected[:1])


@every_method
@plane
def test_target_is_optional_where_the_output_has_one_column(name, model, x):
    model.classifier = nn.Linear(4, 1).double()
    close(METHODS[name](model, x, sample_ids=IDS), METHODS[name](model, x, 0, IDS))


@every_method
@plane
def test_explanation_holds_the_score_of_the_clean_inputs(name, model, x, y):
    found = METHODS[name].explain(model, x, y, IDS)
    logits = model.eval()(x.clone()).detach()
    close(found.score, logits.gather(1, y[:, None])[:, 0])
    close(found.map, METHODS[name](model, x, y, IDS))
    assert torch.equal(found.target, y)
    assert torch.equal(found.prediction, logits.argmax(1))
    assert (found.classes, found.details) == (3, {})


class NoNumber(Net):
    """The logits of the samples whose first cell is over 50 are NaN."""

    def forward(self, x):
        out = super().forward(x.clone())
        return torch.where((x[:, :1] > 50).flatten(1)[:, :1], torch.nan, out)


@every_method
@plane
@pytest.mark.filterwarnings("ignore:the gradient with respect to .* is not finite")
def test_map_is_nan_where_the_score_is_not_finite(name, shape, x, y):
    model = NoNumber(shape)
    x[1, 0, 0, 0] = 99.0
    found = METHODS[name](model, x, y, IDS)
    assert found[1].isnan().all()
    rows = [0, 2]
    close(found[rows], METHODS[name](model, x[rows], y[rows], [IDS[row] for row in rows]))


# Cost


PASSES = {
    "GradientXInput": 1,
    "Saliency": 1,
    "Sensitivity": 1,
    "LRP": 1,
    "DeepTaylor": 1,
    "GuidedBackprop": 1,
    "Deconvnet": 1,
    "ExcitationBackprop": 1,
    "GradCAM": 1,
    "HiResCAM": 1,
    "CAM": 1,
    "ScoreCAM": 1 + 4,  # channels
    "AblationCAM": 1 + 4,
    "IntegratedGradients": 1 + 5,  # steps
    "SmoothGrad": 1 + 3,  # draws
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("shape", [SHAPES["plane"]], ids=[""])
def test_forward_passes_per_batch(name, shape, x, y):
    model, rows = (
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        [],
    )
    model.double().register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    fields = {"layer": "1"} if "CAM" in name else {}
    fields |= {"steps": 5, "chunk_size": 7} if name == "IntegratedGradients" else {}
    fields |= {"draws": 3} if name == "SmoothGrad" else {}
    method = getattr(relevance, name)(**fields)
    method(model, x, y)
    assert sum(rows) == 3 * PASSES[name]
    assert len(rows) == 1 or PASSES[name] > 1
    rows.clear()
    metrics.Relevance(method).update(model, x, y)
    # The metric also asks for the gap of the path, which needs the score of the baseline.
    assert sum(rows) == 3 * (PASSES[name] + (name == "IntegratedGradients"))


@pytest.mark.parametrize("memory", [1, 2, 5])
@pytest.mark.parametrize(
    "name", ["IntegratedGradients", "SmoothGrad", "SquareGrad", "VarGrad", "ScoreCAM", "AblationCAM"]
)
@plane
def test_out_of_memory_halves_the_passes(name, model, x, y, memory):
    expected = METHODS[name](model, x, y, IDS)
    passes = []

    def limited(_module, inputs):
        if 3 in passes and len(inputs[0]) > memory:  # the clean pass has the whole batch
            raise torch.OutOfMemoryError("CUDA out of memory")
        passes.append(len(inputs[0]))

    model.register_forward_pre_hook(limited)
    close(METHODS[name](model, x, y, IDS), expected)
    assert max(passes[passes.index(3) + 1 :]) <= memory


def state(model, x):
    return {
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": [parameter.grad for parameter in model.parameters()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "random": torch.get_rng_state(),
        "inputs": x.clone(),
        "wants": x.requires_grad,
        "grad": torch.is_grad_enabled(),
    }


def same(before, after):
    for name, value in before.items():
        if name == "tensors":
            assert all(torch.equal(tensor, after[name][key]) for key, tensor in value.items())
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name]), name
        else:
            assert value == after[name], name


@every_method
@plane
def test_model_and_inputs_are_left_as_they_were(name, model, x, y):
    model.train()
    model.features[1].weight.requires_grad_(False)
    model.features[4].eval()
    before = state(model, x)
    METHODS[name](model, x, y, IDS)
    same(before, state(model, x))


@every_method
@plane
def test_model_is_left_as_it_was_when_it_raises(name, model, x, y, monkeypatch):
    before = state(model, x)
    calls = []

    def failing(values):
        calls.append(values)
        raise RuntimeError("out of order")

    monkeypatch.setattr(model.classifier, "forward", failing)
    with pytest.raises(RuntimeError, match="out of order"):
        METHODS[name](model, x, y, IDS)
    assert len(calls) == 1
    same(before, state(model, x))


@every_method
@plane
def test_explaining_between_forward_and_backward_keeps_the_gradients(name, model, x, y):
    model.train()
    leaf = x.clone().requires_grad_()
    loss = model(leaf * 1).square().sum()
    METHODS[name](model, leaf, y, IDS)
    loss.backward()
    alone = leaf.grad.clone()
    assert alone.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_method
@plane
def test_map_ignores_autocast(name, x, y):
    model, x = Net(x.shape).float(), x.float()
    expected = METHODS[name](model, x, y, IDS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(METHODS[name](model, x, y, IDS).nan_to_num(), expected.nan_to_num())


@every_method
@plane
def test_half_precision_models_give_half_precision_maps(name, model, x, y):
    found = METHODS[name](model.bfloat16(), x.bfloat16(), y, IDS)
    assert found.dtype == torch.bfloat16


@every_method
@plane
def test_data_parallel_gives_the_same_map(name, model, x, y):
    expected = METHODS[name](model, x, y, IDS)
    assert torch.equal(METHODS[name](nn.DataParallel(model), x, y, IDS).nan_to_num(), expected.nan_to_num())


@every_method
@plane
def test_frozen_networks_give_the_same_map(name, model, x, y):
    expected = METHODS[name](model, x, y, IDS)
    model.requires_grad_(False)
    assert torch.equal(METHODS[name](model, x, y, IDS).nan_to_num(), expected.nan_to_num())


@every_method
def test_attributions_compare_hash_and_pickle(name):
    method = METHODS[name]
    again = copy.deepcopy(method)
    assert again == method
    assert {again: 1}[method] == 1
    assert pickle.loads(pickle.dumps(method)) == method
    assert type(method).__name__ in repr(method)
    for field in dataclasses.fields(method):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, 0)


@every_method
@plane
def test_pickled_attribution_gives_the_same_map(name, model, x, y):
    found = pickle.loads(pickle.dumps(METHODS[name]))(model, x, y, IDS)
    assert torch.equal(found.nan_to_num(), METHODS[name](model, x, y, IDS).nan_to_num())


SCORED = [name for name in METHODS if hasattr(METHODS[name], "score") and name != "CAM"]


def with_score(method, score):
    if isinstance(method, SmoothGrad | SquareGrad | VarGrad):
        return dataclasses.replace(method, attribution=with_score(method.attribution, score), sigma=1e-3)
    return dataclasses.replace(method, score=score)


class Difference(nn.Module):
    """The lead of one class over another as the only output."""

    def __init__(self, net, first, second):
        super().__init__()
        self.net = net
        self.pair = (first, second)

    def forward(self, x):
        logits = self.net(x)
        return logits[:, self.pair[0]] - logits[:, self.pair[1]]


@pytest.mark.parametrize("name", SCORED)
@plane
def test_score_is_what_is_explained(name, model, x, y):
    margin = with_score(METHODS[name], "margin")
    assert margin == with_score(METHODS[name], Margin())
    for row, found in enumerate(margin(model, x, y)):
        own = int(y[row])
        logits = model.eval()(x[[row]].clone())[0]
        second = max({0, 1, 2} - {own}, key=lambda c, z=logits: z[c])
        value = with_score(METHODS[name], "value")
        expected = value(Difference(model, own, second), x[[row]], 0, sample_ids=[row])
        close(found, expected[0])


# Bad input


@pytest.mark.parametrize("name", SCORED)
def test_comb_classes_is_refused(name):
    with pytest.raises(ValueError, match="score='comb_classes' is 0 at the clean input"):
        with_score(METHODS[name], CombClasses())


@every_method
@plane
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": 7}, ValueError, r"target \[7\] is out of range: the model's output has 3 classes"),
        ({"target": torch.tensor([0, 1])}, ValueError, "target must have one class index per sample"),
        ({"x": torch.ones(3, 2, 4, 5).long()}, TypeError, "got torch.int64; use inputs.float"),
        ({"x": torch.full((3, 2, 4, 5), torch.nan)}, ValueError, "inputs hold NaN"),
        ({"model": "net"}, TypeError, "model must be a torch.nn.Module"),
    ],
)
def test_invalid_arguments_are_refused(name, model, x, y, change, error, message):
    asked = {"model": model, "x": x, "target": y} | change
    with pytest.raises(error, match=message):
        METHODS[name](asked["model"], asked["x"], asked["target"], IDS)


class Dict(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"logits": self.net(x), "size": x.sum()}


@every_method
@plane
def test_dict_output_asks_for_the_key(name, model, x, y):
    with pytest.raises(ValueError, match=r"a dict with the keys \['logits', 'size'\]: say which to explain"):
        METHODS[name](Dict(model), x, y, IDS)


@pytest.mark.parametrize(
    "name", [name for name in METHODS if not isinstance(METHODS[name], ScoreCAM | AblationCAM | CAM)]
)
@plane
def test_cut_gradient_is_refused(name, model, x, y):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, inputs):
            return self.net(inputs).detach()

    with pytest.raises(ValueError, match=r"no gradient path leads from the score back to .*torch.no_grad"):
        METHODS[name](Cut(), x, y, IDS)
