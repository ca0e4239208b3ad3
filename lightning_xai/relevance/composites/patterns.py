"""Which rule where: operations, the patterns that speak of them, and ordered lists "pattern -> rule"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn import functional

from lightning_xai._checks import unknown
from lightning_xai.operations import KINDS, NAMES, module_names
from lightning_xai.relevance.rules import Rule

_PLACES = ("first", "last")


@dataclass(frozen=True)
class Operation:
    """One operation of a forward pass, as patterns see it.

    Attributes:
        name: The function of the torch API, e.g. ``"conv2d"``.
        kind: Its kind, e.g. ``"convolution"``; None if it has none.
        module: The dotted name of the module that runs; ``""`` for the model itself.
        first: Whether it is a linear operation that the model's input reaches through no other one.
        last: Whether it is the linear operation nearest to the score.
        alias: ``"relu"`` or ``"relu6"`` where it is one that is written as ``hardtanh`` or ``clamp``.

    Example:
        >>> from lightning_xai.relevance import composites
        >>> stem = Operation("conv2d", "convolution", "stem.conv", first=True)
        >>> print(stem)
        conv2d in 'stem.conv'
        >>> composites.EpsilonPlusFlat().rule_for(stem), composites.EpsilonPlus().rule_for(stem)
        (Flat(), ZPlus(epsilon=1e-06, bias=True))
    """

    name: str
    kind: str | None
    module: str
    first: bool = False
    last: bool = False
    alias: str = ""

    def __str__(self) -> str:
        return f"{self.name} in {self.module!r}" if self.module else f"{self.name} in the model itself"


def _word_matches(word: str, operation: Operation) -> bool:
    if word == "first":
        return operation.first
    if word == "last":
        return operation.last
    if word == "*" or word in KINDS or word in NAMES or word == operation.name:
        return word in ("*", operation.kind, operation.name, operation.alias)
    name = word.removeprefix("name:")
    return bool(operation.module) and (fnmatchcase(operation.module, name) or operation.module.startswith(f"{name}."))


def matches(pattern: str, operation: Operation) -> bool:
    """Whether every word of a pattern fits an operation.

    >>> conv = Operation("conv2d", "convolution", "layer1.0.conv1")
    >>> [matches(p, conv) for p in ("convolution", "layer1", "layer1.*.conv2", "conv2d layer*", "first")]
    [True, True, False, True, False]
    """
    return all(_word_matches(word, operation) for word in pattern.split())


def first_match(entries: Sequence[tuple[str, Rule]], operation: Operation) -> Rule | None:
    """The rule of the first pattern that matches; see :meth:`Composite.rule_for`.

    A rule for other kinds of operations is passed over.

    Raises:
        ValueError: If that rule is given to a convolution or a linear operation by more than ``*`` or its place.

    >>> from lightning_xai.relevance import rules
    >>> entries = [("first", rules.Flat()), ("head", rules.Epsilon(0.5)), ("linear", rules.Zero()), ("*", rules.Pass())]
    >>> head = Operation("linear", "linear", "head")
    >>> first_match(entries, head), first_match(entries[2:], head), first_match(entries[:1], head)
    (Epsilon(epsilon=0.5), Zero(), None)
    >>> first_match(entries, Operation("gelu", "activation", "head.1"))
    Pass()
    """
    for pattern, rule in entries:
        if matches(pattern, operation):
            if rule.applies is not None and operation.kind not in rule.applies:
                if any(word not in ("*", *_PLACES) for word in pattern.split()) and operation.kind in _TOLD:
                    raise ValueError(
                        f"the pattern {pattern!r} gives {rule} to {operation}, an operation of the kind "
                        f"{operation.kind!r}; it is a rule for {', '.join(sorted(rule.applies))}."
                    )
                continue
            return rule
    return None


class Composite(ABC):
    """What a relevance method does at each operation: an ordered list, the first match wins."""

    def __post_init__(self) -> None:
        self.entries()  # the rules check their own numbers

    @abstractmethod
    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""

    def rule_for(self, operation: Operation) -> Rule | None:
        """The rule of the first pattern that matches; None if none does.

        Raises:
            ValueError: If that rule is none for this kind of operation.
        """
        return first_match(self.entries(), operation)

    @property
    def depends_on_last(self) -> bool:
        """Whether a pattern needs to know which operation is the last."""
        return any("last" in pattern.split() for pattern, _ in self.entries())

    @property
    def replaces_inputs(self) -> bool:
        """Whether a rule gives relevance that is no multiple of the input."""
        return any(not rule.multiplies for _, rule in self.entries())

    def unknown_words(self, model: nn.Module) -> list[str]:
        """The words of patterns that are no kind, place, function of torch or module of the model."""
        names = [name for name in module_names(model).values() if name]
        return [
            word
            for pattern, _ in self.entries()
            for word in pattern.split()
            if not (word in KINDS or word in _PLACES or word == "*" or _is_function(word))
            and not any(fnmatchcase(known, word.removeprefix("name:")) for known in names)
        ]

    def check_words(self, model: nn.Module, seen: Iterable[str]) -> None:
        """Refuse a pattern that speaks of nothing in the model.

        Args:
            model: The model.
            seen: Names of operations that its forward pass made.

        Raises:
            ValueError: If a word fits no module and no operation; the message lists the near misses.
        """
        seen = set(seen)
        for word in self.unknown_words(model):
            if word not in seen:
                names = [name for name in module_names(model).values() if name]
                raise ValueError(unknown("the composite's pattern", word, [*KINDS, *_PLACES, *names]))


def _is_function(word: str) -> bool:
    return word in NAMES or any(hasattr(home, word) for home in (torch, functional, torch.Tensor))


# Kinds to which a rule of another kind is never given by accident: a module's name covers reshapes and sums as well.
_TOLD = frozenset({"convolution", "linear"})


@dataclass(frozen=True)
class RuleList(Composite):
    """A list "pattern -> rule" of one's own; the first match wins.

    A pattern is one or more words, all of which must fit: a kind of operation (``convolution``, ``linear``,
    ``affine_norm``, ``norm``, ``activation``, ``softmax``, ``product``, ``attention``, ``sum``, ``pooling``, ...), the
    name of a function of torch (``conv2d``, ``gelu``), ``first`` or ``last`` among the linear operations, or the dotted
    name of a module, with wildcards, which covers what is inside it (``layer4``, ``features.*``; ``name:linear`` for
    a module whose name is a kind). ``*`` fits everything.

    Convolutions, linear operations and norms with parameters must find a rule. Others have one of their own unless a
    pattern says otherwise: activations :class:`~lightning_xai.relevance.rules.Pass`, products and attention
    :class:`~lightning_xai.relevance.rules.Uniform`, softmax, sums and pooling the derivative, which conserves there. A
    batch norm that follows a convolution or a linear layer is part of it.

    Args:
        rules: Pairs (pattern, rule).

    Raises:
        TypeError: If an entry is no such pair.

    Example:
        >>> from lightning_xai.relevance import rules
        >>> mine = RuleList([("first", rules.Flat()), ("layer4", rules.Epsilon(0.1)), ("*", rules.ZPlus())])
        >>> mine.rule_for(Operation("conv2d", "convolution", "layer4.1.conv2"))
        Epsilon(epsilon=0.1)
    """

    rules: Sequence[tuple[str, Rule]] | Mapping[str, Rule]

    def __post_init__(self) -> None:
        given = self.rules.items() if isinstance(self.rules, Mapping) else self.rules
        found = []
        for entry in given:
            pattern, rule = entry if isinstance(entry, Sequence) and len(entry) == 2 else (None, None)
            if not isinstance(pattern, str) or not pattern.split() or not isinstance(rule, Rule):
                raise TypeError(
                    f"a composite is a list of pairs (pattern, rule), e.g. ('convolution', rules.ZPlus()), "
                    f"got {entry!r}."
                )
            found.append((pattern, rule))
        if not found:
            raise ValueError("a composite needs at least one pair (pattern, rule).")
        object.__setattr__(self, "rules", tuple(found))

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        assert isinstance(self.rules, tuple)  # what the constructor has made of it
        return self.rules
