"""What only devices can show: the numbers of the CPU, training that notices nothing, and processes that meet over NCCL.

Run with ``pytest -m gpu``. TF32 is off, and where it can be the comparison is one of double precision.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_subjects import SAMPLES, Network, data, exact, loader, metrics, monitored, own_segments, trainer
from torch import nn

from lightning_xai import ExplanationMonitor, Segments, Windows
from lightning_xai.metrics import update_together
from lightning_xai.perturbation import importance, kinds, speed, synergy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers",
        "ignore:The number of training batches .* is smaller than the logging interval",
        "ignore:.*LeafSpec.* is deprecated:FutureWarning",
    ),
]


@pytest.fixture(autouse=True)
def _exact():
    assert torch.cuda.is_available(), "these tests need a CUDA device"
    with exact():
        yield


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(
        found, expected, rtol=tolerance, atol=tolerance, equal_nan=True, check_device=False, check_dtype=False
    )


KINDS = [
    kinds.Constant(0.3),
    kinds.Bidirectional(0.3, combine="max_abs"),
    kinds.GaussianNoise(),
    kinds.UniformNoise(),
    kinds.RandomScale(),
    kinds.Permute(),
    kinds.Blur(1.0),
    kinds.LocalMean(),
    kinds.ChannelMean(),
    kinds.Log(),
    kinds.Custom(torch.linspace(0.0, 1.0, 8)),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("regions", [Windows(4, stride=3), Segments(own_segments)], ids=["windows", "segments"])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_importance_is_that_on_the_cpu(kind, regions, chunk_size):
    model, (inputs, target) = Network().double(), data()
    ask = {"regions": regions, "perturbation": kind, "chunk_size": chunk_size}
    expected = importance(model, inputs, target, **ask)
    found = importance(model.cuda(), inputs.cuda(), target.cuda(), **ask)
    assert found.is_cuda
    close(found, expected)


@pytest.mark.parametrize("regions", [Windows(3), Segments(own_segments)], ids=["windows", "segments"])
@pytest.mark.parametrize("quantity", [importance, synergy])
def test_the_incremental_engine_gives_the_dense_numbers(quantity, regions):
    model, (inputs, target) = Network().double().cuda(), data()
    ask = {"regions": regions, "perturbation": kinds.Bidirectional(0.3)}
    dense, found = (
        quantity(model, inputs.cuda(), target.cuda(), engine=engine, **ask) for engine in ("dense", "incremental")
    )
    close(found, dense, 1e-10)


@pytest.mark.parametrize("score", ["probability", "logit", "log_probability", "margin", "sigmoid", "comb_classes"])
@pytest.mark.parametrize("anchor", [None, 2])
def test_speed_and_synergy_are_those_on_the_cpu(score, anchor):
    model, states = Network().double(), [kinds.Negative(0.2), kinds.Negative(0.6)]

    def both(inputs, target):
        ask = {"regions": Windows(4), "score": score}
        slope, _ = speed(model, inputs, target, perturbations=states, **ask)
        return slope, synergy(model, inputs, target, perturbation=states[0], anchor=anchor, **ask)

    inputs, target = data()
    expected = both(inputs, target)
    model.cuda()
    close(both(inputs.cuda(), target.cuda()), expected)


def test_random_states_are_left():
    model, (inputs, _) = Network().cuda(), data()
    before = torch.cuda.get_rng_state(), torch.get_rng_state()
    importance(model, inputs.float().cuda(), 0, regions=Windows(4), perturbation=kinds.GaussianNoise())
    assert torch.equal(torch.cuda.get_rng_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_states_of_metrics_are_on_the_device():
    model, (inputs, target) = Network().double(), data()
    expected, found = metrics(), metrics()
    update_together(expected, model, inputs, target)
    model.cuda()
    for metric in found.values():
        metric.cuda()
    for rows in torch.arange(SAMPLES).split(8):
        update_together(found, model, inputs[rows].cuda(), target[rows].cuda(), rows)
    for name, metric in found.items():
        assert all(getattr(metric, state).is_cuda for state in metric._defaults)
        close(metric.compute(), expected[name].compute())


def on_the_cpu():
    """The numbers that a monitor of all samples has to log, and the maps it has to write."""
    found = metrics()
    explained = update_together(found, Network().double(), *data())
    logged = {
        f"val/{name}/{key}": value.item()
        for name, metric in found.items()
        for key, value in metric.compute().items()
        if value.ndim == 0
    }
    return logged, {f"{name}/map": explained[name].tensors["map"] for name in found if name != "pairs"}


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize("precision", ["64-true", "32-true", "bf16-mixed", "16-mixed"])
def test_the_monitor_on_one_device(tmp_path, stage, precision):
    """Single precision leaves about 1e-7 of a probability; 1e-4 is far below what half precision would leave."""
    logged, maps = monitored(tmp_path, stage, devices=1, precision=precision)
    expected, expected_maps = on_the_cpu()
    tolerance = 1e-9 if precision == "64-true" else 1e-4
    assert maps["sample_id"].tolist() == list(range(SAMPLES))
    close({name: maps[name] for name in expected_maps}, expected_maps, tolerance)
    assert logged == pytest.approx(expected, rel=1e-5, abs=max(tolerance, 1e-7), nan_ok=True)  # logged in single


class Student(Network):
    """Learns, with dropout."""

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_training_does_not_notice_the_monitor(tmp_path, precision):
    left = []
    for callbacks in ([ExplanationMonitor(metrics(), max_samples=9)], []):
        torch.manual_seed(9)
        module, run = Student(), trainer(tmp_path, devices=1, max_epochs=3, callbacks=callbacks, precision=precision)
        run.fit(module, loader(shuffle=True), loader())
        left.append({**module.state_dict(), "random": torch.cuda.get_rng_state(), "random cpu": torch.get_rng_state()})
    torch.testing.assert_close(left[0], left[1], rtol=0, atol=0)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes find with a device each."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one device only")
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).parent / "two_devices.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, folder]
    inherited = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(command, env=inherited, timeout=600, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("shards", ["halves", "uneven", "nothing"])
@pytest.mark.parametrize("rank", [0, 1])
def test_metrics_meet_over_nccl(two, rank, shards):
    expected = metrics()
    update_together(expected, Network().double(), *data())
    for name, metric in expected.items():
        close(two[rank][shards][name], metric.compute())


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_monitor_on_two_devices(two, tmp_path, rank, stage):
    logged, maps = monitored(tmp_path, stage, devices=1)
    assert two[rank][stage][1]["sample_id"].tolist() == list(range(SAMPLES))
    close(two[rank][stage][1], maps)
    assert two[rank][stage][0] == pytest.approx(logged, rel=1e-6, abs=1e-7, nan_ok=True)
