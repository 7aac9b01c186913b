from __future__ import annotations

import pytest
import torch

from elsa_det.d2 import ImageList


def _images() -> list[torch.Tensor]:
    return [torch.full((3, 5, 7), 1.0), torch.full((3, 6, 4), 2.0)]


@pytest.mark.parametrize(
    ("options", "padded"),
    [
        ({}, (6, 7)),
        ({"size_divisibility": 1}, (6, 7)),
        ({"size_divisibility": 4}, (8, 8)),
        ({"padding_constraints": {"square_size": 10}}, (10, 10)),
        ({"size_divisibility": 32, "padding_constraints": {"size_divisibility": 5}}, (10, 10)),
        ({"size_divisibility": 4, "padding_constraints": {}}, (8, 8)),
        ({"size_divisibility": 4, "padding_constraints": {"size_divisibility": 0}}, (6, 7)),
        ({"size_divisibility": 4, "padding_constraints": {"square_size": 9}}, (12, 12)),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_padding(options, padded, count):
    images = [torch.full((3, 6, 7), 3.0), *_images()][:count]
    batch = ImageList.from_tensors(images, pad_value=-1.0, **options)
    assert batch.tensor.shape == (count, 3, *padded)
    assert batch.image_sizes == [tuple(image.shape[-2:]) for image in images]
    for index, image in enumerate(images):
        assert torch.equal(batch[index], image)
        assert batch.tensor[index].eq(-1).sum() == 3 * padded[0] * padded[1] - image.numel()


def test_images_sit_in_the_upper_left_corner():
    batch = ImageList.from_tensors(_images())
    assert len(batch) == 2
    assert batch.tensor[0, 0, 4].tolist() == [1.0] * 7
    assert batch.tensor[0, 0, 5].tolist() == [0.0] * 7
    assert batch.tensor[1, 0, 0].tolist() == [2.0] * 4 + [0.0] * 3


def test_the_batch_shares_nothing_with_the_images():
    image = torch.ones(3, 4, 4)
    batch = ImageList.from_tensors([image])
    batch.tensor.zero_()
    assert image.sum() == 48


def test_dtype_and_leading_dimensions_are_those_of_the_images():
    masks = [torch.ones(4, 5, dtype=torch.uint8), torch.ones(2, 6, dtype=torch.uint8)]
    batch = ImageList.from_tensors(masks, size_divisibility=4)
    assert batch.tensor.shape == (2, 4, 8)
    assert batch.tensor.dtype == torch.uint8
    assert batch.to(torch.float32).tensor.dtype == torch.float32
    assert batch.to(torch.float32).image_sizes == [(4, 5), (2, 6)]
    assert batch.device == torch.device("cpu")


def test_images_that_do_not_fit_together_are_refused():
    with pytest.raises((ValueError, AssertionError)):
        ImageList.from_tensors([])
    with pytest.raises((ValueError, AssertionError)):
        ImageList.from_tensors([torch.ones(3, 4, 4), torch.ones(1, 4, 4)])
    with pytest.raises((TypeError, AssertionError)):
        ImageList.from_tensors(torch.ones(2, 3, 4, 4))
    with pytest.raises((ValueError, RuntimeError)):
        ImageList.from_tensors(_images(), padding_constraints={"square_size": 6})
