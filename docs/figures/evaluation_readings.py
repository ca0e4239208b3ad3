from style import COLOURS, digits, network, subplots

from lightning_xai import Windows
from lightning_xai.evaluation import perturbation_curves
from lightning_xai.perturbation import kinds
from lightning_xai.relevance import LRP

model, (images, labels) = network(), digits()
how = {"regions": Windows(4), "perturbation": kinds.Constant(0.0), "steps": 12}
found = perturbation_curves(model, images[47:48], labels[47:48], LRP(), **how)
q, most, least = found.share[0], found.morf[0], found.lerf[0]
figure, (between, mean, over, enough) = subplots(1, 4, height=2.5)
between.fill_between(q, most, least, color=COLOURS[2], alpha=0.25)
between.plot(q, most, color=COLOURS[0])
between.plot(q, least, color=COLOURS[1])
between.text(0.24, 0.08, "most relevant first", color=COLOURS[0], fontsize=7)
between.text(0.06, 1.0, "least relevant first", color=COLOURS[1], fontsize=7)
between.set_title(
    f"insertion {found.insertion.item():.2f}\n– deletion {found.deletion.item():.2f}\n= srg {found.srg.item():.2f}"
)
mean.vlines(q, most, most[0], color=COLOURS[0], linewidth=1.2)
mean.vlines(q + 0.03, least, most[0], color=COLOURS[1], linewidth=1.2)
mean.axhline(most[0], color="0.6", linewidth=0.8)
mean.set_title(f"AOPC: mean loss {found.aopc_morf.item():.2f},\nleast relevant first {found.aopc_lerf.item():.2f}")
rises = most[1:] > most[:-1]
over.fill_between(q, most / most[0], 1, color=COLOURS[4], alpha=0.3)
over.plot(q, most / most[0], color=COLOURS[0], marker=".")
over.plot(q[1:][rises], (most / most[0])[1:][rises], "o", color=COLOURS[1])
over.text(0.3, 0.12, f"{int(rises.sum())} of {len(rises)} steps rise", color=COLOURS[1], fontsize=7)
over.set_title(f"IROF {found.irof.item():.2f}\nmonotone {found.monotone.item():.2f}")
enough.axvspan(1 - found.sufficient_share.item(), 1, color=COLOURS[5], alpha=0.3)
enough.plot(q, least, color=COLOURS[1], marker=".")
enough.axhline(0.9 * least[0], color="0.6", linewidth=0.8)
enough.set_title(f"sufficient share {found.sufficient_share.item():.2f}")
for panel in (between, mean, over, enough):
    panel.set_xlabel("share that is gone")
    panel.set_ylim(0, 1.09)
between.set_ylabel("probability")
over.set_ylabel("share of it")
