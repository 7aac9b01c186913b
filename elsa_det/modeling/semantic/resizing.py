"""Bilinear resizing a few rows at a time, so that class scores at full size never exist as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: how much memory one block of full-size scores may take, in bytes
BLOCK_BYTES = 32 * 2**20


def resized_rows(
    scores: Tensor, sizes: Sequence[tuple[int, int]], start: int, stop: int, *, align_corners: bool = False
) -> Tensor:
    """Some rows of a map that is resized bilinearly, once or several times in a row.

    The same numbers, up to rounding, as ``F.interpolate(..., mode="bilinear")`` to each of the sizes and a cut out of
    the last result; only what these rows need is computed.

    Args:
        scores: (B, C, h, w); or what has its ``shape`` and ``dtype`` and gives whole rows by slicing alone,
            ``scores[..., start:stop, :]``.
        sizes: (height, width) to resize to, one after the other; none leaves the map as it is.
        start, stop: rows of the last map, ``0 <= start < stop <= height``.
        align_corners: as in ``F.interpolate``.

    Returns:
        (B, C, stop - start, width), float32 at least.

    Raises:
        ValueError: there are no such rows.
    """
    height = sizes[-1][0] if sizes else scores.shape[-2]
    if not 0 <= start < stop <= height:
        raise ValueError(f"rows {start}..{stop} do not lie in a map of {height} rows")
    if not sizes:
        rows = scores[..., start:stop, :]
        return rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    *before, (_, width) = sizes
    precision = torch.float64 if scores.dtype == torch.float64 else torch.float32
    height_before = before[-1][0] if before else scores.shape[-2]
    if height_before == height:
        return _resized_width(
            resized_rows(scores, before, start, stop, align_corners=align_corners), width, align_corners
        )
    upper, lower, weight = _neighbours(height_before, height, start, stop, align_corners, precision)
    first, last = int(upper[0]), int(lower[-1])
    rows = resized_rows(scores, before, first, last + 1, align_corners=align_corners)
    rows = _resized_width(rows, width, align_corners)
    above, below = ((places - first).to(rows.device) for places in (upper, lower))
    return torch.lerp(rows[..., above, :], rows[..., below, :], weight.to(rows)[:, None])


def _resized_width(rows: Tensor, width: int, align_corners: bool) -> Tensor:
    if rows.shape[-1] == width:
        return rows
    return F.interpolate(rows, size=(rows.shape[-2], width), mode="bilinear", align_corners=align_corners)


def _neighbours(
    length: int, target: int, start: int, stop: int, align_corners: bool, precision: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows above and below the positions ``start..stop`` of a resized map, and the weight of the one below.

    In the precision that ``F.interpolate`` computes them in, and on the CPU, so that a GPU need not be waited for.
    """
    position = torch.arange(start, stop, dtype=precision)
    if align_corners:
        position = position * torch.tensor((length - 1) / max(target - 1, 1), dtype=precision)
    else:
        scale = torch.tensor(length, dtype=precision) / target
        position = (scale * (position + 0.5) - 0.5).clamp(min=0)
    upper = position.long().clamp(max=length - 1)
    return upper, (upper + 1).clamp(max=length - 1), (position - upper).clamp(0, 1)


def row_blocks(height: int, bytes_per_row: int, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, int]]:
    """(start, stop) of blocks of rows that cover ``height``: at most ``block_bytes`` each, but a row at least."""
    step = max(1, block_bytes // max(bytes_per_row, 1))
    for start in range(0, height, step):
        yield start, min(start + step, height)


@torch.no_grad()
def predicted_labels(
    scores: Tensor,
    sizes: Sequence[tuple[int, int]],
    *,
    align_corners: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Tensor:
    """The best class of each pixel after resizing the scores to each of ``sizes`` in turn.

    Args:
        scores: (B, C, h, w) logits.
        sizes: as in :func:`resized_rows`.
        align_corners: as in ``F.interpolate``.
        block_bytes: memory of a block of scores at any of the sizes.

    Returns:
        (B, height, width) int64 of the last size.
    """
    height, width = sizes[-1] if sizes else scores.shape[-2:]
    # Where the last step shrinks the map, rows of the sizes before it are more and longer than those of the result.
    pixels_per_row = max((size[0] * size[1] for size in sizes), default=height * width) / height
    bytes_per_row = int(scores.shape[1] * pixels_per_row) * torch.float32.itemsize
    labels = torch.empty((len(scores), height, width), dtype=torch.int64, device=scores.device)
    for one, image in enumerate(scores.split(1)):
        for start, stop in row_blocks(height, bytes_per_row, block_bytes):
            rows = resized_rows(image, sizes, start, stop, align_corners=align_corners)
            labels[one, start:stop] = rows[0].argmax(dim=0)
    return labels
