from style import COLOURS, UNSIGNED, bar, digits, heat, network, subplots

from lightning_xai import Windows, units
from lightning_xai.perturbation import kinds

model, images = network(), digits()[0][:64]
windows = Windows(4)
found = units.reactivation(model, images, layer="net.3", regions=windows, perturbation=kinds.Constant(0.0), p=0.05)
counts = found.by_feature_and_unit
figure, axes = subplots(1, 3, height=2.5, width_ratios=[1.2, 1.2, 1.4])
shown = axes[0].imshow(counts.numpy(), aspect="auto", cmap=UNSIGNED, vmin=0)
axes[0].set_xlabel("unit k")
axes[0].set_ylabel("window j")
bar(figure, shown, axes[0], "samples")
painted = windows.bind(images).paint(found.by_feature[None].float())[0]
bar(figure, heat(axes[1], painted, "by window", signed=False), axes[1], "re-activations")
top = found.top_units(8)
axes[2].barh([f"unit {unit}" for unit, _ in top], [count for _, count in top], color=COLOURS[0], height=0.65)
axes[2].invert_yaxis()
axes[2].set_xlabel("re-activations")
axes[2].set_title("by unit")
