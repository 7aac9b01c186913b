"""Parameters and multiply-adds of the detectors and segmentors beside the papers' figures.

Our count is the papers' for the backbones. mmdetection's counter, which the papers ran on whole models, adds the
biases of convolutions and the ReLUs of the heads; :class:`HeadsExtras` counts those here.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from elsa_det import get_config
from elsa_det.analysis import Regions, analyze, analyze_config, build_on_meta
from elsa_det.analysis.analyze import DETECTOR_SIZE, SEGMENTOR_SIZE
from elsa_det.analysis.model_zoo import read_zoo
from elsa_det.analysis.parts import PartWatch

#: config, parameters and multiply-adds as printed in recipes and paper
PUBLISHED_FIGURES = {
    "coco/swin_t_mrcnn_1x": ("48M", "267G"),
    "coco/elsa_t_mrcnn_1x": ("49M", "269G"),
    "coco/swin_s_mrcnn_1x": ("69M", "354G"),
    "coco/elsa_s_mrcnn_1x": ("72M", "367G"),
    "coco/swin_t_cascade_1x": ("86M", "745G"),
    "coco/elsa_t_cascade_1x": ("86M", "748G"),
    "coco/swin_s_cascade_1x": ("107M", "838G"),
    "coco/elsa_s_cascade_1x": ("110M", "846G"),
    "ade20k/swin_t_upernet_160k": ("60M", "945G"),
    "ade20k/elsa_t_upernet_160k": ("61M", "946G"),
    "ade20k/swin_s_upernet_160k": ("81M", "1038G"),
    "ade20k/elsa_s_upernet_160k": ("85M", "1046G"),
}
#: what ours rounds to where it is not the printed figure
DIFFERENT = {
    # Swin's authors print 359G, too, for the same model (SwinTransformer/Swin-Transformer-Object-Detection).
    "coco/swin_s_mrcnn_1x": ("69M", "359G"),
    # 837.35 by ours; T and B (982G, 981.8 by ours) agree
    "coco/swin_s_cascade_1x": ("107M", "837G"),
    # 947.4 and 1047.4, which is 0.1 % more than printed: what the authors left out is not known
    "ade20k/elsa_t_upernet_160k": ("61M", "947G"),
    "ade20k/elsa_s_upernet_160k": ("85M", "1047G"),
}
#: with 150 classes, the auxiliary head included
EXACT_PARAMETERS = {"ade20k/elsa_t_upernet_160k": 60_794_486, "ade20k/elsa_s_upernet_160k": 84_528_134}

ZOO = Path(__file__).parents[2] / "docs" / "model_zoo.yaml"


class HeadsExtras(TorchDispatchMode):
    """Counts biases of convolutions and ReLUs, one operation a number, outside the backbone proper."""

    def __init__(self, watch: PartWatch, backbone: str) -> None:
        super().__init__()
        self.watch, self.backbone, self.count = watch, backbone, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        counts = packet in (torch.ops.aten.relu, torch.ops.aten.relu_)
        counts |= packet is torch.ops.aten.convolution and args[2] is not None
        if counts and not self.watch.current.startswith(self.backbone):
            self.count += prod(out.shape)
        return out


@pytest.mark.parametrize("name", PUBLISHED_FIGURES)
def test_published_figures(name):
    model = build_on_meta(get_config(name).model)
    segmentor = name.startswith("ade20k/")
    with PartWatch(model) as watch, HeadsExtras(watch, "backbone" if segmentor else "backbone.bottom_up") as extras:
        analysis = analyze(model, SEGMENTOR_SIZE if segmentor else DETECTOR_SIZE, memory=False)
    ours = f"{analysis.parameters / 1e6:.0f}M", f"{(analysis.multiply_adds + extras.count) / 1e9:.0f}G"
    assert ours == DIFFERENT.get(name, PUBLISHED_FIGURES[name])
    if name in EXACT_PARAMETERS:
        assert analysis.parameters == EXACT_PARAMETERS[name]
    stored = read_zoo(ZOO)["configs"][name]["measured"]
    assert (stored["parameters"], stored["multiply_adds"]) == (analysis.parameters, analysis.multiply_adds)


def test_mask_rcnn_by_hand():
    """Everything of Mask R-CNN but the backbone, from the sizes of its layers: 171.0 G."""
    analysis = analyze_config(get_config("coco/elsa_t_mrcnn_1x"), memory=False)
    pixels = [200 * 320, 100 * 160, 50 * 80, 25 * 40]
    pyramid = sum(n * (c * 256 + 9 * 256 * 256) for n, c in zip(pixels, (96, 192, 384, 768), strict=True))
    rpn = (sum(pixels) + 13 * 20) * (9 * 256 * 256 + 256 * 3 * (1 + 4))
    box = 1000 * (49 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80))
    mask = 100 * (4 * 196 * 9 * 256 * 256 + 196 * 4 * 256 * 256 + 784 * 256 * 80)
    totals = analysis.accounting.totals()
    backbone = totals["backbone.bottom_up"].multiply_adds.total()
    assert totals["backbone"].multiply_adds.total() - backbone == pyramid
    assert totals["proposal_generator"].multiply_adds.total() == rpn
    assert totals["roi_heads.box_head"].multiply_adds.total() == 1000 * (49 * 256 * 1024 + 1024 * 1024)
    assert totals["roi_heads"].multiply_adds.total() == box + mask
    assert analysis.multiply_adds - backbone == pyramid + rpn + box + mask


def test_regions_scale_the_heads():
    cfg = get_config("quickstart/elsa_nano_mrcnn")
    few, many = (
        analyze_config(cfg, (64, 64), regions=Regions(boxes, 10), memory=False).accounting.totals()
        for boxes in (100, 300)
    )
    key = "roi_heads.box_head"
    assert many[key].multiply_adds.total() == 3 * few[key].multiply_adds.total() > 0
    assert many["roi_heads.mask_head"].multiply_adds == few["roi_heads.mask_head"].multiply_adds
    assert many["backbone"].multiply_adds == few["backbone"].multiply_adds


def test_odd_sizes_are_padded_as_the_model_does():
    cfg = get_config("quickstart/elsa_nano_mrcnn")
    odd, padded = (analyze_config(cfg, size, memory=False) for size in ((65, 90), (96, 96)))
    assert odd.image_size == padded.image_size == (96, 96)
    assert odd.multiply_adds == padded.multiply_adds
