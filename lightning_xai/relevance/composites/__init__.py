"""Which rule where: ordered lists "pattern -> rule", and the presets of the literature."""

from lightning_xai.relevance.call import Operation as Operation
from lightning_xai.relevance.composites.patterns import Composite as Composite
from lightning_xai.relevance.composites.patterns import RuleList as RuleList
from lightning_xai.relevance.composites.patterns import first_match as first_match
from lightning_xai.relevance.composites.patterns import matches as matches
from lightning_xai.relevance.composites.presets import AttnLRP as AttnLRP
from lightning_xai.relevance.composites.presets import Deconvnet as Deconvnet
from lightning_xai.relevance.composites.presets import DeepTaylor as DeepTaylor
from lightning_xai.relevance.composites.presets import EpsilonAlpha2Beta1 as EpsilonAlpha2Beta1
from lightning_xai.relevance.composites.presets import EpsilonAlpha2Beta1Flat as EpsilonAlpha2Beta1Flat
from lightning_xai.relevance.composites.presets import EpsilonGammaBox as EpsilonGammaBox
from lightning_xai.relevance.composites.presets import EpsilonPlus as EpsilonPlus
from lightning_xai.relevance.composites.presets import EpsilonPlusFlat as EpsilonPlusFlat
from lightning_xai.relevance.composites.presets import ExcitationBackprop as ExcitationBackprop
from lightning_xai.relevance.composites.presets import GuidedBackprop as GuidedBackprop
