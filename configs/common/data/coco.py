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
    # Pixels: the short sides to choose from in training, those before the crop, the crop's range, the short side in
    # testing, and the longest side in both.
    image_size=dict(
        train=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
        before_crop=[400, 500, 600],
        crop=[384, 600],
        test=800,
        longest=1333,
    ),
)


def resize(sides):
    return L(T.ResizeShortestEdge)(
        short_edge_length=f"${{dataset.image_size.{sides}}}",
        sample_style="choice",
        max_size="${dataset.image_size.longest}",
    )


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
                        [resize("train")],
                        [
                            resize("before_crop"),
                            L(T.RandomCrop)(crop_type="absolute_range", crop_size="${dataset.image_size.crop}"),
                            resize("train"),
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
        mapper=L(DatasetMapper)(is_train=False, augmentations=[resize("test")], image_format="RGB"),
        num_workers=4,
    ),
    evaluator=L(COCOEvaluator)(dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"),
)
