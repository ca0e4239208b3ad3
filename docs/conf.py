"""How the site is built: ``sphinx-build -W --keep-going -n docs docs/_build/html``, without a network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import tomllib

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TQDM_DISABLE"] = "1"  # no progress bars among the output of the examples

import gallery  # noqa: E402 - stands in _ext

project = "lightning_xai"
author = "The lightning_xai authors"
copyright = author
with (HERE.parent / "pyproject.toml").open("rb") as file:
    release = version = tomllib.load(file)["project"]["version"]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "matplotlib.sphinxext.plot_directive",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "sphinx_gallery.gen_gallery",
    "equations",
]
exclude_patterns = [
    "_build",
    "_static",
    "figures",
    "gallery/**/*.md5",
    "gallery/*.ipynb",
    "gallery/*.py",
    "gallery/*.json",
    "gallery/*.zip",
]

# Equations are numbered chapter by chapter and can be cited from anywhere.
numfig = True
math_numfig = True
math_eqref_format = "({number})"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False  # "Returns:" starts with words, not with a type
napoleon_custom_sections = [("Class attributes", "params_style")]
add_module_names = False
toc_object_entries_show_parents = "hide"
nitpicky = True
# Aliases of types, and what lies underneath the documented names.
_UNDERNEATH = "Reference Bound Layer RegionsLike ScoreLike Target Ids Weights Trace LinearCall Function"
_EVALUATION = "MapLike InputsLike ExplainedBatch FeatureMap CurveSets CoreRequests SweepUse Unpack"
_OPTIONS = "CurveOptions DropOptions MaskOptions SubsetOptions"
_PLACES = """SubFigure dict[str collections.abc.Hashable AblationPlan lightning_xai.scores.target.BoundTarget
lightning_xai.sites.Place lightning_xai.inputs.bound_model.Arguments
lightning_xai.units.dissection.Overlap lightning_xai.units.ablation.AblationPlan"""
nitpick_ignore = [("py:class", name) for name in f"{_UNDERNEATH} {_EVALUATION} {_OPTIONS} {_PLACES}".split()]
nitpick_ignore_regex = [(r"py:\w+", r"lightning_xai\.([\w.]+\.)?_\w+"), (r"py:class", r".*~typing\.Any")]

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "unsrt"

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "torch": ("https://docs.pytorch.org/docs/stable", "inventories/torch.inv"),
    "lightning": ("https://lightning.ai/docs/pytorch/stable", "inventories/lightning.inv"),
    "torchmetrics": ("https://lightning.ai/docs/torchmetrics/stable", "inventories/torchmetrics.inv"),
    "matplotlib": ("https://matplotlib.org/stable", "inventories/matplotlib.inv"),
}

# The browser gets MathJax from the site itself.
mathjax_path = "mathjax/tex-svg-full.js"
mathjax3_config = {
    "tex": {"macros": {"argmax": r"\mathop{\mathrm{arg\,max}}\limits", "sign": r"\operatorname{sign}"}},
    "options": {"enableMenu": False},
}

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3

plot_html_show_formats = False
plot_html_show_source_link = False
plot_formats = [("svg", 100)]
plot_basedir = "figures"
plot_working_directory = str(HERE / "figures")
plot_rcparams = {"svg.fonttype": "none"}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# The examples write their pictures where they run, so they run in a copy.
sphinx_gallery_conf = {
    "examples_dirs": [gallery.copied(HERE.parent / "examples", HERE / "_build" / "examples")],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"\.py",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": (gallery.written,),
    "reset_modules": (),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 0,
    "remove_config_comments": True,
    "plot_gallery": "True",
}
suppress_warnings = ["config.cache", "ref.python"]  # the scraper is a function; bases are exported in two places

html_theme = "furo"
html_title = "lightning_xai"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1b5e9a", "color-brand-content": "#1b5e9a"},
    "dark_css_variables": {"color-brand-primary": "#7fb8ea", "color-brand-content": "#7fb8ea"},
}
