import torch
from style import COLOURS, digits, network, subplots
from torch.nn import functional

from lightning_xai import units

model, images = network(), digits()[0][:200]
stroke = images[:, 0] > 0.5
wide = functional.max_pool2d(images, 3, 1, 1)[:, 0] > 0.5
masks = torch.stack([stroke, wide & ~stroke, ~wide], 1)
names = ["stroke", "edge", "background"]
found = units.dissect(model, images, masks, layer="net.4", concepts=names, p=0.05)
order = found.best_iou.argsort(descending=True).tolist()
figure, axes = subplots(1, 1, height=2.2)
for concept, name in enumerate(names):
    chosen = [place for place, unit in enumerate(order) if int(found.best[unit]) == concept]
    axes.bar(chosen, found.best_iou[[order[place] for place in chosen]], color=COLOURS[concept], label=name)
axes.axhline(found.detector, color="0.3", linestyle="--", linewidth=0.8)
axes.set_xticks(range(len(order)), [str(unit) for unit in order])
axes.set_xlabel("unit, the best first")
axes.set_ylabel("best IoU")
axes.legend(title="best concept")
