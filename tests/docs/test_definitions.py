"""Right under every equation stands an example that uses its code, and every figure of the site has its script."""

import ast
import doctest
import re
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.stem: path.read_text() for path in sorted((DOCS / "definitions").glob("*.rst"))}

LABEL = re.compile(r"^\s+:label: *(\S+)$", re.MULTILINE)
HEADING = re.compile(r"^(?:=+|-+|~+)$")
ROLE = re.compile(r":(?:func|class|meth|mod):`~?([\w.]+)`")
NAMED = re.compile(r"name ``\"(\w+)\"``")
# As many characters of code as a page shows before it scrolls.
WIDE = 92
# Between an equation and its example: what its letters mean, its fields, and a few words on the example.
WORDS = 3


class Example(NamedTuple):
    """An equation, the code it is tied to, and what stands right under it."""

    label: str
    names: tuple[str, ...]
    code: str


def examples_of(page):
    """Every equation of a page with the example right under it; its code is empty if there is none."""
    blocks = re.split(r"\n\s*\n", page)
    found = []
    for start, block in enumerate(blocks):
        if not block.startswith(".. math::"):
            continue
        label = LABEL.search(block)
        names, code, words = (), "", 0
        for after in blocks[start + 1 :]:
            if after.startswith(">>>"):
                code = after
                break
            title = any(HEADING.match(line) for line in after.splitlines())
            words += not after.startswith((" ", ":"))
            if after.startswith("..") or title or words > WORDS:
                break
            if after.startswith(":Code:"):
                names = (*ROLE.findall(after), *NAMED.findall(after))
        found.append(Example(label[1] if label else "", names, code))
    return found


def used(source, known):
    """Every name and word of some lines of Python, and of the lines that have defined the names they use."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            found |= {node.id} | known.get(node.id, set())
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def defined(source):
    """The names that some lines of Python define."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def words_of(page):
    """What each block of examples of a page uses, by its text."""
    parser, known, found = doctest.DocTestParser(), {}, {}
    for block in re.split(r"\n\s*\n", page):
        if block.startswith(">>>"):
            words = set()
            for example in parser.get_examples(block + "\n"):
                reached = used(example.source, known)
                words |= reached
                known.update(dict.fromkeys(defined(example.source), reached))
            found[block] = words
    return found


def snake(name):
    """CamelCase as a score or a result is called: comb_classes for CombClasses."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def without_example(page):
    """The equations of a page that have no label, or no example of their code right under them."""
    words, lacking = words_of(page), []
    for found in examples_of(page):
        last = [name.rpartition(".")[2] for name in found.names]
        asked = {*last, *map(snake, last)}
        if not found.label or not found.code or not asked & words[found.code]:
            lacking.append(found.label or "an equation without a label")
    return lacking


def figures_of(page):
    """The scripts of a page's figures, and what each lacks: a text in its place, or a caption."""
    scripts, lacking = [], []
    for part in re.split(r"^\.\. plot:: *", page, flags=re.MULTILINE)[1:]:
        script, _, rest = part.partition("\n")
        options, _, caption = rest.partition("\n\n")
        scripts.append(script.strip())
        if ":alt:" not in options or not re.match(r" +\S", caption):
            lacking.append(script.strip())
    return scripts, lacking


def sections_without_figure(page):
    """The sections of a page that have an equation but no figure, their subsections included."""
    parts = re.split(r"^(.+)\n-+$", page, flags=re.MULTILINE)
    bodies = zip(parts[1::2], parts[2::2], strict=True)
    return [title for title, body in bodies if ".. math::" in body and ".. plot::" not in body]


def too_wide(page):
    """The lines of examples whose ends a reader does not see."""
    return [line for line in page.splitlines() if line.startswith((">>> ", "... ")) and len(line) > WIDE]


def test_right_under_every_equation_stands_an_example_of_its_code():
    assert sum(len(examples_of(page)) for page in PAGES.values()) > 100
    assert {name: lacking for name, page in PAGES.items() if (lacking := without_example(page))} == {}


def test_every_example_can_be_read_to_its_end():
    assert [line for page in PAGES.values() for line in too_wide(page)] == []


def test_every_figure_is_described_and_every_script_is_shown():
    shown, lacking = [], []
    for page in PAGES.values():
        scripts, poor = figures_of(page)
        shown, lacking = shown + scripts, lacking + poor
    assert lacking == []
    assert len(set(shown)) == len(shown)
    others = "".join(path.read_text() for folder in (DOCS, DOCS / "guides") for path in folder.glob("*.md"))
    scripts = {path.name for path in (DOCS / "figures").glob("*.py")} - {"style.py"}
    assert set(shown) - scripts == set()
    assert [script for script in scripts - set(shown) if script not in others] == []


# Its rules are drawn beside those for linear operations, on the same neuron.
DRAWN_ELSEWHERE = ["Rules for the first layer"]


def test_every_section_with_an_equation_has_a_figure():
    assert [title for page in PAGES.values() for title in sections_without_figure(page)] == DRAWN_ELSEWHERE


BROKEN = """
Page
====

>>> def helper():
...     return speed(1)

Shown
-----

.. math::
   :label: held

   a = b

where the letters mean something.

:Code: :func:`~lightning_xai.perturbation.speed`
:Sign: none

A word on the example:

>>> helper()

.. plot:: shown.py
   :alt: A line.

   A line.

Broken
------

.. math::
   :label: nothing-under-it

   c = d

:Code: :func:`~lightning_xai.perturbation.synergy`

.. math::
   :label: another-code

   e = f

:Code: :class:`~lightning_xai.scores.CombClasses`

>>> read("margin")

.. math::
   :label: after-a-heading

   g = h

:Code: :func:`~lightning_xai.perturbation.speed`

Next
----

>>> speed(1)

.. math:: i = j

.. plot:: bare.py

   A caption.

.. plot:: silent.py
   :alt: Something.
"""


def test_the_tests_can_fail():
    assert without_example(BROKEN) == [
        "nothing-under-it",
        "another-code",
        "after-a-heading",
        "an equation without a label",
    ]
    assert without_example(BROKEN.replace('read("margin")', 'read("comb_classes")'))[1] == "after-a-heading"
    assert figures_of(BROKEN) == (["shown.py", "bare.py", "silent.py"], ["bare.py", "silent.py"])
    assert sections_without_figure(BROKEN) == ["Broken"]
    assert too_wide(BROKEN) == []
    assert too_wide(f"{BROKEN}>>> {'a' * WIDE}\n") == [f">>> {'a' * WIDE}"]
