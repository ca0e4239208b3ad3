import torch
from style import COLOURS, bar, digit, heat, network, subplots

from lightning_xai.relevance import SimpleTaylor

model, x = network(), digit(8)
t = torch.linspace(0, 1, 201)
with torch.no_grad():
    score = model(x * (1 - t).view(-1, 1, 1, 1))[:, 8]
crossing = int((score <= 0).nonzero()[0])
figure, axes = subplots(1, 2, height=2.3, width_ratios=[1.6, 1])
axes[0].axhline(0, color="0.6", linewidth=0.6)
axes[0].plot(t, score, color=COLOURS[0])
slope = (score[crossing - 1] - score[crossing - 2]) / (t[1] - t[0])
near = (t - t[crossing]).abs() < 0.25
axes[0].plot(
    t[near], (slope * (t - t[crossing]))[near], "--", color=COLOURS[1], linewidth=1, label="tangent at the root"
)
axes[0].plot(t[crossing], 0, "o", color=COLOURS[1], label=r"root $\tilde x$")
axes[0].set_xlabel("t, from the digit to an empty image")
axes[0].set_ylabel("s (logit)")
axes[0].legend()
bar(figure, heat(axes[1], SimpleTaylor()(model, x, 8)[0, 0], "simple Taylor"), axes[1], "logits")
