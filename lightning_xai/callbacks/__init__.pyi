from lightning_xai.callbacks.explain import explain as explain
from lightning_xai.callbacks.monitor import ExplanationMonitor as ExplanationMonitor
from lightning_xai.callbacks.writer import load_explanations as load_explanations
