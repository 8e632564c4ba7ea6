"""What helios-ml 1.2.4 imports and a run of it does not use, in the shape that lets it import."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_MODULES = {
    "torchvision": {
        "__init__.py": '__version__ = "0 (a stand-in)"\n',
        "transforms/__init__.py": "",
        "transforms/v2.py": "class ToImage: pass\nclass ToDtype: pass\nclass Compose: pass\n",
    },
    "cv2": {"__init__.py": "IMREAD_COLOR = 1\n"},
    "onnx": {"__init__.py": ""},
    "onnxruntime": {"__init__.py": ""},
}


def write_standins(folder: Path) -> Path:
    """Write an empty module for each that helios-ml imports, unless the real one is installed.

    Args:
        folder: where to write them; made if it is not there.

    Returns:
        The folder, to be put on the path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, files in _MODULES.items():
        if find_spec(name) is not None:
            continue
        for file, text in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder
