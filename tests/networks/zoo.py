"""Networks of many kinds, small, with random weights, and inputs for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import further
import timm
import torch
import torchvision
from builders import (
    FTTransformer,
    ImageAndTable,
    Recurrent,
    Siamese,
    TwoHeads,
    UNet,
    XVector,
    autoencoder,
    cnn,
    coatnet,
    convnext,
    fasterrcnn,
    mixer,
    r3d,
    resnet50,
    ssdlite,
    swin_v2,
)
from torch import nn

from lightning_xai import Inputs
from lightning_xai.relevance import composites


@dataclass(frozen=True)
class Network:
    """A network and what is asked of it.

    Attributes:
        make: Makes it.
        inputs: Makes what it is given, two samples.
        layer: A layer whose units are read, and at which it is explained.
        size: The size of windows, of which there are few.
        read: Takes the tensor of classes from its output.
        score: The score that reads the same.
        rules: The composite that fits.
        single: Whether it computes some of its numbers in single precision whatever it is given.
        cam: The layer of class activation maps; found unless given.
        without: The methods that make no sense, with the reason.
        fast: Whether continuous integration runs it.
        normed: The batch norm that takes the layer's output, if one does.
        jumps: Whether its output jumps, so that its gradient does not sum up to its change.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    layer: str
    size: Any = 32
    read: Callable[[Any], torch.Tensor] = lambda output: output
    score: Any = "logit"
    rules: Any = field(default_factory=composites.AttnLRP)
    single: bool = False
    without: Mapping[str, str] = field(default_factory=dict)
    fast: bool = False
    normed: str | None = None
    jumps: bool = False
    cam: str | None = None


def image(size: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size).double()


def vision(name: str, **fields: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(weights=None, num_classes=5, **fields)


def segmentation(name: str) -> Callable[[], nn.Module]:
    build = getattr(torchvision.models.segmentation, name)
    return lambda: build(weights=None, weights_backbone=None, num_classes=4)


def of_timm(name: str, **fields: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **fields)


def transformer(name: str, kind: str | None = None, **fields: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(num_labels=3, **fields)
        return getattr(transformers, kind or f"{name}ForSequenceClassification")(config)

    return make


def tokens(count: int = 6) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 40, (2, count))
    ids[1, -2:] = 1
    return {"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": torch.tensor([0, 1])}


def logits(output: Any) -> torch.Tensor:
    return output.logits


_BERT = {
    "vocab_size": 40, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 16, "pad_token_id": 1,
}  # fmt: skip
_LLAMA = {**_BERT, "num_key_value_heads": 1, "head_dim": 6}
_NO_GRID = {"Grad-CAM": "a table has no positions"}
_PLUS = composites.EpsilonPlus()


def text(make: Callable[[], nn.Module], layer: str, **fields: Any) -> Network:
    return Network(make, tokens, layer, size=2, read=logits, **fields)


def images(make: Callable[[], nn.Module], layer: str, size: int = 64, **fields: Any) -> Network:
    return Network(make, partial(image, size), layer, size=size // 2, **fields)


def _clip_inputs() -> Inputs:
    ids = torch.randint(5, 39, (3, 6))
    ids[:, -1] = 39  # where the text ends
    return Inputs(pixel_values=image(32), input_ids=ids, explain="pixel_values")


def _networks() -> dict[str, Network]:
    from lightning_xai.scores import Box, Logit

    plus = {"rules": _PLUS}
    own = {
        "1-d CNN": Network(lambda: cnn(1), lambda: torch.randn(2, 2, 16).double(), "3", 4, fast=True, **plus),
        "3-d CNN": Network(lambda: cnn(3), lambda: torch.randn(2, 2, 6, 6, 6).double(), "3", 3, fast=True, **plus),
        "LSTM": Network(lambda: Recurrent(nn.LSTM), lambda: torch.randn(2, 3, 8).double(), "stem", 4, fast=True),
        "GRU": Network(lambda: Recurrent(nn.GRU), lambda: torch.randn(2, 3, 8).double(), "stem", 4, fast=True),
        "U-Net": Network(UNet, lambda: image(16), "bottom.1", 8, fast=True, **plus),
        "autoencoder": Network(autoencoder, lambda: image(16, 1), "2", 8, fast=True, **plus),
        "siamese": Network(
            Siamese,
            lambda: Inputs(image(8, 1), image(8, 1), explain=0),
            "mix",
            4,
            fast=True,
        ),
        "dict of heads": Network(
            TwoHeads, lambda: image(16), "trunk.2", 8, lambda o: o["kind"], Logit(output="kind"), fast=True, **plus
        ),
        "image + table": Network(
            ImageAndTable,
            lambda: Inputs(image(8), table=torch.randn(2, 5).double(), explain=0),
            "conv.2",
            4,
            fast=True,
        ),
        "FT-transformer": Network(
            FTTransformer, lambda: torch.randn(2, 6).double(), "head", 2, without=_NO_GRID, fast=True
        ),
        "x-vector": Network(XVector, lambda: torch.randn(2, 4, 20).double(), "frames.3", 5, fast=True),
    }
    seg = {"read": lambda output: output["out"], "score": Logit(output="out")}
    torchvisions = {
        "resnet50": images(resnet50, "layer3.0.conv2", normed="layer3.0.bn2", **plus),
        "densenet121": images(
            lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5),
            "features.denseblock2.denselayer1.conv1",
            normed="features.denseblock2.denselayer1.norm2",
            fast=True,
            **plus,
        ),
        "mobilenet_v3_small": images(
            vision("mobilenet_v3_small"), "features.8.block.1.0", normed="features.8.block.1.1", **plus
        ),
        "efficientnet_b0": images(
            vision("efficientnet_b0"), "features.5.0.block.0.0", normed="features.5.0.block.0.1", **plus
        ),
        "regnet_y_400mf": images(
            vision("regnet_y_400mf"),
            "trunk_output.block2.block2-0.f.a.0",
            normed="trunk_output.block2.block2-0.f.a.1",
            **plus,
        ),
        "convnext_tiny": images(convnext, "features.1.0.block.3"),
        "swin_t": images(
            lambda: torchvision.models.SwinTransformer([4, 4], 24, [1, 1], [2, 4], [2, 2], num_classes=5),
            "features.3.0.mlp.0",
        ),
        "swin_v2_t": images(swin_v2, "features.3.0.mlp.0"),
        "maxvit_t": images(
            lambda: torchvision.models.MaxVit((64, 64), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=5),
            "blocks.1.layers.0.layers.MBconv.layers.conv_b.0",
            normed="blocks.1.layers.0.layers.MBconv.layers.conv_b.1",
        ),
        "vit_b_16": images(
            lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 12, 20, num_classes=5),
            "encoder.layers.encoder_layer_0.mlp.0",
            fast=True,
        ),
        "googlenet": images(
            vision("googlenet", init_weights=False, aux_logits=True),
            "inception4c.branch2.1.conv",
            normed="inception4c.branch2.1.bn",
            **plus,
        ),
        "deeplabv3": images(
            segmentation("deeplabv3_mobilenet_v3_large"), "classifier.1", normed="classifier.2", **plus, **seg
        ),
        "lraspp": images(
            segmentation("lraspp_mobilenet_v3_large"), "classifier.cbr.0", normed="classifier.cbr.1", **plus, **seg
        ),
        "r3d_18": Network(
            r3d,
            lambda: torch.randn(2, 3, 4, 32, 32).double(),
            "layer2.0.conv1.0",
            (4, 16, 16),
            normed="layer2.0.conv1.1",
            **plus,
        ),
    }
    found = {"read": None, "score": Box(0), **plus}
    torchvisions |= {
        "fasterrcnn": images(fasterrcnn, "backbone.3", cam="backbone.4", **found),
        "ssdlite": images(ssdlite, "backbone.3", cam="backbone.4", fast=True, **found),
    }
    tiny = {"img_size": 64}
    timms = {
        "vit": images(
            of_timm("vit_tiny_patch16_224", depth=2, embed_dim=12, num_heads=2, **tiny), "blocks.0.mlp.fc1", fast=True
        ),
        "vit with registers": images(
            of_timm("vit_small_patch14_reg4_dinov2", depth=2, embed_dim=12, num_heads=2, img_size=56),
            "blocks.0.mlp.fc1",
            56,
        ),
        "deit_distilled": images(
            of_timm("deit_tiny_distilled_patch16_224", depth=2, embed_dim=12, num_heads=2, **tiny), "blocks.0.mlp.fc1"
        ),
        "cait": images(
            of_timm("cait_xxs24_224", depth=2, embed_dim=12, num_heads=2, **tiny), "blocks.0.mlp.fc1", fast=True
        ),
        "xcit": images(of_timm("xcit_nano_12_p16_224", depth=2, embed_dim=16, num_heads=2, **tiny), "blocks.0.mlp.fc1"),
        "beit": images(
            of_timm("beit_base_patch16_224", depth=2, embed_dim=12, num_heads=2, **tiny), "blocks.0.mlp.fc1"
        ),
        "eva02": images(
            of_timm("eva02_tiny_patch14_224", depth=2, embed_dim=16, num_heads=2, img_size=56), "blocks.0.mlp.fc1", 56
        ),
        "hiera": images(of_timm("hiera_tiny_224", embed_dim=16, stages=(1, 1, 1, 1), **tiny), "blocks.2.mlp.fc1"),
        "convnextv2": images(
            of_timm("convnextv2_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), "stages.2.blocks.0.mlp.fc1"
        ),
        "coatnet": images(coatnet, "stages.2.blocks.0.mlp.fc1"),
        "mobilevit": images(of_timm("mobilevit_xxs"), "stages.2.1.conv_1x1"),
        "efficientformerv2": images(
            of_timm("efficientformerv2_s0", **tiny),
            "stages.1.blocks.0.mlp.fc1.conv",
            normed="stages.1.blocks.0.mlp.fc1.bn",
        ),
        "mambaout": images(
            of_timm("mambaout_femto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)), "stages.1.blocks.0.fc1"
        ),
        "edgenext": images(
            of_timm("edgenext_xx_small", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), "stages.1.blocks.0.mlp.fc1"
        ),
        "repvgg": images(of_timm("repvgg_a0"), "stages.1.0.conv_kxk.conv", normed="stages.1.0.conv_kxk.bn", **plus),
        "nfnet": images(of_timm("nfnet_l0"), "stages.1.0.conv2", **plus),
        "mixer": images(mixer, "blocks.0.mlp_channels.fc1"),
    }
    vit = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    transformers = {
        "Bert": text(transformer("Bert", **_BERT), "bert.encoder.layer.0.intermediate.dense", fast=True),
        "DistilBert": text(
            transformer(
                "DistilBert",
                vocab_size=40,
                dim=12,
                n_layers=2,
                n_heads=2,
                hidden_dim=16,
                max_position_embeddings=16,
                pad_token_id=1,
            ),
            "distilbert.transformer.layer.0.ffn.lin1",
        ),
        "Roberta": text(
            transformer("Roberta", **{**_BERT, "max_position_embeddings": 18}),
            "roberta.encoder.layer.0.intermediate.dense",
        ),
        "GPT-2": text(
            transformer(
                "GPT2",
                vocab_size=40,
                n_embd=12,
                n_layer=2,
                n_head=2,
                n_positions=16,
                pad_token_id=1,
                bos_token_id=2,
                eos_token_id=3,
            ),
            "transformer.h.0.mlp.c_fc",
        ),
        "Llama": text(transformer("Llama", **_LLAMA), "model.layers.0.mlp.gate_proj", single=True, fast=True),
        "Qwen2": text(
            transformer("Qwen2", **{k: v for k, v in _LLAMA.items() if k != "head_dim"}),
            "model.layers.0.mlp.gate_proj",
            single=True,
        ),
        "ViT (transformers)": Network(
            transformer("ViT", "ViTForImageClassification", image_size=32, patch_size=8, **vit),
            lambda: {"pixel_values": image(32), "labels": torch.tensor([0, 1])},
            "vit.layers.0.mlp.fc1",
            16,
            logits,
        ),
        "CLIP": Network(
            transformer(
                "CLIP",
                "CLIPModel",
                text_config={
                    **vit,
                    "vocab_size": 40,
                    "max_position_embeddings": 8,
                    "eos_token_id": 39,
                    "bos_token_id": 2,
                    "pad_token_id": 1,
                },
                vision_config={**vit, "image_size": 32, "patch_size": 8},
                projection_dim=8,
            ),
            _clip_inputs,
            "vision_model.encoder.layers.0.mlp.fc1",
            16,
            lambda output: output.logits_per_image,
            Logit(output="logits_per_image"),
        ),
        "Wav2Vec2": Network(
            transformer(
                "Wav2Vec2",
                **vit,
                conv_dim=(8, 8),
                conv_stride=(4, 2),
                conv_kernel=(8, 3),
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
                classifier_proj_size=8,
                num_feat_extract_layers=2,
                feat_extract_norm="group",
            ),
            lambda: {"input_values": torch.randn(2, 160).double()},
            "wav2vec2.feature_extractor.conv_layers.1.conv",
            80,
            logits,
        ),
        "Segformer": Network(
            transformer(
                "Segformer",
                "SegformerForSemanticSegmentation",
                hidden_sizes=(8, 16),
                depths=(1, 1),
                num_encoder_blocks=2,
                sr_ratios=(2, 1),
                patch_sizes=(7, 3),
                strides=(4, 2),
                num_attention_heads=(1, 2),
                mlp_ratios=(2, 2),
                decoder_hidden_size=8,
            ),
            lambda: {"pixel_values": image(32)},
            "segformer.stages.0.blocks.0.mlp.fc1",
            16,
            logits,
        ),
    }
    return {**own, **torchvisions, **timms, **transformers, **_further()}


def _further() -> dict[str, Network]:
    from lightning_xai.scores import Logit

    def line(channels: int, length: int) -> torch.Tensor:
        return torch.randn(2, channels, length).double()

    def points(count: int, channels: int, **fixed: torch.Tensor) -> Inputs:
        return Inputs(torch.randn(2, count, channels).double(), explain=0, axis=-1, **fixed)

    def ended() -> dict[str, torch.Tensor]:
        found = tokens()
        found["input_ids"][:, 3] = 2
        return found

    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    edges = torch.eye(5).double() + (torch.arange(50).view(2, 5, 5) % 3 > 0).double()
    t5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 2}
    t5["eos_token_id"] = 2
    fast = {"fast": True}
    return {
        "T5": Network(
            transformer("T5", vocab_size=40, dropout_rate=0.0, pad_token_id=1, decoder_start_token_id=0, **t5),
            ended,
            "transformer.encoder.block.0.layer.1.DenseReluDense.wi",
            2,
            logits,
            single=True,
            fast=True,
        ),
        "Perceiver": Network(further.Perceiver, lambda: image(6), "embed", 3, **fast),
        "VQ-VAE encoder": Network(further.Quantised, lambda: image(8), "encoder.0", 4, jumps=True, **fast),
        "conformer": Network(further.Conformer, lambda: line(4, 12), "depthwise", 4, normed="batch", **fast),
        "two towers": Network(further.Towers, lambda: Inputs([image(6), ids], explain="0.0"), "image.0", 3, **fast),
        "experts": Network(further.Experts, lambda: line(4, 6), "up", 2, jumps=True, **fast),
        "state space": Network(further.StateSpace, lambda: line(3, 7), "inner", 4, **fast),
        "points": Network(further.Points, lambda: points(6, 3), "up", 2, cam="norm", **fast),
        "several exits": Network(
            further.Exits, lambda: image(6), "late.0", 3, lambda output: output[1], Logit(output=1), **fast
        ),
        "Fourier layer": Network(further.Fourier, lambda: line(2, 8), "around", 4, **fast),
        "graphs": Network(further.Graph, lambda: points(5, 4, edges=edges), "first", 2, **fast),
        "packed LSTM": Network(further.Packed, lambda: points(6, 3, lengths=torch.tensor([6, 4])), "up", 2, **fast),
        "generated kernels": Network(further.Generated, lambda: image(6), "mix", 3, **fast),
    }


NETWORKS = _networks()
FAST = [name for name, network in NETWORKS.items() if network.fast]
