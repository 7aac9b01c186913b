"""Ways to run a segmentor on an image: as a whole, in windows, in several sizes and mirrored.

Class scores at full size are made a few rows at a time; what is kept of each pass is the network's output, at a quarter
of the resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..d2 import transforms as T
from ..data.semantic.mapper import read_image
from ..errors import UserError
from ..modeling.semantic import Segmentor, resized_rows, row_blocks

_BYTES = 4  # of a score


class SemanticInference(nn.Module):
    """A segmentor that averages over windows, sizes and mirror images; takes and gives what the segmentor does.

    Logits of overlapping windows are averaged; then, as the published evaluation does it, every pass is resized to its
    input, to the result, and turned into probabilities, whose mean decides.

    Args:
        model: The segmentor.
        crop: (height, width) in pixels of the windows; None runs each image as a whole.
        stride: (vertical, horizontal) in pixels from one window to the next; default: two thirds of ``crop``.
        ratios: Sizes, relative to that of the image as the test loader gives it. Sizes other than 1 are made from the
            image file, if the input has its ``file_name``.
        flip: Each size mirrored as well.

    Raises:
        UserError: Sizes or ratios make no sense.
    """

    def __init__(
        self,
        model: Segmentor,
        *,
        crop: Sequence[int] | None = None,
        stride: Sequence[int] | None = None,
        ratios: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        super().__init__()
        if crop is not None and (len(crop) != 2 or min(crop) < 1):
            raise UserError(f"crop is (height, width) of the windows in pixels, got {list(crop)}")
        if crop is None and stride is not None:
            raise UserError(f"stride={list(stride)} is for windows: give crop as well")
        if crop is not None and stride is None:
            stride = [max(1, 2 * length // 3) for length in crop]
        gaps = crop is not None and stride is not None and any(not 0 < s <= c for s, c in zip(stride, crop))
        if crop is not None and stride is not None and (gaps or len(stride) != 2):
            raise UserError(
                f"stride={list(stride)} must be (vertical, horizontal), each in 1..crop={list(crop)}: with a larger "
                "one windows leave gaps"
            )
        if not ratios or min(ratios) <= 0:
            raise UserError(
                f"ratios are sizes relative to the image, one at least and all positive, got {list(ratios)}"
            )
        self.model = model
        self.crop = None if crop is None else (int(crop[0]), int(crop[1]))
        self.stride = None if stride is None else (int(stride[0]), int(stride[1]))
        self.ratios, self.flip = [float(ratio) for ratio in ratios], flip

    def extra_repr(self) -> str:
        return f"crop={self.crop}, stride={self.stride}, ratios={self.ratios}, flip={self.flip}"

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
        """For each image ``sem_seg_labels``, (height, width) int64, and if the segmentor returns logits also
        ``sem_seg``, (classes, height, width) float32: averaged logits of one pass, else mean probabilities.

        Raises:
            UserError: An image cannot be used.
        """
        return [self._one(inputs) for inputs in batched_inputs]

    def _one(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        height, width = inputs["image"].shape[-2:]
        size = (inputs.get("height", height), inputs.get("width", width))
        passes = self.passes(inputs)
        labels = torch.empty(size, dtype=torch.int64, device=self.model.device)
        blocks: list[Tensor] = []
        # Where a pass was larger than the result, a row of the result takes several rows of the pass.
        pixels = max(height * width for height, width in [size, *(one.size for one in passes)])
        for start, stop in row_blocks(size[0], self.model.num_classes * _BYTES * pixels // size[0]):
            rows = self.mean_rows(passes, size, start, stop)
            labels[start:stop] = rows.argmax(dim=0)
            if self.model.return_logits:
                blocks.append(rows)
        result = {"sem_seg_labels": labels}
        if self.model.return_logits:
            result["sem_seg"] = torch.cat(blocks, dim=1)
        return result

    def passes(self, inputs: dict[str, Any]) -> list[Pass]:
        """Run every size, and mirrored if asked for."""
        done = []
        pixels = None  # of the file, read once
        for ratio in self.ratios:
            given = inputs["image"]
            if ratio != 1.0:
                pixels = _pixels(inputs, self.model.input_format) if pixels is None else pixels
                given = _resized(pixels, [max(1, int(length * ratio + 0.5)) for length in given.shape[-2:]])
            image = self.model.normalise({**inputs, "image": given})[None]
            for mirrored in (False, True) if self.flip else (False,):
                scores = self._scores(image.flip(-1) if mirrored else image)
                done.append(Pass(scores, (image.shape[-2], image.shape[-1]), mirrored))
        return done

    def mean_rows(self, passes: Sequence[Pass], size: tuple[int, int], start: int, stop: int) -> Tensor:
        """Rows of the result of size (height, width): (C, stop - start, width) float32.

        The logits of a single pass; the mean of the probabilities of several.
        """
        if len(passes) == 1:
            return self._rows(passes[0], size, start, stop)
        total = self._rows(passes[0], size, start, stop).softmax(dim=0)
        for one in passes[1:]:
            total += self._rows(one, size, start, stop).softmax(dim=0)
        return total / len(passes)

    def _rows(self, one: Pass, size: tuple[int, int], start: int, stop: int) -> Tensor:
        # Windows have been brought to the size of the input already.
        sizes = [size] if isinstance(one.scores, WindowedScores) else [one.size, size]
        align_corners = self.model.decode_head.align_corners
        rows = resized_rows(cast(Tensor, one.scores), sizes, start, stop, align_corners=align_corners)[0]
        return rows.flip(-1) if one.mirrored else rows

    def _scores(self, image: Tensor) -> Tensor | WindowedScores:
        if self.crop is None or self.stride is None:
            return self.model.predict_logits(image)
        height, width = image.shape[-2:]
        tall, wide = min(self.crop[0], height), min(self.crop[1], width)
        windows = [
            (y, x, self.model.predict_logits(image[..., y : y + tall, x : x + wide]))
            for y in window_starts(height, tall, self.stride[0])
            for x in window_starts(width, wide, self.stride[1])
        ]
        return WindowedScores(windows, (tall, wide), (height, width), self.model.decode_head.align_corners)


@dataclass(frozen=True)
class Pass:
    """What the network said about one version of an image."""

    scores: Tensor | WindowedScores
    """(1, C, h, w) logits."""
    size: tuple[int, int]
    """(height, width) of the network's input."""
    mirrored: bool


class WindowedScores:
    """The mean logits of overlapping windows as a map (1, C, H, W), put together when rows of it are asked for.

    It stands in for a tensor where one is only sliced: ``scores[..., start:stop, :]``.
    """

    def __init__(
        self,
        windows: Sequence[tuple[int, int, Tensor]],
        window_size: tuple[int, int],
        size: tuple[int, int],
        align_corners: bool = False,
    ) -> None:
        """
        Args:
            windows: Top, left and logits (1, C, h, w) of each; together they cover the map.
            window_size: (height, width) in pixels.
            size: Of the map.
            align_corners: How logits are resized to ``window_size``.
        """
        self.windows, self.window_size, self.align_corners = list(windows), window_size, align_corners
        first = self.windows[0][2]
        self.device, self.dtype = first.device, torch.float32
        self.shape = (1, first.shape[1], *size)
        self._counts = torch.zeros(size, device=first.device)
        for y, x, _ in self.windows:
            self._counts[y : y + window_size[0], x : x + window_size[1]] += 1

    def __getitem__(self, index: tuple[Any, slice, slice]) -> Tensor:
        _, rows, columns = index
        if columns != slice(None) or rows.step is not None:
            raise IndexError("windowed scores give whole rows: scores[..., start:stop, :]")
        start, stop = rows.start, rows.stop
        total = torch.zeros((1, self.shape[1], stop - start, self.shape[3]), device=self.device)
        for y, x, logits in self.windows:
            top, bottom = max(start, y), min(stop, y + self.window_size[0])
            if top < bottom:
                total[..., top - start : bottom - start, x : x + self.window_size[1]] += resized_rows(
                    logits, [self.window_size], top - y, bottom - y, align_corners=self.align_corners
                )
        return total / self._counts[start:stop]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: every ``stride`` pixels, the last one moved back to end with the image."""
    count = max(length - window + stride - 1, 0) // stride + 1
    return [min(index * stride, max(length - window, 0)) for index in range(count)]


def _pixels(inputs: dict[str, Any], image_format: str) -> np.ndarray:
    """The image (H, W, 3) that sizes are made from: the file, or what is given if that is not the whole file."""
    if "file_name" in inputs:
        pixels = read_image(inputs["file_name"], image_format)
        if pixels.shape[:2] == (inputs.get("height"), inputs.get("width")):
            return pixels
    return inputs["image"].permute(1, 2, 0).cpu().numpy()


def _resized(pixels: np.ndarray, size: Sequence[int]) -> Tensor:
    resized = T.ResizeTransform(*pixels.shape[:2], *size).apply_image(np.ascontiguousarray(pixels))
    return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
