from style import digit, network, subplots

from lightning_xai import Windows
from lightning_xai.evaluation import RandomMap, subset_drops
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import LRP, Saliency

model, image = network(), digit(4)
how = {"regions": Windows(4), "perturbation": kinds.Constant(0.0), "score": "logit"}
figure, axes = subplots(1, 3, height=2.3, sharey=True)
for panel, (name, method) in zip(
    axes, {"LRP": LRP(), "saliency": Saliency(), "random": RandomMap()}.items(), strict=True
):
    found = subset_drops(model, image, 4, method, **how)
    panel.scatter(found.left[0], found.right[0], s=9)
    slope = found.scaling.item()
    panel.axline((0, 0), slope=slope, color="0.6", linewidth=0.8)
    relative = f"relative infidelity {found.infidelity_relative.item():.2f}"
    panel.set_title(f"{name}: correlation {found.correlation.item():.2f},\n{relative}")
    panel.set_xlabel("what the map says of a set")
axes[0].set_ylabel("what the logit loses without it")
