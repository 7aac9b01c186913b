"""Gradients of two processes over Gloo on the CPU, beside those of one process with the batch of both.

What is left is rounding: for segmentors, in double precision, 1e-9 of the largest gradient (the batch normalization of
several processes computes the variance in another way than that of one), for detectors, whose NMS is in single
precision only, 1e-5.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from segmentor_cases import TINY, segmentor_config
from torch import Tensor, nn

from elsa_det import d2, get_config
from elsa_det.d2 import BitMasks, Boxes, EventStorage, Instances, instantiate
from elsa_det.engine.parallel import data_parallel

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
SIZE, CLASSES = 64, 3


class Loss(nn.Module):
    """The sum of a model's losses. Those whose names do not begin with ``counted`` are there, and weigh nothing."""

    def __init__(self, model: nn.Module, counted: str = "loss") -> None:
        super().__init__()
        self.model, self.counted = model, counted

    def forward(self, batch: list[dict]) -> Tensor:
        losses = self.model(batch)
        assert any(name.startswith(self.counted) for name in losses)
        return sum(value * name.startswith(self.counted) for name, value in losses.items())


def detector(counted: str) -> nn.Module:
    cfg = get_config("quickstart/elsa_nano_mrcnn.py").model
    cfg.backbone.bottom_up.update(TINY)
    cfg.backbone.out_channels = 8
    cfg.roi_heads.num_classes = CLASSES
    cfg.roi_heads.box_head.fc_dims = [8, 8]
    cfg.roi_heads.mask_head.conv_dims = [8]
    if counted == "loss_rpn":
        cfg.proposal_generator.batch_size_per_image = 100_000  # all anchors, not a sample
    return instantiate(cfg)


def segmentor(*, average_over_valid: bool) -> nn.Module:
    cfg = segmentor_config("upernet", **TINY, drop_path_rate=0.0).model
    cfg.decode_head.num_classes, cfg.decode_head.channels, cfg.auxiliary_head.channels = CLASSES, 8, 8
    cfg.decode_head.dropout_ratio, cfg.decode_head.average_over_valid = 0.0, average_over_valid
    return instantiate(cfg)


def case(name: str) -> Loss:
    torch.manual_seed(0)
    if name in ("loss_rpn", "loss"):
        return Loss(detector(name), name).train()
    return Loss(segmentor(average_over_valid=name != "segmentor, all pixels")).double().train()


CASES = ("loss_rpn", "loss", "segmentor, same", "segmentor, differing", "segmentor, all pixels")


def images(name: str) -> list[dict]:
    """Four, with 1 to 4 objects; in the segmentors' cases but the first the later ones have more ignored pixels."""
    random = torch.Generator().manual_seed(1)
    batch = []
    for i in range(4):
        image = 255 * torch.rand(3, SIZE, SIZE, generator=random)
        corners = torch.randint(0, SIZE - 24, (i + 1, 2), generator=random)
        boxes = torch.cat([corners, corners + torch.randint(8, 24, (i + 1, 2), generator=random)], dim=1)
        masks = torch.zeros(i + 1, SIZE, SIZE, dtype=torch.bool)
        labels = torch.zeros(SIZE, SIZE, dtype=torch.long)
        for mask, (left, top, right, bottom) in zip(masks, boxes.tolist(), strict=True):
            mask[top:bottom, left:right] = True
            labels[mask] = 1 + i % 2
        if name in ("segmentor, differing", "segmentor, all pixels"):
            labels[: 12 * i] = 255
        target = Instances((SIZE, SIZE))
        target.gt_boxes, target.gt_classes = Boxes(boxes.float()), torch.arange(i + 1) % CLASSES
        target.gt_masks = BitMasks(masks)
        image = image.double() if name.startswith("segmentor") else image
        batch.append({"image": image, "height": SIZE, "width": SIZE, "instances": target, "sem_seg": labels})
    return batch


def gradients(loss: nn.Module, batch: list[dict], seed: int) -> Tensor:
    """Of all parameters, one after the other; ``seed`` is of the sampling in a detector."""
    torch.manual_seed(seed)
    with EventStorage():
        loss(batch).backward()
    return torch.cat([p.grad.flatten() for p in loss.parameters()])


def worker(folder: str) -> None:
    logging.disable(logging.WARNING)
    rank = d2.comm.get_rank()
    found = {}
    for name in CASES:
        found[name] = gradients(data_parallel(case(name)), images(name)[2 * rank : 2 * rank + 2], rank)
    torch.save(found, Path(folder, f"{rank}.pth"))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict[str, Tensor]:
    """The gradients of each case in two processes, which have the same."""
    folder = tmp_path_factory.mktemp("two")
    d2.launch(worker, 2, dist_url="auto", args=(str(folder),))
    first, second = (torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2))
    for name in CASES:
        assert torch.equal(first[name], second[name])
    return first


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest one, relative to the largest gradient."""
    assert expected.abs().max() > 1e-3
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("name", "tolerance"), [("loss_rpn", 1e-5), ("segmentor, same", 1e-9), ("segmentor, all pixels", 1e-9)]
)
def test_equal_to_one_process_with_both_batches(two, name, tolerance):
    assert difference(two[name], gradients(case(name), images(name), 0)) < tolerance


def test_a_detector_is_the_mean_of_its_processes(two):
    """Its regions and masks are counted by process, and sampled by its random numbers."""
    loss = case("loss")
    batch = images("loss")
    halves = [gradients(copy.deepcopy(loss), batch[2 * rank : 2 * rank + 2], rank) for rank in range(2)]
    mean = (halves[0] + halves[1]) / 2
    assert difference(two["loss"], mean) < 1e-5
    assert difference(gradients(loss, batch, 0), mean) > 1e-3


def test_pixels_are_counted_by_process_where_only_valid_ones_are(two):
    name = "segmentor, differing"
    assert 1e-3 < difference(two[name], gradients(case(name), images(name), 0)) < 1
