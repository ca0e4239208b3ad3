import matplotlib.pyplot as plt
import torch
from style import COLOURS, NOTHING, cat, outline, picture, plain, subplots

from lightning_xai import Segments, Windows

figure, axes = subplots(1, 4, height=2.1, width_ratios=[1.35, 1, 1, 1])
for row, remainder in enumerate(("partial", "left", "right", "center")):
    axes[0].barh(row, 8, left=0, height=0.55, color=NOTHING, linewidth=0)
    for index, (box,) in enumerate(Windows(3, remainder=remainder).bind((1, 1, 8)).boxes):
        axes[0].barh(row, box.stop - box.start, left=box.start, height=0.55, color=COLOURS[index], edgecolor="white")
axes[0].set_yticks(range(4), ["partial", "left", "right", "center"])
axes[0].invert_yaxis()
axes[0].set_xticks(range(0, 9, 2))
axes[0].set_xlabel("cell")
axes[0].set_title("Windows(3, remainder=...)")
axes[0].spines["left"].set_visible(False)
axes[0].tick_params(axis="y", length=0)

photo = cat()
picture(axes[1], photo, "Windows(32)")
for box in Windows(32).bind(photo[None]).boxes:
    outline(axes[1], box, "white")
picture(axes[2], photo, "Windows(48, stride=40)")
for index, box in enumerate(Windows(48, stride=40).bind(photo[None]).boxes):
    outline(axes[2], box, COLOURS[index % len(COLOURS)])

light = photo.mean(0)
labels = torch.bucketize(light, light.flatten().quantile(torch.tensor([0.2, 0.4, 0.6, 0.8])))
bound = Segments(labels).bind(photo[None])
axes[3].imshow(bound.paint(torch.arange(5.0)[None])[0], cmap=plt.get_cmap("cividis", 5))
plain(axes[3])
axes[3].set_title("Segments(labels)")
