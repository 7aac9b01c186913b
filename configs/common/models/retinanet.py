"""RetinaNet with an FPN on the maps of strides 8 to 128. The leaf config sets ``model.backbone.bottom_up``."""

from elsa_det.d2 import (
    FPN,
    Box2BoxTransform,
    DefaultAnchorGenerator,
    LastLevelP6P7,
    Matcher,
    RetinaNet,
    RetinaNetHead,
    ShapeSpec,
)
from elsa_det.d2 import LazyCall as L

from .constants import pixel_mean, pixel_std

model = L(RetinaNet)(
    # The one place that sets the number of classes.
    num_classes=80,
    backbone=L(FPN)(
        bottom_up=None,
        # p0 to p3 are the backbone's maps, of strides 4 to 32; the pyramid's are named by powers of two: p3 to p7.
        in_features=("p1", "p2", "p3"),
        out_channels=256,
        # p6 and p7 start from the backbone's last map, which has 8 times its embed_dim.
        top_block=L(LastLevelP6P7)(in_channels=768, out_channels="${..out_channels}", in_feature="p3"),
    ),
    head=L(RetinaNetHead)(
        input_shape=[L(ShapeSpec)(channels="${model.backbone.out_channels}") for _ in range(5)],
        num_classes="${..num_classes}",
        num_anchors=9,
        conv_dims=[256, 256, 256, 256],
        prior_prob=0.01,
    ),
    head_in_features=("p3", "p4", "p5", "p6", "p7"),
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[size * 2 ** (step / 3) for step in range(3)] for size in (32, 64, 128, 256, 512)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=[8, 16, 32, 64, 128],
        offset=0.0,
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_matcher=L(Matcher)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True),
    focal_loss_alpha=0.25,
    focal_loss_gamma=2.0,
    smooth_l1_beta=0.0,
    test_score_thresh=0.05,
    test_topk_candidates=1000,
    test_nms_thresh=0.5,
    max_detections_per_image=100,
    pixel_mean=pixel_mean,
    pixel_std=pixel_std,
    input_format="RGB",
)
