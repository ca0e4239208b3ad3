"""Maximisation: inputs that a class, a unit, a group or a direction responds to most, and DeepDream."""

from lightning_xai.units.maximization.ascent import Ascent as Ascent
from lightning_xai.units.maximization.ascent import MaximizationResult as MaximizationResult
from lightning_xai.units.maximization.ascent import maximize_activation as maximize_activation
from lightning_xai.units.maximization.ascent import robust as robust
from lightning_xai.units.maximization.dream import Dream as Dream
from lightning_xai.units.maximization.dream import deep_dream as deep_dream
from lightning_xai.units.maximization.images import L2 as L2
from lightning_xai.units.maximization.images import Blurred as Blurred
from lightning_xai.units.maximization.images import Bounds as Bounds
from lightning_xai.units.maximization.images import Fourier as Fourier
from lightning_xai.units.maximization.images import Jitter as Jitter
from lightning_xai.units.maximization.images import Parametrization as Parametrization
from lightning_xai.units.maximization.images import Pixel as Pixel
from lightning_xai.units.maximization.images import Regularizer as Regularizer
from lightning_xai.units.maximization.images import Rotate as Rotate
from lightning_xai.units.maximization.images import Scale as Scale
from lightning_xai.units.maximization.images import TotalVariation as TotalVariation
from lightning_xai.units.maximization.images import Transform as Transform
from lightning_xai.units.maximization.images import channel_mixing as channel_mixing
from lightning_xai.units.maximization.objectives import ClassScore as ClassScore
from lightning_xai.units.maximization.objectives import Direction as Direction
from lightning_xai.units.maximization.objectives import Energy as Energy
from lightning_xai.units.maximization.objectives import Group as Group
from lightning_xai.units.maximization.objectives import Objective as Objective
from lightning_xai.units.maximization.objectives import Unit as Unit
