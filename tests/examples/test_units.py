"""Silencing the units that a dissection names for a texture makes that texture unpredictable, and no other so much."""

import importlib.util
from pathlib import Path


def test_the_units_of_a_texture_are_needed_by_its_class(tmp_path, capsys):
    path = Path(__file__).parents[2] / "examples" / "units.py"
    spec = importlib.util.spec_from_file_location("units", path)
    units = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(units)
    accuracy = units.main(tmp_path)
    assert min(accuracy["all units"].values()) > 0.9
    for texture in units.TEXTURES:
        others = [accuracy[texture][name] for name in units.CLASSES if name != texture]
        assert accuracy[texture][texture] < 0.25
        assert sum(others) / len(others) > 0.75
    table = (tmp_path / "units.csv").read_text().splitlines()
    assert table[0] == "unit,concept,category,iou,detector,threshold"
    assert len(table) == 1 + 24
    assert "groups of units that are active together" in capsys.readouterr().out
    for picture in ("units.png", "crops.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
