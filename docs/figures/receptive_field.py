from style import COLOURS, digit, network, outline, picture, subplots

from lightning_xai import units

model, x = network(), digit(2)
shown = {"net.1": (14, 12), "net.4": (7, 6), "net.5": (3, 3)}
names = {"net.1": "first convolution", "net.4": "second convolution", "net.5": "second pooling"}
figure, axes = subplots(1, 2, height=2.7, width_ratios=[1, 1.7])
picture(axes[0], x[0])
for row, (colour, (layer, position)) in enumerate(zip(COLOURS, shown.items(), strict=False)):
    field = units.receptive_field(model, x, layer=layer)
    box = field.box(position)
    size = f"{box[0].stop - box[0].start} × {box[1].stop - box[1].start}"
    across = field.box((position[0], position[1]))[1]
    axes[1].barh(row, across.stop - across.start, left=across.start, color=colour, height=0.6)
    axes[1].text(across.stop + 0.5, row, f"{names[layer]}: {size} cells", va="center", fontsize=8)
    for place in range(28):
        neighbour = field.box((position[0], place))[1]
        if place != position[1] and abs(place - position[1]) <= 1:
            axes[1].plot([neighbour.start, neighbour.stop], [row + 0.42 * (place - position[1])] * 2, color=colour)
for colour, (layer, position) in reversed([*zip(COLOURS, shown.items(), strict=False)]):
    outline(axes[0], units.receptive_field(model, x, layer=layer).box(position), colour)
axes[1].set_xlim(0, 28)
axes[1].invert_yaxis()
axes[1].set_yticks([])
axes[1].spines["left"].set_visible(False)
axes[1].set_xlabel("column of the input; thin lines: the positions before and after")
