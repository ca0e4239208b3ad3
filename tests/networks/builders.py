"""Networks of our own, and small ones of the families of libraries."""

from typing import Any

import timm
import torch
import torchvision
from torch import nn

from lightning_xai.inputs import as_inputs


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv1d(3, 6, 3, padding=1), nn.ReLU()
        self.recurrent = kind(6, 5, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        return self.head(self.recurrent(self.act(self.stem(x)).transpose(1, 2))[0].mean(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.bottom = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.join = nn.Sequential(nn.Conv2d(12, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.classes = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        fine = self.down(x)
        return self.classes(self.join(torch.cat([fine, self.up(self.bottom(fine))], 1)))


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.mix, self.head = nn.Linear(10, 6), nn.Linear(6, 2)

    def forward(self, first, second):
        one, two = (self.tower(x).flatten(1) for x in (first, second))
        return self.head(self.mix(torch.cat([(one - two).abs(), one * two], 1)).relu())


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU())
        self.kind, self.age = nn.Linear(6, 4), nn.Linear(6, 1)

    def forward(self, x):
        read = self.trunk(x).mean((2, 3))
        return {"kind": self.kind(read), "age": self.age(read)}


class ImageAndTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU())
        self.table, self.head = nn.Linear(5, 6), nn.Linear(12, 3)

    def forward(self, image, table):
        return self.head(torch.cat([self.conv(image).mean((2, 3)), self.table(table).relu()], 1))


class FTTransformer(nn.Module):
    """Every column a token: its number times a vector, plus another."""

    def __init__(self, columns: int = 6, width: int = 8) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(columns, width)), nn.Parameter(torch.randn(columns, width))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, 2, 16, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x):
        tokens = x.unsqueeze(-1) * self.weight + self.bias
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.norm(self.encoder(tokens)[:, 0]).relu())


class XVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.Conv1d(4, 8, 5), nn.ReLU(), nn.BatchNorm1d(8), nn.Conv1d(8, 8, 3, dilation=2), nn.ReLU()
        )
        self.segment, self.head = nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x):
        frames = self.frames(x)
        return self.head(self.segment(torch.cat([frames.mean(2), frames.std(2)], 1)).relu())


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 3, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(3, 6, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 1, 4, stride=2, padding=1),
    )


def cnn(axes: int) -> nn.Module:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1]
    return nn.Sequential(
        conv(2, 6, 3, padding=1), norm(6), nn.ReLU(), conv(6, 8, 3, stride=2), nn.ReLU(), pool(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


# Networks of libraries


def resnet50() -> nn.Module:
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1] * 4, num_classes=5, width_per_group=16)


def convnext() -> nn.Module:
    block = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([block(12, 24, 1), block(24, None, 1)], num_classes=5)


def swin_v2() -> nn.Module:
    parts = torchvision.models.swin_transformer
    return parts.SwinTransformer(
        [4, 4], 24, [1, 1], [2, 4], [2, 2], num_classes=5,
        block=parts.SwinTransformerBlockV2, downsample_layer=parts.PatchMergingV2,
    )  # fmt: skip


def r3d() -> nn.Module:
    parts = torchvision.models.video.resnet
    return parts.VideoResNet(parts.BasicBlock, [parts.Conv3DSimple] * 4, [1] * 4, parts.BasicStem, num_classes=5)


def _features() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
    )  # fmt: skip


def fasterrcnn() -> nn.Module:
    parts, backbone = torchvision.models.detection, _features()
    backbone.out_channels = 8
    anchors = parts.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),))
    return parts.FasterRCNN(
        backbone, 3, min_size=64, max_size=64, rpn_anchor_generator=anchors,
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2), rpn_post_nms_top_n_test=10, box_score_thresh=0.0,
        box_detections_per_img=4, representation_size=16, image_mean=[0.0] * 3, image_std=[1.0] * 3,
    )  # fmt: skip


def ssdlite() -> nn.Module:
    parts, backbone = torchvision.models.detection, _features()
    generator = parts.anchor_utils.DefaultBoxGenerator([[2]], scales=[0.3, 0.5])
    head = parts.ssdlite.SSDLiteHead([8], generator.num_anchors_per_location(), 3, nn.BatchNorm2d)
    return parts.ssd.SSD(
        backbone, generator, (64, 64), 3, image_mean=[0.0] * 3, image_std=[1.0] * 3, head=head, score_thresh=0.0,
        detections_per_img=4,
    )  # fmt: skip


def coatnet() -> nn.Module:
    parts = timm.models.maxxvit
    config = parts.MaxxVitCfg(
        embed_dim=(8, 16, 16, 32), depths=(1, 1, 1, 1), block_type=("C", "C", "T", "T"), stem_width=8,
        transformer_cfg=parts.MaxxVitTransformerCfg(dim_head=8),
    )  # fmt: skip
    return parts.MaxxVit(config, img_size=64, num_classes=5)


def mixer() -> nn.Module:
    return timm.models.mlp_mixer.MlpMixer(5, patch_size=16, embed_dim=16, num_blocks=2, img_size=64)


def settled(model: nn.Module, inputs: Any) -> nn.Module:
    """In double precision and eval mode, with scales and heads that do something, and statistics of these inputs."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
        norm.momentum = 1.0
    for parameter in model.parameters():
        if parameter.numel() and not parameter.any() and parameter.ndim > 1:  # heads that start at 0
            nn.init.normal_(parameter, std=0.1)
        elif parameter.numel() and parameter.abs().max() < 1e-3:  # scales of branches that start small
            nn.init.uniform_(parameter, 0.2, 0.5)
    model.double()
    if norms:
        with torch.no_grad():
            model.eval()
            for norm in norms:
                norm.train()
            inputs = as_inputs(inputs)
            args, named = inputs.arguments(inputs.values).assembled(inputs.values)
            model(*args, **named)
    return model.eval()
