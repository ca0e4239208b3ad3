"""The gallery's examples: copied to where they may write, and the pictures that they wrote."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from sphinx_gallery.scrapers import figure_rst


def titled(source: str) -> str:
    r"""An example whose docstring starts with a title: its first sentence or question.

    >>> print(titled('\"\"\"What is it? Some data.\\n\\nMore.\"\"\"'))
    \"\"\"What is it?
    ===========
    <BLANKLINE>
    Some data.
    <BLANKLINE>
    More.\"\"\"
    """
    first, _, rest = source.removeprefix('"""').partition("\n")
    # Of several questions the first: "What do the units detect, and ..." is long for a title.
    end = re.search(r"[?.](?= |$)|$", first).end()
    title, left = first[:end].rstrip("."), first[end:].lstrip()
    return f'"""{title}\n{"=" * len(title)}\n\n{left}\n{rest}'


def copied(source: Path, target: Path) -> str:
    """A fresh copy of the examples; its path."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copy(source / "GALLERY_HEADER.rst", target)
    for example in sorted(source.glob("*.py")):
        (target / example.name).write_text(titled(example.read_text()))
    return str(target)


def written(_block: Any, variables: dict[str, Any], conf: dict[str, Any]) -> str:
    """The pictures that a block has written beside its script, moved into the gallery."""
    script = Path(variables["src_file"])
    pictures = sorted(script.parent.glob("*.png"), key=lambda path: path.stat().st_mtime)
    paths = variables["image_path_iterator"]
    targets = [shutil.move(picture, path) for picture, path in zip(pictures, paths, strict=False)]
    titles = [(Path(picture).stem.replace("_", " ")) for picture in pictures]
    return figure_rst(targets, conf["src_dir"], ", ".join(titles))
