"""Ties the equations of the definitions to the code, both ways, and shows what metrics declare of their results.

Under every labelled equation of ``docs/definitions`` a field ``:Code:`` names what computes it. That is the only place
where the two are tied: the equations of a name are read off it and written into the name's docstring on the API pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

_EQUATION = re.compile(r"^( *)\.\. math::.*\n(?:\1 +:\w+:.*\n)*?\1 +:label: *(\S+)", re.MULTILINE)
_CODE = re.compile(r"^:Code: *(.*(?:\n +\S.*)*)", re.MULTILINE)
_ROLE = re.compile(r":(?:func|class|meth|mod|attr|obj):`~?([\w.]+)`")
# `*S` in a docstring is the spatial axes, not the start of emphasis.
_AXES = re.compile(r"(?<![\\*`\w])\*(?=[A-Z]\b|\w+\])")
# `|R x - x|` in a docstring is a magnitude, not a substitution; what stands in backticks is left alone.
_MAGNITUDE = re.compile(r"(`[^`]*`)|\|(\w(?:[^|`\\]*\w)?)\|")
# `score: s.` in a docstring is a letter, not the start of a list.
_LETTER = re.compile(r"(?<=: )(?=\w\.$)")


class Equation(NamedTuple):
    """A labelled equation and the public names that compute it."""

    label: str
    page: str
    names: tuple[str, ...]


def equations_in(text: str, page: str = "") -> list[Equation]:
    """The labelled equations of a page and the names in the ``:Code:`` fields that follow each of them."""
    matches = list(_EQUATION.finditer(text))
    ends = [*(match.start() for match in matches), len(text)][1:]
    found = []
    for match, end in zip(matches, ends, strict=False):
        fields = _CODE.findall(text[match.end() : end])
        names = [name for field in fields for name in _ROLE.findall(field)]
        found.append(Equation(match[2], page, tuple(dict.fromkeys(names))))
    return found


def all_equations(folder: Path) -> list[Equation]:
    """The equations of all pages of a folder."""
    return [found for page in sorted(folder.glob("*.rst")) for found in equations_in(page.read_text(), page.stem)]


def labels_by_name(equations: Iterable[Equation]) -> dict[str, list[str]]:
    """The labels of the equations that each name computes."""
    found: dict[str, list[str]] = {}
    for equation in equations:
        for name in equation.names:
            found.setdefault(name, []).append(equation.label)
    return found


def with_equations(lines: list[str], labels: list[str]) -> list[str]:
    """A docstring with its equations named after the first paragraph."""
    if not labels:
        return lines
    first = next((index for index, line in enumerate(lines) if not line.strip()), len(lines))
    roles = ", ".join(f":eq:`{label}`" for label in labels)
    return [*lines[:first], "", f"Defined in {roles}.", "", *lines[first:]]


def with_results(lines: list[str], results: Mapping[str, Any]) -> list[str]:
    """A metric's docstring with a table of the results that it declares, and of the equations that define them."""
    table = ["", ".. list-table:: What ``compute()`` gives", "   :header-rows: 1", ""]
    table += ["   * - key", "     - what it is", "     - shape", "     - meaning"]
    for key, result in results.items():
        better = f" {result.better.capitalize()} is better." if result.better else ""
        equation = f" :eq:`{result.equation}`" if result.equation else ""
        shape = f"{type(result).__name__}{', per ' + ' and '.join(result.axes) if result.axes else ''}"
        cells = [f"``{key}``", result.label.replace("|", r"\|"), shape, f"{result.meaning}{better}{equation}"]
        table += [f"   {'*' if cell is cells[0] else ' '} - {cell}" for cell in cells]
    return [*lines, *table, ""]


def as_text(line: str) -> str:
    """A line of a docstring in which mathematical signs do not read as markup."""
    code = line.lstrip().startswith((">>>", "...", ".. math"))
    if code or "\\" in line.replace("\\*", ""):
        return line
    line = _MAGNITUDE.sub(lambda match: match[1] or rf"\|{match[2]}\|", line)
    return _LETTER.sub(r"\\", _AXES.sub(r"\\*", line))


def nearest(target: str, known: Iterable[str], context: str) -> str | None:
    """Which documented name a short one in a docstring means: the one that shares most of its path with the context."""
    ending = [name for name in known if name.endswith(f".{target}")]

    def shared(name: str) -> int:
        pairs = zip(name.split("."), context.split("."), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    return max(ending, key=lambda name: (shared(name), -len(name)), default=None)


def meant(env: Any, node: Any) -> str | None:
    """The documented name that a short one in a docstring means, e.g. ``Ascent`` beside the function that takes it."""
    if node.get("refdomain") != "py" or node["reftarget"].startswith("lightning_xai."):
        return None
    context = ".".join(part for part in (node.get("py:module"), node.get("py:class")) if part)
    return nearest(node["reftarget"], env.get_domain("py").objects, context)


def setup(app: Any) -> dict[str, Any]:
    """Write the equations into the docstrings."""
    known: dict[str, list[str]] = {}

    def missing(app: Any, env: Any, node: Any, content: Any) -> Any:
        from sphinx.util.nodes import make_refnode

        name = meant(env, node)
        if name is None:
            return None
        found = env.get_domain("py").objects[name]
        return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, content, name)

    def read(app: Any) -> None:
        known.update(labels_by_name(all_equations(Path(app.srcdir) / "definitions")))

    def process(_app: Any, _what: str, name: str, obj: Any, _options: Any, lines: list[str]) -> None:
        lines[:] = with_equations([as_text(line) for line in lines], known.get(name, []))
        results = getattr(obj, "results", None)
        if isinstance(obj, type) and isinstance(results, Mapping):
            lines[:] = with_results(lines, results)

    def skip(_app: Any, _what: str, _name: str, obj: Any, _skip: bool, _options: Any) -> bool | None:
        # The fields of a named tuple are described with the class.
        return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None

    app.connect("builder-inited", read)
    app.connect("missing-reference", missing)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", process, priority=400)  # before the sections are read
    return {"parallel_read_safe": True, "parallel_write_safe": True}
