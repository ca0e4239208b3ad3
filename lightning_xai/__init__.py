"""What did my network look at, and what do its units do: explanations for PyTorch Lightning."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_xai.callbacks.explain import explain as explain
    from lightning_xai.callbacks.monitor import ExplanationMonitor as ExplanationMonitor
    from lightning_xai.callbacks.writer import load_explanations as load_explanations
    from lightning_xai.figures import Pictures as Pictures
    from lightning_xai.figures import preview as preview
    from lightning_xai.regions import Segments as Segments
    from lightning_xai.regions import Windows as Windows

__version__ = "0.1.0"

_HOMES = {
    "ExplanationMonitor": "lightning_xai.callbacks.monitor",
    "Pictures": "lightning_xai.figures",
    "Segments": "lightning_xai.regions",
    "Windows": "lightning_xai.regions",
    "explain": "lightning_xai.callbacks.explain",
    "load_explanations": "lightning_xai.callbacks.writer",
    "preview": "lightning_xai.figures",
}
__all__ = ["ExplanationMonitor", "Pictures", "Segments", "Windows", "explain", "load_explanations", "preview"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lightning_xai' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def _find_conf() -> None:
    """A wheel carries the configs as ``lightning_xai.conf``; a checkout keeps them at its top, under the same name."""
    here = Path(__file__).parent
    source = here.parent / "conf" / "__init__.py"
    if (here / "conf").is_dir() or not source.is_file():
        return
    spec = importlib.util.spec_from_file_location(
        "lightning_xai.conf", source, submodule_search_locations=[str(source.parent)]
    )
    if spec is not None:
        globals()["conf"] = sys.modules.setdefault("lightning_xai.conf", importlib.util.module_from_spec(spec))


_find_conf()
