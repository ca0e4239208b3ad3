"""A rule of one's own is one class, whatever the kind of operation."""

import pytest
import torch
from draws import close, draw, module
from torch import nn
from torch.nn import functional

from lightning_xai.operations.kinds import KINDS
from lightning_xai.relevance import LRP, composites, rules

WEIGHT = draw(24)
VECTORS, IMAGES, STEPS = (2, 6), (2, 2, 4, 4), (2, 3, 6)
# Networks whose input passes through one operation of the kind on every way to the output.
NETWORKS = {
    "convolution": (VECTORS, lambda x: functional.conv1d(x.unsqueeze(1), WEIGHT.view(4, 1, 6)).flatten(1)),
    "linear": (VECTORS, lambda x: functional.linear(x, WEIGHT.view(4, 6))),
    "affine_norm": (IMAGES, lambda x: functional.batch_norm(x, WEIGHT[:2].abs(), WEIGHT[2:4].abs()).flatten(1)),
    "norm": (VECTORS, lambda x: functional.layer_norm(x, (6,))),
    "activation": (VECTORS, functional.gelu),
    "softmax": (VECTORS, lambda x: x.softmax(1)),
    "sum": (VECTORS, lambda x: x + x.flip(1)),
    "concatenation": (VECTORS, lambda x: torch.cat([x, x], 1)),
    "product": (VECTORS, lambda x: x * x.flip(1)),
    "statistic": (VECTORS, lambda x: x.norm(dim=1, keepdim=True).expand(-1, 2)),
    "pooling": (IMAGES, lambda x: functional.max_pool2d(x, 2).flatten(1)),
    "interpolation": (IMAGES, lambda x: functional.interpolate(x, scale_factor=2.0, mode="bilinear").flatten(1)),
    "transform": (VECTORS, torch.fft.hfft),
    "reshape": (IMAGES, lambda x: x.flatten(1)),
    "identity": (VECTORS, lambda x: x.clone()),
    "dropout": (VECTORS, lambda x: functional.dropout(x, 0.5, training=False)),
    "attention": (STEPS, lambda x: functional.scaled_dot_product_attention(x, x, x).mean(1)),
    "embedding": ((1, 6), lambda x: functional.embedding(torch.tensor([[3, 0]]), x.t()).flatten(1)),
    "recurrent": (STEPS, nn.GRU(6, 4, batch_first=True).double()),
}


def own(kind, ran):
    class Threefold(rules.Rule):
        """Hands on three times what it gets."""

        applies = frozenset({kind})

        def run(self, call):
            ran.append(call.operation.name)
            result = call.make()
            parts = result if isinstance(result, tuple) else (result,)
            parts = tuple(call.on_gradient(part, lambda g: 3 * g) for part in parts)
            return parts if isinstance(result, tuple) else parts[0]

    return Threefold()


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"matmul"}))  # which are linear operations or products
def test_own_rule_of_one_class_serves_every_kind(kind):
    shape, function = NETWORKS[kind]
    x, ran = draw(*shape).abs() + 0.5, []
    model = module(lambda x: function(x)[0].mean(1)) if kind == "recurrent" else module(function)
    entries = [(kind, own(kind, ran)), ("*", rules.Gradient())]
    leaf = x.clone().requires_grad_()
    gradient = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)[0]
    close(LRP(composites.RuleList(entries), score="value")(model, x, 1), 3 * x * gradient)
    assert len(ran) == 1
