import os

import pytest
import torch

from helios.core import cuda

cudnn = torch.backends.cudnn


def _switches():
    return (
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_cuda_support_is_required_or_the_error_says_why():
    if torch.cuda.is_available():
        cuda.requires_cuda_support()
    else:
        with pytest.raises(RuntimeError, match="CUDA is needed, and"):
            cuda.requires_cuda_support()


def test_the_benchmark_is_off_inside_and_back_outside():
    cudnn.benchmark = True
    try:
        with cuda.DisableCuDNNBenchmarkContext():
            assert not cudnn.benchmark
        assert cudnn.benchmark
    finally:
        cudnn.benchmark = False


def test_the_benchmark_is_what_it_was_on_entry_not_at_construction():
    context = cuda.DisableCuDNNBenchmarkContext()
    cudnn.benchmark = True
    try:
        with context:
            pass
        assert cudnn.benchmark
    finally:
        cudnn.benchmark = False


def test_deterministic_sets_all_switches(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with cuda.determinism(deterministic=True):
        assert _switches() == (False, True, True, False, ":4096:8")


def test_benchmark_sets_its_switch():
    with cuda.determinism(benchmark=True):
        assert _switches()[:3] == (True, False, False)


@pytest.mark.parametrize("workspace", [None, ":16:8"])
@pytest.mark.parametrize("arguments", [(False, True), (True, False), (False, False)])
def test_the_switches_are_put_back(monkeypatch, workspace, arguments):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    before = _switches()
    with pytest.raises(RuntimeError), cuda.determinism(*arguments):
        raise RuntimeError
    assert _switches() == before


def test_a_warn_only_setting_is_put_back():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with cuda.determinism(deterministic=True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_workspace_of_the_user_stays_inside(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with cuda.determinism(deterministic=True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_switch_that_is_off_is_not_switched_off(monkeypatch):
    # torch.use_deterministic_algorithms imports the compiler, which takes seconds.
    monkeypatch.setattr(torch, "use_deterministic_algorithms", pytest.fail)
    with cuda.determinism():
        pass


def test_both_at_once_is_an_error():
    with pytest.raises(ValueError, match="benchmark=True and deterministic=True"):
        cuda.determinism(benchmark=True, deterministic=True).__enter__()
