from style import COLOURS, SIGNED, bar, digits, network, subplots

from lightning_xai import units

model, (images, labels) = network(), digits()
found = units.ablate_units(model, images[::4], labels[::4], layer="net.4")
fall = 100 * found.accuracy_drop
mean = found.score_drop.mean(0)
order = mean.argsort(descending=True)
names = [str(int(unit)) for unit in order]

figure, axes = subplots(1, 2, height=3.0, width_ratios=[1.3, 1], sharey=True)
end = float(fall.abs().max())
shown = axes[0].imshow(fall[order].numpy(), cmap=SIGNED, vmin=-end, vmax=end, aspect="auto")
axes[0].set_xticks(range(10))
axes[0].set_yticks(range(len(names)), names)
axes[0].set_xlabel("class")
axes[0].set_ylabel("unit that is silenced")
bar(figure, shown, axes[0], "accuracy lost (points)")
axes[1].barh(range(len(names)), mean[order], color=COLOURS[0], height=0.7)
axes[1].axvline(0, color="0.6", linewidth=0.6)
axes[1].set_xlabel(r"mean fall $\Delta_u$ of the logit")
