from style import digits, network, subplots

from lightning_xai.evaluation import mprt
from lightning_xai.relevance import LRP, GradientXInput, GuidedBackprop, Saliency

model, (images, labels) = network(), digits()
methods = {
    "LRP": LRP(),
    "gradient × input": GradientXInput(),
    "saliency": Saliency(),
    "guided backpropagation": GuidedBackprop(),
}
figure, axes = subplots(1, 2, height=2.3, sharey=True)
for panel, absolute in zip(axes, (False, True), strict=True):
    for name, method in methods.items():
        found = mprt(model, images[:50], labels[:50], method, absolute=absolute)
        stages = ["trained", *found.layers]
        panel.plot(stages, [1.0, *found.similarity.nanmean(0)], marker=".", label=name)
    panel.set_xlabel("new parameters from the output down to this layer")
    panel.set_title("magnitudes" if absolute else "with their signs")
axes[0].set_ylabel("correlation of ranks")
axes[0].legend()
