"""The rules for attention, softmax, norms and gates, against the formulas written out."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_xai.relevance import LRP, composites, rules

ATTN = composites.AttnLRP(epsilon=0.0)
ZERO = composites.RuleList([("linear", rules.Zero()), ("norm", rules.FixedScale())])


def module(function, **children):
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    model.forward = function
    return model.double().eval()


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()) + 1e-15)


def summed(output, target):
    """A sum with weights of both signs, from whose gradient relevance starts."""
    flat = output.flatten(1)
    return flat @ torch.linspace(-1, 2, flat.shape[1], dtype=flat.dtype)


def start(y):
    return y * torch.linspace(-1, 2, y[0].numel(), dtype=y.dtype).view(y[0].shape)


def test_softmax_is_its_first_order_part():
    x = draw(3, 5)
    found, ledger = LRP(ZERO, score=summed).with_ledger(module(lambda x: x.softmax(1)), x, 0)
    s = x.softmax(1)
    r = start(s)
    close(found, x * (r - s * r.sum(1, keepdim=True)))
    close(ledger.remainder["softmax"], r.sum() - found.sum())


@pytest.mark.parametrize("write", [torch.mul, lambda a, b: a.clone().mul_(b), lambda a, b: a.clone().__imul__(b)])
def test_a_product_halves(write):
    x = draw(3, 6)
    model = module(lambda x: write(x[:, :3], x[:, 3:]))
    found = LRP(ZERO, score=summed)(model, x, 0)
    half = start(x[:, :3] * x[:, 3:]) / 2
    close(found, torch.cat([half, half], 1))


def test_matrix_products_halve_and_conserve():
    x = draw(2, 3, 8)

    def forward(x):
        return torch.einsum("nij,nkj->nik", x[..., :4], x[..., 4:])

    found = LRP(ZERO, score=summed)(module(forward), x, 0)
    r = start(forward(x))
    parts = torch.einsum("nij,nkj->nikj", x[..., :4], x[..., 4:])
    share = parts / parts.sum(-1, keepdim=True) * r.unsqueeze(-1) / 2
    close(found, torch.cat([share.sum(2), share.sum(1)], -1))
    bmm = LRP(ZERO, score=summed)(module(lambda x: torch.bmm(x[..., :4], x[..., 4:].mT)), x, 0)
    close(bmm, found)
    added = module(lambda x: torch.baddbmm(torch.zeros(1, 1, 1).double(), x[..., :4], x[..., 4:].mT))
    close(LRP(ZERO, score=summed)(added, x, 0), found)


def test_a_product_with_a_parameter_is_no_product_of_two():
    gate = nn.Parameter(draw(4))
    model = nn.Module()
    model.gate = gate
    model.forward = lambda x: x * gate
    x = draw(3, 4)
    close(LRP(ZERO, score=summed)(model, x, 0), start(x * gate).detach())


def test_a_divisor_is_a_constant():
    x = draw(3, 4)
    for forward in (
        lambda x: x / x.norm(dim=1, keepdim=True),
        lambda x: x * x.square().mean(1, keepdim=True).add(0.1).rsqrt(),
        lambda x: functional.normalize(x, dim=1),
        lambda x: x / (x.square().mean(1, keepdim=True) + 0.1).sqrt(),
    ):
        close(LRP(ZERO, score=summed)(module(forward), x, 0), start(forward(x)))


def test_gates_as_in_swiglu():
    x = draw(3, 6)
    model = module(lambda x: functional.silu(x[:, :3]) * x[:, 3:])
    half = start(functional.silu(x[:, :3]) * x[:, 3:]) / 2
    close(LRP(ZERO, score=summed)(model, x, 0), torch.cat([half, half], 1))


def by_hand(q, k, v, r, scale):
    """AttnLRP for one head: the product with the values, the softmax, and the product of queries and keys, in turn."""
    scores = q @ k.T * scale
    weights = scores.softmax(1)
    mixed = weights.unsqueeze(-1) * v  # [query, key, channel]
    share = mixed / mixed.sum(1, keepdim=True) * r.unsqueeze(1) / 2
    r_v, r_weights = share.sum(0), share.sum(-1)
    r_scores = scores * (r_weights - weights * r_weights.sum(1, keepdim=True))
    dots = q.unsqueeze(1) * k * scale
    share = dots / scores.unsqueeze(-1) * r_scores.unsqueeze(-1) / 2
    return share.sum(1), share.sum(0), r_v


def test_fused_attention_is_its_parts():
    x = draw(2, 5, 12)

    def fused(x):
        return functional.scaled_dot_product_attention(x[..., :4], x[..., 4:8], x[..., 8:])

    def spelled(x):
        weights = (x[..., :4] @ x[..., 4:8].mT / 2).softmax(-1)
        return weights @ x[..., 8:]

    found = LRP(ATTN, score=summed)(module(fused), x, 0)
    close(found, LRP(ATTN, score=summed)(module(spelled), x, 0))
    expected = [by_hand(*sample.split(4, 1), r, 0.5) for sample, r in zip(x, start(fused(x)), strict=True)]
    close(found, torch.stack([torch.cat(parts, 1) for parts in expected]))


def test_masked_attention_balances():
    x = draw(2, 5, 12)
    mask = torch.ones(5, 5).tril().bool()

    def causal(x):
        scores = (x[..., :4] @ x[..., 4:8].mT / 2).masked_fill(~mask, float("-inf"))
        return scores.softmax(-1) @ x[..., 8:]

    found, ledger = LRP(ATTN, score=summed).with_ledger(module(causal), x, 0)
    assert found.isfinite().all()
    assert ledger.balance.abs() < 1e-10
    fused = module(
        lambda x: functional.scaled_dot_product_attention(x[..., :4], x[..., 4:8], x[..., 8:], is_causal=True)
    )
    close(found, LRP(ATTN, score=summed)(fused, x, 0))


def test_attention_from_fixed_queries():
    """With queries that are parameters, keys take the whole of what passes the softmax."""
    query, x = draw(3, 4), draw(2, 5, 8)

    def fused(x):
        return functional.scaled_dot_product_attention(query.expand(2, 3, 4), x[..., :4], x[..., 4:])

    def spelled(x):
        return (query @ x[..., :4].mT / 2).softmax(-1) @ x[..., 4:]

    close(*(LRP(ATTN, score=summed)(module(forward), x, 0) for forward in (fused, spelled)))


def test_the_two_paths_of_multihead_attention_agree():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = draw(2, 5, 8)
    maps = [
        LRP(ATTN, score=summed)(
            module(lambda x, n=need: attention(x, x, x, need_weights=n)[0], attention=attention), x, 0
        )
        for need in (True, False)
    ]
    close(*maps)
    assert maps[0].abs().max() > 0


def centred(x, dims, eps=1e-5):
    """x with its mean removed and divided by a constant: the linear map that a norm is taken for, as a function."""
    fixed = (x.var(dims, correction=0, keepdim=True) + eps).sqrt().detach()
    return lambda z: (z - z.mean(dims, keepdim=True)) / fixed


NORMS = {
    "layer": (nn.LayerNorm([3, 4]), (2, 3, 4), lambda x: centred(x, (1, 2))),
    "last axis": (nn.LayerNorm(4), (2, 3, 4), lambda x: centred(x, (2,))),
    "group": (
        nn.GroupNorm(2, 4),
        (2, 4, 3, 3),
        lambda x: lambda z: centred(x.view(2, 2, -1), (2,))(z.view(2, 2, -1)).view(z.shape),
    ),
    "instance": (nn.InstanceNorm1d(3, affine=True), (2, 3, 6), lambda x: centred(x, (2,))),
    "rms": (
        nn.RMSNorm(4, eps=1e-3),
        (2, 3, 4),
        lambda x: lambda z: z / (x.square().mean(2, keepdim=True) + 1e-3).sqrt(),
    ),
}


@pytest.mark.parametrize(("norm", "shape", "linear"), NORMS.values(), ids=NORMS)
def test_norms_divide_by_a_constant(norm, shape, linear):
    norm = norm.double().eval()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x = draw(*shape)
    found, ledger = LRP(ZERO, score=summed).with_ledger(norm, x, 0)
    z = x.clone().requires_grad_()
    weight = norm.weight.view(-1, *[1] * (x.ndim - 2)) if norm.weight.ndim == 1 and x.ndim != 3 else norm.weight
    weight = norm.weight.view(-1, 1) if isinstance(norm, nn.InstanceNorm1d) else weight
    y = linear(x)(z) * weight
    bias = getattr(norm, "bias", None)
    (slope,) = torch.autograd.grad(
        y, z, torch.linspace(-1, 2, x[0].numel(), dtype=torch.float64).view(x[0].shape).expand_as(x)
    )
    close(found, (x * slope).detach())
    if bias is None:
        close(ledger.biases, torch.zeros_like(ledger.biases))
    assert ledger.balance.abs() < 1e-10


def test_a_norm_with_parameters_needs_a_rule():
    model, x = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)), torch.randn(2, 4)
    alone = composites.RuleList([("linear", rules.Epsilon())])
    with pytest.raises(ValueError, match=r"no rule for layer_norm in '0'; .*'norm', rules.Gradient"):
        LRP(alone)(model, x, 1)
    plain = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), model[1])
    assert LRP(alone)(plain, x, 1).isfinite().all()
    with pytest.raises(ValueError, match="no rule for batch_norm in '0'"):
        LRP(alone)(nn.Sequential(nn.BatchNorm1d(4), model[1]), x, 1)
