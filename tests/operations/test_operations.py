"""Seeing what operations a forward pass makes, in which module, and what follows a layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_xai.operations import Operations, check_visible, largest_activation, unwrapped
from lightning_xai.operations.kinds import KINDS, is_in_place, kind_of, operation_name


class Listed(Operations):
    def __init__(self, model):
        super().__init__(model)
        self.calls = []

    def operation(self, func, args, kwargs):
        self.calls.append((operation_name(func), kind_of(func), self.current_module()))
        return func(*args, **kwargs)


def listed(model, x):
    with Listed(model) as seen:
        model(x)
    return seen.calls


def module(function, **children):
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    model.forward = function
    return model.eval()


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.act(self.norm(self.conv(x)))
        y += x
        assert y.dim() == x.ndim
        return self.act(y)


def test_operations_with_their_kinds_and_modules():
    model = nn.Sequential(Twice(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)).eval()
    assert listed(model, torch.randn(2, 2, 4, 4)) == [
        ("conv2d", "convolution", "0.conv"),
        ("batch_norm", "affine_norm", "0.norm"),
        ("relu", "activation", "0.act"),
        ("add", "sum", "0"),
        ("relu", "activation", "0.act"),
        ("adaptive_avg_pool2d", "pooling", "1"),
        ("flatten", "reshape", "2"),
        ("linear", "linear", "3"),
    ]


def test_multihead_attention_is_opened_without_changing_its_values():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for need_weights, inside in ((False, "scaled_dot_product_attention"), (True, "softmax")):
            model = module(lambda x, n=need_weights: attention(x, x, x, need_weights=n)[0], attention=attention)
            expected = model(x)
            names = [name for name, _, _ in listed(model, x)]
            assert names.count("linear") == 2
            assert inside in names
            with Listed(model):
                assert torch.equal(model(x), expected)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize(
    ("func", "name", "kind", "in_place"),
    [
        (functional.conv1d, "conv1d", "convolution", False),
        (functional.conv_transpose3d, "conv_transpose3d", "convolution", False),
        (torch.Tensor.add_, "add", "sum", True),
        (torch.Tensor.__iadd__, "iadd", "sum", True),
        (torch.Tensor.__rsub__, "rsub", "sum", False),
        (torch.Tensor.__matmul__, "matmul", "matmul", False),
        (torch.Tensor.__setitem__, "setitem", "reshape", True),
        (functional.hardswish, "hardswish", "activation", False),
        (functional.relu_, "relu", "activation", True),
        (functional.layer_norm, "layer_norm", "norm", False),
        (functional.scaled_dot_product_attention, "scaled_dot_product_attention", "attention", False),
        (torch.cat, "cat", "concatenation", False),
        (torch.lstm, "lstm", "recurrent", False),
        (torch.Tensor.mT.__get__, "transpose", "reshape", False),
        (torch.cdist, "cdist", None, False),
    ],
)
def test_kinds(func, name, kind, in_place):
    assert operation_name(func) == name
    assert kind_of(func) == kind
    assert kind is None or kind in KINDS
    assert is_in_place(func, {}) is in_place
    assert is_in_place(functional.silu, {"inplace": True})


def test_every_activation_of_torch_has_a_kind():
    x = torch.rand(2, 4, 6)
    names = (
        "ReLU ReLU6 LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardtanh Hardsigmoid Tanh Sigmoid "
        "LogSigmoid Softplus Softsign Softshrink Hardshrink Tanhshrink"
    )
    for name in names.split():
        calls = listed(getattr(nn, name)().eval(), x)
        assert [kind for _, kind, _ in calls] == ["activation"], name


def test_wrappers_are_looked_through():
    model = Twice()
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(torch.compile(nn.DataParallel(model), backend="eager")) is model
    names = {
        name
        for _, _, name in listed(
            nn.Sequential(torch.compile(model, backend="eager")).eval()[0]._orig_mod, torch.randn(1, 2, 3, 3)
        )
    }
    assert names == {"", "conv", "norm", "act"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_modules_are_refused_by_name():
    with pytest.raises(ValueError, match="module '0' is scripted or traced"):
        check_visible(nn.Sequential(torch.jit.script(nn.ReLU())))
    with pytest.raises(ValueError, match="the model is scripted"):
        check_visible(torch.jit.script(nn.ReLU()))
    check_visible(Twice())


def test_the_largest_activation():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2)).double()
    assert largest_activation(model, torch.zeros(2, 1, 4, 4, dtype=torch.float64)) == 8 * 2 * 16
    model = nn.Sequential(nn.Conv2d(1, 9, 3), nn.Flatten(), nn.Linear(36, 2)).double()
    assert largest_activation(model, torch.zeros(2, 1, 4, 4, dtype=torch.float64)) == 8 * 2 * 36


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("own", [0, 1, 2])
def test_the_largest_activation_of_passes_that_are_made_anyway(wrapped, own):
    model, x, rows = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 3)), torch.zeros(4, 2), []
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    given = nn.DataParallel(model, device_ids=[]) if wrapped else model

    def probe():
        (x + 1).sum()  # what is computed beside the model is no pass of it
        for _ in range(own):
            model(x)

    assert largest_activation(given, x, probe) == 4 * 4 * 5
    assert rows == [4] * max(1, own)
    assert not model._forward_hooks
