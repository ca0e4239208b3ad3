"""Chapter 3: what single units and groups of units do."""

from lightning_xai.units.ablation import Ablated as Ablated
from lightning_xai.units.ablation import ablate_units as ablate_units
from lightning_xai.units.activation import Threshold as Threshold
from lightning_xai.units.activation import activation_threshold as activation_threshold
from lightning_xai.units.counts import Pair as Pair
from lightning_xai.units.counts import Reactivation as Reactivation
from lightning_xai.units.counts import Report as Report
from lightning_xai.units.dissection import Concepts as Concepts
from lightning_xai.units.dissection import Dissected as Dissected
from lightning_xai.units.dissection import dissect as dissect
from lightning_xai.units.field import ReceptiveField as ReceptiveField
from lightning_xai.units.field import receptive_field as receptive_field
from lightning_xai.units.groups import NMF as NMF
from lightning_xai.units.groups import CoActivation as CoActivation
from lightning_xai.units.groups import CoReactivation as CoReactivation
from lightning_xai.units.groups import UnitGroups as UnitGroups
from lightning_xai.units.groups import co_activation as co_activation
from lightning_xai.units.groups import co_reactivation as co_reactivation
from lightning_xai.units.groups import group_units as group_units
from lightning_xai.units.groups import strongest_pairs as strongest_pairs
from lightning_xai.units.maximization import deep_dream as deep_dream
from lightning_xai.units.maximization import maximize_activation as maximize_activation
from lightning_xai.units.reactivation import reactivation as reactivation
from lightning_xai.units.search import Strongest as Strongest
from lightning_xai.units.search import top_samples as top_samples
from lightning_xai.units.search import unit_activations as unit_activations
