"""Where published ImageNet weights come from, as far as is known, for recipes whose file is missing."""

from __future__ import annotations

_ELSA = (
    "the ImageNet weights of {name}, published by its authors: repository damo-cv/ELSA on GitHub, README, table "
    '"ImageNet Classification", column Download'
)
_SWIN = (
    "the ImageNet weights of {name}, published by Microsoft: repository microsoft/Swin-Transformer on GitHub, "
    "model hub, file {file}"
)

#: file name in the configs -> what it is and where it is published
PUBLISHED_WEIGHTS = {
    "elsa_swin_tiny.pth": _ELSA.format(name="ELSA-Swin-T"),
    "elsa_swin_small.pth": _ELSA.format(name="ELSA-Swin-S"),
    "elsa_swin_base.pth": _ELSA.format(name="ELSA-Swin-B"),
    "swin_tiny_patch4_window7_224.pth": _SWIN.format(name="Swin-T", file="swin_tiny_patch4_window7_224.pth"),
    "swin_small_patch4_window7_224.pth": _SWIN.format(name="Swin-S", file="swin_small_patch4_window7_224.pth"),
    "swin_base_patch4_window7_224.pth": _SWIN.format(name="Swin-B", file="swin_base_patch4_window7_224.pth"),
}
