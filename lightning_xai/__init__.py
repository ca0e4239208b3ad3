"""What did my network look at, and what do its units do: explanations for PyTorch Lightning."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from lightning_xai._lazy import lazy

__version__ = "0.1.0"
__all__ = lazy(__name__)


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
