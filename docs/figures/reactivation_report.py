"""A report of re-activation: the matrix, its sums, and one pair seen in one digit."""

from style import COLOURS, UNSIGNED, bar, digits, heat, network, outline, picture, subplots

from lightning_xai import Windows
from lightning_xai.perturbation import kinds
from lightning_xai.units import reactivation, unit_activations

LAYER, WINDOW, UNIT, SAMPLE = "net.3", 6, 11, 0
model, images = network(), digits()[0][:64]
windows, black = Windows(7), kinds.Constant(0.0)
found = reactivation(model, images, layer=LAYER, regions=windows, perturbation=black, p=0.05)
bound = windows.bind(images)

figure, axes = subplots(2, 4, height=4.4, width_ratios=[1.3, 1.0, 1.0, 1.2])
counts = found.by_feature_and_unit
shown = axes[0, 0].imshow(counts.numpy(), aspect="auto", cmap=UNSIGNED, vmin=0)
axes[0, 0].set_xlabel("unit k")
axes[0, 0].set_ylabel("window j")
axes[0, 0].set_title("M: samples")
axes[0, 0].set_xticks(range(0, counts.shape[1], 5))
bar(figure, shown, axes[0, 0], "")
painted = bound.paint(found.by_feature[None].float())[0]
bar(figure, heat(axes[0, 1], painted, "2. by window", signed=False), axes[0, 1], "")
grid = axes[0, 2].get_gridspec()
axes[0, 2].remove()
axes[0, 3].remove()
units = figure.add_subplot(grid[0, 2:])
top = found.top_units(10)
units.barh([str(unit) for unit, _ in top], [count for _, count in top], color=COLOURS[0], height=0.7)
units.invert_yaxis()
units.set_xlabel("re-activations")
units.set_ylabel("unit")
units.set_title("3. by unit (dead ones left out)")

digit = images[SAMPLE : SAMPLE + 1]
without = digit.clone()
box = bound.boxes[WINDOW]
without[(..., *box)] = 0.0
before, after = (unit_activations(model, image, layer=LAYER)[0, UNIT] for image in (digit, without))
picture(axes[1, 0], without[0], f"4. the digit without window {WINDOW}")
outline(axes[1, 0], box, COLOURS[1])
end = float(max(before.max(), after.max()))
heat(axes[1, 1], before, f"unit {UNIT}, digit", end, signed=False)
bar(figure, heat(axes[1, 2], after, f"unit {UNIT}, without", end, signed=False), axes[1, 2], "")
bar(figure, heat(axes[1, 3], after - before, "difference"), axes[1, 3], "")
