from __future__ import annotations

import pytest
import torch
from d2_access import d2_module

from elsa_det.d2 import PROVIDER, Boxes


@pytest.fixture
def paste():
    return d2_module("layers").paste_masks_in_image


def test_a_mask_of_the_size_of_its_box_is_copied(paste):
    masks = torch.tensor([[[0.9, 0.1], [0.4, 0.6]]])
    pasted = paste(masks, torch.tensor([[1.0, 1.0, 3.0, 3.0]]), (4, 5))
    assert pasted.dtype == torch.bool
    assert pasted.int().tolist() == [[[0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]]


def test_the_threshold_itself_belongs_to_the_object(paste):
    masks = torch.full((1, 4, 4), 0.5)
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert paste(masks, box, (4, 4), 0.5).all()
    assert not paste(masks, box, (4, 4), 0.5001).any()
    assert paste(masks, box, (4, 4), 0.0).all()


def test_below_zero_values_come_back_as_pictures(paste):
    masks = torch.tensor([[[1.0, 0.5], [0.25, 0.0]]])
    pasted = paste(masks, Boxes([[0, 0, 2, 2]]), (2, 3), threshold=-1)
    assert pasted.dtype == torch.uint8
    assert pasted.tolist() == [[[255, 127, 0], [63, 0, 0]]]


def test_values_between_pixels_are_interpolated(paste):
    masks = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    # four image pixels see the two mask pixels at -0.25, 0.25, 0.75 and 1.25; beyond the mask is zero
    pasted = paste(masks, torch.tensor([[0.0, 0.0, 4.0, 4.0]]), (4, 4), threshold=-1)
    assert pasted[0, 1].tolist() == [0, 63, 191, 191]


def test_boxes_that_reach_out_of_the_image(paste):
    masks = torch.ones(2, 8, 8)
    pasted = paste(masks, torch.tensor([[-4.0, -4.0, 4.0, 4.0], [6.0, 5.0, 14.0, 13.0]]), (8, 10))
    wanted = torch.zeros(2, 8, 10, dtype=torch.bool)
    wanted[0, :4, :4] = True
    wanted[1, 5:, 6:] = True
    assert torch.equal(pasted, wanted)


@pytest.mark.skipif(PROVIDER == "upstream", reason="Detectron2 fails on boxes outside of the image")
def test_boxes_outside_of_the_image_give_nothing(paste):
    boxes = torch.tensor([[-9.0, -9.0, -5.0, -5.0], [30.0, 30.0, 40.0, 40.0]])
    assert not paste(torch.ones(2, 4, 4), boxes, (8, 8)).any()


def test_bool_masks_and_empty_boxes(paste):
    pasted = paste(torch.ones(2, 4, 4, dtype=torch.bool), torch.tensor([[0.0, 0, 4, 4], [2.0, 2, 2, 5]]), (6, 6))
    assert pasted[0].sum() == 16
    assert pasted[1].sum() == 0


def test_no_masks(paste):
    assert paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (5, 6)).shape == (0, 5, 6)


def test_masks_that_cannot_be_pasted(paste):
    with pytest.raises((ValueError, AssertionError)):
        paste(torch.zeros(1, 28, 14), torch.zeros(1, 4), (5, 6))
    with pytest.raises((ValueError, AssertionError)):
        paste(torch.zeros(1, 28, 28), torch.zeros(2, 4), (5, 6))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_pastes_the_same_in_parts(monkeypatch):
    module = d2_module("layers.mask_ops")
    monkeypatch.setattr(module, "GPU_MEM_LIMIT", 3 * 20 * 30 * 4)
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(8, 14, 14, generator=generator)
    corner = torch.rand(8, 2, generator=generator) * 10
    boxes = torch.cat([corner, corner + torch.rand(8, 2, generator=generator) * 15 + 1], dim=1)
    on_cpu = module.paste_masks_in_image(masks, boxes, (20, 30), -1)
    on_gpu = module.paste_masks_in_image(masks.cuda(), boxes.cuda(), (20, 30), -1)
    assert on_gpu.is_cuda
    assert (on_gpu.cpu().int() - on_cpu.int()).abs().max() <= 1
