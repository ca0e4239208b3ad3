import torch
from style import SIGNED, UNSIGNED, bar, digit, digits, network, outline, picture, plain, subplots

from lightning_xai import units

model, images = network(), digits()[0][:200]
maps = units.unit_activations(model, images, layer="net.4")
similar = units.co_activation(maps)
clusters = units.group_units(maps, units.CoActivation(groups=4, linkage="complete")).membership
blocks = [row.nonzero().flatten().tolist() for row in clusters]
order = [unit for block in blocks for unit in block]
factors = units.group_units(maps[::4], units.NMF(groups=4))
shown = torch.cat([digit(label) for label in (0, 2, 4, 7, 9)])
active = units.unit_activations(model, shown, layer="net.4", unit=factors)

figure, axes = subplots(5, 6, width=7.2, height=4.2, width_ratios=[4, 1, 1, 1, 1, 1])
for panel in axes[:, 0]:
    panel.remove()
matrix = figure.add_subplot(axes[0, 0].get_gridspec()[:, 0])
drawn = matrix.imshow(similar[order][:, order].numpy(), cmap=SIGNED, vmin=-1, vmax=1)
matrix.set_xticks(range(len(order)), [str(unit) for unit in order], fontsize=5.5)
matrix.set_yticks(range(len(order)), [str(unit) for unit in order], fontsize=5.5)
matrix.set_xlabel("unit, by cluster")
start = 0
for block in blocks:
    outline(matrix, (slice(start, start + len(block)),) * 2)
    start += len(block)
scale = figure.colorbar(drawn, ax=matrix, location="bottom", shrink=0.7, pad=0.02, aspect=25)
scale.set_label("correlation", fontsize=8)
scale.ax.tick_params(labelsize=7, length=2)
scale.outline.set_visible(False)
end = float(active.max())
for column, panels in enumerate(axes[:, 1:].T):
    picture(panels[0], shown[column])
    for group, panel in enumerate(panels[1:]):
        heat = panel.imshow(active[column, group].numpy(), cmap=UNSIGNED, vmin=0, vmax=end)
        plain(panel)
        if column == 0:
            panel.set_ylabel(f"group {group}", fontsize=8)
bar(figure, heat, axes[1:, 1:], "activation")
