"""The incremental engine on networks that people use: the numbers of dense passes, at a few windows each."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torchvision import models
from torchvision.models import segmentation, video

from lightning_xai.perturbation import Windows, kinds
from lightning_xai.perturbation.sweep import Plan, Request, sweep
from lightning_xai.scores import Logit


class UNet(nn.Module):
    """A map of classes by skip connections, a transposed convolution, and an interpolation."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        first = functional.elu(self.down1(x))
        second = functional.elu(self.down2(first))
        middle = functional.interpolate(functional.max_pool2d(self.middle(second), 2), scale_factor=2)
        return self.last(torch.cat([self.up(second + middle), first], 1))


def signal():
    return nn.Sequential(
        nn.Conv1d(3, 8, 5, padding=2, padding_mode="replicate"),
        nn.GELU(),
        nn.AvgPool1d(2),
        nn.Conv1d(8, 8, 3, groups=4),
        nn.AdaptiveMaxPool1d(4),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def vgg():
    return nn.Sequential(models.vgg.make_layers(models.vgg.cfgs["A"], batch_norm=True), nn.Flatten(), nn.Linear(512, 5))


IMAGE, FEW = (2, 3, 64, 64), Windows(8, stride=28)
NETWORKS = {
    "resnet18": (models.resnet18, IMAGE, FEW),
    "vgg11_bn": (vgg, (2, 3, 32, 32), Windows(4, stride=14)),
    "mobilenet_v2": (models.mobilenet_v2, IMAGE, FEW),
    "mobilenet_v3_small": (models.mobilenet_v3_small, IMAGE, FEW),
    "densenet": (lambda: models.DenseNet(8, (2, 2, 2), 16), IMAGE, FEW),
    "googlenet": (lambda: models.googlenet(init_weights=False, aux_logits=False), IMAGE, FEW),
    "shufflenet_v2": (models.shufflenet_v2_x0_5, IMAGE, FEW),
    "squeezenet": (models.squeezenet1_1, IMAGE, FEW),
    "regnet_x": (models.regnet_x_400mf, IMAGE, FEW),
    "convnext": (lambda: models.ConvNeXt(_blocks()), IMAGE, FEW),
    "efficientnet": (models.efficientnet_b0, IMAGE, FEW),
    "odd, not square": (models.resnet18, (2, 3, 61, 75), Windows((9, 4), stride=(30, 41), remainder="center")),
    "segmentation": (lambda: segmentation.lraspp_mobilenet_v3_large(weights_backbone=None), IMAGE, FEW),
    "u-net": (UNet, (2, 3, 32, 40), Windows(4, stride=14)),
    "video": (lambda: video.r3d_18(num_classes=5), (1, 3, 4, 16, 16), Windows((2, 3, 3), stride=(2, 13, 13))),
    "signal": (signal, (2, 3, 90), Windows(7, stride=20, remainder="right")),
}


def _blocks():
    setting = models.convnext.CNBlockConfig
    return [setting(16, 32, 1), setting(32, 48, 1), setting(48, None, 1)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_numbers_of_a_network_are_the_dense_ones(name):
    make, shape, windows = NETWORKS[name]
    torch.manual_seed(4)
    x = torch.randn(shape, dtype=torch.float64)
    model = make().double()
    with torch.no_grad():
        model(torch.randn(2, *shape[1:], dtype=torch.float64))  # what batch norms have seen is not nothing
    asked = Request(kinds.Constant(0.2), Logit(output="out" if name == "segmentation" else None))
    dense, made = (
        sweep(model.eval(), x, "predicted", [asked], Plan(windows, engine=how)) for how in ("dense", "incremental")
    )
    assert (dense.engine, made.engine) == ("dense", "incremental")
    assert made.share < 1
    moved = dense.local(asked).abs().max()
    assert moved > 0
    torch.testing.assert_close(made.arms[asked], dense.arms[asked], rtol=0, atol=1e-10 * max(1.0, float(moved)))
