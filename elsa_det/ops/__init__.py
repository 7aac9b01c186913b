"""The ELSA operator."""

from .elsa import elsa_attention
from .reference import elsa_attention_shifted, elsa_attention_unfold

__all__ = ["elsa_attention", "elsa_attention_shifted", "elsa_attention_unfold"]
