"""Ordered lists "pattern -> rule", and how a pattern speaks of operations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch.nn import functional

from lightning_xai.operations.kinds import KIND_OF, KINDS, LINEAR, NAMES
from lightning_xai.relevance.call import Operation
from lightning_xai.relevance.rules import Rule, rules_for

PLACES = ("first", "last")


def _word_matches(word: str, operation: Operation) -> bool:
    if word == "first":
        return operation.first
    if word == "last":
        return operation.last
    if word == "*":
        return True
    if word in KINDS:  # "norm" is a function, too, of another kind
        return word == operation.kind or (word == "matmul" and operation.name in KINDS["matmul"].names)
    if _names_operations(word, operation):
        return word in (operation.name, operation.alias)
    name = word.removeprefix("name:")
    return bool(operation.module) and (fnmatchcase(operation.module, name) or operation.module.startswith(f"{name}."))


def _names_operations(word: str, operation: Operation) -> bool:
    """Whether a word is a kind or a function, and no module."""
    return word in KINDS or word in NAMES or word == operation.name


def matches(pattern: str, operation: Operation) -> bool:
    """Whether every word of a pattern fits an operation.

    >>> conv = Operation("conv2d", "convolution", "layer1.0.conv1")
    >>> [matches(p, conv) for p in ("convolution", "layer1", "layer1.*.conv2", "conv2d layer*", "first")]
    [True, True, False, True, False]
    """
    return all(_word_matches(word, operation) for word in pattern.split())


def first_match(entries: Sequence[tuple[str, Rule]], operation: Operation) -> tuple[str, Rule] | None:
    """The first entry whose pattern matches an operation and whose rule serves it; None if there is none.

    A pattern that names a module, or ``*``, covers operations of many kinds, and its rule stands for those that it
    serves. One that names a kind or a function has to serve it.

    Raises:
        ValueError: If such a rule does not.

    >>> from lightning_xai.relevance import rules
    >>> entries = [("first", rules.Flat()), ("head", rules.Epsilon(0.5)), ("linear", rules.Zero()), ("*", rules.Pass())]
    >>> head = Operation("linear", "linear", "head")
    >>> first_match(entries, head), first_match(entries[2:], head), first_match(entries[:1], head)
    (('head', Epsilon(epsilon=0.5)), ('linear', Zero()), None)
    >>> first_match(entries, Operation("gelu", "activation", "head.1"))
    ('*', Pass())
    """
    for pattern, rule in entries:
        if matches(pattern, operation):
            if rule.serves(operation.kind):
                return pattern, rule
            if any(_names_operations(word, operation) for word in pattern.split()):
                kind = "no known kind" if operation.kind is None else f"the kind {operation.kind!r}"
                raise ValueError(
                    f"the pattern {pattern!r} gives {rule} to {operation}, an operation of {kind}; it is a rule for "
                    f"{', '.join(sorted(rule.applies or ()))}. Rules for {operation.kind or operation.name!r}: "
                    f"{', '.join(rules_for(operation.kind))}."
                )
    return None


def check_entry(pattern: str, rule: Rule) -> None:
    """Refuse an entry that can match no operation.

    Raises:
        ValueError: If its words exclude each other, or its rule is for a kind that does not exist.
    """
    strange = sorted((rule.applies or KINDS.keys()) - KINDS.keys())
    if strange:
        raise ValueError(f"{rule} applies to {', '.join(strange)}, which is no kind of operations: {', '.join(KINDS)}.")
    words = pattern.split()
    kinds = {word if word in KINDS else KIND_OF[word] for word in words if word in KINDS or word in KIND_OF}
    places = [word for word in words if word in PLACES]
    if len(kinds) > 1 or (places and kinds - {*LINEAR, "matmul"}):
        raise ValueError(
            f"the pattern {pattern!r} fits no operation: all of its words must fit one, and 'first' and 'last' are "
            f"linear operations."
        )


class Composite(ABC):
    """An assignment of rules to operations: an ordered list of patterns, the first match wins."""

    def __post_init__(self) -> None:
        for pattern, rule in self.entries():  # the rules check their own numbers
            check_entry(pattern, rule)

    @abstractmethod
    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""

    def rule_for(self, operation: Operation) -> Rule | None:
        """The rule of the first pattern that matches; None if none does.

        Raises:
            ValueError: If a pattern names this kind of operation, but its rule is none for it.
        """
        found = first_match(self.entries(), operation)
        return None if found is None else found[1]

    @property
    def depends_on_last(self) -> bool:
        """Whether a pattern needs to know which operation is the last."""
        return any("last" in pattern.split() for pattern, _ in self.entries())

    @property
    def replaces_inputs(self) -> bool:
        """Whether a rule gives relevance that is no multiple of the input."""
        return any(not rule.multiplies for _, rule in self.entries())


def is_function(word: str) -> bool:
    """Whether a word is the name of a function of torch."""
    homes = (torch, functional, torch.Tensor, torch.special, torch.linalg, torch.fft)
    return word in NAMES or any(hasattr(home, word) for home in homes)


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
    batch norm that follows a convolution or a linear layer is part of it. A recurrent layer is the linear operations,
    activations and products of its steps, unless ``("recurrent", rules.Gradient())`` takes it as a whole.

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
        super().__post_init__()

    def entries(self) -> tuple[tuple[str, Rule], ...]:
        """The list "pattern -> rule"."""
        assert isinstance(self.rules, tuple)  # what the constructor has made of it
        return self.rules
