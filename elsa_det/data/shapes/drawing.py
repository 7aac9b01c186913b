"""Draws the scenes of the quickstart set: textured, turned, partly hidden shapes under uneven light.

Every pixel is a function of ``(seed, split, index)`` alone. The random words come straight from NumPy's PCG64 bit
generator, whose stream is fixed by NumPy's compatibility promise (that of ``Generator``'s distributions is not), and
the drawing is integer arithmetic, so processors and library versions do not matter.
"""

from __future__ import annotations

import colorsys
import math
import zlib
from dataclasses import dataclass

import numpy as np

CLASSES = ("disc", "square", "triangle", "star", "ring", "cross")

# Outlines live in a local frame in which the shape fills a circle of radius UNIT.
UNIT = 1024
_RING_HOLE = 560
_OUTLINES = {
    "square": ((-760, -760), (760, -760), (760, 760), (-760, 760)),
    "triangle": ((0, -1024), (887, 512), (-887, 512)),
    "star": (
        (0, -1024), (258, -355), (974, -316), (417, 136), (602, 828),
        (0, 439), (-602, 828), (-417, 136), (-974, -316), (-258, -355),
    ),
    "cross": (
        (-300, -960), (300, -960), (300, -300), (960, -300), (960, 300), (300, 300),
        (300, 960), (-300, 960), (-300, 300), (-960, 300), (-960, -300), (-300, -300),
    ),
}  # fmt: skip

_SUB = 4  # samples per pixel and axis; coverage runs from 0 to _FULL
_FULL = _SUB * _SUB
_FINE = 2 * _SUB  # positions are counted in 1/_FINE pixel, so that sample centres are whole numbers


@dataclass(frozen=True)
class SceneSpec:
    """What a scene looks like; sizes and lengths are in pixels."""

    image_size: int = 128
    min_object: int = 16
    max_object: int = 72
    min_objects: int = 2
    max_objects: int = 6
    min_visible: float = 0.4
    """An object of which a smaller share can be seen is left out of the picture."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("image_size", "min_object", "max_object", "min_objects", "max_objects", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number, got {value!r}.")
        if not 8 <= self.min_object <= self.max_object <= self.image_size:
            raise ValueError(
                "Sizes must satisfy 8 <= min_object <= max_object <= image_size, "
                f"got {self.min_object}, {self.max_object}, {self.image_size}."
            )
        if not 1 <= self.min_objects <= self.max_objects:
            raise ValueError(
                f"Counts must satisfy 1 <= min_objects <= max_objects, got {self.min_objects}, {self.max_objects}."
            )
        if not 0.0 < self.min_visible <= 1.0:
            raise ValueError(f"min_visible is a share in (0, 1], got {self.min_visible}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")


@dataclass(frozen=True)
class Scene:
    """A picture and what can be seen in it, back to front."""

    image: np.ndarray
    """(H, W, 3) uint8, RGB."""
    classes: list[int]
    """Index into :data:`CLASSES`, one per object."""
    masks: np.ndarray
    """(N, H, W) bool, the visible pixels of each object; no pixel belongs to two."""

    def label_map(self) -> np.ndarray:
        """(H, W) uint8: 0 for the ground, 1 + class index on the objects."""
        labels = np.zeros(self.image.shape[:2], dtype=np.uint8)
        for index, mask in zip(self.classes, self.masks):
            labels[mask] = index + 1
        return labels


class _Dice:
    """Random draws for one picture, made of raw PCG64 words only."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def real(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * ((int(self._bits.random_raw()) >> 11) * 2.0**-53)

    def whole(self, low: int, high: int) -> int:
        """Uniform in [low, high], both included."""
        return low + (int(self._bits.random_raw()) >> 32) * (high - low + 1) // 2**32

    def field(self, height: int, width: int, top: int) -> np.ndarray:
        """(height, width) int64, uniform in [0, top]."""
        words = self._bits.random_raw(height * width) >> np.uint64(32)
        return ((words * np.uint64(top + 1)) >> np.uint64(32)).astype(np.int64).reshape(height, width)


@dataclass(frozen=True)
class _Shape:
    """A placed object: its class, its local frame and how much of each pixel of the picture it covers."""

    index: int
    radius: float
    local_u: np.ndarray
    local_v: np.ndarray
    cover: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return 2 * self.cover >= _FULL


def draw_scene(spec: SceneSpec, split: str, index: int) -> Scene:
    """Draw picture ``index`` of ``split``; the same arguments give the same pixels everywhere."""
    dice = _Dice(spec.seed, zlib.crc32(split.encode()), index)
    wanted = dice.whole(spec.min_objects, spec.max_objects)
    shapes, visible = _drop_hidden([_place(dice, spec) for _ in range(wanted)], spec.min_visible)

    side = spec.image_size
    light_x, light_y = _direction(dice)
    image = _ground(dice, side)
    for shape in shapes:
        image = _shadow(image, shape, light_x, light_y)
        paint = _paint(dice, shape, light_x, light_y)
        cover = shape.cover[:, :, None]
        image = (image * (_FULL - cover) + paint * cover + _FULL // 2) // _FULL
    image = _lit(dice, image, light_x, light_y)
    return Scene(image.astype(np.uint8), [shape.index for shape in shapes], visible)


def _drop_hidden(shapes: list[_Shape], min_visible: float) -> tuple[list[_Shape], np.ndarray]:
    """Leave out what others mostly hide; the visible masks of the rest, back to front."""

    def visible(stack: list[_Shape]) -> np.ndarray:
        masks = np.stack([shape.mask for shape in stack])
        for position in range(len(stack)):
            masks[position] &= ~masks[position + 1 :].any(axis=0)
        return masks

    seen = visible(shapes).sum(axis=(1, 2))
    kept = [s for s, pixels in zip(shapes, seen) if pixels >= min_visible * int(s.mask.sum())]
    return kept, visible(kept)  # the frontmost is wholly visible, so something is always left


# -- objects ----------------------------------------------------------------------------------------------------------


def _place(dice: _Dice, spec: SceneSpec) -> _Shape:
    index = dice.whole(0, len(CLASSES) - 1)
    # Sizes are even on a logarithmic scale: small objects are as common as large ones.
    size = spec.min_object * (spec.max_object / spec.min_object) ** dice.real()
    radius = round(size * _FINE / 2) / _FINE
    # A fifth of the diameter at most is cut off by the border.
    low, high = round(0.3 * size * _FINE), round((spec.image_size - 0.3 * size) * _FINE)
    centre_x, centre_y = dice.whole(low, high), dice.whole(low, high)
    turn = dice.real(0.0, 2.0 * math.pi)
    squeeze = dice.real(0.8, 1.0)

    scale = 65536.0 * UNIT / (_FINE * radius)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    matrix = (round(cos), round(sin), round(-sin / squeeze), round(cos / squeeze))

    side = spec.image_size
    reach = math.ceil(radius * 1.1) + 1
    left, right = max(0, centre_x // _FINE - reach), min(side, centre_x // _FINE + reach + 1)
    top, bottom = max(0, centre_y // _FINE - reach), min(side, centre_y // _FINE + reach + 1)

    def frame(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dx, dy = (x - centre_x)[None, :], (y - centre_y)[:, None]
        return (matrix[0] * dx + matrix[1] * dy) >> 16, (matrix[2] * dx + matrix[3] * dy) >> 16

    fine_x = left * _FINE + 1 + 2 * np.arange((right - left) * _SUB, dtype=np.int64)
    fine_y = top * _FINE + 1 + 2 * np.arange((bottom - top) * _SUB, dtype=np.int64)
    inside = _inside(CLASSES[index], *frame(fine_x, fine_y))
    cover = np.zeros((side, side), dtype=np.int64)
    cover[top:bottom, left:right] = inside.reshape(bottom - top, _SUB, right - left, _SUB).sum(axis=(1, 3))

    pixels = _FINE * np.arange(side, dtype=np.int64) + _SUB
    return _Shape(index, radius, *frame(pixels, pixels), cover)


def _inside(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Which points of the local frame lie in the shape called ``name``."""
    if name in ("disc", "ring"):
        square = u * u + v * v
        return (square <= UNIT * UNIT) & (square > (_RING_HOLE * _RING_HOLE if name == "ring" else -1))
    corners = _OUTLINES[name]
    inside = np.zeros(u.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        if y0 == y1:
            continue
        spans = (v < y0) != (v < y1)
        side = (x1 - x0) * (v - y0) - (u - x0) * (y1 - y0)
        inside ^= spans & ((side > 0) if y1 > y0 else (side < 0))
    return inside


def _paint(dice: _Dice, shape: _Shape, light_x: int, light_y: int) -> np.ndarray:
    """(H, W, 3) int64 colours of an object over the whole picture."""
    # The hue leans to the class but strays into its neighbours', so colour is a hint and the outline decides.
    stray = (dice.real(-1.0, 1.0) + dice.real(-1.0, 1.0)) * 0.14
    hue = shape.index / len(CLASSES) + stray
    saturation, value = dice.real(0.45, 0.95), dice.real(0.55, 0.95)
    first = _rgb(hue, saturation, value)
    second = _rgb(hue + dice.real(-0.06, 0.06), saturation * dice.real(0.3, 0.9), value * dice.real(0.45, 0.8))
    blend = _pattern(dice, shape.local_u, shape.local_v, shape.radius)
    colour = _mix(first, second, blend)
    height, width = blend.shape
    colour += dice.field(height, width, 16)[:, :, None] - 8
    # Turned towards the light, turned away from it: the side of the object that faces the light is brighter.
    rows, columns = np.arange(height, dtype=np.int64), np.arange(width, dtype=np.int64)
    slope = light_x * columns[None, :] + light_y * rows[:, None]
    middle = int(slope[shape.mask].sum()) // max(1, int(shape.mask.sum()))
    shade = 256 + (slope - middle) * 48 // (256 * max(1, int(shape.radius)))
    return np.clip((colour * shade[:, :, None]) >> 8, 0, 255)


def _pattern(dice: _Dice, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """(H, W) weights 0..256 of the second colour: plain, stripes, checks, dots or clouds, fixed to the object."""
    kind = dice.whole(0, 4)
    # Periods of four pixels and more: finer ones would only be noise.
    period = max(dice.whole(300, 900), round(4 * UNIT / radius))
    cloud = dice.field(33, 33, 256)
    if kind == 0:
        return np.full(u.shape, dice.whole(0, 64), dtype=np.int64)
    if kind == 1:
        return _wave(u, period)
    if kind == 2:
        return 256 * ((u // period + v // period) % 2)
    if kind == 3:
        du, dv = u % period - period // 2, v % period - period // 2
        return np.where(du * du + dv * dv < (3 * period // 10) ** 2, 256, 0).astype(np.int64)
    return _interpolate(cloud, (u + 8 * UNIT) % (8 * UNIT), (v + 8 * UNIT) % (8 * UNIT), UNIT // 4)


def _shadow(image: np.ndarray, shape: _Shape, light_x: int, light_y: int) -> np.ndarray:
    """Darken the side of the object that the light does not reach."""
    reach = 1 + int(shape.radius) // 8
    dx, dy = -light_x * reach // 256, -light_y * reach // 256
    moved = np.zeros_like(shape.cover)
    side = len(moved)
    moved[max(0, dy) : side + min(0, dy), max(0, dx) : side + min(0, dx)] = shape.cover[
        max(0, -dy) : side + min(0, -dy), max(0, -dx) : side + min(0, -dx)
    ]
    return image * (3 * _FULL - moved)[:, :, None] // (3 * _FULL)


# -- ground and light -------------------------------------------------------------------------------------------------


def _ground(dice: _Dice, side: int) -> np.ndarray:
    """(side, side, 3) int64: two muted colours mixed by clouds, and now and then stripes or checks."""
    hue, value = dice.real(), dice.real(0.35, 0.85)
    first = _rgb(hue, dice.real(0.05, 0.45), value)
    second = _rgb(hue + dice.real(-0.2, 0.2), dice.real(0.05, 0.45), value * dice.real(0.5, 0.85))
    rows, columns = np.arange(side, dtype=np.int64)[:, None], np.arange(side, dtype=np.int64)[None, :]
    blend = np.zeros((side, side), dtype=np.int64)
    for cell, weight in ((40, 4), (14, 3), (5, 1)):
        lattice = dice.field(side // cell + 2, side // cell + 2, 256)
        blend += weight * _interpolate(lattice, columns, rows, cell)
    blend //= 8
    kind, period = dice.whole(0, 3), dice.whole(6, 24)
    a, b = _direction(dice)
    along, across = (a * columns + b * rows) // 16, (a * rows - b * columns) // 16
    if kind == 1:
        blend = (blend * 5 + _wave(along, 16 * period) * 3) // 8
    elif kind == 2:
        blend = (blend * 5 + 256 * ((along // (16 * period) + across // (16 * period)) % 2) * 3) // 8
    return np.clip(_mix(first, second, blend) + dice.field(side, side, 20)[:, :, None] - 10, 0, 255)


def _lit(dice: _Dice, image: np.ndarray, light_x: int, light_y: int) -> np.ndarray:
    """The picture under a light that falls off along its direction, with a tint."""
    side = len(image)
    steps = 2 * np.arange(side, dtype=np.int64) - side
    fall = light_x * steps[None, :] + light_y * steps[:, None]
    level = dice.whole(210, 290) + fall * dice.whole(10, 60) // (256 * side)
    tint = np.array([dice.whole(244, 268) for _ in range(3)], dtype=np.int64)
    return np.clip((image * level[:, :, None] * tint) >> 16, 0, 255)


# -- small change -----------------------------------------------------------------------------------------------------


def _direction(dice: _Dice) -> tuple[int, int]:
    """A unit vector in 1/256."""
    angle = dice.real(0.0, 2.0 * math.pi)
    return round(256 * math.cos(angle)), round(256 * math.sin(angle))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array([round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1.0, saturation, value)], dtype=np.int64)


def _mix(first: np.ndarray, second: np.ndarray, blend: np.ndarray) -> np.ndarray:
    """``first`` where ``blend`` is 0, ``second`` where it is 256."""
    return (first * (256 - blend[:, :, None]) + second * blend[:, :, None]) >> 8


def _wave(position: np.ndarray, period: int) -> np.ndarray:
    """A triangular wave 0..256 with steepened flanks."""
    climb = np.abs(position % period * 2 - period) * 768 // period - 256
    return np.clip(climb, 0, 256)


def _interpolate(lattice: np.ndarray, x: np.ndarray, y: np.ndarray, cell: int) -> np.ndarray:
    """Bilinear values of ``lattice``, whose nodes lie ``cell`` apart, at whole positions ``x``, ``y``."""
    x, y = np.broadcast_arrays(x, y)
    column, row = x // cell, y // cell
    fx, fy = x % cell, y % cell
    upper = lattice[row, column] * (cell - fx) + lattice[row, column + 1] * fx
    lower = lattice[row + 1, column] * (cell - fx) + lattice[row + 1, column + 1] * fx
    return (upper * (cell - fy) + lower * fy) // (cell * cell)
