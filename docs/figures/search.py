from style import COLOURS, digits, network, outline, picture, subplots

from lightning_xai import units

model, images = network(), digits()[0]
layer, count = "net.5", 8
found = units.top_samples(model, images, layer=layer, n=count)
field = units.receptive_field(model, images[:1], layer=layer)
# Units whose strongest samples are strong: others are hardly ever on.
chosen = found.value[:, 0].argsort(descending=True)[:4].tolist()

figure, axes = subplots(4, count, width=7.2, height=4.0)
for unit, panels in zip(chosen, axes, strict=True):
    for rank, panel in enumerate(panels):
        picture(panel, images[found.sample_id[unit, rank]], f"{float(found.value[unit, rank]):.1f}")
        outline(panel, field.box(found.position[unit, rank].tolist()), COLOURS[1])
    panels[0].set_ylabel(f"unit {unit}")
