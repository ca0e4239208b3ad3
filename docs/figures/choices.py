"""One photo, one class, one scale: a small picture per attribution, for the table to choose by."""

from matplotlib.patches import Rectangle
from style import SIGNED, cat, photo_input, photo_network, picture, subplots

from lightning_xai import Windows
from lightning_xai.perturbation import PerturbationImportance, kinds
from lightning_xai.relevance import LRP, GradCAM, GradientXInput, HiResCAM, IntegratedGradients, SmoothGrad, composites

TIGER_CAT, END = 282, 8.0
BLACK, WHITE = -127 / 128, 1.0


def drawn(attribution=None):
    """A map in units of its own mean magnitude, so that one scale serves every method."""
    _, axes = subplots(1, 1, width=1.5, height=1.5)
    if attribution is None:
        picture(axes, cat())
        return
    found = attribution(photo_network(), photo_input(), TIGER_CAT)[0].sum(0)
    axes.imshow((found / found.abs().mean()).numpy(), cmap=SIGNED, vmin=-END, vmax=END)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor="0.8", linewidth=0.8))


def photo():
    drawn()


def epsilon_plus_flat():
    drawn(LRP(composites.EpsilonPlusFlat()))


def epsilon_plus():
    drawn(LRP(composites.EpsilonPlus()))


def epsilon_gamma_box():
    drawn(LRP(composites.EpsilonGammaBox(BLACK, WHITE)))


def epsilon_alpha2_beta1():
    drawn(LRP(composites.EpsilonAlpha2Beta1()))


def gradient_x_input():
    drawn(GradientXInput())


def attn_lrp():
    drawn(LRP(composites.AttnLRP(epsilon=0.1)))


def integrated_gradients():
    drawn(IntegratedGradients(steps=16, baseline=BLACK))


def grad_cam():
    drawn(GradCAM())


def hi_res_cam():
    drawn(HiResCAM())


def importance():
    drawn(PerturbationImportance(Windows(32), kinds.Blur(sigma=12.0), score="logit"))


def smooth_grad():
    drawn(SmoothGrad(GradientXInput(), sigma=0.1, draws=8))
