"""What is kept of a network from call to call: the structure of its passes, what they cost, and plans, but no numbers.

A validation loop makes the same sweep for every batch of every epoch. What is kept holds for a pass whose record has
the same structure; weights may change, as they are read off the record of the pass at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn

from lightning_xai.perturbation.incremental.choice import Survey
from lightning_xai.perturbation.incremental.plan import Plan

# The most sweeps of different kinds of which something is kept per network, and the most memory of their indices.
_SWEEPS = 4
_PLAN_BYTES = 16 * 2**20


@dataclass(eq=False)
class KeptPlans:
    """What is kept for sweeps of one network over inputs of one shape and type.

    Attributes:
        survey: What they have in common.
        plans: The plans that were made.
    """

    survey: Survey
    plans: dict[Hashable, Plan] = field(default_factory=dict)

    def plan(self, key: Hashable, make: Callable[[], Plan]) -> Plan:
        """A plan, made unless it is there."""
        found = self.plans.get(key)
        if found is None:
            found = self.plans[key] = make()
            while len(self.plans) > 1 and sum(plan.bytes for plan in [*self.plans.values()]) > _PLAN_BYTES:
                self.plans.pop(next(iter(self.plans)), None)
        return found


_kept: WeakKeyDictionary[nn.Module, dict[Hashable, KeptPlans]] = WeakKeyDictionary()


def find(model: nn.Module, key: Hashable) -> KeptPlans | None:
    """What is kept of a network for sweeps of a kind."""
    return _kept.get(model, {}).get(key)


def keep(model: nn.Module, key: Hashable, kept: KeptPlans) -> None:
    """Keep something of a network; the oldest goes."""
    of_model = _kept.setdefault(model, {})
    of_model.pop(key, None)
    of_model[key] = kept
    while len(of_model) > _SWEEPS:
        of_model.pop(next(iter(of_model)), None)


def forget(model: nn.Module, key: Hashable) -> None:
    """Forget what holds no more."""
    _kept.get(model, {}).pop(key, None)
