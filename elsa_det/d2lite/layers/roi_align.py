"""RoIAlign as a module, with the half-pixel correction on by default."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """Bilinear pooling of regions into a fixed size.

    Args:
        output_size: height and width of the result, or one number for both.
        spatial_scale: what box coordinates are multiplied with to become feature coordinates.
        sampling_ratio: samples a bin in each direction; 0 takes as many as the box has feature pixels.
        aligned: pixel centres lie at half-integers, as everywhere in this package. ``False`` is the old convention
            that is half a pixel off (and the default of torchvision).
    """

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool ``rois`` (B, 5: image index, then XYXY in image coordinates) from ``input`` (N, C, H, W).

        Raises:
            ValueError: ``rois`` is not (B, 5).
        """
        if rois.dim() != 2 or rois.size(1) != 5:
            raise ValueError(f"ROIAlign: rois must be of shape (B, 5), but they are {tuple(rois.shape)}.")
        return roi_align(
            input, rois.to(input.dtype), self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )

    def extra_repr(self) -> str:
        names = ("output_size", "spatial_scale", "sampling_ratio", "aligned")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)
