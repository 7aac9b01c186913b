"""Cascade Mask R-CNN with an FPN, as the ELSA and Swin recipes have it. The leaf config sets
``model.backbone.bottom_up``.

What the stages have in common is set in the first one, ``model.roi_heads.box_head.0.conv_dims=[…]`` say; the others
refer to it.
"""

from elsa_det.d2 import (
    Box2BoxTransform,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    Matcher,
    ShapeSpec,
)
from elsa_det.d2 import LazyCall as L
from elsa_det.layers import job_batch_norm
from elsa_det.modeling import CascadeMaskRCNNHeads

from .mask_rcnn import model

# for each stage: what counts as a hit (IoU), and the spread of the box codes that it expects (x, y, width, height)
STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_CODE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
STAGES = range(len(STAGE_IOUS))


def of_first_stage(stage, **values):
    """``values`` in the first stage, references to them in the others."""
    return values if stage == 0 else {name: f"${{..[0].{name}}}" for name in values}


def box_head(stage):
    """Four convolutions and a fully connected layer."""
    return L(FastRCNNConvFCHead)(
        input_shape=L(ShapeSpec)(channels="${model.backbone.out_channels}", height=7, width=7),
        **of_first_stage(
            stage,
            conv_dims=[256, 256, 256, 256],
            conv_norm=L(job_batch_norm)(batch_varies=True),
            fc_dims=[1024],
        ),
    )


def box_predictor(stage):
    """Classes, and a box for each class, which is trained by its GIoU."""
    return L(FastRCNNOutputLayers)(
        input_shape=L(ShapeSpec)(channels="${....box_head[0].fc_dims[0]}"),
        box2box_transform=L(Box2BoxTransform)(weights=[1 / std for std in STAGE_CODE_STDS[stage]]),
        num_classes="${...num_classes}",
        **of_first_stage(
            stage,
            box_reg_loss_type="giou",
            loss_weight=dict(loss_cls=1.0, loss_box_reg=10.0),
            test_score_thresh=0.05,
            test_nms_thresh=0.5,
            test_topk_per_image=100,
        ),
    )


def mask_head(stage):
    """Four convolutions and the deconvolution; ``num_classes=1`` in the first stage: one mask for all classes."""
    return L(MaskRCNNConvUpsampleHead)(
        input_shape=L(ShapeSpec)(channels="${model.backbone.out_channels}", height=14, width=14),
        **of_first_stage(stage, num_classes="${...num_classes}", conv_dims=[256, 256, 256, 256, 256]),
    )


model.proposal_generator.update(
    anchor_boundary_thresh=0,  # anchors that stick out of the image are not trained
    smooth_l1_beta=1 / 9,
    post_nms_topk=(2000, 1000),
)
del model.roi_heads.proposal_matcher
model.roi_heads.update(
    _target_=CascadeMaskRCNNHeads,
    stage_loss_weights=[1.0, 0.5, 0.25],
    proposal_matchers=[
        L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False) for iou in STAGE_IOUS
    ],
    box_head=[box_head(stage) for stage in STAGES],
    box_predictor=[box_predictor(stage) for stage in STAGES],
    mask_head=[mask_head(stage) for stage in STAGES],
)
