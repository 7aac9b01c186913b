"""Resizing in blocks of rows is resizing, and takes the memory of a block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from elsa_det.modeling.semantic.resizing import BLOCK_BYTES, predicted_labels, resized_rows, row_blocks


def resized(scores, sizes, align_corners=False):
    for size in sizes:
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=align_corners)
    return scores


# In single precision a position between rows is known to some 1e-6, so values of about 4 are known to some 1e-5.
@pytest.mark.parametrize(
    ("precision", "rounding"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=["double", "single"]
)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        [(90, 117)],
        [(90, 117), (120, 156)],
        [(90, 117), (61, 70)],
        [(90, 117), (90, 117)],
        [(90, 117), (90, 40)],
        [(7, 5), (31, 64)],
        [(1, 1), (9, 4)],
        [(23, 60)],
        [],
    ],
    ids=str,
)
def test_rows_are_those_of_the_resized_map(sizes, align_corners, precision, rounding):
    scores = torch.randn(2, 5, 23, 30, generator=torch.Generator().manual_seed(0), dtype=precision)
    whole = resized(scores, sizes, align_corners)
    height = whole.shape[-2]
    blocks = [
        resized_rows(scores, sizes, start, min(start + 11, height), align_corners=align_corners)
        for start in range(0, height, 11)
    ]
    torch.testing.assert_close(torch.cat(blocks, dim=-2), whole, rtol=0, atol=rounding)


def test_half_precision_is_resized_in_single():
    scores = torch.randn(1, 3, 8, 8).to(torch.bfloat16)
    rows = resized_rows(scores, [(20, 20)], 0, 20)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, resized(scores.float(), [(20, 20)]), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (0, 21)])
def test_rows_outside(start, stop):
    with pytest.raises(ValueError, match=f"rows {start}..{stop} do not lie in a map of 20 rows"):
        resized_rows(torch.zeros(1, 3, 8, 8), [(20, 20)], start, stop)


def test_blocks_cover_all_rows_once():
    assert list(row_blocks(10, 300, 1000)) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert list(row_blocks(2, 5000, 1000)) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("block_bytes", [1, 5 * 156 * 4 * 7, 2**30])
def test_labels_are_the_best_classes(block_bytes):
    scores = torch.randn(2, 5, 23, 30, generator=torch.Generator().manual_seed(1))
    sizes = [(90, 117), (120, 156)]
    labels = predicted_labels(scores, sizes, block_bytes=block_bytes)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, resized(scores, sizes).argmax(dim=1))


class Largest(TorchDispatchMode):
    """Notes the memory of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(
    ("input_size", "size"), [((256, 512), (1024, 2048)), ((512, 1024), (100, 200))], ids=["enlarged", "shrunk"]
)
def test_full_size_scores_are_never_whole(input_size, size):
    """150 classes at 2048 x 1024 are 1.26 GB; where the result is smaller than the input, that of the input counts."""
    scores = torch.randn(1, 150, 64, 128, generator=torch.Generator().manual_seed(2))
    with Largest() as largest:
        labels = predicted_labels(scores, [input_size, size])
    assert labels.shape == (1, *size)
    assert BLOCK_BYTES / 2 < largest.bytes <= BLOCK_BYTES * 1.1
    rows = resized_rows(scores, [input_size, size], 50, 53)[0].argmax(dim=0)
    assert torch.equal(labels[0, 50:53], rows)
