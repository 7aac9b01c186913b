"""Colours of classes where a dataset brings none."""

from __future__ import annotations

import colorsys

# The fraction that spreads successive hues most evenly, whatever their number.
_GOLDEN = 0.6180339887498949
_LEVELS = ((0.75, 0.95), (0.55, 0.75), (0.95, 0.65), (0.4, 0.95), (0.85, 0.45))


def class_colors(count: int) -> list[tuple[int, int, int]]:
    """``count`` colours, RGB in 0..255, all different, neighbours far apart; the first are the same for any count."""
    colors: list[tuple[int, int, int]] = []
    step = 0
    while len(colors) < count:
        hue = (0.58 + step * _GOLDEN) % 1.0
        red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, *_LEVELS[step % len(_LEVELS)]))
        if (red, green, blue) not in colors:
            colors.append((red, green, blue))
        step += 1
    return colors
