"""Write small inventories of the names that the site links to, so that it builds without a network.

``python docs/inventories/make.py`` after adding a name. The addresses are those of the projects' stable documentation.
"""

from __future__ import annotations

import zlib
from pathlib import Path

PYTHON = {
    "py:class": {
        "collections.abc.Callable": "library/collections.abc.html",
        "collections.abc.Collection": "library/collections.abc.html",
        "collections.abc.Iterable": "library/collections.abc.html",
        "collections.abc.Iterator": "library/collections.abc.html",
        "collections.abc.Mapping": "library/collections.abc.html",
        "collections.abc.MutableMapping": "library/collections.abc.html",
        "collections.abc.Sequence": "library/collections.abc.html",
        "contextlib.AbstractContextManager": "library/contextlib.html",
        "dict": "library/stdtypes.html",
        "bool": "library/functions.html",
        "float": "library/functions.html",
        "int": "library/functions.html",
        "list": "library/stdtypes.html",
        "object": "library/functions.html",
        "pathlib.Path": "library/pathlib.html",
        "slice": "library/functions.html",
        "str": "library/stdtypes.html",
        "tuple": "library/stdtypes.html",
        "type": "library/functions.html",
        "abc.ABC": "library/abc.html",
        "BaseException": "library/exceptions.html",
    },
    "py:exception": {
        name: "library/exceptions.html"
        for name in ("IndexError", "KeyError", "RuntimeError", "TypeError", "ValueError", "FileNotFoundError")
    },
    "py:data": {
        "None": "library/constants.html",
        "typing.Any": "library/typing.html",
        "typing.Literal": "library/typing.html",
        "typing.NamedTuple": "library/typing.html",
    },
}
TORCH = {
    "py:class": {
        "Tensor": "tensors.html#torch.Tensor",
        "torch.Tensor": "tensors.html",
        "torch._C.Generator": "generated/torch.Generator.html#torch.Generator",
        "torch.Generator": "generated/torch.Generator.html",
        "torch.device": "tensor_attributes.html",
        "torch.dtype": "tensor_attributes.html",
        "nn.Module": "generated/torch.nn.Module.html#torch.nn.Module",
        "torch.nn.Module": "generated/torch.nn.Module.html",
        "torch.nn.modules.module.Module": "generated/torch.nn.Module.html#torch.nn.Module",
    },
}
LIGHTNING = {
    "py:class": {
        "lightning.pytorch.callbacks.callback.Callback": "api/lightning.pytorch.callbacks.Callback.html",
        "lightning.pytorch.core.module.LightningModule": "common/lightning_module.html",
        "lightning.pytorch.trainer.trainer.Trainer": "common/trainer.html",
    },
}
TORCHMETRICS = {"py:class": {"torchmetrics.metric.Metric": "references/metric.html"}}
MATPLOTLIB = {
    "py:class": {
        name: "api/figure_api.html#matplotlib.figure.Figure" for name in ("Figure", "matplotlib.figure.Figure")
    }
}

INVENTORIES = {
    "python": PYTHON,
    "torch": TORCH,
    "lightning": LIGHTNING,
    "torchmetrics": TORCHMETRICS,
    "matplotlib": MATPLOTLIB,
}


def inventory(project: str, names: dict[str, dict[str, str]]) -> bytes:
    """An inventory of version 2: a header, then one compressed line per name."""
    header = (
        "# Sphinx inventory version 2\n"
        f"# Project: {project}\n# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    lines = [
        f"{name} {kind} 1 {address if '#' in address else f'{address}#$'} -\n"
        for kind, entries in names.items()
        for name, address in entries.items()
    ]
    return header.encode() + zlib.compress("".join(lines).encode(), 9)


if __name__ == "__main__":
    for project, names in INVENTORIES.items():
        (Path(__file__).parent / f"{project}.inv").write_bytes(inventory(project, names))
