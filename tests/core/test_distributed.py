import json
import os
import subprocess
import sys

import msgspec
import pytest
import torch
import torch.distributed as dist

from helios.core import distributed

_RANK = """
import json
import sys
import torch
import torch.distributed as dist
from helios.core.distributed import *

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
mine, info = torch.tensor([1.0, 2.0]) * (rank + 1), get_dist_info()
several = all_reduce_tensors([mine, torch.tensor(rank + 1), torch.ones(2, 1)])
results = {
    "info": [info.is_distributed, info.rank, info.local_rank, info.world_size],
    "sum": all_reduce_tensors(mine).tolist(),
    "mean": all_reduce_tensors(mine, "mean").tolist(),
    "min": all_reduce_tensors(mine, "min").tolist(),
    "max": all_reduce_tensors(mine, "max").tolist(),
    "mean of integers": all_reduce_tensors(torch.tensor(rank), "mean").item(),
    "several": [tensor.tolist() for tensor in several],
    "several dtypes": [str(tensor.dtype) for tensor in several],
    "untouched": mine.tolist(),
    "gathered": gather_into_tensor(mine).tolist(),
    "gathered scalar": gather_into_tensor(torch.tensor(rank)).tolist(),
    "gathered shape": gather_into_tensor(mine, (2, 2)).tolist(),
}
safe_barrier()
print(json.dumps(results))
global_print("global", rank)
global_print("global one", rank, global_rank=1)
local_print("local", rank)
dist.destroy_process_group()
"""


@pytest.fixture
def group_of_one(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def _torchrun(monkeypatch):
    for name in distributed._TORCHRUN:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "8")


def test_one_process_is_rank_zero_of_one():
    assert distributed.get_dist_info() == distributed.DistributedInfo(False, 0, 0, 1)


def test_the_getters_agree_with_the_info():
    assert distributed.get_rank() == 0
    assert distributed.get_local_rank() == 0
    assert distributed.get_world_size() == 1


def test_the_info_is_frozen():
    with pytest.raises(AttributeError):
        distributed.get_dist_info().rank = 1
    assert msgspec.structs.asdict(distributed.get_dist_info())["rank"] == 0


def test_a_plain_process_is_not_using_torchrun():
    assert not distributed.is_using_torchrun()


@pytest.mark.usefixtures("_torchrun")
def test_torchrun_is_found_by_its_variables():
    assert distributed.is_using_torchrun()


@pytest.mark.usefixtures("_torchrun")
def test_a_part_of_the_variables_is_not_torchrun(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert not distributed.is_using_torchrun()


@pytest.mark.usefixtures("_torchrun")
def test_torchrun_gives_the_ranks_before_there_is_a_group():
    assert distributed.get_dist_info() == distributed.DistributedInfo(True, 5, 1, 8)


@pytest.mark.usefixtures("_torchrun")
def test_collectives_are_the_identity_under_torchrun_before_there_is_a_group():
    assert distributed.all_reduce_tensors(torch.tensor(2.0), "mean") == 2.0
    assert distributed.gather_into_tensor(torch.tensor(2.0)).tolist() == [2.0]


@pytest.mark.usefixtures("_torchrun")
def test_torchrun_prints_on_the_asked_rank(capsys):
    distributed.global_print("zero")
    distributed.global_print("five", global_rank=5)
    distributed.local_print("one", local_rank=1)
    assert capsys.readouterr().out == "five\none\n"


@pytest.mark.parametrize("op", ["sum", "mean", "min", "max"])
def test_reducing_over_one_process_is_the_identity(op):
    value = torch.tensor([1.5, -2.0])
    assert torch.equal(distributed.all_reduce_tensors(value, op), value)


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("op", ["sum", "mean", "min", "max"])
def test_reducing_over_a_group_of_one_is_the_identity(op):
    value = torch.tensor([1.5, -2.0])
    assert torch.equal(distributed.all_reduce_tensors(value, op), value)


def test_reducing_returns_new_storage():
    value = torch.ones(2)
    distributed.all_reduce_tensors(value).zero_()
    assert value.tolist() == [1.0, 1.0]


@pytest.mark.usefixtures("group_of_one")
def test_reducing_in_a_group_returns_new_storage():
    values = [torch.ones(2), torch.ones(3)]
    first, second = distributed.all_reduce_tensors(values)
    first.zero_()
    assert values[0].tolist() == [1.0, 1.0]
    assert second.tolist() == [1.0, 1.0, 1.0]
    assert second.untyped_storage().nbytes() == 12


def test_reducing_a_sequence_gives_a_list():
    assert distributed.all_reduce_tensors((torch.ones(()),)) == [torch.ones(())]


def test_an_unknown_operation_is_an_error():
    with pytest.raises(ValueError, match="op: received 'avg'; expected one of 'sum', 'mean'"):
        distributed.all_reduce_tensors(torch.ones(1), "avg")


def test_gathering_from_one_process_is_the_identity():
    value = torch.arange(6).reshape(2, 3)
    gathered = distributed.gather_into_tensor(value)
    assert torch.equal(gathered, value)
    assert gathered.data_ptr() != value.data_ptr()


@pytest.mark.usefixtures("group_of_one")
def test_gathering_from_a_group_of_one_is_the_identity():
    value = torch.arange(6).reshape(2, 3).T
    assert torch.equal(distributed.gather_into_tensor(value), value)


def test_gathering_scalars_makes_a_vector():
    assert distributed.gather_into_tensor(torch.tensor(3)).tolist() == [3]


def test_gathering_into_a_wrong_size_is_an_error():
    with pytest.raises(ValueError, match=r"size: received \(3,\); expected the 2 elements of 1"):
        distributed.gather_into_tensor(torch.ones(2), (3,))


@pytest.mark.usefixtures("group_of_one")
def test_a_group_of_one_is_distributed():
    assert distributed.get_dist_info() == distributed.DistributedInfo(True, 0, 0, 1)


@pytest.mark.usefixtures("group_of_one")
def test_a_barrier_of_one_returns():
    distributed.safe_barrier()


def test_a_barrier_without_a_group_returns():
    distributed.safe_barrier()


def test_one_process_prints_whatever_the_rank(capsys):
    distributed.global_print("a", 1, global_rank=3, sep="-")
    distributed.local_print("b", local_rank=3)
    assert capsys.readouterr().out == "a-1\nb\n"


def test_two_ranks_compute_the_same_and_print_once(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0].splitlines() for process in processes]
    assert [json.loads(output[0]) for output in outputs] == [
        {
            "info": [True, rank, rank, 2],
            "sum": [3.0, 6.0],
            "mean": [1.5, 3.0],
            "min": [1.0, 2.0],
            "max": [2.0, 4.0],
            "mean of integers": 0.5,
            "several": [[3.0, 6.0], 3, [[2.0], [2.0]]],
            "several dtypes": ["torch.float32", "torch.int64", "torch.float32"],
            "untouched": [rank + 1.0, 2.0 * (rank + 1)],
            "gathered": [1.0, 2.0, 2.0, 4.0],
            "gathered scalar": [0, 1],
            "gathered shape": [[1.0, 2.0], [2.0, 4.0]],
        }
        for rank in range(2)
    ]
    assert [output[1:] for output in outputs] == [["global 0", "local 0"], ["global one 1"]]


def test_the_local_rank_of_a_launcher_counts(group_of_one, monkeypatch):
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "3")
    assert distributed.get_local_rank() == 3
