"""What a run runs on."""

from __future__ import annotations

import platform

import torch

from helios.version import __version__


def get_env_info_str() -> str:
    """Return the versions, the platform and the devices, a line each.

    Example:
        >>> "Python: " in get_env_info_str()
        True
    """
    lines = [
        f"helios: {__version__}",
        f"Python: {platform.python_version()}",
        f"PyTorch: {torch.__version__}",
        f"Platform: {platform.platform()}",
        f"CPU threads: {torch.get_num_threads()}",
    ]
    if torch.cuda.is_available():
        lines.append(f"CUDA: {torch.version.cuda}")
        lines += [
            f"CUDA device {index}: {torch.cuda.get_device_name(index)}"
            for index in range(torch.cuda.device_count())
        ]
    return "\n".join(lines)
