"""The colors, and the random numbers they are drawn with."""

from __future__ import annotations

import random

import numpy as np
import pytest
from d2_access import d2_module

colors = d2_module("utils.colormap")


def test_the_table():
    table = colors.colormap(rgb=True, maximum=1)
    assert table.shape == (74, 3)
    assert table.dtype == np.float32
    assert table.sum() == pytest.approx(99.845, abs=1e-3)
    some = {
        0: (0, 0.447, 0.741),
        7: (0.3, 0.3, 0.3),
        15: (0.333, 0.333, 0),
        23: (1, 1, 0),
        24: (0, 0.333, 0.5),
        38: (1, 1, 0.5),
        39: (0, 0.333, 1),
        52: (1, 0.667, 1),
        53: (0.333, 0, 0),
        58: (0, 0.167, 0),
        69: (0, 0, 1),
        70: (0, 0, 0),
        73: (1, 1, 1),
    }
    for index, color in some.items():
        assert table[index].tolist() == pytest.approx(color), index


def test_channel_order_and_range():
    assert np.array_equal(colors.colormap(), colors.colormap(rgb=True)[:, ::-1])
    assert np.array_equal(colors.colormap(rgb=True), colors.colormap(rgb=True, maximum=1) * 255)
    with pytest.raises((ValueError, AssertionError)):
        colors.colormap(maximum=100)


def test_random_colors():
    table = colors.colormap(rgb=True, maximum=1)
    np.random.seed(0)
    drawn = [colors.random_color(rgb=True, maximum=1) for _ in range(3)]
    assert np.array_equal(drawn, table[[44, 47, 64]])  # np.random.randint(0, 74)
    np.random.seed(0)
    assert np.array_equal(colors.random_color(), table[44, ::-1] * 255)
    random.seed(0)
    assert np.array_equal(colors.random_colors(3, rgb=True, maximum=1), table[random_indices()])


def random_indices():
    random.seed(0)
    return random.sample(range(74), 3)
