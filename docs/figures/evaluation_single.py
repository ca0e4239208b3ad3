from style import digit, network, subplots

from lightning_xai import Windows
from lightning_xai.evaluation import feature_drops
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import LRP, GradientXInput, Saliency

model, image = network(), digit(4)
how = {"regions": Windows(4), "perturbation": kinds.Constant(0.0), "score": "logit"}
figure, axes = subplots(1, 3, height=2.3, sharey=True)
methods = {"LRP": LRP(), "gradient × input": GradientXInput(), "saliency": Saliency()}
for panel, (name, method) in zip(axes, methods.items(), strict=True):
    found = feature_drops(model, image, 4, method, **how)
    panel.scatter(found.left[0], found.right[0], s=9)
    only = f"by one only {found.non_sensitivity.item():.0%}"
    panel.set_title(f"{name}: {found.estimate.item():.2f}\nranks {found.monotonicity_correlation.item():.2f}, {only}")
    panel.set_xlabel("what the map says of a window")
axes[0].set_ylabel("its importance")
