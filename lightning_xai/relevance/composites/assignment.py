"""Which rule every operation of one pass gets, and whether every entry of a composite has a say."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NoReturn

from torch import nn

from lightning_xai._checks import unknown
from lightning_xai.operations import module_names
from lightning_xai.operations.kinds import KINDS
from lightning_xai.relevance import rules
from lightning_xai.relevance.call import Operation
from lightning_xai.relevance.composites.patterns import PLACES, Composite, first_match, is_function, matches
from lightning_xai.relevance.rules import Rule

_DEFAULTS: dict[str, Rule] = {
    **{kind: rules.Gradient() for kind, facts in KINDS.items() if facts.conserving},
    "activation": rules.Pass(),
    "attention": rules.Uniform(),
    "product": rules.Uniform(),
    "statistic": rules.Constant(),
}
"""The rules of operations of which a composite says nothing."""


class Assignment:
    """The rules that a composite gives to the operations of one pass.

    Args:
        composite: Which rule where.
        model: The network.
    """

    def __init__(self, composite: Composite, model: nn.Module) -> None:
        self.composite = composite
        self._model = model
        self._entries = composite.entries()
        self._found: dict[Operation, tuple[str, Rule] | None] = {}

    def named(self, operation: Operation) -> Rule | None:
        """The rule that the composite names for an operation; None if it names none."""
        if operation not in self._found:
            self._found[operation] = first_match(self._entries, operation)
        found = self._found[operation]
        return None if found is None else found[1]

    def rule_for(self, operation: Operation, *, has_parameters: bool = False) -> Rule | None:
        """The rule for an operation: the one that is named, or the usual one of its kind, if there is one."""
        rule = self.named(operation)
        if rule is None and operation.kind == "norm" and not has_parameters:
            return rules.FixedScale()
        return rule or _DEFAULTS.get(operation.kind or "")

    def is_decided_by_place(self, operation: Operation) -> bool:
        """Whether the rule of a linear operation depends on whether it is the last one."""
        if not self.composite.depends_on_last:
            return False
        return self.named(operation) != self.named(replace(operation, last=True))

    def refuse(self, operation: Operation, reason: str = "") -> NoReturn:
        """Refuse an operation without a rule, by name and remedy."""
        self.check_words(operation.name)
        remedy = operation.kind or operation.name
        raise ValueError(
            f"the composite {type(self.composite).__name__} has no rule for {operation}{reason}; give it one, e.g. "
            f"RuleList([({remedy!r}, rules.Gradient()), ...])."
        )

    def check(self) -> None:
        """Refuse entries of the composite that have had no say, at the end of a pass.

        Raises:
            ValueError: If a pattern speaks of nothing in the model (the message lists the near misses), or its rule
                serves no operation that it covers.
        """
        self.check_words()
        served = {found[0] for found in self._found.values() if found is not None}
        for pattern, rule in self._entries:
            if pattern in served or "*" in pattern.split():
                continue
            covered = [operation for operation in self._found if matches(pattern, operation)]
            if covered and not any(rule.serves(operation.kind) for operation in covered):
                kinds = sorted({operation.kind or operation.name for operation in covered})
                raise ValueError(
                    f"the pattern {pattern!r} gives {rule} to operations of the kinds {', '.join(kinds)}, of which it "
                    f"serves none; it is a rule for {', '.join(sorted(rule.applies or ()))}."
                )

    def check_words(self, *seen: str) -> None:
        """Refuse a pattern with a word that is no kind, place, function of torch, module, nor was seen."""
        names = [name for name in module_names(self._model).values() if name]
        known = {*KINDS, *PLACES, "*", *seen, *(operation.name for operation in self._found)}
        for pattern, _ in self._entries:
            for word in pattern.split():
                module = word.removeprefix("name:")
                if word in known or is_function(word) or any(fnmatchcase(name, module) for name in names):
                    continue
                raise ValueError(unknown("the composite's pattern", word, [*KINDS, *PLACES, *names]))
