import itertools

import torch
from style import COLOURS, digits, subplots
from torch import nn

from lightning_xai.app.data import MNISTSample
from lightning_xai.app.models import DemoCNN
from lightning_xai.evaluation import first_stable_epoch, spearman_drift
from lightning_xai.relevance import GradientXInput, pool_features

torch.manual_seed(0)
model, (images, labels) = DemoCNN(width=8), MNISTSample().train_dataloader().dataset.tensors
shown, classes = (part[:64] for part in digits())
optimizer, maps, steps = torch.optim.Adam(model.parameters(), lr=2e-3), [], list(range(0, 121, 10))
for step, rows in zip(range(121), torch.randperm(len(labels)).repeat(5).split(64), strict=False):
    if step in steps:
        maps.append(pool_features(GradientXInput()(model.eval(), shown, classes), 4))
        model.train()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
    optimizer.step()
figure, axes = subplots(1, 1, width=4.5, height=2.2)
before = [spearman_drift(now, then).mean() for then, now in itertools.pairwise(maps)]
axes.plot(steps[1:], before, color=COLOURS[0], label="from ten steps before")
axes.plot(steps, [spearman_drift(now, maps[-1]).mean() for now in maps], color=COLOURS[1], label="from the last step")
stable = first_stable_epoch(steps[1:], before)
axes.axhline(0.1, color="0.6", linewidth=0.8)
axes.axvline(stable, color="0.6", linewidth=0.8, linestyle=":")
axes.text(stable + 1, 0.5, f"first stable: {stable}", fontsize=7)
axes.set_xlabel("step of the training")
axes.set_ylabel("drift, 1 unrelated")
axes.set_ylim(0)
axes.legend()
