"""Chapter 2: how the output is shared out over the input."""

from lightning_xai.relevance.cam import CAM as CAM
from lightning_xai.relevance.cam import AblationCAM as AblationCAM
from lightning_xai.relevance.cam import GradCAM as GradCAM
from lightning_xai.relevance.cam import GradCAMPlusPlus as GradCAMPlusPlus
from lightning_xai.relevance.cam import HiResCAM as HiResCAM
from lightning_xai.relevance.cam import LayerCAM as LayerCAM
from lightning_xai.relevance.cam import ScoreCAM as ScoreCAM
from lightning_xai.relevance.cam import XGradCAM as XGradCAM
from lightning_xai.relevance.gradients import GradientXInput as GradientXInput
from lightning_xai.relevance.gradients import Saliency as Saliency
from lightning_xai.relevance.gradients import Sensitivity as Sensitivity
from lightning_xai.relevance.integrated import IntegratedGradients as IntegratedGradients
from lightning_xai.relevance.pooling import pool_channels as pool_channels
from lightning_xai.relevance.pooling import pool_features as pool_features
from lightning_xai.relevance.smooth import SmoothGrad as SmoothGrad
from lightning_xai.relevance.smooth import SquareGrad as SquareGrad
from lightning_xai.relevance.smooth import VarGrad as VarGrad
from lightning_xai.relevance.taylor import SimpleTaylor as SimpleTaylor
