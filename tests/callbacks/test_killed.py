"""A run that is killed at any moment leaves whole files."""

import csv
import json
import multiprocessing
import random
import time
import warnings
from itertools import count

import pytest
import torch

from lightning_xai import load_explanations
from lightning_xai._files import TEMPORARY, write_csv, write_text
from lightning_xai.callbacks.writer import ShardWriter, remove_pass

ROWS = 20_000
MAPS = torch.arange(4 * 2**16, dtype=torch.float32).view(4, -1)  # a megabyte


def write_on(folder):
    """Write shards, tables and numbers until somebody ends it."""
    writer = ShardWriter(folder)
    for number in count():
        writer.write({"sample_id": torch.arange(4) + 4 * number, "map": MAPS + number})
        write_csv(folder / "zero.by_feature.csv", ["feature", "value"], [[row, number] for row in range(ROWS)])
        write_text(folder / "results.json", json.dumps({"number": number, "rows": [number] * ROWS}))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12
@pytest.mark.parametrize("seed", range(4))
def test_files_are_whole_whenever_the_process_is_killed(tmp_path, seed):
    process = multiprocessing.get_context("fork").Process(target=write_on, args=(tmp_path,))
    process.start()
    while not (tmp_path / "results.json").exists():
        time.sleep(0.001)
    time.sleep(0.05 * random.Random(seed).random())
    process.kill()
    process.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of damaged files
        found = load_explanations(tmp_path)
    shards = len(list(tmp_path.glob("*.safetensors")))
    assert found["sample_id"].tolist() == list(range(4 * shards))
    assert found["map"][-4:].equal(MAPS + shards - 1)
    with (tmp_path / "zero.by_feature.csv").open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    assert rows == [[str(row), rows[0][1]] for row in range(ROWS)]
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert numbers["rows"] == [numbers["number"]] * ROWS
    assert shards - 2 <= numbers["number"] <= shards - 1  # of one step at most something is missing
    remove_pass(tmp_path)
    assert not list(tmp_path.glob(TEMPORARY))
