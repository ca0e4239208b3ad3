"""Chapter 1: importance, speed and synergy of the features of an input, by perturbing them."""

from lightning_xai.perturbation import kinds as kinds
from lightning_xai.perturbation import selection as selection
from lightning_xai.perturbation.importance import PerturbationImportance as PerturbationImportance
from lightning_xai.perturbation.importance import comb_classes as comb_classes
from lightning_xai.perturbation.importance import importance as importance
from lightning_xai.perturbation.importance import relative_importance as relative_importance
from lightning_xai.perturbation.regions import Segments as Segments
from lightning_xai.perturbation.regions import Windows as Windows
from lightning_xai.perturbation.speed import SlopeFit as SlopeFit
from lightning_xai.perturbation.speed import speed as speed
from lightning_xai.perturbation.synergy import interaction as interaction
from lightning_xai.perturbation.synergy import synergy as synergy
