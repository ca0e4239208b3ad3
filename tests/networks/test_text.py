"""Text networks at their embedding: AttnLRP written out, and captum."""

import math
from functools import partial

import pytest
import torch
from captum.attr import LayerGradientXActivation, LayerIntegratedGradients
from torch.nn import functional

from lightning_xai.relevance import LRP, GradientXInput, IntegratedGradients, composites

SIZES = {
    "vocab_size": 40,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
    "num_labels": 3,
}
IDS = torch.tensor([[7, 5, 22, 13, 9, 30], [8, 31, 6, 17, 1, 1]])
MASK = (IDS != 1).long()
TARGET = torch.tensor([2, 0])


def half(product, first, second):
    """A product of two values, each of which has half of its relevance."""
    return (product(first, second.detach()) + product(first.detach(), second)) / 2


def passed(function, x):
    """A function of single numbers, through which relevance passes as it is."""
    return x * (function(x) / x).detach()


def attention(query, key, value, hidden):
    """Softmax keeps its derivative; the two products are halved."""
    weights = half(lambda q, k: q @ k.mT, query, key) / math.sqrt(query.shape[-1])
    return half(torch.matmul, weights.masked_fill(hidden, -torch.inf).softmax(-1), value)


def heads(x, size=6):
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def bert(model, x):
    def norm(x, module):
        scale = (x.var(-1, correction=0, keepdim=True) + module.eps).rsqrt().detach()
        return (x - x.mean(-1, keepdim=True)) * scale * module.weight + module.bias

    parts = model.bert.embeddings
    x = x + parts.position_embeddings.weight[: x.shape[1]] + parts.token_type_embeddings.weight[0]
    x = norm(x, parts.LayerNorm)
    for layer in model.bert.encoder.layer:
        own = layer.attention.self
        found = attention(*(heads(part(x)) for part in (own.query, own.key, own.value)), (MASK == 0)[:, None, None])
        x = norm(x + layer.attention.output.dense(found.transpose(1, 2).flatten(2)), layer.attention.output.LayerNorm)
        inner = passed(functional.gelu, layer.intermediate.dense(x))
        x = norm(x + layer.output.dense(inner), layer.output.LayerNorm)
    return model.classifier(passed(torch.tanh, model.bert.pooler.dense(x[:, 0])))


def llama(model, x):
    def norm(x, module):
        single = x.float()
        scale = (single.square().mean(-1, keepdim=True) + module.variance_epsilon).rsqrt().detach()
        return module.weight * (single * scale).to(x.dtype)

    def turned(x):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    cos, sin = model.model.rotary_emb(x, torch.arange(x.shape[1])[None])
    hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool() | (MASK == 0)[:, None, None]
    for layer in model.model.layers:
        y, own = norm(x, layer.input_layernorm), layer.self_attn
        found = attention(turned(heads(own.q_proj(y))), turned(heads(own.k_proj(y))), heads(own.v_proj(y)), hidden)
        x = x + own.o_proj(found.transpose(1, 2).flatten(2))
        y = norm(x, layer.post_attention_layernorm)
        gate = passed(functional.silu, layer.mlp.gate_proj(y))
        x = x + layer.mlp.down_proj(half(torch.mul, gate, layer.mlp.up_proj(y)))
    last = MASK.sum(1) - 1
    return model.score(norm(x, model.model.norm))[torch.arange(len(x)), last]


def made(name, **fields):
    import transformers  # not where tests are collected: it takes seconds

    config = getattr(transformers, f"{name}Config")(**SIZES, **fields)
    return getattr(transformers, f"{name}ForSequenceClassification")(config).double().eval()


NETWORKS = {
    "BERT": (bert, partial(made, "Bert"), 1e-8),
    "Llama": (llama, partial(made, "Llama", num_key_value_heads=1), 1e-6),  # its norms are in single precision
}


@pytest.mark.parametrize(("written", "make", "tolerance"), NETWORKS.values(), ids=NETWORKS)
def test_attnlrp_at_the_embedding_is_that_of_the_published_rules(written, make, tolerance):
    model = make()
    given = {"input_ids": IDS, "attention_mask": MASK, "labels": TARGET}
    x = model.get_input_embeddings()(IDS).detach().requires_grad_()
    score = written(model, x).gather(1, TARGET[:, None]).sum()
    expected = x.detach() * torch.autograd.grad(score, x)[0]
    found, ledger = LRP(composites.AttnLRP(1e-14)).with_ledger(model, given, TARGET)
    scale = float(expected.abs().max())
    torch.testing.assert_close(ledger.start.sum(), score.detach(), rtol=tolerance, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)
    assert abs(ledger.balance) < tolerance * found.abs().sum()
    assert found[1, 4:].abs().max() == 0  # padding


def test_gradients_at_the_embedding_of_bert_equal_captum():
    model = made("Bert")
    given = {"input_ids": IDS, "attention_mask": MASK}

    def forward(ids, mask):
        return model(ids, mask).logits

    words = model.bert.embeddings.word_embeddings
    peer = LayerGradientXActivation(forward, words).attribute(IDS, TARGET, additional_forward_args=(MASK,))
    close(GradientXInput()(model, given, TARGET), peer, 1e-12)
    blank = torch.full_like(IDS, 4)
    peer = LayerIntegratedGradients(forward, words).attribute(
        IDS, blank, TARGET, (MASK,), n_steps=20, method="gausslegendre"
    )
    method = IntegratedGradients(steps=20, baseline=words(blank).detach().transpose(1, 2))
    close(method(model, given, TARGET), peer, 1e-7)


def close(found, expected, tolerance):
    expected = expected.detach()
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
