r"""First-order Taylor expansion of the score around a root."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from lightning_xai._checks import as_integer
from lightning_xai._guard import forward, isolated_eval
from lightning_xai.attribution import Explanation, ScoreAttribution
from lightning_xai.operations import unwrapped
from lightning_xai.relevance.gradients import gradient
from lightning_xai.relevance.references import Reference, as_reference, at_reference
from lightning_xai.scores import BoundScore, Target


@dataclass(frozen=True)
class SimpleTaylor(ScoreAttribution):
    r"""The first-order term of the Taylor expansion around a root point.

    .. math:: R = \nabla s(\tilde x) \odot (x - \tilde x)

    The root is given, or it is the one nearest to :math:`x` on the ray :math:`x + t (x_0 - x)`, :math:`t \in (0, 1]`,
    towards a baseline :math:`x_0`: the ray is searched for a change of sign at ``points`` equidistant places, and the
    first one is bisected. The gradient is taken just on the side of :math:`x`. Affine scores conserve it,
    :math:`\sum R = s`. A sample whose score does not change its sign has no root: its map is NaN, with a warning. A
    sample with :math:`s(x) = 0` is its own root, and has the map 0.

    Args:
        root: :math:`\tilde x`: a number, a tensor (a sample [C, \*S] or the whole batch), or a function of the inputs;
            searched unless given.
        baseline: :math:`x_0`, where the ray leads.
        points: How many places of the ray are looked at.
        bisections: How often the interval around the root is halved.
        score: s; one that is 0 somewhere, so not a probability.

    Raises:
        ValueError: If ``points`` or ``bisections`` is no positive integer.

    Source: :cite:`bach2015`.

    Example:
        :math:`s = 2 x_1 + x_2 - 3` is 0 at half of x = (2, 2):

        >>> model = nn.Linear(2, 1)
        >>> model.weight.data, model.bias.data = torch.tensor([[2.0, 1.0]]), torch.tensor([-3.0])
        >>> SimpleTaylor()(model, torch.tensor([[2.0, 2.0]]), 0)
        tensor([[2.0000, 1.0000]])
        >>> SimpleTaylor(root=0.5)(model, torch.tensor([[2.0, 2.0]]), 0)
        tensor([[3.0000, 1.5000]])
    """

    _: KW_ONLY
    root: Reference | None = None
    baseline: Reference = 0.0
    points: int = 32
    bisections: int = 40

    def check(self) -> None:
        if self.root is not None:
            object.__setattr__(self, "root", as_reference("root", self.root))
        object.__setattr__(self, "baseline", as_reference("baseline", self.baseline))
        for name in ("points", "bisections"):
            as_integer(name, getattr(self, name), least=1)

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, sample_ids: tuple[int, ...], details: tuple[str, ...]
    ) -> Explanation:
        model, x = unwrapped(model), inputs
        bound, score = self.clean(model, x, target)
        rootless = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if self.root is not None:
            root = at_reference("root", self.root, x)
            difference = x - root
        else:
            baseline = at_reference("baseline", self.baseline, x)
            with isolated_eval(model):
                share, rootless = self._search(model, x, baseline, bound, score)
            # By shares of x and of the baseline, a root at the baseline 0 is approached at full precision.
            root, difference = _between(x, baseline, share), ((1 - share) * (x - baseline)).to(x.dtype)
        with isolated_eval(model, gradients=True):
            leaf = root.detach().requires_grad_()
            slope = gradient(bound(forward(model, leaf)), leaf, "the root")
        if rootless.any():
            named = [sample for sample, lacking in zip(sample_ids, rootless.tolist(), strict=True) if lacking]
            warnings.warn(
                f"the score of the samples {named} does not change its sign on the way to the baseline, so that no "
                f"root was found and their map is NaN: give root=..., another baseline=..., or more points.",
                UserWarning,
                stacklevel=2,
            )
        return Explanation.of(bound, score, torch.where(_over(rootless, x), float("nan"), slope * difference))

    def _search(
        self, model: nn.Module, x: Tensor, baseline: Tensor, bound: BoundScore, clean: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the share of x [N, 1, ...] at the root, just on its side, and which samples have none [N]."""

        def crossed(share: Tensor) -> Tensor:
            return bound(forward(model, _between(x, baseline, _over(share, x)))) * clean.sign() <= 0

        near, far = torch.ones_like(clean), torch.ones_like(clean)
        crossing = clean == 0
        for place in range(self.points - 1, -1, -1):
            share = torch.full_like(clean, place / self.points)
            here = crossed(share)
            near = torch.where(crossing | here, near, share)
            far = torch.where(~crossing & here, share, far)
            crossing = crossing | here
            if crossing.all():
                break
        for _ in range(self.bisections):
            middle = (near + far) / 2
            beyond = crossed(middle)
            near, far = torch.where(beyond, near, middle), torch.where(beyond, middle, far)
        return _over(torch.where(clean == 0, 1.0, near), x), ~crossing


def _between(x: Tensor, baseline: Tensor, share: Tensor) -> Tensor:
    """Return points between the baseline and x, by the share of x."""
    return (share * x + (1 - share) * baseline).to(x.dtype)


def _over(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values [N] to [N, 1, ...] with the axes of another tensor."""
    return values.view(-1, *[1] * (like.ndim - 1))
