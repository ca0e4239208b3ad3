from lightning_xai.callbacks.compare import compare as compare
from lightning_xai.callbacks.explain import explain as explain
from lightning_xai.callbacks.monitor import ExplanationMonitor as ExplanationMonitor
from lightning_xai.callbacks.writer import load_explanations as load_explanations
from lightning_xai.figures import Pictures as Pictures
from lightning_xai.figures import preview as preview
from lightning_xai.inputs import Inputs as Inputs
from lightning_xai.regions import Segments as Segments
from lightning_xai.regions import Windows as Windows
from lightning_xai.sites import Site as Site

__version__: str
