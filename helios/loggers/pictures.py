"""Images and values, as logs take them."""

from __future__ import annotations

from typing import Any

import torch

_ORDER = {"NCHW": (0, 2, 3, 1), "NHWC": (0, 1, 2, 3)}


def bytes_of(images: torch.Tensor, layout: str) -> torch.Tensor:
    """Return images as u8[n, height, width, channels], on their device.

    Args:
        images: u8 in [0, 255] or floating point in [0, 1]; what lies outside is cut off.
        layout: ``"NCHW"``, ``"NHWC"`` or ``"NHW"``.

    Raises:
        ValueError: if the dimensions are not those of the layout, or 1, 3 or 4 channels.

    Example:
        >>> bytes_of(torch.ones(2, 3, 4, 5), "NCHW").shape
        torch.Size([2, 4, 5, 3])
    """
    known = [*_ORDER, "NHW"]
    if layout not in known:
        raise ValueError(f"layout: received {layout[1:]!r}; expected 'CHW', 'HWC' or 'HW'")
    if images.ndim != len(layout):
        raise ValueError(
            f"images: received the shape {list(images.shape)} for the layout {layout}; expected "
            f"{len(layout)} dimensions, of which the first counts the images"
        )
    images = images[..., None] if layout == "NHW" else images.permute(_ORDER[layout])
    if images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"images: received {images.shape[-1]} channels for the layout {layout}; expected 1, 3 "
            "or 4"
        )
    if images.dtype.is_floating_point:
        images = images.nan_to_num(0.0).clamp(0, 1) * 255
    elif images.dtype is torch.bool:
        images = images * 255
    return images.to(torch.uint8).contiguous()


def drawn(figure: Any) -> torch.Tensor:
    """Return a figure of matplotlib as u8[1, height, width, 4]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.canvas
    canvas: Any = FigureCanvasAgg(figure)
    try:
        canvas.draw()
        return torch.tensor(memoryview(canvas.buffer_rgba()).tolist(), dtype=torch.uint8)[None]
    finally:
        figure.set_canvas(before)


def rows_of(values: torch.Tensor) -> Any:
    """Return values as a numpy array f64[n]."""
    return values.to("cpu", torch.float64).numpy()
