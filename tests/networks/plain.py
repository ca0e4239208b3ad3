"""Networks as plain functions of what is explained, and what counts as equal."""

from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from zoo import NETWORKS

from lightning_xai.inputs import as_inputs
from lightning_xai.perturbation import Windows


class Plain:
    """A network as a function of what is explained, written out: arguments by hand, sites by a hook."""

    def __init__(self, name: str, model: nn.Module, given: Any) -> None:
        network = NETWORKS[name]
        self.name, self.network, self.model = name, network, model
        self.given = given
        self.inputs = as_inputs(self.given)
        self.values, self.key = dict(self.inputs.values), self.inputs.explain[0]
        ids = self.values[self.key]
        self.embedding = None if ids.is_floating_point() else self._embedding(ids)
        self.x = ids if self.embedding is None else self._at(self.embedding)
        self.target = torch.tensor([1, 0])
        self.region: Tensor | None = None
        self.boxes: list[tuple[Tensor, Tensor]] = []
        if network.read is None:
            with torch.no_grad():
                self.boxes = [(found["boxes"][0], found["labels"][0]) for found in self._run(ids)]
            self.clean = self.scores(self.x).detach()
            return
        with torch.no_grad():
            clean = network.read(self._run(ids))
        self.region = None if clean.ndim == 2 else clean.argmax(1) == self.target.view(-1, *[1] * (clean.ndim - 2))
        if self.region is not None and not self.region.flatten(1).any(1).all():
            self.target = clean.argmax(1).flatten(1)[:, 0]
            self.region = clean.argmax(1) == self.target.view(-1, *[1] * (clean.ndim - 2))
        self.clean = self.scores(self.x).detach()

    def _run(self, explained: Tensor) -> Any:
        args, named = self.inputs.arguments(self.values).assembled({**self.values, self.key: explained})
        return self.model(*args, **named)

    def _embedding(self, ids: Tensor) -> str:
        for name, module in self.model.named_modules():
            named = (isinstance(module, nn.Embedding) and "word" in name) or name.endswith(("wte", "embed_tokens"))
            if named and not name.startswith("transformer.decoder"):
                return name
        raise AssertionError("no embedding of words")

    def _at(self, layer: str) -> Tensor:
        seen = []
        handle = self.model.get_submodule(layer).register_forward_hook(lambda m, a, output: seen.append(output.clone()))
        with torch.no_grad():
            self._run(self.values[self.key])
        handle.remove()
        (output,) = seen
        return output

    def run(self, x: Tensor, at: str | None = None) -> Any:
        """The output for explained values x, both samples; ``at`` names another module whose output they replace."""
        site = at or self.embedding
        if site is None:
            return self._run(x)
        handle = self.model.get_submodule(site).register_forward_hook(lambda m, a, output: x.clone())
        try:
            return self._run(self.values[self.key])
        finally:
            handle.remove()

    def read(self, output: Any) -> Tensor:
        if self.boxes:
            return torch.stack([_best(*clean, found) for clean, found in zip(self.boxes, output, strict=True)])
        columns = self.network.read(output)
        index = self.target.view(-1, 1, *[1] * (columns.ndim - 2)).expand(-1, 1, *columns.shape[2:])
        values = columns.gather(1, index)[:, 0]
        if self.region is None:
            return values
        return (values * self.region).flatten(1).sum(1) / self.region.flatten(1).sum(1)

    def scores(self, x: Tensor, at: str | None = None) -> Tensor:
        return self.read(self.run(x, at))

    def gradient(self, x: Tensor, at: str | None = None) -> Tensor:
        leaf = x.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(self.scores(leaf, at).sum(), leaf)
        return found

    @property
    def mask(self) -> Tensor | None:
        """What is there of the samples, [N, T], by a mask or their lengths; None if nothing says so."""
        lengths = self.values.get("lengths")
        if lengths is None:
            return self.values.get("attention_mask")
        return (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long()

    @property
    def score(self) -> Any:
        return self.network.score

    @property
    def units_first(self) -> bool:
        return self.embedding is None and self.inputs.axis is None

    def columns(self, x: Tensor) -> Tensor:
        """Explained values as [N, C, *S], as perturbations see them."""
        return x if self.units_first else x.movedim(-1, 1)

    def back(self, x: Tensor) -> Tensor:
        return x if self.units_first else x.movedim(1, -1)

    def windows(self) -> tuple[Windows, list[tuple[slice, ...]]]:
        """A regular grid of windows, and the cells [*S] of each."""
        x = self.columns(self.x)
        lengths = x.shape[2:] or x.shape[1:]
        sizes = self.network.size if isinstance(self.network.size, tuple) else (self.network.size,) * len(lengths)
        cells: list[tuple[slice, ...]] = [()]
        for length, size in zip(lengths, sizes, strict=True):
            cells = [(*before, slice(at, at + size)) for before in cells for at in range(0, length, size)]
        return Windows(self.network.size), cells

    def perturbed(self, cells: tuple[slice, ...]) -> Tensor:
        x = self.columns(self.x).clone()
        x[(slice(None), slice(None), *cells) if x.ndim > 2 else (slice(None), *cells)] = 0.5
        return self.back(x)

    @property
    def tolerance(self) -> float:
        return 1e-4 if self.network.single else 1e-8


def _best(box: Tensor, label: Tensor, found: dict[str, Tensor]) -> Tensor:
    """The best box of the same label: overlap times score."""
    overlaps = torchvision.ops.box_iou(box[None], found["boxes"].detach())[0] * (found["labels"] == label)
    return (overlaps * found["scores"]).max()


class WrongError(AssertionError):
    """A result that its check contradicts."""


def equal(found: Tensor, expected: Tensor, tolerance: float) -> None:
    if found.shape != expected.shape:
        raise WrongError(f"shape {list(found.shape)}, not {list(expected.shape)}")
    scale = expected.abs().max()
    if not expected.isfinite().all() or scale == 0:
        raise WrongError("the check says nothing: the expected values are 0 or not finite")
    off = float((found.double() - expected.double()).abs().max() / scale)
    if not off <= tolerance:
        raise WrongError(f"off by {off:.1e} of the largest value")
