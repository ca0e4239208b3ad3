"""The quantities of the chapters as torchmetrics metrics."""

from lightning_xai.metrics.ablation import UnitAblation as UnitAblation
from lightning_xai.metrics.activation import ActivationThreshold as ActivationThreshold
from lightning_xai.metrics.base import BatchExplanation as BatchExplanation
from lightning_xai.metrics.base import ExplanationMetric as ExplanationMetric
from lightning_xai.metrics.dissection import Dissection as Dissection
from lightning_xai.metrics.importance import Importance as Importance
from lightning_xai.metrics.reactivation import Reactivation as Reactivation
from lightning_xai.metrics.relevance import Relevance as Relevance
from lightning_xai.metrics.search import TopSamples as TopSamples
from lightning_xai.metrics.speed import Speed as Speed
from lightning_xai.metrics.sweeps import update_together as update_together
from lightning_xai.metrics.synchronisation import compute_together as compute_together
from lightning_xai.metrics.synergy import Synergy as Synergy
