"""Functions of torch have the map of what they compute: by their kind, or by the parts that they are made of."""

import pytest
import torch
from networks import module
from torch import nn
from torch.nn import functional
from torchvision.ops import roi_align

from lightning_xai.relevance import LRP, composites, rule_table, rules

D = {"dtype": torch.float64}
PLACES = torch.tensor([3, 0, 5, 1, 4, 2])
MATRIX = torch.randn(6, 6, **D, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randn(3, 6, **D, generator=torch.Generator().manual_seed(3))
CUBE = torch.randn(6, 6, 6, **D, generator=torch.Generator().manual_seed(4))
WAVES = torch.fft.rfft(torch.eye(6, **D))
FILTER = torch.complex(MATRIX[:4, :4], MATRIX[2:, 2:])
GRID = functional.affine_grid(torch.eye(3, **D)[None, :2], (1, 1, 2, 3), align_corners=False)


def draw(*shape):
    return torch.randn(*shape, **D, generator=torch.Generator().manual_seed(1))


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def of(function):
    """A network that calls a function between two linear layers."""
    torch.manual_seed(0)
    first, head = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()

    def forward(x):
        found = function(first(x)).flatten(1)
        return head(functional.pad(found, (0, 6 - found.shape[1])))

    return module(forward, first=first, head=head)


def scaled(function):
    """A function without a value at 0 as a stretch of each number."""
    return lambda h: h * (function(h) / h).detach()


def pairs(h):
    return h.view(3, 2, 3)


KINDS = {
    **{name: (getattr(torch, name), scaled(getattr(torch, name))) for name in ("asinh", "sinh", "erf", "ceil", "sign")},
    "float power": (lambda h: torch.float_power(h, 3), lambda h: h.pow(3)),
    "logaddexp": (
        lambda h: torch.logaddexp(h, h.flip(1)),
        lambda h: torch.stack([h, h.flip(1)], 2).logsumexp(2),
    ),
    "scatter_add": (
        lambda h: torch.zeros_like(h).scatter_add(1, PLACES.argsort().expand(3, -1), h),
        lambda h: h[:, PLACES],
    ),
    "index_add": (lambda h: h.index_add(1, PLACES, h), lambda h: h + h[:, PLACES.argsort()]),
    "diff": (lambda h: torch.diff(h, dim=1), lambda h: h[:, 1:] - h[:, :-1]),
    "trace": (
        lambda h: torch.stack([part.trace() for part in pairs(h)]).unsqueeze(1),
        lambda h: (h[:, 0] + h[:, 4]).unsqueeze(1),
    ),
    "cross": (
        lambda h: torch.linalg.cross(pairs(h), pairs(h.flip(1))),
        lambda h: (
            pairs(h).roll(-1, 2) * pairs(h.flip(1)).roll(-2, 2) - pairs(h).roll(-2, 2) * pairs(h.flip(1)).roll(-1, 2)
        ),
    ),
    "vecdot": (lambda h: torch.linalg.vecdot(h.unsqueeze(1), MATRIX), lambda h: h @ MATRIX.T),
    "matrix norm": (
        lambda h: pairs(h) / torch.linalg.matrix_norm(pairs(h), keepdim=True),
        lambda h: h / h.norm(dim=1, keepdim=True),
    ),
    "quantile": (lambda h: h[:, :5].quantile(0.5, 1, keepdim=True), lambda h: h[:, :5].median(1, keepdim=True)[0]),
    "fmax": (lambda h: torch.fmax(h, h.flip(1)), lambda h: torch.maximum(h, h.flip(1))),
    "scatter_reduce": (
        lambda h: h.new_zeros(3, 2).scatter_reduce(1, (PLACES % 2).expand(3, -1), h, "mean", include_self=False),
        lambda h: torch.stack([h[:, PLACES % 2 == 0].mean(1), h[:, PLACES % 2 == 1].mean(1)], 1),
    ),
    "affine_grid": (
        lambda h: functional.affine_grid(pairs(h), (3, 1, 2, 3), align_corners=False)[..., 0],
        lambda h: h[:, None, None, 0] * GRID[..., 0] + h[:, None, None, 1] * GRID[..., 1] + h[:, None, None, 2],
    ),
    "nan_to_num": (
        lambda h: torch.where(h > 0, h, torch.nan).nan_to_num(2.0),
        lambda h: torch.where(h > 0, h, 2.0),
    ),
    "select_scatter": (
        lambda h: h.select_scatter(h[:, 0], 1, 3),
        lambda h: torch.cat([h[:, :3], h[:, :1], h[:, 4:]], 1),
    ),
    "diag_embed": (lambda h: h[:, :2].diag_embed(), lambda h: functional.pad(h[:, :2, None], (0, 2)).flatten(1)[:, :5]),
    "packing": (
        lambda h: nn.utils.rnn.pad_packed_sequence(
            nn.utils.rnn.pack_padded_sequence(h, [6, 4, 2], batch_first=True), batch_first=True
        )[0],
        lambda h: h * (torch.arange(6) < torch.tensor([[6], [4], [2]])),
    ),
    "glu": (functional.glu, lambda h: h[:, :3] * h[:, 3:].sigmoid()),
    "cosine similarity": (
        lambda h: torch.cosine_similarity(pairs(h), pairs(h.flip(1)), 2),
        lambda h: (functional.normalize(pairs(h), dim=2) * functional.normalize(pairs(h.flip(1)), dim=2)).sum(2),
    ),
    "bilinear": (
        lambda h: functional.bilinear(h, h.flip(1), CUBE, TOKENS[0]),
        lambda h: torch.einsum("ni,kij,nj->nk", h, CUBE, h.flip(1)) + TOKENS[0],
    ),
    "bilinear with a constant": (
        lambda h: functional.bilinear(TOKENS[:1].expand(3, 6), h, CUBE),
        lambda h: functional.linear(h, torch.einsum("i,kij->kj", TOKENS[0], CUBE)),
    ),
    "addmm": (
        lambda h: torch.addmm(TOKENS[0], h, MATRIX, beta=0.5, alpha=2),
        lambda h: functional.linear(h, 2 * MATRIX.T, 0.5 * TOKENS[0]),
    ),
    "baddbmm": (
        lambda h: torch.baddbmm(TOKENS[:1, None], h.unsqueeze(1), MATRIX.expand(3, 6, 6)),
        lambda h: functional.linear(h, MATRIX.T, TOKENS[0]),
    ),
    "einsum that is written to": (
        lambda h: torch.einsum("ni,ij->nj", h, MATRIX)[:, 1:].mul_(2.0),
        lambda h: (h @ MATRIX)[:, 1:] * 2.0,
    ),
    "addmm in place": (lambda h: (h + 1).addmm_(h, MATRIX), lambda h: (h + 1) + h @ MATRIX),
    "addr": (
        lambda h: torch.stack([torch.addr(MATRIX[:2, :3], row[:2], row[3:]) for row in h]),
        lambda h: MATRIX[:2, :3] + h[:, :2, None] * h[:, None, 3:],
    ),
}


def weighted(matrix):
    """A matrix as products and a sum, whose relevance is that of LRP-0."""
    return lambda h: (h.unsqueeze(1) * matrix.T).sum(2)


def powers(h, *windows):
    return torch.stack([h[:, window].pow(3).sum(1) for window in windows], 1).pow(1 / 3)


KINDS |= {
    "spectrum": (
        lambda h: torch.view_as_real(torch.fft.rfft(h)[:, :3]),
        weighted(torch.view_as_real(WAVES[:, :3]).flatten(1)),
    ),
    "amplitude": (
        lambda h: torch.fft.rfft(h).abs(),
        lambda h: (weighted(WAVES.real)(h).square() + weighted(WAVES.imag)(h).square()).sqrt(),
    ),
    "filtered spectrum": (
        lambda h: torch.fft.irfft(torch.fft.rfft(h) @ FILTER),
        weighted(torch.fft.irfft(WAVES @ FILTER)),
    ),
    "cumprod": (
        lambda h: h[:, :3].cumprod(1),
        lambda h: torch.stack([h[:, 0], h[:, 0] * h[:, 1], h[:, :3].prod(1)], 1),
    ),
    "hypot": (lambda h: torch.hypot(h, h.flip(1)), lambda h: torch.stack([h, h.flip(1)]).square().sum(0).sqrt()),
    "lp_pool1d": (
        lambda h: functional.lp_pool1d(h.exp().unsqueeze(1), 3, 2).squeeze(1),
        lambda h: powers(h.exp(), [0, 1], [2, 3], [4, 5]),
    ),
    "lp_pool2d": (
        lambda h: functional.lp_pool2d(h.exp().view(3, 1, 2, 3), 3, (2, 1)),
        lambda h: powers(h.exp(), [0, 3], [1, 4], [2, 5]),
    ),
    "cdist": (
        lambda h: h[:, :3] * torch.cdist(h, TOKENS),
        lambda h: h[:, :3] * torch.stack([(h - token).norm(dim=1) for token in TOKENS], 1),
    ),
    "pairwise distance": (
        lambda h: h * functional.pairwise_distance(h, TOKENS[0], keepdim=True),
        lambda h: h * (h - TOKENS[0] + 1e-6).norm(dim=1, keepdim=True),
    ),
}


def test_product_of_an_axis_is_shared_evenly():
    head = nn.Linear(2, 3, bias=False).double()
    x, lrp = draw(3, 2, 4), LRP(composites.RuleList([("linear", rules.Zero())]))
    close(
        lrp(module(lambda x: head(x.prod(2)), head=head), x, 1),
        (x.prod(2) * head.weight[1]).detach()[..., None] / 4 + 0 * x,
    )


def test_function_of_complex_numbers_is_refused():
    with pytest.raises(ValueError, match=r"tanh .* changes complex numbers, .* or give it rules\.Gradient\(\)"):
        LRP()(of(lambda h: torch.fft.rfft(h).tanh().real), draw(3, 4), 1)


def centred(h):
    return h - h.mean(1, keepdim=True)


def spread(h):
    return centred(h).pow(2).mean(1, keepdim=True) + 1e-5


def var_mean(h):
    variance, mean = torch.var_mean(h, 1, keepdim=True, correction=0)
    return (h - mean) * torch.rsqrt(variance + 1e-5)


LAYER_NORMS = {
    "module": nn.LayerNorm(6, elementwise_affine=False),
    "torch": lambda h: torch.layer_norm(h, (6,)),
    "root": lambda h: centred(h) / spread(h).sqrt(),
    "rsqrt": lambda h: centred(h) * spread(h).rsqrt(),
    "negative power": lambda h: centred(h) * spread(h) ** -0.5,
    "power": lambda h: centred(h) / spread(h).pow(0.5),
    "reciprocal": lambda h: centred(h) * (1 / spread(h).sqrt()),
    "var": lambda h: centred(h) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt(),
    "var_mean": var_mean,
    "std": lambda h: centred(h) / (h.std(1, correction=0, keepdim=True).square() + 1e-5).sqrt(),
    "statistics of the class": lambda h: functional.instance_norm(h.unsqueeze(1)).squeeze(1),
}
KINDS |= {
    f"layer norm by {name}": (norm, lambda h: functional.layer_norm(h, (6,))) for name, norm in LAYER_NORMS.items()
}
KINDS["RMS norm"] = (
    lambda h: h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-5),
    lambda h: functional.rms_norm(h, (6,), eps=1e-5),
)


@pytest.mark.parametrize("composite", [composites.AttnLRP(0.1), composites.DeepTaylor()], ids=["epsilon", "z+"])
@pytest.mark.parametrize(("function", "spelled"), KINDS.values(), ids=KINDS)
def test_function_has_the_map_of_its_spelled_out_form(function, spelled, composite):
    found, ledger = LRP(composite).with_ledger(of(function), draw(3, 4), 1)
    expected = LRP(composite)(of(spelled), draw(3, 4), 1)
    assert expected.abs().max() > 0
    close(found, expected)
    assert abs(ledger.balance) < 1e-9 * ledger.start.abs().sum()


def test_product_of_a_scatter_is_refused_by_name():
    model = of(lambda h: h.scatter_reduce(1, PLACES.expand(3, -1), h, "prod"))
    with pytest.raises(ValueError, match=r"no rule for scatter_reduce .*'scatter_reduce', rules\.Gradient\(\)"):
        LRP()(model, draw(3, 4), 1)


def test_operator_of_a_library_is_seen_when_it_is_called():
    model, x = (
        of(lambda h: roi_align(h.view(3, 1, 2, 3), [torch.tensor([[0.0, 0.0, 2.0, 1.0]], **D)] * 3, 2)),
        draw(3, 4),
    )
    composite = composites.RuleList([("*", rules.Zero())])  # an interpolation, whose derivative conserves
    found, ledger = LRP(composite).with_ledger(model, x, 1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    close(found, x * gradient)
    assert abs(ledger.balance) < 1e-12


def test_function_of_parts_can_be_named_as_a_whole():
    model, x = of(functional.glu), draw(3, 4)
    whole = composites.RuleList([("glu", rules.Gradient()), ("*", rules.Zero())])
    assert ("", "glu", "Gradient()") in rule_table(model, x, whole).rows
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    close(LRP(whole)(model, x, 1), x * gradient)
    with pytest.raises(ValueError, match=r"'glu' gives ZPlus.* of no known kind; .* Rules for 'glu': Gradient"):
        LRP(composites.RuleList([("glu", rules.ZPlus()), ("*", rules.Zero())]))(model, x, 1)


# What constants have of the relevance.


def test_ledger_books_statistics_under_their_own_name():
    torch.manual_seed(0)
    head = nn.Linear(12, 3).double()
    model = module(lambda x: head(torch.cat([x.mean(2), 2 * x.std(2).sqrt()], 1)), head=head)
    x = draw(3, 6, 5)
    ledger = LRP(composites.RuleList([("linear", rules.Zero())])).with_ledger(model, x, 1)[1]
    deviations = (2 * x.std(2).sqrt() @ head.weight[1, 6:]).sum().detach()
    assert set(ledger.remainder) - {"statistic"} <= {"sum"}
    close(ledger.remainder["statistic"], deviations)
    close(ledger.biases, 3 * head.bias[1].detach())
    assert abs(ledger.balance) < 1e-10


@pytest.mark.parametrize(
    "join",
    [
        lambda x, token: torch.cat([x[:, :2], token], 1),
        lambda x, token: x.select_scatter(token[:, 0], 1, 2).select_scatter(token[:, 1], 1, 3),
        lambda x, token: torch.where(torch.arange(4) < 2, x, functional.pad(token, (2, 0))),
    ],
)
def test_ledger_books_what_enters_beside_the_input_with_the_biases(join):
    torch.manual_seed(0)
    head = nn.Linear(4, 3, bias=False).double()
    token = TOKENS[:, :2]
    ledger = LRP(composites.RuleList([("linear", rules.Zero())])).with_ledger(
        module(lambda x: head(join(x, token)), head=head), draw(3, 4), 1
    )[1]
    assert not {key for key, value in ledger.remainder.items() if abs(value) > 1e-12}
    close(ledger.biases, (token @ head.weight[1, 2:]).sum().detach())


def test_sum_that_moves_numbers_hides_the_input_from_rules_of_the_first_layer():
    head = nn.Linear(6, 3).double()
    model = module(lambda x: head(torch.zeros_like(x).scatter_add(1, PLACES.expand(3, -1), x)), head=head)
    with pytest.raises(ValueError, match=r"Flat\(\) was given to linear in 'head', but it does not multiply"):
        LRP("epsilon_plus_flat")(model, draw(3, 6), 1)


def test_input_may_be_written_into_a_view_of_a_constant():
    """As detectors make a batch of images of several sizes."""
    head = nn.Linear(6, 3).double()

    def batched(x):
        batch = x.new_zeros(3, 6)
        for row in range(3):
            batch[row][:4].copy_(x[row])
        return head(batch)

    x = draw(3, 4)
    found, ledger = LRP(composites.RuleList([("linear", rules.Zero())])).with_ledger(module(batched, head=head), x, 1)
    close(found, (x * head.weight[1, :4]).detach())
    assert abs(ledger.balance) < 1e-12
