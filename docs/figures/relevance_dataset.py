from style import COLOURS, digits, network, subplots

from lightning_xai import relevance
from lightning_xai.metrics import Relevance
from lightning_xai.relevance import composites

model, (images, labels) = network(), digits()
methods = {
    "gradient": relevance.Saliency(absolute=False),
    "gradient × input": relevance.GradientXInput(),
    "integrated gradients": relevance.IntegratedGradients(steps=8),
    "LRP, EpsilonPlus": relevance.LRP(composites.EpsilonPlus()),
    "LRP, α2β1": relevance.LRP(composites.EpsilonAlpha2Beta1()),
    "DeepTaylor, z-box": relevance.DeepTaylor(low=0.0, high=1.0),
}
results = {}
for name, attribution in methods.items():
    metric = Relevance(attribution, ledger=False)
    metric.update(model, images[::10], labels[::10])
    results[name] = metric.compute()
quantities = {
    "conservation_gap": "share of the scores",
    "entropy": "nats (6.7 at most)",
    "positive_share": "share of the magnitude",
    "gini": "0 even, 1 in one cell",
}
figure, axes = subplots(1, 4, height=2.2, sharey=True)
for panel, (name, unit) in zip(axes, quantities.items(), strict=True):
    values = [float(found.get(name, 0.0)) for found in results.values()]  # a gap where conservation is promised
    panel.barh([*results], values, color=COLOURS[0], height=0.65)
    panel.set_title(name)
    panel.set_xlabel(unit)
axes[0].invert_yaxis()
