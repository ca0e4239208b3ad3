from style import digits, network, subplots

from lightning_xai.evaluation import RandomMap, codes, consistency, sufficiency
from lightning_xai.relevance import LRP, GradientXInput, Saliency, pool_features

model, (images, labels) = network(), digits()
prediction = model(images).argmax(1)
methods = {"LRP": LRP(), "gradient × input": GradientXInput(), "saliency": Saliency(), "random": RandomMap()}
counts, thresholds = (1, 2, 3), (0.5, 0.6, 0.7, 0.8, 0.9)
figure, axes = subplots(1, 2, height=2.4, sharey=True)
for name, method in methods.items():
    features = pool_features(method(model, images, prediction), 4)
    style = ":" if name == "random" else "-"
    alike = [consistency(codes(features, count), prediction).nanmean() for count in counts]
    near = [sufficiency(features, prediction, threshold=threshold).nanmean() for threshold in thresholds]
    axes[0].plot(counts, alike, style, marker=".", label=name)
    axes[1].plot(thresholds, near, style, marker=".")
axes[0].set_xticks(counts)
axes[0].set_title("consistency")
axes[0].set_xlabel("windows in a code, k")
axes[0].set_ylabel("share with the same prediction")
axes[1].set_title("sufficiency")
axes[1].set_xlabel("least cosine of two maps")
axes[0].set_ylim(0, 1)
axes[1].legend(*axes[0].get_legend_handles_labels(), loc=(0.03, 0.2))
