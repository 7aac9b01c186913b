"""Copy-paste by value: pixels, masks, boxes, what is dropped, and the same pictures for the same seed."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image

from elsa_det.d2 import BitMasks, Boxes, BoxMode, DatasetMapper, Instances, PolygonMasks, seed_all_rng
from elsa_det.d2 import transforms as T
from elsa_det.data import build_copy_paste_train_loader
from elsa_det.data.copy_paste import CopyPasteMapper, CopyPasteOptions, ImagePairs, paste, with_bitmasks
from elsa_det.errors import UserError


def picture(size, colour, *rectangles, first_class=0):
    """A mapped image of one colour whose objects are rectangles x0, y0, x1, y1."""
    height, width = size
    masks = torch.zeros(len(rectangles), height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, rectangles):
        mask[y0:y1, x0:x1] = True
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(rectangles, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(first_class, first_class + len(rectangles))
    instances.gt_masks = BitMasks(masks)
    return {
        "image": torch.full((3, height, width), colour, dtype=torch.uint8),
        "instances": instances,
        "file_name": "x",
    }


def found(result):
    instances = result["instances"]
    return [
        (int(c), b, int(m.sum()))
        for c, b, m in zip(instances.gt_classes, instances.gt_boxes.tensor.tolist(), instances.gt_masks.tensor)
    ]


def test_pasted_objects_cover_what_was_there():
    target = picture((20, 30), 10, (2, 2, 12, 12), (20, 0, 30, 5), (4, 4, 7, 7))
    source = picture((20, 30), 200, (4, 4, 12, 14), first_class=7)
    result = paste(target, source, min_visible=0.1)
    assert found(result) == [
        (0, [2.0, 2.0, 12.0, 12.0], 100 - 64),  # an L: the box stays, the mask does not
        (1, [20.0, 0.0, 30.0, 5.0], 50),
        (7, [4.0, 4.0, 12.0, 14.0], 80),  # class 2 is covered whole
    ]
    expected = torch.full((3, 20, 30), 10, dtype=torch.uint8)
    expected[:, 4:14, 4:12] = 200
    torch.testing.assert_close(result["image"], expected)
    assert result["file_name"] == "x"
    masks = result["instances"].gt_masks.tensor
    assert not (masks[0] & masks[2]).any()
    assert target["image"].unique().tolist() == [10]  # the given one is kept


def test_boxes_follow_the_visible_part_and_thin_rests_are_dropped():
    source = picture((20, 30), 200, (10, 0, 30, 20), first_class=7)
    target = picture((20, 30), 10, (4, 4, 14, 14), (8, 8, 28, 10))
    assert found(paste(target, source, min_visible=0.1)) == [
        (0, [4.0, 4.0, 10.0, 14.0], 60),
        (1, [8.0, 8.0, 10.0, 10.0], 4),  # a tenth of its 40 pixels
        (7, [10.0, 0.0, 30.0, 20.0], 400),
    ]
    assert [c for c, *_ in found(paste(target, source, min_visible=0.11))] == [0, 7]


def test_untouched_objects_keep_their_boxes():
    target = picture((20, 30), 10, (0, 0, 5, 5))
    target["instances"].gt_boxes = Boxes(torch.tensor([[0.25, 0.5, 4.75, 5.0]]))
    result = paste(target, picture((20, 30), 200, (10, 10, 12, 12)), 0.1)
    assert result["instances"].gt_boxes.tensor[0].tolist() == [0.25, 0.5, 4.75, 5.0]


def test_a_random_choice_of_objects():
    np.random.seed(0)
    target = picture((8, 40), 0)
    source = picture((8, 40), 200, *((10 * i, 0, 10 * i + 5, 5) for i in range(4)))
    chosen = [tuple(c for c, *_ in found(paste(target, source, 0.1))) for _ in range(400)]
    counts = [sum(len(c) == n for c in chosen) / 400 for n in range(5)]
    assert counts[0] == 0  # never none
    assert counts[1:] == pytest.approx([0.25] * 4, abs=0.07)
    assert all(list(c) == sorted(set(c)) for c in chosen)
    assert np.mean([0 in c for c in chosen]) == pytest.approx(2.5 / 4, abs=0.08)


def test_images_of_different_sizes():
    np.random.seed(1)
    corners = set()
    for _ in range(60):
        source = picture((10, 60), 200, (0, 0, 60, 10))  # lower, but wider than the target
        result = paste(picture((20, 30), 10), source, min_visible=0.5)
        ((_, (x0, y0, x1, y1), area),) = found(result)
        assert (x0, x1, y1 - y0, area) == (0.0, 30.0, 10.0, 300)
        corners.add(y0)
        covered = result["image"][0] == 200
        assert covered[int(y0) : int(y1)].all()
        assert int(covered.sum()) == 300
    assert corners == set(map(float, range(11)))
    assert found(paste(picture((20, 30), 10), picture((10, 60), 200, (0, 0, 60, 10)), min_visible=0.6)) == []


def test_objects_lost_beyond_the_border_leave_no_pixels():
    np.random.seed(0)
    for _ in range(20):
        source = picture((20, 90), 200, (0, 0, 30, 20))
        result = paste(picture((20, 30), 10), source, min_visible=0.9)
        covered = int((result["image"][0] == 200).sum())
        assert covered == sum(area for *_, area in found(result))
        assert covered == 0 or covered >= 0.9 * 600


def test_nothing_to_paste():
    target = picture((20, 30), 10, (0, 0, 5, 5))
    assert paste(target, picture((20, 30), 200), 0.1) is target


def test_masks_become_bitmaps():
    image = picture((20, 30), 0, (1, 1, 5, 5), (2, 2, 4, 4))
    polygons = [[np.array([1.0, 1, 5, 1, 5, 5, 1, 5])], [np.array([2.0, 2, 2.2, 2, 2.2, 2.2])]]
    image["instances"].gt_masks = PolygonMasks(polygons)
    instances = with_bitmasks(image)
    assert instances.gt_classes.tolist() == [0]  # the other one has no pixel
    assert int(instances.gt_masks.tensor.sum()) == 16
    image["instances"].remove("gt_masks")
    with pytest.raises(UserError, match="needs a mask of every object; those of x have none"):
        with_bitmasks(image)
    with pytest.raises(UserError, match="the data has sem_seg"):
        with_bitmasks({**picture((4, 4), 0), "sem_seg": torch.zeros(4, 4)})
    image["instances"].gt_keypoints = torch.zeros(2, 1, 3)
    with pytest.raises(UserError, match="the data has gt_keypoints"):
        with_bitmasks(image)
    empty = Instances((4, 4))
    empty.gt_boxes, empty.gt_classes = Boxes(torch.zeros(0, 4)), torch.zeros(0, dtype=torch.int64)
    assert with_bitmasks({"instances": empty}).gt_masks.tensor.shape == (0, 4, 4)


@pytest.fixture
def dataset(tmp_path):
    """Six pictures with a polygon and an RLE object each; the colour of the objects is that of the picture."""
    dicts = []
    for i in range(6):
        pixels = np.full((24, 32, 3), 10, np.uint8)
        mask = np.zeros((24, 32), np.uint8, order="F")
        mask[14:20, 4:12] = 1
        pixels[2:10, 16:28] = pixels[14:20, 4:12] = 100 + i
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        objects = [
            {"bbox": [16, 2, 28, 10], "segmentation": [[16, 2, 28, 2, 28, 10, 16, 10]], "category_id": 0},
            {"bbox": [4, 14, 12, 20], "segmentation": coco_mask.encode(mask), "category_id": 1},
        ]
        crowd = {"bbox": [0, 0, 3, 3], "segmentation": coco_mask.encode(mask), "category_id": 1, "iscrowd": 1}
        annotations = [{"iscrowd": 0, **o, "bbox_mode": BoxMode.XYXY_ABS} for o in [*objects, crowd]]
        dicts.append(
            dict(file_name=str(tmp_path / f"{i}.png"), height=24, width=32, image_id=i, annotations=annotations)
        )
    return dicts


def mapper(**options):
    return DatasetMapper(
        is_train=True,
        augmentations=[T.RandomFlip(horizontal=True)],
        image_format="RGB",
        use_instance_mask=True,
        recompute_boxes=True,
        instance_mask_format="bitmask",
        **options,
    )


def draw(dataset, seed, count=12, **options):
    seed_all_rng(seed)
    loader = build_copy_paste_train_loader(
        dataset, mapper=mapper(), total_batch_size=2, num_workers=0, copy_paste=options or None
    )
    batches = iter(loader)
    return [image for _ in range(count // 2) for image in next(batches)]


def test_loader_pastes_from_other_images_and_repeats_by_seed(dataset):
    first, again, other = draw(dataset, 5), draw(dataset, 5), draw(dataset, 6)
    for one, two in zip(first, again):
        torch.testing.assert_close(one["image"], two["image"])
        torch.testing.assert_close(one["instances"].gt_masks.tensor, two["instances"].gt_masks.tensor)
    assert any(not torch.equal(one["image"], two["image"]) for one, two in zip(first, other))
    for image in first:
        own = 100 + image["image_id"]
        colours = set(image["image"][0].unique().tolist()) - {10, own}
        assert len(colours) == 1  # of exactly one other picture
        assert colours <= set(range(100, 106))
        instances = image["instances"]
        # every object has one colour, every coloured pixel one object
        assert (instances.gt_masks.tensor.sum(dim=0) == (image["image"][0] >= 100)).all()
        for mask, box in zip(instances.gt_masks.tensor, instances.gt_boxes.tensor):
            assert len(image["image"][0][mask].unique()) == 1
            assert box.tolist() == BitMasks(mask[None]).get_bounding_boxes().tensor[0].tolist()
        assert "annotations" not in image


def test_chance(dataset):
    assert all(len(image["image"].unique()) == 2 for image in draw(dataset, 0, prob=0.0))
    seed_all_rng(0)
    pairs, half = ImagePairs(dataset), CopyPasteMapper(mapper(), CopyPasteOptions(prob=0.5))
    pasted = [set(half(pairs[i % 6])["image"].unique().tolist()) != {10, 100 + i % 6} for i in range(200)]
    assert np.mean(pasted) == pytest.approx(0.5, abs=0.12)


def test_partners_are_other_images_each_as_often(dataset):
    np.random.seed(0)
    pairs = ImagePairs(dataset)
    drawn = [pairs[2]["copy_paste_from"]["image_id"] for _ in range(1000)]
    shares = [drawn.count(i) / 1000 for i in range(6)]
    assert shares[2] == 0
    assert [s for i, s in enumerate(shares) if i != 2] == pytest.approx([0.2] * 5, abs=0.05)
    alone = ImagePairs(dataset[:1])
    assert (len(alone), alone[0]["copy_paste_from"]["image_id"]) == (1, 0)


def test_polygons_and_mappers_that_give_nothing(dataset):
    polygons = [{**d, "annotations": d["annotations"][:1]} for d in dataset]
    as_polygons = DatasetMapper(is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True)
    np.random.seed(0)
    result = CopyPasteMapper(as_polygons, CopyPasteOptions())(ImagePairs(polygons)[0])
    assert isinstance(result["instances"].gt_masks, BitMasks)
    assert found(result) == [(0, [16.0, 2.0, 28.0, 10.0], 96)]  # at the same place: the lower one is gone
    nothing = CopyPasteMapper(lambda d: None, CopyPasteOptions())
    assert nothing(ImagePairs(dataset)[0]) is None


def test_a_stream_is_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(UserError, match="which a stream of images does not have"):
        ImagePairs(Stream())
