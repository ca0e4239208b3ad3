"""Class activation maps: what they sum to, loops over channels, captum, pytorch-grad-cam."""

import dataclasses
import warnings

import numpy as np
import pytest
import pytorch_grad_cam as peers
import timm
import torch
import torchvision
from captum.attr import LayerGradCam
from draws import close, draw
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lightning_xai.relevance import (
    CAM,
    AblationCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    XGradCAM,
)

SHAPES = {"line": (3, 2, 12), "plane": (3, 2, 8, 10), "volume": (3, 2, 4, 6, 4)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
GRADIENT = [GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM]
EVERY = [*GRADIENT, CAM, ScoreCAM, AblationCAM]
every_cam = pytest.mark.parametrize("cam", EVERY, ids=lambda cam: cam.__name__)
Y = torch.tensor([2, 0, 1])


class Net(nn.Module):
    """Convolutions, then global pooling or flattening, then a linear layer."""

    def __init__(self, shape, end="mean", bias=True):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 3]
        pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[len(shape) - 3]
        self.stem = nn.Sequential(convolution(shape[1], 4, 3, padding=1), nn.ReLU(), pool(2))
        self.top = nn.Sequential(convolution(4, 6, 3, padding=1), nn.ReLU())
        self.end = end
        cells = torch.Size(length // 2 for length in shape[2:]).numel()
        self.head = nn.Linear(6 * cells if end == "flat" else 6, 3, bias=bias)
        self.double()

    def forward(self, x):
        top = self.top(self.stem(x)).flatten(2)
        pooled = {"mean": top.mean(2), "sum": top.sum(2), "flat": top.flatten(1)}[self.end]
        return self.head(pooled)

    def seen(self, x):
        """Activation of the top layer and gradient of the targets' logits there, by autograd as it is."""
        activation = self.top(self.stem(x)).detach().requires_grad_()
        top = activation.flatten(2)
        pooled = {"mean": top.mean(2), "sum": top.sum(2), "flat": top.flatten(1)}[self.end]
        score = self.head(pooled).gather(1, Y[:, None])[:, 0]
        return activation.detach(), torch.autograd.grad(score.sum(), activation)[0], score.detach()


def flat(values):
    """Values [N, K, *S] as numpy arrays [N, K, places]."""
    return values.flatten(2).numpy()


def by_loops(formula, activation, gradient):
    """The map [N, 1, *S] whose channel weights [places] a formula of one channel's A and g gives."""
    a, g = flat(activation), flat(gradient)
    found = np.zeros((len(a), 1, a.shape[2]))
    for n, k in np.ndindex(*a.shape[:2]):
        found[n, 0] += formula(a[n, k], g[n, k]) * a[n, k]
    return torch.tensor(found).view(len(a), 1, *activation.shape[2:])


def plus_plus(a, g):
    total = a.sum()
    alpha = [v * v / (2 * v * v + total * v**3) if 2 * v * v + total * v**3 != 0 else 0 for v in g]
    return sum(w * max(v, 0) for w, v in zip(alpha, g, strict=True))


FORMULAS = {
    GradCAM: lambda a, g: sum(g) / len(g),
    GradCAMPlusPlus: plus_plus,
    XGradCAM: lambda a, g: sum(a * g) / sum(a) if sum(a) != 0 else 0.0,
    LayerCAM: lambda a, g: np.maximum(g, 0),
    HiResCAM: lambda a, g: g,
}


@every_shape
@pytest.mark.parametrize("end", ["mean", "flat"])
@pytest.mark.parametrize("cam", GRADIENT, ids=lambda cam: cam.__name__)
def test_gradient_cams_match_loops(shape, end, cam):
    model, x = Net(shape, end), draw(*shape)
    activation, gradient, _ = model.seen(x)
    expected = by_loops(FORMULAS[cam], activation, gradient)
    assert expected.min() < 0 or cam in (LayerCAM, GradCAMPlusPlus)
    close(cam("top", upsample=None, relu=False)(model, x, Y), expected)
    close(cam("top", upsample=None, relu=True)(model, x, Y), expected.clamp(min=0))


@every_shape
def test_score_cam_matches_a_loop(shape):
    model, x = Net(shape), draw(*shape)
    activation, _, _ = model.seen(x)
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[len(shape)]
    scores = torch.zeros(3, 6, dtype=torch.float64)
    for n, k in np.ndindex(3, 6):
        mask = functional.interpolate(activation[[n]][:, [k]], shape[2:], mode=mode)
        if mask.max() > mask.min():
            mask = (mask - mask.min()) / (mask.max() - mask.min())
        with torch.no_grad():
            scores[n, k] = model(x[[n]] * mask)[0, Y[n]]
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    expected = torch.einsum("nk,nk...->n...", weights, activation).unsqueeze(1)
    for chunk_size in (1, 5, 100):
        close(ScoreCAM("top", upsample=None, chunk_size=chunk_size)(model, x, Y), expected)


@every_shape
def test_ablation_cam_matches_a_loop(shape):
    model, x = Net(shape, "flat"), draw(*shape)
    activation, _, score = model.seen(x)
    weights = torch.zeros(3, 6, dtype=torch.float64)
    for k in range(6):
        without = activation.clone()
        without[:, k] = 0
        with torch.no_grad():
            weights[:, k] = (score - model.head(without.flatten(1)).gather(1, Y[:, None])[:, 0]) / score
    expected = torch.einsum("nk,nk...->n...", weights, activation).unsqueeze(1)
    for chunk_size in (1, 5, 100):
        found = AblationCAM("top", upsample=None, relu=False, chunk_size=chunk_size)(model, x, Y)
        close(found, expected)


# What they sum to


@every_shape
@pytest.mark.parametrize("bias", [False, True])
def test_cam_sums_to_the_logit_without_its_bias(shape, bias):
    x = draw(*shape)
    for end in ("mean", "sum"):
        model = Net(shape, end, bias)
        activation, _, score = model.seen(x)
        own = model.head.bias[Y].detach() if bias else 0.0
        cells = activation[0, 0].numel()
        found = CAM("top", upsample=None)(model, x, Y)
        close(found.flatten(1).sum(1), (score - own) * (cells if end == "mean" else 1))


@every_shape
def test_cam_is_grad_cam_times_the_places_of_mean_pooling(shape):
    model, x = Net(shape), draw(*shape)
    places = model.seen(x)[0][0, 0].numel()
    close(CAM("top", upsample=None)(model, x, Y), places * GradCAM("top", upsample=None, relu=False)(model, x, Y))
    close(CAM("top")(model, x, Y), places * GradCAM("top", relu=False)(model, x, Y))


@every_shape
@pytest.mark.parametrize("end", ["mean", "sum", "flat"])
def test_hires_cam_sums_to_the_logit_without_its_bias(shape, end):
    model, x = Net(shape, end), draw(*shape)
    _, _, score = model.seen(x)
    found = HiResCAM("top", upsample=None)(model, x, Y)
    close(found.flatten(1).sum(1), score - model.head.bias[Y].detach())


# Peers


@every_shape
@pytest.mark.parametrize("layer", ["top", "top.0", "stem", "stem.2"])
def test_grad_cam_matches_captum(shape, layer):
    model, x = Net(shape, "flat"), draw(*shape)
    peer = LayerGradCam(model, model.get_submodule(layer))
    close(GradCAM(layer, upsample=None, relu=False)(model, x, Y), peer.attribute(x, target=Y).detach())
    rectified = peer.attribute(x, target=Y, relu_attributions=True).detach()
    close(GradCAM(layer, upsample=None)(model, x, Y), rectified)


def peer_map(name, model, layer, x):
    """What pytorch-grad-cam makes before it rescales, and what it returns."""
    targets = [ClassifierOutputTarget(int(y)) for y in Y]
    with getattr(peers, name)(model, [layer]) as peer:
        returned = peer(x, targets)
        seen = peer.activations_and_grads
        activation = seen.activations[0].detach().numpy()
        gradient = seen.gradients[0].detach().numpy() if seen.gradients else None
        raw = peer.get_cam_image(x, layer, targets, activation, gradient, False)
    return torch.tensor(raw).unsqueeze(1).double(), torch.tensor(returned).unsqueeze(1).double()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("cam", "tolerance"),
    [
        (GradCAM, 1e-12),
        (HiResCAM, 1e-12),
        (LayerCAM, 1e-12),
        (GradCAMPlusPlus, 1e-7),  # theirs adds 1e-6 to the denominator
        (XGradCAM, 1e-6),  # theirs adds 1e-7 to the denominator
        (ScoreCAM, 1e-5),  # theirs keeps scores in single precision
        (AblationCAM, 1e-5),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_cams_match_pytorch_grad_cam(cam, tolerance):
    model, x = Net(SHAPES["plane"], "flat"), draw(3, 2, 8, 10)
    model.stem[2] = nn.Identity()  # the layer has the size of the input, so that neither interpolates
    model.head = nn.Linear(6 * 80, 3).double()
    with torch.no_grad():
        model.head.weight *= 1000  # against what is added to denominators
        model.top[0].weight *= 0.01 if cam is ScoreCAM else 1.0  # a softmax over 6 channels that is not one-hot
    raw, returned = peer_map(cam.__name__, model, model.top[1], x)
    close(cam("top.1", upsample=None, relu=False)(model, x, Y) / raw.abs().max(), raw / raw.abs().max(), tolerance)
    positive = cam("top.1", relu=True)(model, x, Y).flatten(1)
    low, high = positive.amin(1, keepdim=True), positive.amax(1, keepdim=True)
    close(((positive - low) / (high - low)).view_as(returned), returned, 1e-5)


# Layers


@every_cam
@every_shape
def test_default_layer_is_the_last_before_global_pooling(cam, shape):
    model, x = Net(shape), draw(*shape)
    close(cam()(model, x, Y), cam("top")(model, x, Y))


def test_default_layer_of_resnet_is_layer4():
    from torchvision.models import resnet18

    model, x = resnet18(num_classes=3).double(), draw(1, 3, 64, 64)
    for cam in (GradCAM(), CAM()):
        found = cam(model, x, 1)
        close(found, dataclasses.replace(cam, layer="layer4")(model, x, 1))
        assert found.shape == (1, 1, 64, 64)
    assert GradCAM(upsample=None)(model, x, 1).shape == (1, 1, 2, 2)


@every_cam
def test_upsampling_is_linear_interpolation_by_its_axes(cam):
    for shape, mode in zip(SHAPES.values(), ("linear", "bilinear", "trilinear"), strict=True):
        model, x = Net(shape), draw(*shape)
        small, large = cam("top", upsample=None)(model, x, Y), cam("top")(model, x, Y)
        assert small.shape == (3, 1, *(length // 2 for length in shape[2:]))
        close(large, functional.interpolate(small, shape[2:], mode=mode, align_corners=False))


class Tokens(nn.Module):
    """Patches and a class token, of which only the patches' mean or the class token is read."""

    def __init__(self, read="mean"):
        super().__init__()
        self.patches = nn.Conv2d(2, 6, 2, stride=2)
        self.start = nn.Parameter(torch.randn(1, 1, 6))
        self.block = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.1)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)
        self.read = read
        self.double()

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.start.expand(len(x), -1, -1), tokens], 1)
        tokens = self.norm(self.block(tokens))
        return self.head(tokens[:, 1:].mean(1) if self.read == "mean" else tokens[:, 0])


def as_grid(tokens):
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 5))


@every_cam
def test_reshape_lays_out_tokens(cam):
    model, x = Tokens().eval(), draw(3, 2, 8, 10)
    found = cam("norm", reshape=as_grid, upsample=None)(model, x, Y)
    assert found.shape == (3, 1, 4, 5)
    assert cam("norm", reshape=as_grid)(model, x, Y).shape == (3, 1, 8, 10)
    shown = []
    handle = model.norm.register_forward_hook(lambda module, args, output: shown.append(output.detach()))
    with torch.no_grad():
        score = model(x).gather(1, Y[:, None])[:, 0]
    handle.remove()
    activation = as_grid(shown[0])
    weight = model.head.weight[Y].detach()
    if cam in (CAM, GradCAM, HiResCAM, XGradCAM):  # the gradient is the weight over the 20 patches
        expected = torch.einsum("nk,nkhw->nhw", weight, activation).unsqueeze(1) / (1 if cam is CAM else 20)
        close(dataclasses.replace(cam("norm", reshape=as_grid, upsample=None), relu=False)(model, x, Y), expected)
    if cam is AblationCAM:
        shares = weight * activation.flatten(2).mean(2) / score[:, None]
        expected = torch.einsum("nk,nkhw->nhw", shares, activation).unsqueeze(1)
        close(cam("norm", reshape=as_grid, upsample=None, relu=False)(model, x, Y), expected)


@every_cam
@pytest.mark.parametrize("layer", ["norm", "block", "block.norm1"])
def test_tokens_are_laid_out_by_their_places(cam, layer):
    model, x = Tokens().eval(), draw(3, 2, 8, 10)
    if cam is CAM and layer != "norm":
        return
    close(cam(layer)(model, x, Y), cam(layer, reshape=as_grid)(model, x, Y))


def test_a_shared_module_is_laid_out_under_any_of_its_names():
    model, x = Tokens().eval(), draw(3, 2, 8, 10)
    model.other = model.norm
    close(GradCAM("other")(model, x, Y), GradCAM("norm")(model, x, Y))


def test_ablation_cam_refuses_a_reshape_that_computes():
    with pytest.raises(ValueError, match="a reshape that moves and drops elements but makes no new ones"):
        AblationCAM("norm", reshape=lambda tokens: as_grid(tokens) / 2)(Tokens(), draw(1, 2, 8, 10), 0)


# Default layers


def small(name, **fields):
    return timm.create_model(name, num_classes=3, **fields)


def with_head(vit):
    vit.heads.head.reset_parameters()  # it starts at 0, where no layer has a gradient
    return vit


NETWORKS = {
    "resnet": (lambda: torchvision.models.resnet18(num_classes=3), "layer4"),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=3), "features"),
    "mobilenet": (lambda: torchvision.models.mobilenet_v3_small(num_classes=3), "features"),
    "swin": (
        lambda: torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 4], [2, 2], num_classes=3),
        "permute",
    ),
    "vit": (
        lambda: with_head(torchvision.models.VisionTransformer(64, 16, 2, 2, 12, 20, num_classes=3)),
        "encoder.layers.encoder_layer_1.ln_1",
    ),
    "timm vit": (
        lambda: small("vit_tiny_patch16_224", depth=2, embed_dim=12, num_heads=2, img_size=64),
        "blocks.1.norm1",
    ),
    "timm registers": (
        lambda: small("vit_small_patch14_reg4_dinov2", depth=2, embed_dim=12, num_heads=2, img_size=56, patch_size=14),
        "blocks.1.norm1",
    ),
    "timm swin": (
        lambda: small(
            "swin_tiny_patch4_window7_224", depths=(1, 1), embed_dim=8, num_heads=(2, 2), window_size=2, img_size=64
        ),
        "norm",
    ),
}


@pytest.mark.parametrize(("make", "layer"), NETWORKS.values(), ids=NETWORKS)
def test_default_layers_of_known_networks(make, layer):
    model = make().double().eval()
    size = 56 if hasattr(model, "reg_token") and model.reg_token is not None else 64
    x = draw(1, 3, size, size)
    found = GradCAM(upsample=None).explain(model, x, 1)
    assert found.layer == layer
    assert found.map.shape[2] == found.map.shape[3] > 1
    close(GradCAM(layer, upsample=None)(model, x, 1), found.map)


@pytest.mark.parametrize("read", ["mean", "class"])
def test_default_layer_of_tokens_is_one_that_the_score_depends_on(read):
    model, x = Tokens(read).eval(), draw(3, 2, 8, 10)
    found = GradCAM().explain(model, x, Y)
    assert found.layer == ("norm" if read == "mean" else "patches")  # all that follows the block is read at one token
    assert found.map.abs().amax((1, 2, 3)).min() > 0


def test_default_layer_is_not_the_map_of_the_class():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert GradCAM().explain(model.double(), draw(2, 2, 6, 6), 1).layer == "1"


def test_default_layer_runs_once():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.head = nn.Conv1d(2, 4, 1), nn.Tanh(), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.again(self.again(self.first(x))).mean(2))

    assert GradCAM().explain(Again().double(), draw(2, 2, 6), 1).layer == "first"


class OneStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.mix = nn.Conv1d(1, 8, 1), nn.Linear(8, 2)
        self.double()

    def forward(self, x):
        return self.mix(self.conv(x).mT)[:, 5]


@every_cam
def test_network_that_reads_one_step_has_no_default_layer(cam):
    with pytest.raises(ValueError, match=r"no layer was found .* name one with layer='...', and say with reshape"):
        cam()(OneStep(), draw(2, 1, 40), 0)
    assert cam is CAM or cam("conv")(OneStep(), draw(2, 1, 40), 0).shape == (2, 1, 40)


def test_passes_of_a_named_and_of_a_default_layer():
    model, x = Net(SHAPES["plane"], "flat"), draw(*SHAPES["plane"])
    tokens, rows = Tokens().eval(), []
    for net in (model, tokens):
        net.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    GradCAM("top")(model, x, Y)
    assert rows == [3]
    GradCAM()(model, x, Y)
    assert rows == [3, 2, 3]
    GradCAM("norm")(tokens, x, Y)  # the layout of other layers takes two rows
    assert rows == [3, 2, 3, 3, 2]


class FrozenStem(nn.Module):
    """A backbone under the model's own ``no_grad``."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        with torch.no_grad():
            maps = self.stem(x).tanh()
        return self.head(maps.mean((2, 3)))


def test_layer_under_the_models_own_no_grad():
    model, x = FrozenStem().double(), draw(3, 2, 5, 6)
    leaf = model.stem(x).detach().requires_grad_()
    model.head(leaf.tanh().mean((2, 3))).gather(1, Y.view(-1, 1)).sum().backward()
    expected = (leaf.grad.mean((2, 3), keepdim=True) * leaf).sum(1, keepdim=True).relu().detach()
    close(GradCAM("stem", upsample=None)(model, x, Y), expected)


# Cost


def test_grad_cam_costs_a_forward_pass_and_the_way_back_to_the_layer():
    model, x = Net(SHAPES["plane"], "flat"), draw(*SHAPES["plane"])
    with FlopCounterMode(display=False) as forward:
        model(x)
    with FlopCounterMode(display=False) as head:
        model.head(draw(3, 6 * 20))
    with FlopCounterMode(display=False) as whole:
        GradCAM("top")(model, x, Y)
    assert whole.get_total_flops() == forward.get_total_flops() + head.get_total_flops()


def test_no_graph_is_built_before_the_layer():
    saved = []
    model, x = Net(SHAPES["plane"]), draw(*SHAPES["plane"])
    grad_modes = []
    model.stem.register_forward_hook(lambda *_: grad_modes.append(torch.is_grad_enabled()))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        GradCAM("top")(model, x, Y)
    assert grad_modes == [False]
    assert all(shape[1:2] != (4,) for shape in saved)


# Bad input


@every_cam
def test_unknown_layer_is_refused(cam):
    with pytest.raises(ValueError, match=r"layer 'tpo' is unknown. Did you mean 'top'"):
        cam("tpo")(Net(SHAPES["line"]), draw(3, 2, 12), Y)


@every_cam
def test_tables_are_refused(cam):
    with pytest.raises(ValueError, match=r"needs inputs with spatial axes \[N, C, \*S\], got a table \[2, 4\]"):
        cam()(nn.Linear(4, 2), torch.ones(2, 4), 0)


@every_cam
def test_network_without_spatial_layer_is_refused(cam):
    with pytest.raises(ValueError, match=r"no layer was found that runs once and returns .* name one with layer="):
        cam()(nn.Sequential(nn.Flatten(), nn.Linear(8, 2)), torch.ones(2, 2, 4), 0)


class Scrambled(Tokens):
    """Tokens whose places cannot be followed."""

    def forward(self, x):
        return super().forward(torch.fft.ifft(torch.fft.fft(x)).real)


@every_cam
def test_tokens_of_unknown_places_are_refused(cam):
    with pytest.raises(
        ValueError, match=r"positions of layer 'norm' do not form a grid .* or give reshape=..., a func"
    ):
        cam("norm")(Scrambled(), draw(1, 2, 8, 10), 0)
    with pytest.raises(ValueError, match=r"layer 'head' do not form a grid .*known is \[2 rows, 3 units\]"):
        cam("head")(Tokens(), draw(1, 2, 8, 10), 0)
    if cam is not CAM:  # a convolution tells its units
        assert cam("patches")(Scrambled(), draw(1, 2, 8, 10), 0).shape == (1, 1, 8, 10)


@every_cam
def test_reshape_to_another_rank_is_refused(cam):
    with pytest.raises(ValueError, match=r"layer 'norm' gives \[1, 6, 20\], .*; reshape must make it such a tensor"):
        cam("norm", reshape=lambda tokens: as_grid(tokens).flatten(2))(Tokens(), draw(1, 2, 8, 10), 0)


class Twice(Net):
    def forward(self, x):
        pooled = self.top(self.stem(x)).flatten(2).mean(2)
        return self.head(pooled + self.top(self.stem(x * 2)).flatten(2).mean(2))


class Never(Net):
    def __init__(self, shape):
        super().__init__(shape)
        self.spare = nn.Conv1d(2, 2, 1)


@every_cam
@pytest.mark.parametrize(("net", "layer", "times"), [(Twice, "top", "ran 2 times"), (Never, "spare", "did not run")])
def test_layer_that_does_not_run_once_is_refused(cam, net, layer, times):
    with pytest.raises(ValueError, match=f"layer '{layer}' {times} in one pass of the model: name one that runs once"):
        cam(layer)(net(SHAPES["line"]), draw(3, 2, 12), Y)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (Net(SHAPES["line"], "flat"), {}),  # no pooling
        (Net(SHAPES["line"]), {"layer": "top.0"}),  # a ReLU in between
        (Net(SHAPES["line"]), {"layer": "stem"}),  # a convolution in between
        (Net(SHAPES["line"]), {"classifier": "top.0"}),  # not linear
    ],
)
def test_cam_refuses_networks_that_it_does_not_fit(model, fields):
    with pytest.raises(ValueError, match=r"CAM needs global pooling and one linear layer .* or use GradCAM"):
        CAM(**fields)(model, draw(3, 2, 12), Y)


def test_layer_of_integers_is_refused():
    class Rounded(nn.Module):
        def forward(self, x):
            return x.long()

    model = Net(SHAPES["line"])
    model.stem.append(Rounded())
    with pytest.raises(ValueError, match=r"layer 'stem.3' returns torch.int64: gradients need floating-point numbers"):
        GradCAM("stem.3")(model, draw(3, 2, 12), Y)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: GradCAM(layer=3), TypeError, "layer must be a module or a dotted name such as 'features.0', got int"),
        (lambda: GradCAM(upsample="cubic"), ValueError, "upsample must be 'bilinear' or None, got 'cubic'"),
        (lambda: GradCAM(reshape=as_grid), ValueError, "reshape needs the layer"),
        (lambda: GradCAM("norm", reshape="grid"), TypeError, "reshape must be a function of the .* got str"),
        (
            lambda: CAM(score="probability"),
            ValueError,
            "CAM explains a class's logit: score must be 'logit' or 'value'",
        ),
        (lambda: ScoreCAM(chunk_size=0), ValueError, "chunk_size must be at least 1, got 0"),
        (lambda: AblationCAM(chunk_size=0), ValueError, "chunk_size must be at least 1, got 0"),
    ],
)
def test_invalid_fields_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_channels_without_activation_have_no_weight():
    model, x = Net(SHAPES["line"], "flat"), draw(3, 2, 12)
    with torch.no_grad():
        model.top[0].weight[1] = 0
        model.top[0].bias[1] = -1.0  # a dead channel
        model.head.weight.zero_()
        model.head.bias.zero_()  # every score and gradient is 0
    for cam in EVERY:
        found = cam("top")(model, x, Y) if cam is not CAM else CAM("top")(Net(SHAPES["line"]), x, Y)
        assert found.isfinite().all()
        if cam not in (CAM, ScoreCAM):
            assert (found == 0).all()


@pytest.mark.parametrize("layer", [None, "0", "0.0"])
def test_layer_inside_a_traced_module_is_refused_by_name(layer):
    x, features = torch.ones(1, 1, 4, 4), nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is deprecated
        model = nn.Sequential(torch.jit.trace(features, x), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"'0(\.0)?' is scripted or traced .* use the module that it was made from"):
        GradCAM(layer=layer)(model, x, 0)


def test_layer_that_returns_other_rows_than_the_samples_is_refused_by_its_shape():
    class Folded(nn.Module):
        """Tokens as rows, which go where an index says, as those of experts do."""

        def __init__(self):
            super().__init__()
            self.conv, self.tokens, self.head = nn.Conv1d(2, 3, 1), nn.Linear(3, 4), nn.Linear(4, 2)
            self.double()

        def forward(self, x):
            rows = self.tokens(self.conv(x).mT.flatten(0, 1)).relu()
            rows = torch.zeros_like(rows).index_add(0, torch.arange(len(rows)), rows)
            return self.head(rows.unflatten(0, (len(x), -1)).mean(1))

    model, x = Folded(), draw(3, 2, 5)
    with pytest.raises(ValueError, match=r"positions of layer 'tokens' do not form a grid|layer 'tokens' gives"):
        GradCAM("tokens")(model, x, 1)
    unfold = GradCAM("tokens", upsample=None, reshape=lambda rows: rows.unflatten(0, (3, 5)).mT)
    leaf = model.tokens(model.conv(x).mT).detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.head(leaf.relu().mean(1))[:, 1].sum(), leaf)
    expected = (slope.mean(1, keepdim=True) * leaf).sum(2).relu().unsqueeze(1)
    close(unfold(model, x, 1), expected.detach())
