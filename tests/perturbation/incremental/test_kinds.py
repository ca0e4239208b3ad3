"""Every kind of operation on changed boxes gives what it gives on whole maps."""

import pytest
import torch
from boxes import Maps, corners, on_boxes
from torch import nn
from torch.nn import functional

from lightning_xai.perturbation.incremental.operations import TABLE

SPATIAL = {1: (13,), 2: (11, 14), 3: (7, 8, 9)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}

WINDOWS = {
    "same": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2},
    "strides beyond the kernel": {"kernel_size": 2, "stride": 3},
    "one cell, strided": {"kernel_size": 1, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": "same"},
    "grouped": {"kernel_size": 3, "groups": 2, "padding": 1, "bias": False},
    "depthwise": {"kernel_size": 2, "groups": 4, "padding": 1},
    "reflected": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "replicated": {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
}
BACK = {
    "tiling": {"kernel_size": 2, "stride": 2},
    "overlapping": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "same": {"kernel_size": 3, "padding": 1},
    "gaps": {"kernel_size": 2, "stride": 3, "output_padding": 1},
    "dilated, grouped": {"kernel_size": 3, "stride": 2, "dilation": 2, "groups": 2, "bias": False},
}


def cases():
    """Name, number of axes, model, and the call that must be made on boxes."""
    for axes in (1, 2, 3):
        for name, how in WINDOWS.items():
            yield f"convolution, {name}", axes, CONVOLUTIONS[axes](4, 4, **how), f"conv{axes}d"
        for name, how in BACK.items():
            yield f"transposed, {name}", axes, TRANSPOSED[axes](4, 4, **how), f"conv_transpose{axes}d"
        yield "batch norm", axes, NORMS[axes](4), "batch_norm"
        most, mean = (getattr(functional, f"{name}_pool{axes}d") for name in ("max", "avg"))
        adaptive = getattr(functional, f"adaptive_avg_pool{axes}d")
        for how in ((2,), (3, 2, 1), (2, 2, 0, 1, True), (2, 1, 0, 2)):
            yield f"maximum {how}", axes, Maps(lambda x, f=most, a=how: f(x, *a)), f"max_pool{axes}d"
        for how in ((2,), (3, 2, 1, True), (3, 2, 1, True, False)):
            yield f"mean {how}", axes, Maps(lambda x, f=mean, a=how: f(x, *a)), f"avg_pool{axes}d"
        for size in (1, 5):
            yield f"adaptive {size}", axes, Maps(lambda x, f=adaptive, s=size: f(x, s)), f"adaptive_avg_pool{axes}d"
        for how in (
            {"scale_factor": 2},
            {"scale_factor": 1.7, "mode": LINEAR[axes]},
            {"scale_factor": 0.5, "mode": "area"},
        ):
            yield f"interpolation {how}", axes, Maps(lambda x, h=how: functional.interpolate(x, **h)), "interpolate"
        pads = [1, 2] * axes
        for how in ({"value": 0.5}, {"mode": "reflect"}):
            yield f"padding {how}", axes, Maps(lambda x, p=pads, h=how: functional.pad(x, p, **h)), "pad"
        yield "cropping by padding", axes, Maps(lambda x, n=axes: functional.pad(x, [-1, 2] * n)), "pad"
        every = tuple(range(2, axes + 2))
        yield "global mean", axes, Maps(lambda x, e=every: x.mean(e)), "mean"
        yield (
            "norm of channels",
            axes,
            Maps(lambda x, m: m(x.movedim(1, -1)).movedim(-1, 1), nn.LayerNorm(4)),
            "layer_norm",
        )
        yield "linear", axes, Maps(lambda x, m: m(x.movedim(1, -1)).movedim(-1, 1), nn.Linear(4, 3)), "linear"
    two = {
        "bicubic": (lambda x: functional.interpolate(x, size=(20, 17), mode="bicubic"), "interpolate"),
        "aligned": (lambda x: functional.interpolate(x, (20, 17), mode="bilinear", align_corners=True), "interpolate"),
        "nearest exact": (lambda x: functional.interpolate(x, (5, 30), mode="nearest-exact"), "interpolate"),
        "sum": (lambda x: x[:, :, 1:] + functional.avg_pool2d(x, 3, 1, 1)[:, :, :-1], "add"),
        "product": (lambda x: x.exp() * torch.tensor([[[2.0]], [[3.0]], [[4.0]], [[5.0]]]), "mul"),
        "concatenation": (lambda x: torch.cat([x, functional.avg_pool2d(x, 3, 1, 1)], 1), "cat"),
        "slices": (lambda x: x[:, 1:3, ::2, 1:-2], "getitem"),
        "ellipsis": (lambda x: x[..., 2:], "getitem"),
        "flipped": (lambda x: x.flip([-1]), "flip"),
        "softmax": (lambda x: x.softmax(1), "softmax"),
        "response norm": (lambda x: functional.local_response_norm(x, 3), "local_response_norm"),
        "halves": (lambda x: torch.cat([part.tanh() for part in x.chunk(2, 1)], 1), "chunk"),
        "shuffled": (lambda x: x.view(len(x), 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape), "transpose"),
        "where": (lambda x: torch.where(x > 0, x, 0.1 * x), "where"),
    }
    for name, (function, call) in two.items():
        yield name, 2, Maps(function), call


CASES = {f"{name} {axes}-d": (axes, model, call) for name, axes, model, call in cases()}


@pytest.mark.parametrize("name", list(CASES))
def test_an_operation_on_boxes_is_that_on_whole_maps(name):
    axes, model, call = CASES[name]
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, *SPATIAL[axes], dtype=torch.float64)
    found, expected, on_box = on_boxes(model, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert call in on_box


WHOLE = {
    "group norm": lambda x: functional.group_norm(x, 2),
    "adaptive maximum": lambda x: functional.adaptive_max_pool2d(x, 5),
    "softmax over positions": lambda x: x.softmax(-1),
    "a map of constants": lambda x: x + torch.linspace(0, 1, 14, dtype=x.dtype),
    "a gate": lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(),
    "positions swapped": lambda x: x.transpose(2, 3).tanh(),
    "flattened": lambda x: x.view(x.size(0), -1) * 2,
    "channels padded": lambda x: functional.pad(x, (0, 0, 0, 0, 1, 1)),
    "a fixed divisor": lambda x: functional.avg_pool2d(x, 2, divisor_override=3),
    "concatenated positions": lambda x: torch.cat([x, x], 2),
    "a mean over the map and its padding": lambda x: functional.avg_pool2d(x, 30, 30, 15),
    "what goes round": lambda x: functional.pad(x, (1, 1, 2, 0), mode="circular"),
    "one row per sample": lambda x: x + torch.arange(len(x)).view(-1, 1, 1, 1).mul(0),
}


@pytest.mark.parametrize("name", list(WHOLE))
def test_what_has_no_boxes_goes_on_with_whole_maps(name):
    x = torch.randn(2, 4, *SPATIAL[2], dtype=torch.float64)
    found, expected, _ = on_boxes(Maps(WHOLE[name]), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("stride", "boxed"), [(3, ["conv2d", "conv2d"]), (1, ["conv2d"])])
def test_a_convolution_of_many_channels_to_few_positions(stride, boxed):
    layers = nn.Conv2d(4, 256, 1), nn.Conv2d(256, 3, 3, stride, int(stride == 1))
    x = torch.randn(2, 4, *((11, 14) if stride == 3 else (4, 4)), dtype=torch.float64)
    found, expected, on_box = on_boxes(nn.Sequential(*layers), x, None if stride == 3 else corners((4, 4), 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert on_box == boxed


def in_place(x, first, second):
    y = first(x)
    kept = y * 1
    y += x
    y = second(functional.relu(y, inplace=True))
    y.mul_(2).add_(x)
    return torch.cat([y, kept], 1)


def assigned(x):
    y = x * 1
    y[:, :2] = y[:, 2:]
    return y


@pytest.mark.parametrize("function", [in_place, assigned])
def test_writes_in_place_reach_nobody_else(function):
    convolutions = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(2 * (function is in_place))]
    x = torch.randn(2, 4, *SPATIAL[2], dtype=torch.float64)
    found, expected, _ = on_boxes(Maps(function, *convolutions), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_module_may_run_twice():
    x = torch.randn(2, 4, *SPATIAL[2], dtype=torch.float64)
    found, expected, on_box = on_boxes(Maps(lambda x, m: m(m(x).relu()) + x, nn.Conv2d(4, 4, 3, padding=1)), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert on_box == ["conv2d", "relu", "conv2d", "add"]


def test_boxes_that_cover_most_of_a_map_are_put_together():
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    found, expected, on_box = on_boxes(nn.Conv2d(4, 4, 3, padding=1), x, corners((8, 8), 7))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert on_box == []


def test_every_entry_of_the_table_names_a_function_of_torch():
    homes = (torch, functional, torch.Tensor, torch.special, torch._C._nn)
    known = {name.strip("_") for home in homes for name in dir(home)}
    assert {name for name in TABLE if name not in known} == set()
