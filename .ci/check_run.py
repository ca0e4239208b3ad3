"""Checks that a default run has written what the README promises: ``python .ci/check_run.py FOLDER``."""

import csv
import json
import struct
import sys
from pathlib import Path

from lightning_xai import load_explanations

run = Path(sys.argv[1])
stage = next((run / "explanations").iterdir()).name

maps = load_explanations(run / "explanations" / stage)
samples = len(maps["sample_id"])
assert maps["sample_id"].tolist() == list(range(samples)), "sample ids are not the first of the data set"
for name in ("input", "target", "prediction", "importance/map", "importance/relative", "speed/map", "synergy/joint"):
    assert len(maps[name]) == samples, f"{name} is not there for every sample"
assert (maps["prediction"] == maps["target"]).float().mean() > 0.85, "the network has not learned the digits"
assert maps["importance/map"].isfinite().all(), "importance is not finite everywhere"

numbers = json.loads((run / "results.json").read_text())
with (run / "metrics.csv").open() as file:
    logged = {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}
for metric in ("importance", "speed", "synergy"):
    assert numbers[metric]["samples"] == samples, f"{metric} did not count every sample once"
    for key, value in numbers[metric].items():
        assert abs(logged[f"val/{metric}/{key}"] - value) <= 1e-5 * abs(value), f"{metric}/{key} was logged otherwise"
assert float(maps["importance/map"].abs().mean()) - numbers["importance"]["mean_abs"] < 1e-6, "maps and numbers differ"

for picture in ("importance", "speed", "synergy", "samples"):
    header = (run / "figures" / stage / f"{picture}.png").read_bytes()[:24]
    width, height = struct.unpack(">II", header[16:24])
    assert header[:4] == b"\x89PNG", f"{picture}.png is not a picture"
    assert min(width, height) > 200, f"{picture}.png is too small to read"
assert (run / "config.yaml").read_text().count("${") == 0, "config.yaml is not resolved"
print(f"default run: {samples} samples explained, everything written")
