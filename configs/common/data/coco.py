"""COCO-format instance data with the augmentation of the ELSA and Swin recipes."""

from elsa_det.d2 import (
    COCOEvaluator,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import transforms as T
from elsa_det.data import OneOf, registered_coco

# The one place that sets the data. Either a registered name, or (own data) the json and the folder of its images.
dataset = dict(
    train=dict(name="coco_2017_train", json_file=None, image_root=None),
    test=dict(name="coco_2017_val", json_file=None, image_root=None),
)

short_sides = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
long_side = 1333


def resize(sides):
    return L(T.ResizeShortestEdge)(short_edge_length=sides, sample_style="choice", max_size=long_side)


dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(
            names=L(registered_coco)(
                name="${dataset.train.name}",
                json_file="${dataset.train.json_file}",
                image_root="${dataset.train.image_root}",
            ),
        ),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[
                L(T.RandomFlip)(horizontal=True),
                L(OneOf)(
                    choices=[
                        [resize(short_sides)],
                        [
                            resize((400, 500, 600)),
                            L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
                            resize(short_sides),
                        ],
                    ]
                ),
            ],
            image_format="RGB",
            use_instance_mask=True,
            recompute_boxes=True,
        ),
        total_batch_size=16,
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(
            names=L(registered_coco)(
                name="${dataset.test.name}",
                json_file="${dataset.test.json_file}",
                image_root="${dataset.test.image_root}",
            ),
            filter_empty=False,
        ),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[resize(800)], image_format="RGB"),
        num_workers=4,
    ),
    evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"),
)
