from style import cat, photo_input, photo_network, picture, subplots

from lightning_xai.units import deep_dream
from lightning_xai.units.maximization import Bounds, Dream

model, x = photo_network(), photo_input(96)
figure, axes = subplots(1, 3, width=6.0, height=2.2)
picture(axes[0], cat(96), "photo")
for panel, layer in zip(axes[1:], ("blocks.1", "blocks.4"), strict=True):
    how = Dream(octaves=2, steps=4, rate=0.05, jitter=8, bounds=Bounds(-127 / 128, 1.0))
    found = deep_dream(model, x, layer=layer, dream=how)
    picture(panel, ((found[0] * 128 + 127) / 255).clamp(0, 1), layer)
