"""Semantic segmentation of any pair of image and label folders, with the augmentation of the ADE20K recipe.

The folders come from the command line::

    dataset.train.image_root=A dataset.train.label_root=B dataset.test.image_root=C dataset.test.label_root=D
    dataset.num_classes=7
"""

from elsa_det.d2 import LazyCall as L
from elsa_det.d2 import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from elsa_det.d2 import transforms as T
from elsa_det.data import PadToSize, PhotometricDistortion, RandomResizeInto, SemanticMapper, registered_semantic
from elsa_det.evaluation import SemanticEvaluator

from ..models.constants import pixel_mean

# The one place that sets the data. Either a registered name, or (own data) a folder of images and one of label maps,
# whose pixels are class indices.
dataset = dict(
    train=dict(name=None, image_root=None, label_root=None),
    test=dict(name=None, image_root=None, label_root=None),
    # Of own data: how many classes; their names (a list, a text or JSON file, or a registered dataset with the same);
    # the label that is neither trained on nor counted; whether pixels count the classes from 1 and 0 is ignored too.
    num_classes=None,
    classes=None,
    ignore_label=255,
    reduce_zero_label=False,
    # Pixels: the frame that images are resized into, in training times a factor from the range "ratio", and the crop
    # (height, width), in which no class may take more than the share "crop_class_share".
    image_size=dict(short=512, long=2048, ratio=[0.5, 2.0], crop=[512, 512], crop_class_share=0.75),
    # How train.semantic_modes run: windows and their distance (height, width) in pixels; sizes relative to testing.
    inference=dict(
        crop="${dataset.image_size.crop}",
        stride=[341, 341],
        ratios=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75],
        flip=True,
    ),
)


def names(split):
    return L(registered_semantic)(
        name=f"${{dataset.{split}.name}}",
        image_root=f"${{dataset.{split}.image_root}}",
        label_root=f"${{dataset.{split}.label_root}}",
        num_classes="${dataset.num_classes}",
        classes="${dataset.classes}",
        ignore_label="${dataset.ignore_label}",
        reduce_zero_label="${dataset.reduce_zero_label}",
    )


dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names=names("train"), filter_empty=False),
        mapper=L(SemanticMapper)(
            dataset="${..dataset.names}",
            is_train=True,
            augmentations=[
                L(RandomResizeInto)(
                    short="${dataset.image_size.short}",
                    long="${dataset.image_size.long}",
                    ratio="${dataset.image_size.ratio}",
                ),
                L(T.RandomCrop_CategoryAreaConstraint)(
                    crop_type="absolute",
                    crop_size="${dataset.image_size.crop}",
                    single_category_max_area="${dataset.image_size.crop_class_share}",
                    ignored_category="${dataset.ignore_label}",
                ),
                L(T.RandomFlip)(horizontal=True),
                L(PhotometricDistortion)(image_format="${dataloader.train.mapper.image_format}"),
                L(PadToSize)(size="${dataset.image_size.crop}", pixel=pixel_mean, label="${dataset.ignore_label}"),
            ],
            image_format="RGB",
        ),
        total_batch_size=16,
        num_workers=4,
        aspect_ratio_grouping=False,  # crops are all of one size
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names=names("test"), filter_empty=False),
        mapper=L(SemanticMapper)(
            dataset="${..dataset.names}",
            is_train=False,
            augmentations=[
                L(T.ResizeShortestEdge)(
                    short_edge_length="${dataset.image_size.short}", max_size="${dataset.image_size.long}"
                )
            ],
            image_format="RGB",
        ),
        num_workers=4,
    ),
    evaluator=L(SemanticEvaluator)(dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"),
)
