import torch
from style import bar, digits, heat, network, picture, subplots

from lightning_xai import Windows
from lightning_xai.metrics import Importance
from lightning_xai.perturbation import kinds

model, (images, labels) = network(), digits()
chosen = torch.cat([(labels == label).nonzero().flatten()[:12] for label in range(10)])
metric = Importance(Windows(4), kinds.Constant(0.0), score="logit")
metric.update(model, images[chosen], labels[chosen])
found = metric.compute()

figure, axes = subplots(2, 3, width=6.0, height=3.7)
picture(axes[0, 0], images[chosen].mean(0), "mean of the digits")
whole = float(found["map_abs"].max())
bar(figure, heat(axes[0, 1], found["map"], "map", whole), axes[0, 1], "logits")
bar(figure, heat(axes[0, 2], found["map_abs"], "map_abs", whole, signed=False), axes[0, 2], "logits")
end = max(float(found["map_per_class"][label].abs().max()) for label in (1, 4, 7))
for panel, label in zip(axes[1], (1, 4, 7), strict=True):
    drawn = heat(panel, found["map_per_class"][label], f"per_class[{label}]", end)
bar(figure, drawn, axes[1, 2], "logits")
