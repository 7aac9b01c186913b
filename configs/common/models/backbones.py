"""The backbones by name and size."""

from elsa_det.d2 import LazyCall as L
from elsa_det.modeling import ELSA_SWIN_VARIANTS, SWIN_VARIANTS, ELSASwin, Swin


def elsa_swin(variant: str, **changes):
    """ELSA-Swin "nano", "tiny", "small" or "base"."""
    return L(ELSASwin)(**{**ELSA_SWIN_VARIANTS[variant], **changes})


def swin(variant: str, **changes):
    """Swin "nano", "tiny", "small" or "base"."""
    return L(Swin)(**{**SWIN_VARIANTS[variant], **changes})
