"""Per-sample explanations on disk: one safetensors file per process and batch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from lightning_xai._files import TEMPORARY, replace_file

_SHARDS = "rank*-*.safetensors"
_RUN = "lightning_xai.run"  # the key of the run in the metadata of a file
_PASS = re.compile(r"(?P<stage>.+)-epoch(?P<epoch>\d+)-step(?P<step>\d+)")


def new_run() -> str:
    """Make the name of a run, unlike that of any other; later runs have later names."""
    return f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}-{uuid4().hex[:8]}"


def pass_name(stage: str, epoch: int, step: int) -> str:
    """Return the folder of one pass over the data of a stage; epoch and step are those of checkpoints."""
    return f"{stage}-epoch{epoch}-step{step}"


def passes(folder: Path) -> dict[str, dict[tuple[int, int], Path]]:
    """List the folders of a run's passes by stage, then by epoch and step, in the order of training.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("validate-epoch10-step80", "validate-epoch9-step72", "validate-epoch9-step76", "other"):
    ...         Path(folder, name).mkdir()
    ...     list(passes(Path(folder))["validate"])
    [(9, 72), (9, 76), (10, 80)]
    """
    found: dict[str, dict[tuple[int, int], Path]] = {}
    for path in folder.glob("*"):
        if match := _PASS.fullmatch(path.name):
            found.setdefault(match["stage"], {})[int(match["epoch"]), int(match["step"])] = path
    return {stage: dict(sorted(at.items())) for stage, at in sorted(found.items())}


class SampleWriter(Protocol):
    """Takes per-sample tensors, batch by batch."""

    @property
    def folder(self) -> Path | None:
        """Where they go; None for memory."""

    def write(self, tensors: Mapping[str, Tensor]) -> Any:
        """Take per-sample tensors [N, ...] of a batch; ``sample_id`` must be among them."""

    def remove(self) -> None:
        """Forget all that were taken."""


class SampleNumbers:
    """Keeps what is a number per sample, in memory."""

    folder: None = None

    def __init__(self) -> None:
        self._parts: list[dict[str, Tensor]] = []

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Take per-sample tensors [N, ...]."""
        self._parts.append({name: tensor.detach().cpu() for name, tensor in tensors.items() if tensor.ndim == 1})

    def remove(self) -> None:
        """Forget all that were taken."""
        self._parts.clear()

    def numbers(self) -> dict[str, Tensor]:
        """Return what every batch had, [N]."""
        names = set.intersection(*map(set, self._parts)) if self._parts else set()
        return {name: torch.cat([part[name] for part in self._parts]) for name in sorted(names)}


class ShardWriter:
    """Writes what one process found, a file per batch: ``rank<R>-<n>.safetensors``.

    Args:
        folder: Where the files go; made with the first one.
        rank: The process.
        run: The name of the run, the same for all its processes; a new one unless given.
    """

    def __init__(self, folder: Path, rank: int = 0, run: str | None = None) -> None:
        self.folder = folder
        self.rank = rank
        self.run = run or new_run()
        self.written = 0

    def write(self, tensors: Mapping[str, Tensor]) -> Path:
        """Write per-sample tensors [N, ...]; ``sample_id`` must be among them."""
        path = self.folder / f"rank{self.rank}-{self.written}.safetensors"
        with replace_file(path) as temporary:
            save_file(_apart(tensors), temporary, {_RUN: self.run})
        self.written += 1
        return path

    def remove(self) -> None:
        """Remove what was written; the folder too if nothing else is in it."""
        _remove(self.folder, f"rank{self.rank}-*.safetensors")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the CPU, each in memory of its own, as safetensors refuses any that is shared."""
    found, taken = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        address = own.untyped_storage().data_ptr()
        found[name] = own.clone() if address in taken else own
        taken.add(address)
    return found


def remove_explanations(folder: Path) -> None:
    """Remove the files of an earlier run, so that they are not read as part of this one; nothing below the folder."""
    _remove(folder, _SHARDS, TEMPORARY)


def remove_pass(folder: Path) -> None:
    """Remove maps, pictures, tables and measures from the folder of a pass; nothing below it."""
    _remove(folder, _SHARDS, "*.png", "*.csv", "*.measures.json", TEMPORARY)


def _remove(folder: Path, *patterns: str) -> None:
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):  # another process may be as fast
        if not any(folder.iterdir()):
            folder.rmdir()


def load_explanations(folder: str | Path) -> dict[str, Tensor]:
    """Load everything that a run has written to a folder, ordered by sample.

    Of several runs in one folder the latest counts. A warning names the files that are left out: those of other runs,
    of other programs, and damaged ones; it names samples that are there more than once, too, of which the first is
    kept.

    Args:
        folder: ``<run>/explanations/<stage>-epoch<E>-step<S>``; without the step if the epoch has one pass only.

    Returns:
        Tensors [N, ...] by name: ``sample_id``, ``input``, ``label`` where the batch has one, the explained ``score``,
        and ``<metric>/<tensor>``. Of a classification ``target`` is the explained class, ``prediction`` the network's;
        of a regression they are values, and ``output`` says which of several is explained. Where segments differ from
        sample to sample, features that a batch does not have are NaN.

    Raises:
        FileNotFoundError: If there are no explanations; the folders that have some are named.
        ValueError: If none of the files can be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = ShardWriter(Path(folder), rank=1)
    ...     _ = writer.write({"sample_id": torch.tensor([3, 1]), "lime": torch.tensor([[0.3], [0.1]])})
    ...     load_explanations(folder)
    {'lime': tensor([[0.1000], [0.3000]]), 'sample_id': tensor([1, 3])}
    """
    folder = Path(folder)
    if not folder.exists():
        steps = sorted(folder.parent.glob(f"{folder.name}-step*"))
        folder = steps[0] if len(steps) == 1 else folder
    files = sorted(folder.glob(_SHARDS))
    if not files:
        inside = (path.parent for path in folder.glob(f"**/{_SHARDS}"))
        others = sorted({str(path) for path in (*inside, *folder.parent.glob(f"{folder.name}-step*"))})
        hint = f" There are some in {', '.join(others)}." if others else ""
        raise FileNotFoundError(f"no explanations ({_SHARDS}) in {folder}.{hint}")
    shards = _read(folder, files)
    # A metric that failed in the course of a pass has no tensors in the later files, and is left out of it.
    names = sorted(set.intersection(*(set(shard) for shard in shards)))
    joined = {name: _joined([shard[name] for shard in shards]) for name in names}
    ids, order = joined["sample_id"].sort(stable=True)
    first = torch.cat([torch.ones(1, dtype=torch.bool), ids[1:] != ids[:-1]])
    if not first.all():
        repeated = sorted(set(ids[~first].tolist()))
        message = f"{folder} holds samples more than once, of which the first is kept: {_few(repeated)}."
        warnings.warn(message, UserWarning, stacklevel=2)
    return {name: tensor[order[first]] for name, tensor in joined.items()}


def _read(folder: Path, files: Sequence[Path]) -> list[dict[str, Tensor]]:
    """Read the files of the latest run, and warn of the others.

    Raises:
        ValueError: If none of the files can be read.
    """
    found: dict[Path, tuple[str, dict[str, Tensor]]] = {}
    excluded: dict[str, list[str]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                run = (file.metadata() or {}).get(_RUN)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        except SafetensorError:
            excluded.setdefault("damaged", []).append(path.name)
            continue
        if run is None or "sample_id" not in tensors:
            excluded.setdefault("not written by lightning_xai", []).append(path.name)
        else:
            found[path] = run, tensors
    latest = max((run for run, _ in found.values()), default="")
    shards: list[dict[str, Tensor]] = []
    for path, (run, tensors) in found.items():
        if run != latest:
            excluded.setdefault("of an earlier run", []).append(path.name)
        elif shards and not _fit(tensors, shards[0]):
            excluded.setdefault("with other tensors than the first", []).append(path.name)
        else:
            shards.append(tensors)
    words = "; ".join(f"{why}: {_few(names)}" for why, names in excluded.items())
    if not shards:
        raise ValueError(f"no explanations in {folder} can be read ({words}): run the explanation again.")
    if excluded:
        warnings.warn(f"explanations in {folder} are left out; {words}.", UserWarning, stacklevel=3)
    return shards


def _fit(tensors: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> bool:
    """Tell whether the tensors that two files have both are of the same type and number of axes."""
    pairs = [(tensors[name], first[name]) for name in tensors.keys() & first.keys()]
    return all(own.dtype == other.dtype and own.ndim == other.ndim for own, other in pairs)


def _few(names: Sequence[object]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(str, names[:5])) + rest


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors [n, ...], the shorter ones padded with NaN."""
    lengths = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [length - size for length, size in zip(lengths, part.shape[1:], strict=True)]
        pads = [pad for right in reversed(missing) for pad in (0, right)]
        padded.append(functional.pad(part, pads, value=float("nan")) if any(missing) else part)
    return torch.cat(padded)
