"""UPerNet with its auxiliary head, as the ELSA and Swin recipes have it. The leaf config sets ``model.backbone``."""

from elsa_det.d2 import LazyCall as L
from elsa_det.modeling import FCNHead, Segmentor, UPerHead, stage_shapes

from .constants import pixel_mean, pixel_std

model = L(Segmentor)(
    backbone=None,
    decode_head=L(UPerHead)(
        # The one place that sets the number of classes.
        num_classes=150,
        input_shape=L(stage_shapes)(embed_dim="${model.backbone.embed_dim}"),
        in_features=("p0", "p1", "p2", "p3"),
        channels=512,
        pool_scales=(1, 2, 3, 6),
        # The batch normalisation that the job needs: over all its processes.
        norm="auto",
        dropout_ratio=0.1,
        ignore_label=255,
        # False averages the loss over ignored pixels too, as the published models were trained.
        average_over_valid=True,
    ),
    auxiliary_head=L(FCNHead)(
        num_classes="${..decode_head.num_classes}",
        input_shape="${..decode_head.input_shape}",
        in_features="p2",
        channels=256,
        num_convs=1,
        norm="${..decode_head.norm}",
        dropout_ratio="${..decode_head.dropout_ratio}",
        ignore_label="${..decode_head.ignore_label}",
        average_over_valid="${..decode_head.average_over_valid}",
        loss_weight=0.4,
    ),
    pixel_mean=pixel_mean,
    pixel_std=pixel_std,
    input_format="RGB",
    return_logits=False,
)
