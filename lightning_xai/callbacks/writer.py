"""Per-sample explanations on disk: one safetensors file per process and batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

_SHARDS = "rank*-*.safetensors"


class ShardWriter:
    """Writes what one process found, a file per batch: ``rank<R>-<n>.safetensors``.

    Args:
        folder: Where the files go; made with the first one.
        rank: The process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.rank = rank
        self.written = 0

    def write(self, tensors: Mapping[str, Tensor]) -> Path:
        """Write per-sample tensors [N, ...]; ``sample_id`` must be among them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank{self.rank}-{self.written}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        self.written += 1
        return path

    def remove(self) -> None:
        """Remove what was written; the folder too if nothing else is in it."""
        _remove(self.folder, f"rank{self.rank}-*.safetensors")


def remove_explanations(folder: Path) -> None:
    """Remove the files of an earlier run, so that they are not read as part of this one; nothing below the folder."""
    _remove(folder, _SHARDS)


def _remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def load_explanations(folder: str | Path) -> dict[str, Tensor]:
    """Load everything that was written to a folder, ordered by sample.

    Args:
        folder: ``<run>/explanations/<stage>-epoch<E>``.

    Returns:
        Tensors [N, ...] by name: ``sample_id``, ``target``, ``prediction``, ``input``, and ``<metric>/<tensor>``.
        Where segments differ from sample to sample, features that a batch does not have are NaN.

    Raises:
        FileNotFoundError: If there are no explanations; the folders that have some are named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     writer = ShardWriter(Path(folder), rank=1)
    ...     _ = writer.write({"sample_id": torch.tensor([3, 1]), "lime": torch.tensor([[0.3], [0.1]])})
    ...     load_explanations(folder)
    {'lime': tensor([[0.1000], [0.3000]]), 'sample_id': tensor([1, 3])}
    """
    folder = Path(folder)
    files = sorted(folder.glob(_SHARDS))
    if not files:
        others = sorted({str(path.parent) for path in folder.glob(f"**/{_SHARDS}")})
        hint = f" There are some in {', '.join(others)}." if others else ""
        raise FileNotFoundError(f"no explanations ({_SHARDS}) in {folder}.{hint}")
    shards = [load_file(path) for path in files]
    joined = {name: _joined([shard[name] for shard in shards]) for name in sorted(shards[0])}
    order = joined["sample_id"].argsort()
    return {name: tensor[order] for name, tensor in joined.items()}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors [n, ...], the shorter ones padded with NaN."""
    lengths = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [length - size for length, size in zip(lengths, part.shape[1:], strict=True)]
        pads = [pad for right in reversed(missing) for pad in (0, right)]
        padded.append(functional.pad(part, pads, value=float("nan")) if any(missing) else part)
    return torch.cat(padded)
