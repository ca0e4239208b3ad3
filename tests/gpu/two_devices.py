"""What two processes with a device each find; started by ``torchrun``, which tells each its rank.

torchrun --nproc-per-node=2 two_devices.py FOLDER
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
from gpu_subjects import SAMPLES, Network, data, exact, metrics, monitored
from torch import distributed

from lightning_xai.metrics import update_together

SHARDS = {
    "halves": [list(range(11)), list(range(11, SAMPLES))],
    "uneven": [[3], [sample for sample in range(SAMPLES) if sample != 3]],
    "nothing": [list(range(SAMPLES)), []],
}


def shard(samples):
    """Every metric's results over all processes, of which this one sees some samples."""
    module, (inputs, target) = Network().double().cuda(), data()
    found = {name: metric.cuda() for name, metric in metrics().items()}
    for rows in torch.tensor(samples, dtype=torch.long).split(4) if samples else ():
        update_together(found, module, inputs[rows].cuda(), target[rows].cuda(), rows)
    if not samples:
        update_together(found, module, inputs[:1].cuda(), target[:1].cuda(), count=False)
    return {name: {key: value.cpu() for key, value in metric.compute().items()} for name, metric in found.items()}


def main(folder):
    rank = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl", timeout=timedelta(seconds=120))
    found = {name: shard(shards[rank]) for name, shards in SHARDS.items()}
    for stage in ("fit", "validate"):
        found[stage] = monitored(folder / stage, stage, devices=2, strategy="ddp")
    torch.save(found, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    with exact():
        main(Path(sys.argv[1]))
