"""Semantic FPN, the light alternative to UPerNet. The leaf config sets ``model.backbone``."""

from elsa_det.d2 import LazyCall as L
from elsa_det.modeling import SemanticFPNHead, stage_shapes

from .upernet import model

# What a segmentor is stays; the head is another, and there is no auxiliary one.
model.decode_head = L(SemanticFPNHead)(
    # The one place that sets the number of classes.
    num_classes=150,
    input_shape=L(stage_shapes)(embed_dim="${model.backbone.embed_dim}"),
    in_features=("p0", "p1", "p2", "p3"),
    channels=128,
    pyramid_channels=256,
    norm="GN",
    dropout_ratio=0.1,
    ignore_label=255,
    average_over_valid=True,
)
model.auxiliary_head = None
