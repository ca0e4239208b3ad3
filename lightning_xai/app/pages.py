"""Rendering shared by all pages: templates, numbers and pictures."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lightning_xai._files import write_text


def format_number(number: float | None, error: float | None = None) -> str:
    """Format counts in full, and measures with four digits, with their standard error if there is one.

    >>> format_number(12345), format_number(0.123456), format_number(None), format_number(0.5, 0.0123)
    ('12,345', '0.1235', 'nan', '0.5 ± 0.012')
    """
    if number is None:
        return "nan"
    text = f"{number:,}" if isinstance(number, int) else f"{number:.4g}"
    return text if error is None or math.isnan(error) else f"{text} ± {error:.2g}"


def render_page(path: Path, **content: Any) -> Path:
    """Write a page: its template is named like it."""
    environment = Environment(
        loader=PackageLoader("lightning_xai.app"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["digits"] = format_number
    write_text(path, environment.get_template(f"{path.name}.jinja").render(content))
    return path


def embedded_png(image: bytes) -> str:
    """Write a PNG as the source of an image."""
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"
