import math

import torch
from style import COLOURS, digit, network, subplots

from lightning_xai.evaluation import emprt
from lightning_xai.evaluation.parameters import new_parameters, replaced_parameters
from lightning_xai.relevance import LRP, GradientXInput, Saliency

model, image = network(), digit(4)
methods = {"LRP": LRP(), "gradient × input": GradientXInput(), "saliency": Saliency()}
new = new_parameters(model, None, 0)
figure, axes = subplots(1, 3, height=2.3, sharey=True)
for panel, (name, method) in zip(axes, methods.items(), strict=True):
    maps = {"trained": method(model, image, 4)}
    with replaced_parameters(model) as replace:
        replace(new)
        maps["new"] = method(model, image, 4)
    for (label, found), colour in zip(maps.items(), COLOURS, strict=False):
        cells = found.flatten()
        places = (cells - cells.min()) / (cells.max() - cells.min())
        shares, edges = torch.histogram(places, math.ceil(math.sqrt(len(cells))), range=(0.0, 1.0))
        panel.stairs(shares / len(cells), edges, color=colour, label=f"{label} parameters")
    panel.set_title(f"{name}\neMPRT {emprt(model, image, 4, method, parameters=new).item():.2f}")
    panel.set_xlabel("least to largest value of the map")
    panel.set_yscale("log")
axes[0].set_ylabel("share of the cells")
axes[2].legend()
