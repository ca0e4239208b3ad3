"""The table of networks and methods holds: a third of its networks, each with all methods and their checks."""

import pytest
from builders import settled
from cam_layers import LARGE, LAYERS
from matrix import METHODS, NONE, OK, cells, page, written
from plain import Plain
from zoo import FAST, NETWORKS

from lightning_xai.relevance import GradCAM


@pytest.mark.parametrize("name", FAST)
def test_methods_agree_with_their_checks_as_the_page_says(name):
    found = cells(name)
    wrong = {method: what for method, what in found.items() if what.startswith("wrong")}
    assert not wrong
    assert {method: what.partition(":")[0] for method, what in found.items()} == written()[name]


def test_page_holds_every_network_and_method():
    assert list(written()) == list(NETWORKS)
    vit = {**dict.fromkeys(METHODS, NONE), "LRP": "refused: as a test"}
    made = page({"1-d CNN": dict.fromkeys(METHODS, OK), "vit": vit})
    assert f"{len(METHODS)} of {len(METHODS) + 1} cells are ok" in made
    assert "1. as a test" in made


@pytest.mark.filterwarnings("ignore")  # of libraries, when networks are built
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in (*LARGE, *FAST)])
def test_default_layer_of_a_known_network(name):
    network, (layer, by_hand) = NETWORKS[name], LAYERS[name]
    given = network.inputs()
    plain = Plain(name, settled(network.make(), given), given)
    found = GradCAM(upsample=None, score=network.score).explain(plain.model, given, plain.target)
    assert found.layer == layer
    assert found.map.isfinite().all()
    if by_hand is not None:  # its map is as fine, or that of a block that pools is finer
        other = GradCAM(by_hand, upsample=None, score=network.score)(plain.model, given, plain.target)
        assert all(length >= ours for length, ours in zip(other.shape, found.map.shape, strict=True))
