"""The rule for products with a gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lightning_xai.relevance.call import Call, is_live
from lightning_xai.relevance.inputs import swapped
from lightning_xai.relevance.rules.nonlinear import Uniform


@dataclass(frozen=True)
class SignalTakeAll(Uniform):
    r"""The signal of a gated product takes all of its relevance, the gate none: :math:`R_s = R, \; R_z = 0`.

    A gate is what a sigmoid or a softmax gives, also moved or taken from 1: the gates of an LSTM or a GRU, of a GLU and
    of squeeze-and-excitation, and the weights of attention. A product of gates alone, or without one, is shared evenly.

    Raises:
        ValueError: If a gate is multiplied in place.

    Source: :cite:`arras2017,arras2019`.

    Example:
        Of :math:`3 \, \sigma(0) = \tfrac32` the signal has all, where :class:`Uniform` halves it:

        >>> import torch
        >>> from lightning_xai.relevance import LRP, composites, rules
        >>> class Gated(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x[:, :1] * x[:, 1:].sigmoid()
        >>> own = LRP(composites.RuleList([("product", rules.SignalTakeAll())]), score="value")
        >>> own(Gated(), torch.tensor([[3.0, 0.0]]), 0)
        tensor([[1.5000, 0.0000]])
    """

    def run(self, call: Call) -> Any:
        """See the base class."""
        gates = {id(tensor): tensor.detach() for tensor in call.live if call.trace.is_gate(tensor)}
        signals = [tensor for tensor in call.live if id(tensor) not in gates]
        if not signals:
            return super().run(call)
        if call.in_place and id(call.args[0]) in gates:
            raise ValueError(f"{self} is no rule for {call.operation} in place, which writes over the gate.")
        return super().run(replace(call, args=swapped(call.args, gates), live=signals))

    @staticmethod
    def _attention(call: Call) -> Any:
        """The weights of attention are a gate, so queries and keys have none."""
        named = call.named()
        if not is_live(named["value"]):
            return Uniform._attention(call)
        return call.make(**{**named, **{name: named[name].detach() for name in ("query", "key")}})
