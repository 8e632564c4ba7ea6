import platform

import torch

import helios
from helios.core.utils import get_env_info_str


def test_the_python_version_is_printed_right():
    assert f"Python: {platform.python_version()}\n" in get_env_info_str()


def test_the_versions_of_helios_and_torch_are_there():
    text = get_env_info_str()
    assert f"helios: {helios.version.__version__}" in text
    assert f"PyTorch: {torch.__version__}" in text


def test_the_platform_and_the_threads_are_there():
    text = get_env_info_str()
    assert f"Platform: {platform.platform()}" in text
    assert f"CPU threads: {torch.get_num_threads()}" in text
