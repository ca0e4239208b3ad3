from style import COLOURS, digits, network, outline, picture, subplots

from lightning_xai import units

model, images = network(), digits()[0][:300]
layer, p = "net.3", 0.05
found = units.activation_threshold(model, images, layer=layer, p=p)
maps = units.unit_activations(model, images, layer="net.4")
chosen = maps.amax((0, 2, 3)).argsort(descending=True)[:3].tolist()
figure, axes = subplots(2, 3, height=3.8, height_ratios=[1, 1.1])
for column, unit in enumerate(chosen):
    values = maps[:, unit].flatten()
    axes[0, column].hist(values[values > 0], bins=60, color=COLOURS[0], log=True)
    axes[0, column].axvline(float(found.value[unit]), color=COLOURS[1], linewidth=1.2)
    axes[0, column].set_title(f"unit {unit}: T = {float(found.value[unit]):.2f}")
    axes[0, column].set_xlabel("activation > 0")
    sample = int(maps[:, unit].flatten(1).gt(found.value[unit]).sum(1).argmax())
    picture(axes[1, column], images[sample])
    for row, place in (maps[sample, unit] > found.value[unit]).nonzero().tolist():
        outline(axes[1, column], (slice(2 * row, 2 * row + 2), slice(2 * place, 2 * place + 2)), COLOURS[1])
axes[0, 0].set_ylabel("positions")
