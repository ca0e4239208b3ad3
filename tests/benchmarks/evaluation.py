"""Measures of explanations against the passes they are made of, a plain loop and Quantus: ratios of one run.

Run ``python tests/benchmarks/evaluation.py [--quick] [PART ...]``; needs torchvision, and Quantus 0.6 for its part. The
parts:

- ``flipping``: pixel flipping, 10 steps over 49 windows, ResNet-18 at 224 px, 8 images: at most 1.05 times the forward
  passes that it is made of, and no slower than the best plain loop.
- ``reuse``: deletion, insertion, srg and AOPC together against srg alone: as much.
- ``quantus``: the core twelve against the measures that Quantus has of them, called one after the other, with as many
  steps, features and random sets: at least 5 times as fast.

Beside every ratio of times stands that of processor times, which other processes disturb less, and the number of inputs
that the network was given, which no machine changes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import Clock, pairs
from torch import Tensor, nn
from torchvision.models import resnet18

from lightning_xai.app.models import DemoCNN
from lightning_xai.evaluation import core_measures, deletion, perturbation_curves, srg
from lightning_xai.perturbation import Windows, kinds

ZERO = kinds.Constant(0.0)
SHARE, DRAWS = 0.2, 32


@contextlib.contextmanager
def batch_sizes(model: nn.Module) -> Iterator[list[int]]:
    """Yield a list of the sizes of the batches that the model is given."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        yield sizes
    finally:
        handle.remove()


def sizes_of(model: nn.Module, run: Callable[[], object]) -> list[int]:
    """The sizes of the batches that a call gives to the model."""
    with batch_sizes(model) as sizes:
        run()
    return sizes


def passes(model: nn.Module, x: Tensor, sizes: list[int]) -> Callable[[], None]:
    """Plain forward passes of batches of given sizes."""
    rows = x.repeat(-(-max(sizes) // len(x)), *[1] * (x.ndim - 1))

    def run() -> None:
        with torch.inference_mode():
            for size in sizes:
                model(rows[:size])

    return run


@dataclass(frozen=True)
class Case:
    """A network, its images and their windows."""

    name: str
    model: nn.Module
    x: Tensor
    size: int

    @property
    def target(self) -> Tensor:
        """The predicted classes."""
        with torch.inference_mode():
            return self.model(self.x).argmax(1)

    @property
    def windows(self) -> int:
        """The number of windows."""
        return (self.x.shape[-1] // self.size) ** 2

    def relevance(self) -> Tensor:
        """A map whose windows differ, one channel; its making is no part of what is timed."""
        return torch.randn(len(self.x), 1, *self.x.shape[2:], generator=torch.Generator().manual_seed(1))


def plain_flipping(case: Case, target: Tensor, relevance: Tensor, steps: int, chunk: int) -> Tensor:
    """What one writes by hand: windows set to 0 in the order of the map, ``chunk`` inputs at a time; the curve."""
    x, size = case.x, case.size
    with torch.inference_mode():
        sums = nn.functional.avg_pool2d(relevance, size).flatten(1)
        order = sums.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(sums.shape[1]).expand_as(order))
        side = x.shape[-1] // size
        made = []
        for step in range(steps + 1):
            gone = (rank < step * sums.shape[1] // steps).view(-1, 1, side, side).to(x)
            made.append((step, 1 - gone.repeat_interleave(size, 2).repeat_interleave(size, 3)))
        scores = []
        per_pass = max(1, chunk // len(x))
        for first in range(0, len(made), per_pass):
            some = made[first : first + per_pass]
            output = case.model(torch.cat([x * kept for _, kept in some])).softmax(1)
            scores.append(output.view(len(some), len(x), -1)[:, torch.arange(len(x)), target])
        return torch.cat(scores).T


def report(what: str, found: list[tuple[Clock, Clock]], asked: str, turned: bool = False) -> None:
    """Print the medians of the ratios of two contenders, by both clocks."""
    ratios = []
    for clock in ("wall", "processor"):
        each = [getattr(ours, clock) / getattr(base, clock) for ours, base in found]
        ratios.append(statistics.median(1 / ratio if turned else ratio for ratio in each))
    print(f"  {what} {ratios[0]:.3f}, processor time {ratios[1]:.3f} ({asked})", flush=True)


def flipping(case: Case, chunks: list[int], rounds: int, steps: int = 10) -> None:
    """Print what pixel flipping costs beside its passes and a plain loop."""
    target, relevance = case.target, case.relevance()
    how: dict[str, Any] = {"regions": Windows(case.size), "perturbation": ZERO, "steps": steps}

    def ours(orders: tuple[str, ...] = ("morf",)) -> Tensor:
        return perturbation_curves(case.model, case.x, target, relevance, orders=orders, **how).morf

    loop = partial(plain_flipping, case, target, relevance, steps)
    error = (ours() - loop(chunks[0])).abs().max()
    print(f"{case.name}, {case.windows} windows, {steps} steps (largest difference to the plain loop {error:.1e})")
    for name, orders in {"most relevant first": ("morf",), "both orders": ("morf", "lerf")}.items():
        sizes = sizes_of(case.model, partial(ours, orders))
        made = passes(case.model, case.x, sizes)
        print(f"  {name}: {sum(sizes)} inputs in {len(sizes)} passes, {steps + 1} points for {len(case.x)} images")
        report("ours / its passes", pairs(partial(ours, orders), made, rounds), "at most 1.05")
    for chunk in chunks:
        found = pairs(ours, partial(loop, chunk), rounds)
        report(f"plain loop, {chunk} inputs / ours", found, "at least 1.0", turned=True)


def reuse(case: Case, rounds: int) -> None:
    """Print what four measures of the curves cost beside one."""
    target, relevance = case.target, case.relevance()
    how: dict[str, Any] = {"regions": Windows(case.size), "perturbation": ZERO}
    ask = (case.model, case.x, target, relevance)

    def four() -> list[Tensor]:
        curves = perturbation_curves(*ask, **how)
        return [curves.deletion, curves.insertion, curves.srg, curves.aopc_morf]

    one = partial(srg, *ask, **how)
    runs = {"four": four, "srg": one, "deletion": partial(deletion, *ask, **how)}
    counts = {name: sum(sizes_of(case.model, run)) for name, run in runs.items()}
    inputs = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"{case.name}, deletion, insertion, srg and AOPC by one pair of curves; inputs: {inputs}")
    report("four measures / srg", pairs(four, one, rounds), "at most 1.05")


def by_quantus(case: Case, infidelity_samples: int) -> dict[str, Callable[[], object]]:
    """Quantus' measures of the same map, over the same windows, one step per window."""
    import quantus

    x, y, a = case.x.numpy(), case.target.numpy(), case.relevance().numpy()
    cells = round(SHARE * x[0].size)
    plain: dict[str, Any] = {"normalise": False, "abs": False, "disable_warnings": True, "display_progressbar": False}
    black = {"perturb_baseline": 0.0}
    curve = {"patch_size": case.size, "regions_evaluation": case.windows, **black, **plain}
    measures = {
        "AOPC, most relevant first (Region Perturbation)": quantus.RegionPerturbation(order="morf", **curve),
        "insertion (Region Perturbation, least relevant first)": quantus.RegionPerturbation(order="lerf", **curve),
        "deletion (Selectivity)": quantus.Selectivity(patch_size=case.size, **black, **plain),
        "faithfulness correlation": quantus.FaithfulnessCorrelation(nr_runs=DRAWS, subset_size=cells, **black, **plain),
        "infidelity": quantus.Infidelity(
            perturb_patch_sizes=[case.size], n_perturb_samples=infidelity_samples, **black, **plain
        ),
        "completeness": quantus.Completeness(**black, **plain),
        "sufficient share (Effective Complexity)": quantus.EffectiveComplexity(**{**plain, "abs": True}),
        "Gini coefficient (Sparseness)": quantus.Sparseness(**{**plain, "abs": True}),
        "entropy (Complexity)": quantus.Complexity(**{**plain, "abs": True}),
    }

    def call(measure: Any) -> object:
        return measure(model=case.model, x_batch=x, y_batch=y, a_batch=a.copy(), softmax=True, device="cpu")

    return {name: partial(call, measure) for name, measure in measures.items()}


def quantus_core(case: Case, rounds: int, infidelity_samples: int) -> None:
    """Print what the core measures cost beside those of Quantus."""
    target, relevance = case.target, case.relevance()
    how: dict[str, Any] = {"regions": Windows(case.size), "perturbation": ZERO, "share": SHARE, "draws": DRAWS}
    ours = partial(core_measures, case.model, case.x, target, relevance, steps=case.windows, **how)
    theirs = by_quantus(case, infidelity_samples)

    def all_of_theirs() -> None:
        for run in theirs.values():
            run()

    own = sum(sizes_of(case.model, ours))
    print(f"{case.name}, {case.windows} windows, as many steps, {DRAWS} random sets")
    print(f"  ours, twelve measures: {own} inputs, {own / len(case.x):.1f} an image")
    counts = {name: sum(sizes_of(case.model, run)) for name, run in theirs.items()}
    for name, count in counts.items():
        print(f"  Quantus, {name}: {count} inputs")
    total = sum(counts.values())
    print(
        f"  Quantus, {len(theirs)} measures: {total} inputs, {total / own:.2f} times ours "
        f"({infidelity_samples} sweeps of infidelity)"
    )
    report("Quantus / ours", pairs(ours, all_of_theirs, rounds), "at least 5", turned=True)


def main() -> None:
    """Measure the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, and the small network only")
    parser.add_argument("parts", nargs="*", help="flipping, reuse, quantus; all unless given")
    given = parser.parse_args()
    quick, parts = given.quick, given.parts or ["flipping", "reuse", "quantus"]
    torch.manual_seed(0)
    demo = Case("demo CNN, 28 px, 16 images", DemoCNN().eval(), torch.rand(16, 1, 28, 28), 4)
    cases = [(demo, [16, 64, 176], 3 if quick else 41)]
    if not quick:
        photo = Case("ResNet-18, 224 px, 8 images", resnet18().eval(), torch.randn(8, 3, 224, 224), 32)
        cases.append((photo, [8, 16], 9))
    for case, chunks, rounds in cases:
        if "flipping" in parts:
            flipping(case, chunks, rounds)
        if "reuse" in parts:
            reuse(case, rounds)
        if "quantus" in parts:
            logging.disable(logging.WARNING)
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                for samples in (1, DRAWS) if case is demo else (1,):
                    quantus_core(case, max(1, rounds // 4), samples)


if __name__ == "__main__":
    main()
