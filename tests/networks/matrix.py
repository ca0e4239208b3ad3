"""Every method on every network: ``python tests/networks/matrix.py`` writes the table of docs/guides/networks.md.

With names of networks it prints what their cells are, and writes nothing.
"""

import re
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from builders import settled
from methods import METHODS
from plain import Plain, WrongError
from zoo import FAST, NETWORKS

PAGE = Path(__file__).parents[2] / "docs/guides/networks.md"
NONE, OK, REFUSED = ".", "ok", "refused"
SCORE_CAM = ("1-d CNN", "vit")

HEAD = """# Networks and methods

Every method on networks of every kind, small and with random weights, in double precision. A cell is **ok** where the
result agrees with a check by another route, **refused** where the package says why not (below, in its own words), and
`.` where the method has no meaning or was not tried. No cell is wrong: `python tests/networks/matrix.py` writes this
page, and fails if one is. The tests of the package run {fast} of the {count} networks.

| method | check |
|---|---|
| importance | the score without each window, in a loop |
| saliency, gradient x input | autograd |
| integrated gradients | autograd at the points of the quadrature; completeness on a short path |
| SmoothGrad | autograd at the noisy inputs, in a loop, of what the score has fixed on the clean ones |
| LRP, deep Taylor | the ledger balances to rounding, and begins with the score |
| guided backprop | autograd with a ReLU of its own |
| Grad-CAM | activation and gradient by hooks, a loop over the channels; the layer is found |
| Score-CAM | a loop over the channels |
| units | activation thresholds: the sorted output of a hook |
| unit | the gradient of a unit's activation: autograd |
| re-activation | the rises of a hook's output, window by window |
| at a layer | gradient x activation by a hook that replaces the output; the ledger of LRP stopped there |

Networks of transformers are given dicts, text is explained at its embedding, detectors by `Box(0)`, CLIP by the logit
of a text, segmentations in the region of the class. LRP is `AttnLRP` for transformers and networks without ReLU, else
`EpsilonPlus`.

"""
SHORT = {
    "gradient x input": "gradient x input",
    "integrated gradients": "integr. gradients",
    "guided backprop": "guided b.",
    "gradient of a unit": "unit",
    "gradient at a layer": "at a layer",
    "LRP at a layer": "LRP there",
}


def cells(name):
    """What becomes of every method on a network: ok, refused with the words, or what is wrong."""
    network, found = NETWORKS[name], {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        given = network.inputs()
        plain = Plain(name, settled(network.make(), given), given)
        for method, check in METHODS.items():
            if method in network.without or (method == "Score-CAM" and name not in SCORE_CAM):
                found[method] = NONE
                continue
            try:
                check(plain)
                found[method] = OK
            except WrongError as error:
                found[method] = f"wrong: {error}"
            except (ValueError, TypeError) as error:
                ours = "lightning_xai" in traceback.extract_tb(error.__traceback__)[-1].filename
                found[method] = f"{REFUSED if ours else 'wrong'}: {error}"
            except Exception as error:
                found[method] = f"wrong: {type(error).__name__}: {error}"
    return found


def page(table):
    """The page of a table of cells."""
    lines = ["| network | " + " | ".join(SHORT.get(method, method) for method in METHODS) + " |"]
    lines.append("|---" * (len(METHODS) + 1) + "|")
    notes = []
    for name, row in table.items():
        words = []
        for what in row.values():
            kind, _, why = what.partition(": ")
            why = re.sub(r" in '[\w.]+'", "", why)  # the same for every network
            if kind == REFUSED and why not in notes:
                notes.append(why)
            words.append(f"{REFUSED} {notes.index(why) + 1}" if kind == REFUSED else kind)
        lines.append(f"| {name} | " + " | ".join(words) + " |")
    count = Counter(what.partition(": ")[0] for row in table.values() for what in row.values())
    lines += ["", f"{count[OK]} of {count[OK] + count[REFUSED]} cells are ok. Refused with these words:", ""]
    lines += [f"{number}. {why}" for number, why in enumerate(notes, 1)]
    return HEAD.format(fast=len(FAST), count=len(table)) + "\n".join(lines) + "\n"


def written():
    """The cells of the page as it stands: by network and method, ``ok``, ``refused`` or ``.``."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0] in NETWORKS]
    return {row[0]: dict(zip(METHODS, (word.split()[0] for word in row[1:]), strict=True)) for row in rows}


def main(names):
    table, wrong = {}, 0
    for name in names or NETWORKS:
        row = table[name] = cells(name)
        print(
            f"{name}: {sum(what == OK for what in row.values())} of {sum(what != NONE for what in row.values())}",
            flush=True,
        )
        for method, what in row.items():
            if what not in (OK, NONE):
                print(f"    {method} {what}", flush=True)
        wrong += sum(what.startswith("wrong") for what in row.values())
    if not names and not wrong:
        PAGE.write_text(page(table))
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
