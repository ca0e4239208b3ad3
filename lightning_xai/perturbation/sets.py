"""Sets of features that differ from sample to sample, and masks over the cells: what a sweep is asked for by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_xai.inputs.bound_model import at_rows
from lightning_xai.perturbation.engine import Samples
from lightning_xai.perturbation.kinds.base import Keys, MaskPerturbation, Perturbation
from lightning_xai.perturbation.network import Network
from lightning_xai.regions import BoundRegions, BoundWindows
from lightning_xai.scores import BoundScore, Score


@dataclass(frozen=True, eq=False)
class FeatureSets:
    """Sets of features that are perturbed together, every sample with sets of its own; a pairing of a request.

    Sets that are equal, within a request or between those of one perturbation, are scored once.

    Args:
        sample: The row of the inputs that a set belongs to [M], in ascending order.
        member: The features of a set, Boolean [M, J]; an empty set is the clean input.

    Raises:
        TypeError: If ``member`` is not Boolean.
        ValueError: If the shapes do not fit each other, or the samples are not in ascending order.
    """

    sample: Tensor
    member: Tensor

    def __post_init__(self) -> None:
        if self.member.dtype != torch.bool:
            raise TypeError(f"member must be Boolean, got {self.member.dtype}.")
        if self.sample.ndim != 1 or self.member.ndim != 2 or len(self.sample) != len(self.member):
            raise ValueError(
                f"sets need a sample [M] and members [M, J], got {list(self.sample.shape)} and "
                f"{list(self.member.shape)}."
            )
        if bool((self.sample.diff() < 0).any()):
            raise ValueError("sets must be in the order of their samples: sort them.")

    @classmethod
    def of(cls, member: Tensor, present: Tensor | None = None) -> FeatureSets:
        """The sets of members [N, Q, J], as many per sample; those that are not ``present`` [N, Q] are left out."""
        samples = torch.arange(len(member), device=member.device)
        sample = samples.repeat_interleave(member.shape[1])
        flat = member.flatten(0, 1)
        kept = slice(None) if present is None else present.flatten()
        return cls(sample[kept], flat[kept])

    def check(self, samples: int, count: int) -> None:
        """Refuse sets that do not fit the samples and features of a sweep.

        Raises:
            ValueError: If so.
        """
        if self.member.shape[1] != count or (len(self.sample) and not 0 <= int(self.sample[-1]) < samples):
            raise ValueError(
                f"the sets are of {self.member.shape[1]} features, there are {count} in {samples} samples."
            )

    def within(self, rows: slice) -> FeatureSets:
        """Return the sets of some samples, which are counted from 0."""
        chosen = (self.sample >= rows.start) & (self.sample < rows.stop)
        return FeatureSets(self.sample[chosen] - rows.start, self.member[chosen])


@dataclass(frozen=True, eq=False)
class CellMasks:
    r"""One input per sample, of which a mask keeps a share of every cell: :math:`M x + (1 - M) R(x)`.

    Args:
        kept: :math:`M`, 0 to 1, [N, \*S].
    """

    kept: Tensor

    def check(self, samples: int, count: int) -> None:  # noqa: ARG002 - like sets
        """Refuse masks that are not one per sample.

        Raises:
            ValueError: If so.
        """
        if len(self.kept) != samples:
            raise ValueError(f"kept must be one mask per sample, got {len(self.kept)} for {samples} samples.")

    def within(self, rows: slice) -> CellMasks:
        """Return the masks of some samples."""
        return CellMasks(self.kept[rows])


def cell_features(bound: BoundRegions, samples: int, like: Tensor) -> Tensor:
    """Find the feature of every cell [N, *S], -1 for none.

    Args:
        bound: The regions over the samples.
        samples: N.
        like: A tensor on the device of the result.

    Raises:
        ValueError: If a cell is in several features.
    """
    index = torch.arange(bound.count, dtype=torch.float64 if like.device.type != "mps" else torch.float32)
    index = index.to(like.device)
    if isinstance(bound, BoundWindows):  # the same in every sample
        mean, count = torch.split(bound.cell_sums(torch.stack((index, torch.ones_like(index)))), 1)
        several, mean = count > 1, torch.where(count > 0, mean, torch.nan)
    else:
        mean = bound.paint(index.expand(samples, -1))
        # The mean of squares exceeds the square of the mean where a cell has several features.
        several = (bound.paint(index.expand(samples, -1) ** 2) - mean**2).nan_to_num() > 0.1
    if several.any():
        place = several.nonzero()[0].tolist()
        raise ValueError(
            f"sets of features need features that do not overlap, but the cell {tuple(place[1:])} is in several: "
            f"use Windows whose stride is their size, or Segments."
        )
    return torch.where(mean.isfinite(), mean, -1.0).long().expand(samples, *mean.shape[1:])


def perturbed_copies(kind: Perturbation, samples: Samples) -> Tensor:
    """Make R(x) of whole samples, [A, N, C, *S]; of a kind that depends on the window every feature has its own."""
    if kind.windowed:
        everything = tuple(range(samples.regions.count))
        return samples.perturb(kind, [None], [everything], 1)[:, 0]
    return kind.arms(samples.values, samples.keys)


@dataclass(frozen=True, eq=False)
class RowInputs:
    """Puts the perturbed inputs of rows together, a few at a time.

    Args:
        values: The samples [N, C, *S].
        copies: R(x) [A, N, C, *S]; a kind that depends on what is replaced makes each row itself.
        sample: The sample of every row [M].
        member: The features of every row, Boolean [M, J]; None where cells are masked.
        labels: The feature of every cell [N, *S]; None where cells are masked.
        kept: The share of every cell that is kept [N, *S], where cells are masked.
        fill: The kind that depends on what is replaced, and the keys of its draws.
    """

    values: Tensor
    copies: Tensor
    sample: Tensor
    member: Tensor | None = None
    labels: Tensor | None = None
    kept: Tensor | None = None
    fill: tuple[MaskPerturbation, Keys] | None = None

    def make(self, some: slice) -> Tensor:
        """Make the inputs of some rows, [A, m, C, *S]."""
        sample = self.sample[some]
        values, copies = self.values.index_select(0, sample), self.copies.index_select(1, sample)
        if self.member is not None and self.labels is not None:
            member = self.member[some]
            labels = self.labels[sample]
            inside = torch.cat((member.new_zeros(len(member), 1), member), 1).gather(1, labels.flatten(1) + 1)
            mask = inside.view_as(labels)
            if self.fill is not None:
                kind, keys = self.fill
                return kind.replaced(values, mask, keys.at(sample)).unsqueeze(0)
            # Into the copies, as fresh memory pages cost as much as the choice itself.
            out = copies if copies.dtype == values.dtype else None
            return torch.where(mask.unsqueeze(1), copies, values, out=out)
        assert self.kept is not None
        kept = self.kept[sample].unsqueeze(1).to(values)
        # A cell that is kept whole does not see R(x), which may be infinite, nor one that is replaced x.
        mixed = kept * values + (1 - kept) * copies
        return torch.where(kept == 1, values, torch.where(kept == 0, copies, mixed))


@dataclass(frozen=True)
class UniqueSets:
    """The sets of several requests, equal ones once.

    Attributes:
        sets: The sets.
        places: Where the sets of each request are among them [M].
    """

    sets: FeatureSets
    places: tuple[Tensor, ...]

    @classmethod
    def of(cls, parts: Sequence[FeatureSets]) -> UniqueSets:
        """Take equal sets of some requests once."""
        sample, member = torch.cat([part.sample for part in parts]), torch.cat([part.member for part in parts])
        keys = torch.cat((sample.unsqueeze(1), _words(member)), 1)
        unique, places = torch.unique(keys, dim=0, return_inverse=True)
        first = torch.empty(len(unique), dtype=torch.long, device=keys.device)
        first[places] = torch.arange(len(keys), device=keys.device)
        split = torch.split(places, [len(part.sample) for part in parts])
        return cls(FeatureSets(sample[first], member[first]), split)


def _words(member: Tensor) -> Tensor:
    """Pack Booleans [M, J] into integers [M, words] of 62 bits each."""
    weights = 2 ** torch.arange(62, device=member.device)
    words = [(part.long() * weights[: part.shape[1]]).sum(1) for part in torch.split(member, 62, 1)]
    return torch.stack(words, 1)


@dataclass(frozen=True, eq=False)
class SampleRows:
    """The samples of a clean pass, and what of them is scored by row.

    Attributes:
        samples: The samples.
        network: The model and the size of its passes.
        bound: The scores, bound to them.
        clean: Their clean scores [n].
        alone: The arms of every feature alone [A, n, J], of the scores for which they are there.
    """

    samples: Samples
    network: Network
    bound: Mapping[Score, BoundScore]
    clean: Mapping[Score, Tensor]
    alone: Mapping[Score, Tensor]

    def scores(self, kind: Perturbation, asked: Sequence[tuple[object, Score]]) -> list[Tensor]:
        """Score sets and masks under one perturbation: [A, M] each, NaN where a cell or the score is not finite.

        Equal inputs are scored once; clean ones, and features alone where they are there, are not scored again.
        """
        values, copies = self.samples.values, perturbed_copies(kind, self.samples)
        found: list[Tensor | None] = [None] * len(asked)
        for place, (masks, score) in enumerate(asked):
            if not isinstance(masks, CellMasks):
                continue
            for before, (other, its_score) in enumerate(asked[:place]):
                if isinstance(other, CellMasks) and its_score == score and torch.equal(other.kept, masks.kept):
                    found[place] = found[before]
                    break
            else:
                rows = RowInputs(values, copies, torch.arange(len(values), device=values.device), kept=masks.kept)
                (found[place],) = self._read(rows, [score])
        sets = {place: own for place, (own, _) in enumerate(asked) if isinstance(own, FeatureSets)}
        if sets:
            unique = UniqueSets.of(list(sets.values()))
            needed = list(dict.fromkeys(asked[place][1] for place in sets))
            wanted = torch.zeros(len(needed), len(unique.sets.sample), dtype=torch.bool, device=values.device)
            for (place, _), rows_of in zip(sets.items(), unique.places, strict=True):
                wanted[needed.index(asked[place][1]), rows_of] = True
            fill = (kind, self.samples.keys) if isinstance(kind, MaskPerturbation) else None
            scored = self._unique(values, copies, unique.sets, needed, wanted, fill)
            for (place, _), rows_of in zip(sets.items(), unique.places, strict=True):
                found[place] = scored[needed.index(asked[place][1])][:, rows_of]
        return [scores for scores in found if scores is not None]

    def _unique(
        self,
        values: Tensor,
        copies: Tensor,
        sets: FeatureSets,
        needed: list[Score],
        wanted: Tensor,
        fill: tuple[MaskPerturbation, Keys] | None,
    ) -> Tensor:
        sample, member = sets.sample, sets.member
        scored = torch.stack([self.clean[score] for score in needed])[:, sample].unsqueeze(1)
        scored = scored.repeat(1, len(copies), 1)
        size = member.sum(1)
        there = torch.tensor([score in self.alone for score in needed], device=values.device).unsqueeze(1)
        alone = (size == 1) & (there | ~wanted).all(0)
        feature = member.long().argmax(1)
        for scores, score in zip(scored, needed, strict=True):
            if score in self.alone:
                scores[:, alone] = self.alone[score][:, sample[alone], feature[alone]]
        rest = ~alone & (size > 0)
        labels = cell_features(self.samples.regions, len(values), values)
        rows = RowInputs(values, copies, sample[rest], member[rest], labels, fill=fill)
        scored[:, :, rest] = self._read(rows, needed).to(scored)
        return scored

    def _read(self, rows: RowInputs, needed: Sequence[Score]) -> Tensor:
        """The scores [scores, A, M] of rows, in passes that are filled across samples."""
        arms: list[Tensor] = []
        limit, suspect = self.network.batches.limit, not bool(rows.copies.isfinite().all())
        for first in range(0, len(rows.sample), limit):
            some = slice(first, first + limit)
            bound = [self.bound[score].at(rows.sample[some]) for score in needed]
            scores = []
            for made in rows.make(some):
                inputs = made.squeeze(1) if self.samples.inputs.ndim == 2 else made
                broken = ~inputs.isfinite().flatten(1).all(1) if suspect else None
                if broken is not None:
                    inputs = torch.where(broken.view(-1, *[1] * (inputs.ndim - 1)), 0.0, inputs)
                output = self.network(at_rows(self.samples.model, rows.sample[some]), inputs)
                read = torch.stack([score(output) for score in bound])
                scores.append(read if broken is None else read.masked_fill(broken, float("nan")))
                self.network.report(len(inputs))
            arms.append(torch.stack(scores, 1))
        if not arms:
            return rows.values.new_empty(len(needed), len(rows.copies), 0)
        found = torch.cat(arms, 2)
        return torch.where(found.isfinite(), found, float("nan"))
