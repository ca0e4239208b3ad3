r"""Integrated gradients: the mean gradient along a straight path."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer, check_known
from lightning_xai._guard import forward, isolated_eval
from lightning_xai.attribution import Explanation, ScoreAttribution
from lightning_xai.batching import Batches
from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.operations import unwrapped
from lightning_xai.relevance.gradients import gradient
from lightning_xai.relevance.references import Reference, as_reference, at_reference
from lightning_xai.scores import BoundScore, Target

METHODS = ("gausslegendre", "trapezoid")

# Larger than for passes without gradients: the backward pass has a cost of its own, which more rows share.
_CPU_BYTES = 2**24


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
        chunk_size: The most inputs per pass through the network, halved when memory runs out; unless given, found from
            the size of its activations, by a pass of one sample.
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
        check_known("method", self.method, METHODS)
        least = 2 if self.method == "trapezoid" else 1
        as_integer(f"steps of {self.method!r}", self.steps, least)
        as_integer("chunk_size", 1 if self.chunk_size is None else self.chunk_size, least=1)
        object.__setattr__(self, "baseline", as_reference("baseline", self.baseline))

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        model, x = unwrapped(model), inputs
        start = at_reference("baseline", self.baseline, x)
        bound, score = self.clean(model, x, target)
        with isolated_eval(model):
            batches = Batches(model, x, self.chunk_size, cpu_bytes=_CPU_BYTES)
        with isolated_eval(model, gradients=True):
            mean = batches.map(partial(self._mean, model, x, start, bound, batches), len(x), copies=self.steps)
        explanation = Explanation.of(bound, score, ((x - start) * torch.cat(mean)).to(x.dtype))
        if "completeness_gap" in details:
            with isolated_eval(model):
                change = score - bound(forward(model, start))
            explanation.details["completeness_gap"] = (change - explanation.map.to(change).flatten(1).sum(1)).abs()
        return explanation

    def _mean(
        self, model: nn.Module, x: Tensor, start: Tensor, bound: BoundScore, batches: Batches, rows: slice
    ) -> Tensor:
        """Return the mean gradient of some samples, as many steps at a time as the batches allow."""
        wide = torch.promote_types(x.dtype, torch.float32)
        first, last, mean = start[rows].to(wide), x[rows].to(wide), torch.zeros_like(x[rows], dtype=wide)
        places, weights = (part.to(x.device, wide) for part in quadrature(self.steps, self.method))
        index = torch.arange(len(x), device=x.device)[rows]

        def add(steps: slice) -> None:
            place, weight = (part[steps].view(-1, *[1] * x.ndim) for part in (places, weights))
            path = torch.lerp(first, last, place).to(x.dtype)
            leaf = path.flatten(0, 1).requires_grad_()
            picked = index.repeat(len(path))
            score = bound.at(picked)(forward(at_rows(model, picked), leaf))
            mean.add_((weight * gradient(score, leaf, "the path").view(path.shape)).sum(0))

        batches.map(add, self.steps, width=len(index))
        return mean


def quadrature(steps: int, method: str) -> tuple[Tensor, Tensor]:
    """Return points in [0, 1] and their weights, [steps] each, in double precision.

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
