r"""Integrated gradients: the mean gradient along a straight path."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import unknown
from lightning_xai._guard import forward, forward_context, isolated_eval
from lightning_xai.attribution import Explanation, ScoreAttribution
from lightning_xai.operations import largest_activation, unwrapped
from lightning_xai.relevance.gradients import gradient
from lightning_xai.relevance.references import Reference, as_reference, at_reference
from lightning_xai.scores import BoundScore, Target

METHODS = ("gausslegendre", "trapezoid")

# How large the largest activation of one forward and backward pass may be, within bounds for its number of inputs.
_ACTIVATION_BYTES = {"cpu": 2**24}
_ACTIVATION_BYTES_ELSEWHERE = 512 * 2**20
_FEWEST_INPUTS, _MOST_INPUTS = 8, 1024


@dataclass(frozen=True)
class IntegratedGradients(ScoreAttribution):
    r"""The gradient of the score, averaged over the way from a baseline :math:`x'` to the input.

    .. math:: R = (x - x') \odot \int_0^1 \nabla s(x' + t (x - x'))\, dt, \qquad \sum R = s(x) - s(x')

    In units of the score. The second equation holds up to the error of the quadrature, which is the
    detail ``completeness_gap``, :math:`|s(x) - s(x') - \sum R|` [N]. Memory does not depend on the number of steps.

    Args:
        steps: How many points of the path are evaluated.
        method: ``"gausslegendre"``, exact for gradients that are polynomials of degree 2 steps - 1 along the path; or
            ``"trapezoid"``, equidistant points, both ends among them.
        baseline: :math:`x'`: a number, a tensor (a sample [C, \*S] or the whole batch), or a function of the inputs.
        chunk_size: The most inputs per pass through the network; found from the size of its activations unless given.
        score: s.

    Raises:
        ValueError: If the method is unknown, or there are too few steps for it.

    Source: :cite:`sundararajan2017`.

    Example:
        :math:`s = x_1 x_2` is shared out equally:

        >>> class Product(nn.Module):
        ...     def forward(self, x):
        ...         return x.prod(1, keepdim=True)
        >>> method, x = IntegratedGradients(steps=2), torch.tensor([[2.0, 3.0]])
        >>> found = method.explain(Product(), x, details=["completeness_gap"])
        >>> found.map, bool(found.details["completeness_gap"] < 1e-5)
        (tensor([[3., 3.]]), True)
    """

    details: ClassVar[tuple[str, ...]] = ("completeness_gap",)

    _: KW_ONLY
    steps: int = 50
    method: str = "gausslegendre"
    baseline: Reference = 0.0
    chunk_size: int | None = None

    def check(self) -> None:
        if self.method not in METHODS:
            raise ValueError(unknown("method", self.method, METHODS))
        least = 2 if self.method == "trapezoid" else 1
        if not isinstance(self.steps, int) or self.steps < least:
            raise ValueError(f"steps must be an integer of at least {least} for {self.method!r}, got {self.steps!r}.")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}.")
        object.__setattr__(self, "baseline", as_reference("baseline", self.baseline))

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        model, x = unwrapped(model), inputs
        start = at_reference("baseline", self.baseline, x)
        bound, score = self.clean(model, x, target)
        with isolated_eval(model):
            limit = self.chunk_size or _inputs_per_pass(model, x)
        with isolated_eval(model, gradients=True):
            mean = torch.cat([self._mean(model, x[rows], start[rows], bound, rows, limit) for rows in _rows(x, limit)])
        found = Explanation.of(bound, score, ((x - start) * mean).to(x.dtype))
        if "completeness_gap" in details:
            with isolated_eval(model):
                change = score - bound(forward(model, start))
            found.details["completeness_gap"] = (change - found.map.to(change).flatten(1).sum(1)).abs()
        return found

    def _mean(self, model: nn.Module, x: Tensor, start: Tensor, bound: BoundScore, rows: slice, limit: int) -> Tensor:
        """The mean gradient of some samples, as many steps at a time as the limit allows."""
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = torch.zeros_like(x, dtype=wide)
        places, weights = (part.to(x.device, wide) for part in quadrature(self.steps, self.method))
        index = torch.arange(rows.start, rows.stop, device=x.device)
        together = max(1, limit // len(x))
        for some, share in zip(torch.split(places, together), torch.split(weights, together), strict=True):
            shape = (len(some), *[1] * x.ndim)
            path = torch.lerp(start.to(wide), x.to(wide), some.view(shape)).to(x.dtype)
            leaf = path.flatten(0, 1).requires_grad_()
            score = bound.at(index.repeat(len(some)))(forward(model, leaf))
            slopes = gradient(score, leaf, "the path").view(path.shape)
            mean += (share.view(shape) * slopes).sum(0)
        return mean


def quadrature(steps: int, method: str) -> tuple[Tensor, Tensor]:
    """Points in [0, 1] and their weights, [steps] each, in double precision.

    >>> quadrature(3, "trapezoid")
    (tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64), tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64))
    """
    if method == "trapezoid":
        weights = torch.full((steps,), 1 / (steps - 1), dtype=torch.float64)
        weights[[0, -1]] /= 2
        return torch.linspace(0, 1, steps, dtype=torch.float64), weights
    # The nodes are the eigenvalues of the Jacobi matrix of the Legendre polynomials (Golub and Welsch).
    degree = torch.arange(1, steps, dtype=torch.float64)
    beside = degree / (4 * degree**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    return (nodes + 1) / 2, vectors[0] ** 2


def _rows(x: Tensor, limit: int) -> Iterator[slice]:
    """Blocks of samples of about equal size, none over the limit."""
    count = -(-len(x) // limit)
    edges = [len(x) * block // count for block in range(count + 1)]
    return (slice(first, last) for first, last in itertools.pairwise(edges))


def _inputs_per_pass(model: nn.Module, x: Tensor) -> int:
    budget = _ACTIVATION_BYTES.get(x.device.type, _ACTIVATION_BYTES_ELSEWHERE)
    with forward_context():
        largest = largest_activation(model, x[:1].clone())
    return min(max(budget // largest, _FEWEST_INPUTS), _MOST_INPUTS)
