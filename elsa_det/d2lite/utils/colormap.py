"""74 colors that are easy to tell apart, for drawing."""

from __future__ import annotations

import random

import numpy as np

__all__ = ["colormap", "random_color", "random_colors"]

_THIRDS = (0.0, 0.333, 0.667, 1.0)


def _red_green_grid(blue: float) -> list[tuple[float, float, float]]:
    """All mixtures of red and green in thirds at one level of blue, without greys and pure primaries."""
    at_full_blue = blue == 1.0
    return [
        (red, green, blue)
        for red in _THIRDS
        for green in _THIRDS
        if (red or green) and not (at_full_blue and red == green == 1.0) and (blue or (red and green))
    ]


def _palette() -> np.ndarray:
    """74 × 3, RGB in 0…1. The order is that of Detectron2, so that equal random numbers give equal pictures."""
    colors: list[tuple[float, float, float]] = [
        # the seven line colors of MATLAB
        *((0.000, 0.447, 0.741), (0.850, 0.325, 0.098), (0.929, 0.694, 0.125), (0.494, 0.184, 0.556)),
        *((0.466, 0.674, 0.188), (0.301, 0.745, 0.933), (0.635, 0.078, 0.184)),
        # two greys, and strong colors
        *((0.300, 0.300, 0.300), (0.600, 0.600, 0.600)),
        *((1.0, 0.0, 0.0), (1.0, 0.5, 0.0), (0.749, 0.749, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.667, 0.0, 1.0)),
        *(color for blue in (0.0, 0.5, 1.0) for color in _red_green_grid(blue)),
    ]
    colors += [(level, 0.0, 0.0) for level in (0.333, 0.500, 0.667, 0.833, 1.0)]
    sixths = (0.167, 0.333, 0.500, 0.667, 0.833, 1.0)
    colors += [(0.0, level, 0.0) for level in sixths]
    colors += [(0.0, 0.0, level) for level in sixths]
    colors += [(level, level, level) for level in (0.0, 0.143, 0.857, 1.0)]
    return np.array(colors, dtype=np.float32)


_COLORS = _palette()


def colormap(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """All colors, one a row.

    Args:
        rgb: Channel order RGB, else BGR.
        maximum: Brightest value, 255 or 1.

    Raises:
        ValueError: Another ``maximum``.
    """
    if maximum not in (255, 1):
        raise ValueError(f"colormap: maximum={maximum} must be 255 or 1.")
    return _in_order(_COLORS * maximum, rgb)


def random_color(rgb: bool = False, maximum: int = 255) -> np.ndarray:
    """One of the colors, drawn with NumPy's global generator; arguments as in :func:`colormap`."""
    return _in_order(_COLORS[np.random.randint(0, len(_COLORS))] * maximum, rgb)


def random_colors(N: int, rgb: bool = False, maximum: int = 255) -> list[np.ndarray]:
    """``N`` different colors (at most 74), drawn with Python's global generator; otherwise as :func:`random_color`."""
    chosen = random.sample(range(len(_COLORS)), N)
    return [_in_order(_COLORS[index] * maximum, rgb) for index in chosen]


def _in_order(colors: np.ndarray, rgb: bool) -> np.ndarray:
    return colors if rgb else colors[..., ::-1]
