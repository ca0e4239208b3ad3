"""Tensors to pictures. Matplotlib is imported when the first picture is drawn, and never its global state."""

from lightning_xai.figures.canvas import Pictures as Pictures
from lightning_xai.figures.canvas import save as save
from lightning_xai.figures.relevance import draw_heat_map as draw_heat_map
from lightning_xai.figures.results import draw_results as draw_results
from lightning_xai.figures.samples import draw_samples as draw_samples
from lightning_xai.figures.samples import preview as preview
from lightning_xai.figures.units import draw_crops as draw_crops
from lightning_xai.figures.units import draw_maximized as draw_maximized
from lightning_xai.figures.units import draw_units as draw_units
