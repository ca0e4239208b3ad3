"""The example finds the peaks that its spectra were made with."""

import importlib.util
from pathlib import Path


def test_the_strongest_bands_hold_the_peaks(tmp_path):
    path = Path(__file__).parents[2] / "examples" / "spectra.py"
    spec = importlib.util.spec_from_file_location("spectra", path)
    spectra = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(spectra)
    strongest = spectra.main(tmp_path)
    for label, centres in strongest.items():
        assert all(
            abs(centre - peak) <= spectra.BAND / 2 for centre, peak in zip(centres, spectra.OWN[label], strict=True)
        )
    assert (tmp_path / "spectra.png").stat().st_size > 10_000
