r"""The perturbations :math:`R`: what happens to the values of a feature.

A kind is a frozen dataclass with one method. Letters: :math:`v` the value of a cell, :math:`b` the bias. Every kind
takes ``channels=`` to leave the other channels as they are. Random kinds draw from generators keyed by their seed and
the sample's id, so a sample is perturbed the same way in any batch and on any process.
"""

from lightning_xai.perturbation.kinds.base import Keys as Keys
from lightning_xai.perturbation.kinds.base import Perturbation as Perturbation
from lightning_xai.perturbation.kinds.base import WindowPerturbation as WindowPerturbation
from lightning_xai.perturbation.kinds.given import ClassInterchange as ClassInterchange
from lightning_xai.perturbation.kinds.given import Custom as Custom
from lightning_xai.perturbation.kinds.given import CustomSum as CustomSum
from lightning_xai.perturbation.kinds.given import Replace as Replace
from lightning_xai.perturbation.kinds.pointwise import Bidirectional as Bidirectional
from lightning_xai.perturbation.kinds.pointwise import Binary as Binary
from lightning_xai.perturbation.kinds.pointwise import Constant as Constant
from lightning_xai.perturbation.kinds.pointwise import Exp as Exp
from lightning_xai.perturbation.kinds.pointwise import Gaussian as Gaussian
from lightning_xai.perturbation.kinds.pointwise import Inverse as Inverse
from lightning_xai.perturbation.kinds.pointwise import LeakyReLU as LeakyReLU
from lightning_xai.perturbation.kinds.pointwise import Log as Log
from lightning_xai.perturbation.kinds.pointwise import LowerThreshold as LowerThreshold
from lightning_xai.perturbation.kinds.pointwise import Negative as Negative
from lightning_xai.perturbation.kinds.pointwise import Offset as Offset
from lightning_xai.perturbation.kinds.pointwise import Positive as Positive
from lightning_xai.perturbation.kinds.pointwise import ReLU as ReLU
from lightning_xai.perturbation.kinds.pointwise import Sigmoid as Sigmoid
from lightning_xai.perturbation.kinds.pointwise import Sinusoidal as Sinusoidal
from lightning_xai.perturbation.kinds.pointwise import Softplus as Softplus
from lightning_xai.perturbation.kinds.pointwise import Tanh as Tanh
from lightning_xai.perturbation.kinds.pointwise import UpperThreshold as UpperThreshold
from lightning_xai.perturbation.kinds.random import GaussianNoise as GaussianNoise
from lightning_xai.perturbation.kinds.random import Permute as Permute
from lightning_xai.perturbation.kinds.random import RandomScale as RandomScale
from lightning_xai.perturbation.kinds.random import UniformNoise as UniformNoise
from lightning_xai.perturbation.kinds.spatial import Blur as Blur
from lightning_xai.perturbation.kinds.spatial import ChannelMean as ChannelMean
from lightning_xai.perturbation.kinds.spatial import LocalMean as LocalMean
