import torch
from style import COLOURS, bar, digit, heat, network, outline, picture, subplots

from lightning_xai import Windows
from lightning_xai.relevance import LRP, composites, pool_channels, pool_features

model, x = network(), digit(3)
relevance = LRP(composites.AttnLRP(epsilon=0.1))(model, x, "predicted")
summed, windows = pool_channels(relevance), Windows(7)
shares = pool_features(relevance, windows)[0] / relevance.abs().sum()

figure, axes = subplots(1, 4, height=2.3, width_ratios=[1, 1.25, 1.1, 1.1])
picture(axes[0], x[0], "features j")
for number, box in enumerate(windows.bind(x).boxes):
    outline(axes[0], box, "0.6")
    axes[0].text(box[1].start, box[0].start + 1.5, str(number), color=COLOURS[1], fontsize=6.5)
bar(figure, heat(axes[1], summed[0], "map"), axes[1], "logits")
relative = summed.flatten() / summed.abs().max()
counts = torch.histc(relative, bins=65, min=-1, max=1)
axes[2].bar(torch.linspace(-1, 1, 66)[:-1] + 1 / 65, counts, width=2 / 65, color=COLOURS[0])
axes[2].set_yscale("log")
axes[2].set_xlabel(r"$R_p \,/\, \max_q |R_q|$")
axes[2].set_ylabel("cells")
axes[2].set_title("histogram")
axes[3].barh(
    range(len(shares)), shares, color=[COLOURS[1] if share > 0 else COLOURS[0] for share in shares], height=0.75
)
axes[3].axvline(0, color="0.6", linewidth=0.6)
axes[3].set_yticks(range(0, len(shares), 3))
axes[3].invert_yaxis()
axes[3].set_ylabel("feature j")
axes[3].set_xlabel(r"$R_j \,/\, \sum_p |R_p|$")
axes[3].set_title("share per feature")
