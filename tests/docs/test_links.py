"""Every public name is defined by an equation, and every equation is computed by a public name."""

import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

import lightning_xai
from lightning_xai import results

ROOT = Path(__file__).parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


links = load(ROOT / "docs" / "_ext" / "equations.py")

MODULES = [
    "lightning_xai.scores",
    "lightning_xai.perturbation",
    "lightning_xai.perturbation.kinds",
    "lightning_xai.regions",
    "lightning_xai.relevance",
    "lightning_xai.relevance.rules",
    "lightning_xai.relevance.composites",
    "lightning_xai.units",
    "lightning_xai.evaluation",
    "lightning_xai.units.maximization",
    "lightning_xai.metrics",
]

# What computes nothing of its own, and why.
NO_QUANTITY = {
    "lightning_xai.callbacks.monitor.ExplanationMonitor": "runs metrics in a Trainer",
    "lightning_xai.callbacks.explain.explain": "runs metrics without a Trainer",
    "lightning_xai.callbacks.compare.compare": "runs metrics of several attributions",
    "lightning_xai.callbacks.writer.load_explanations": "reads what they wrote",
    "lightning_xai.figures.canvas.Pictures": "how pictures are drawn",
    "lightning_xai.figures.samples.preview": "draws regions",
    "lightning_xai.attribution.Attribution": "what the attributions share",
    "lightning_xai.attribution.ScoreAttribution": "what those share that have a score",
    "lightning_xai.attribution.Explanation": "carries what an attribution found",
    "lightning_xai.relevance.gradients.GradientAttribution": "what the gradient methods share",
    "lightning_xai.inputs.inputs.Inputs": "says what is explained",
    "lightning_xai.sites.Site": "says where it is explained",
    "lightning_xai.scores.target.as_target": "brings arguments into one form",
    "lightning_xai.scores.target.check_range": "checks arguments",
    "lightning_xai.scores.target.TargetRangeError": "says what it found",
    "lightning_xai.metrics.base.ExplanationMetric": "what the metrics share",
    "lightning_xai.metrics.base.BatchExplanation": "carries what a metric found",
    "lightning_xai.metrics.sweeps.update_together": "shares sweeps between metrics",
    "lightning_xai.metrics.synchronisation.compute_together": "shares the exchange between processes",
    "lightning_xai.regions.base.Regions": "what windows and segments share",
    "lightning_xai.regions.base.BoundRegions": "what windows and segments over one input share",
    "lightning_xai.regions.windows.BoundWindows": "Windows over one input",
    "lightning_xai.regions.segments.BoundSegments": "Segments over one input",
    "lightning_xai.regions.selection.Selection": "what the selections share",
    "lightning_xai.regions.windows.as_regions": "reads an argument",
    "lightning_xai.perturbation.kinds.base.as_perturbation": "reads an argument",
    "lightning_xai.relevance.composites.patterns.matches": "reads a pattern",
    "lightning_xai.relevance.composites.presets.as_composite": "reads an argument",
    "lightning_xai.relevance.rules.base.rules_for": "lists rules",
}


def resolve(name):
    """The object of a dotted name: what the package exports goes before a file of the same name."""
    found, parts = importlib.import_module(name.split(".")[0]), name.split(".")
    for count, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = importlib.import_module(".".join(parts[:count]))
            except ModuleNotFoundError as error:
                raise AttributeError(f"there is no {name}") from error
    return found


def home(found):
    """Where an object is defined: the same however it is exported."""
    return found.__name__ if inspect.ismodule(found) else f"{found.__module__}.{found.__qualname__}"


def public():
    """Every public class and function, by where it is defined."""
    names = {home(getattr(lightning_xai, name)) for name in lightning_xai.__all__}
    for module in map(importlib.import_module, MODULES):
        file = not hasattr(module, "__path__")
        for name, found in inspect.getmembers(module):
            if file and getattr(found, "__module__", None) != module.__name__:
                continue
            ours = (getattr(found, "__module__", None) or "").startswith("lightning_xai")
            ours = ours and not any(part.startswith("_") for part in found.__module__.split("."))
            if not name.startswith("_") and ours and (inspect.isclass(found) or inspect.isfunction(found)):
                names.add(home(found))
    return names


def without_equation(names, equations, excused):
    """The names that no equation is tied to."""
    tied = {home(resolve(name)) for equation in equations for name in equation.names}
    return sorted(set(names) - tied - set(excused))


def without_code(equations):
    """The equations that nothing is tied to."""
    return [equation.label for equation in equations if not equation.names]


EQUATIONS = links.all_equations(ROOT / "docs" / "definitions")


def test_every_public_name_has_an_equation():
    assert len(EQUATIONS) > 50
    assert without_equation(public(), EQUATIONS, NO_QUANTITY) == []


def test_every_equation_has_code_that_is_there():
    assert without_code(EQUATIONS) == []
    for equation in EQUATIONS:
        for name in equation.names:
            assert resolve(name) is not None, f"{equation.label}: {name}"


def test_labels_are_unique():
    labels = [equation.label for equation in EQUATIONS]
    assert len(set(labels)) == len(labels)


def test_only_what_is_there_and_has_no_equation_is_excused():
    assert sorted(set(NO_QUANTITY) - public()) == []
    tied = {home(resolve(name)) for equation in EQUATIONS for name in equation.names}
    assert sorted(set(NO_QUANTITY) & tied) == []


PAGE = """
.. math::
   :label: first

   a = b

:Code: :func:`~lightning_xai.perturbation.importance`, and
   :class:`~lightning_xai.metrics.Importance`
:Source: :class:`lightning_xai.perturbation.SlopeFit`

.. math::
   :label: second

   c = d

Nothing here.
"""


def test_the_test_can_fail():
    equations = links.equations_in(PAGE)
    assert [equation.names for equation in equations] == [
        ("lightning_xai.perturbation.importance", "lightning_xai.metrics.Importance"),
        (),
    ]
    assert without_code(equations) == ["second"]
    names = {"lightning_xai.perturbation.importance.importance", "lightning_xai.perturbation.speed.speed"}
    assert without_equation(names, equations, {}) == ["lightning_xai.perturbation.speed.speed"]
    with pytest.raises(AttributeError):
        resolve("lightning_xai.perturbation.nothing")


def test_a_docstring_is_told_its_equations():
    assert links.with_equations(["One line.", "", "More."], ["first"]) == [
        "One line.",
        "",
        "Defined in :eq:`first`.",
        "",
        "",
        "More.",
    ]
    assert links.as_text("Inputs [N, C, *S], |R x - x| and `|a|`.") == r"Inputs [N, C, \*S], \|R x - x\| and `|a|`."
    assert links.as_text("        score: s.") == r"        score: \s."
    assert links.as_text(r":math:`\lvert a \rvert * S` stays") == r":math:`\lvert a \rvert * S` stays"


def test_a_metric_is_told_its_results():
    declared = {"gap": results.Number("gap", "nats", "How far |a| is.", "gap", better="lower")}
    assert links.with_results(["One line."], declared)[-6:] == [
        "     - meaning",
        "   * - ``gap``",
        "     - gap, nats",
        "     - Number",
        "     - How far |a| is. Lower is better. :eq:`gap`",
        "",
    ]
