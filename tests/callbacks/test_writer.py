"""Maps on disk: damaged files, other programs' files, and several runs in one folder."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from lightning_xai import load_explanations
from lightning_xai.callbacks.writer import ShardWriter, remove_explanations


def write(folder, *batches, rank=0, run=None, **more):
    """Files of one run, one per list of sample ids; the map of sample i is [i, i]."""
    writer = ShardWriter(folder, rank, run)
    for ids in batches:
        samples = torch.tensor(ids)
        writer.write({"sample_id": samples, "map": samples[:, None].expand(-1, 2).double(), **more})


@pytest.fixture
def ids():
    """Reads the ids of a folder, after a check that each has its own map."""

    def read(folder):
        found = load_explanations(folder)
        assert found["map"].tolist() == [[i, i] for i in found["sample_id"].tolist()]
        return found["sample_id"].tolist()

    return read


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_damaged_file_is_named_and_the_others_are_read(tmp_path, ids, kept):
    write(tmp_path, [4, 5], [2, 3], [0, 1])
    victim = tmp_path / "rank0-1.safetensors"
    victim.write_bytes(victim.read_bytes()[: int(kept * victim.stat().st_size)])
    with pytest.warns(UserWarning, match=r"are left out; damaged: rank0-1\.safetensors"):
        assert ids(tmp_path) == [0, 1, 4, 5]


def test_files_of_other_programs_and_with_other_tensors_are_left_out(tmp_path, ids):
    write(tmp_path, [0, 1], run="same")
    save_file({"sample_id": torch.tensor([7])}, tmp_path / "rank0-weights.safetensors")
    write(tmp_path, [2], rank=1, run="same", map=torch.tensor([2.0]))
    foreign, other = "not written by lightning_xai: rank0-weights.saf", "with other tensors than the first: rank1-0.saf"
    with pytest.warns(UserWarning, match=f"{foreign}.*{other}"):
        assert ids(tmp_path) == [0, 1]


def test_a_tensor_that_later_files_lack_is_left_out(tmp_path, ids):
    write(tmp_path, [0, 1], run="same", extra=torch.ones(2))
    write(tmp_path, [2], rank=1, run="same")
    assert ids(tmp_path) == [0, 1, 2]
    assert set(load_explanations(tmp_path)) == {"map", "sample_id"}


@pytest.mark.parametrize("latest", [0, 1])
def test_of_two_runs_in_one_folder_the_latest_counts(tmp_path, ids, latest):
    folders = [tmp_path / str(rank) for rank in range(2)]
    for rank in (1 - latest, latest):
        write(folders[rank], [rank], [10 + rank], rank=rank)
    for path in folders[1].iterdir():
        shutil.move(path, folders[0])
    with pytest.warns(UserWarning, match=f"of an earlier run: rank{1 - latest}-0.safetensors, rank{1 - latest}-1"):
        assert ids(folders[0]) == [latest, 10 + latest]


def test_a_sample_that_is_there_twice_counts_once(tmp_path, ids):
    write(tmp_path, [0, 2, 1], run="same")
    write(tmp_path, [2, 3, 2], rank=1, run="same")
    with pytest.warns(UserWarning, match="more than once, of which the first is kept: 2"):
        assert ids(tmp_path) == [0, 1, 2, 3]


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    (tmp_path / "rank0-0.safetensors").touch()
    with pytest.raises(ValueError, match=r"can be read \(damaged: rank0-0.safetensors\): run the explanation again"):
        load_explanations(tmp_path)


def test_leftovers_of_a_killed_run_go_with_its_files(tmp_path):
    write(tmp_path, [0])
    (tmp_path / ".rank0-1.safetensors.0123abcd.xai-tmp").touch()
    (tmp_path / "notes.txt").touch()
    assert load_explanations(tmp_path)["sample_id"].tolist() == [0]
    remove_explanations(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_epoch_with_one_pass_needs_no_step(tmp_path, ids):
    write(tmp_path / "validate-epoch1-step12", [1, 0])
    write(tmp_path / "validate-epoch10-step120", [5])
    assert ids(tmp_path / "validate-epoch1") == [0, 1]
    write(tmp_path / "validate-epoch1-step16", [7])
    with pytest.raises(FileNotFoundError, match=r"There are some in .*epoch1-step12, .*epoch1-step16\.$"):
        load_explanations(tmp_path / "validate-epoch1")
