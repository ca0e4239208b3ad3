"""Perturbations by numbers that are given cell by cell, or by other samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_xai._guard import isolated_eval
from lightning_xai.perturbation.kinds.base import Keys, Perturbation, as_numbers, over_samples


@dataclass(frozen=True, eq=False)
class Custom(Perturbation):
    r""":math:`v \cdot factor`, with a factor per cell: anything that broadcasts to a sample [C, \*S].

    >>> Custom(factor=[0.0, 1.0, 2.0]).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-0.0000, 0.5000, 4.0000]]])
    """

    factor: float | Sequence[Any] | Tensor = 1.0

    def check(self) -> None:
        object.__setattr__(self, "factor", as_numbers("factor", self.factor))

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values * over_samples("factor", self.factor, values)


@dataclass(frozen=True, eq=False)
class CustomSum(Perturbation):
    r""":math:`v + summand`, with a summand per cell: anything that broadcasts to a sample [C, \*S].

    >>> CustomSum(summand=[0.5, 0.0, 1.0]).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[-0.5000,  0.5000,  3.0000]]])
    """

    summand: float | Sequence[Any] | Tensor = 0.0

    def check(self) -> None:
        object.__setattr__(self, "summand", as_numbers("summand", self.summand))

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return values + over_samples("summand", self.summand, values)


@dataclass(frozen=True, eq=False)
class ChannelVector(Perturbation):
    r"""A number per channel in every cell, :math:`v_c = vector_c`: what an embedding makes of a token.

    Args:
        vector: One number per channel [C].

    Raises:
        ValueError: If it is not one axis of numbers.

    >>> ChannelVector(vector=[5.0, -1.0]).arms(torch.zeros(1, 2, 3))[0]
    tensor([[[ 5.,  5.,  5.],
             [-1., -1., -1.]]])
    """

    vector: Sequence[float] | Tensor = ()

    @classmethod
    def of(cls, embedding: nn.Module, token: int) -> ChannelVector:
        """The embedding of a token's id, e.g. that of ``[MASK]`` or of padding, as the vector.

        >>> embedding = nn.Embedding(2, 3)
        >>> embedding.weight.data = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
        >>> ChannelVector.of(embedding, 1).vector
        tensor([1., 2., 3.])
        """
        device = next((tensor.device for tensor in embedding.parameters()), None)
        with isolated_eval(embedding):
            return cls(vector=embedding(torch.tensor([[token]], device=device))[0, 0].detach().clone())

    def check(self) -> None:
        vector = as_numbers("vector", self.vector)
        if vector.ndim != 1 or not len(vector):
            raise ValueError(f"vector must be one number per channel, [C], got shape {list(vector.shape)}.")
        object.__setattr__(self, "vector", vector)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        vector = torch.as_tensor(self.vector)
        if len(vector) != values.shape[1]:
            raise ValueError(f"vector has {len(vector)} numbers, what is explained has {values.shape[1]} channels.")
        return vector.to(values).view(-1, *[1] * (values.ndim - 2)).expand_as(values)


@dataclass(frozen=True, eq=False)
class ClassInterchange(Perturbation):
    r""":math:`(1 - amount)\, v + amount \cdot other`, with a sample of another class [C, \*S].

    >>> ClassInterchange(other=[4.0, 4.0, 4.0], amount=0.5).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[1.5000, 2.2500, 3.0000]]])
    """

    strength: ClassVar[str | None] = "amount"

    other: float | Sequence[Any] | Tensor = 0.0
    amount: float = 1.0

    def check(self) -> None:
        object.__setattr__(self, "other", as_numbers("other", self.other))

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        return (1 - self.amount) * values + self.amount * over_samples("other", self.other, values)


@dataclass(frozen=True, eq=False)
class Replace(Perturbation):
    r"""The cells of a background sample, drawn by the sample's key.

    Args:
        background: Samples to draw from [B, C, \*S], of the inputs' shape; for a table [B, 1, F] or [B, F].
        seed: Keys the draw together with the sample's id.

    Raises:
        ValueError: If the background holds no sample.

    >>> Replace(background=torch.tensor([[[7.0, 8.0, 9.0]]])).arms(torch.tensor([[[-1.0, 0.5, 2.0]]]))[0]
    tensor([[[7., 8., 9.]]])
    """

    background: Sequence[Any] | Tensor = ()
    seed: int = 0

    def check(self) -> None:
        background = as_numbers("background", self.background)
        if background.ndim < 2 or background.shape[0] == 0:
            raise ValueError("background must hold at least one sample [B, C, *S].")
        object.__setattr__(self, "background", background.unsqueeze(1) if background.ndim == 2 else background)

    def perturb(self, values: Tensor, keys: Keys) -> Tensor:
        background = torch.as_tensor(self.background)
        if background.shape[1:] != values.shape[1:]:
            raise ValueError(
                f"background holds samples of shape {list(background.shape[1:])}, "
                f"the inputs are {list(values.shape[1:])}."
            )
        chosen = [int(torch.randint(len(background), (), generator=generator)) for generator in keys.of(self.seed)]
        return background[chosen].to(values)
