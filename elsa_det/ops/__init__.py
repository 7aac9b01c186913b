"""The ELSA operator."""

from .backends import Backend, backends
from .elsa import elsa_attention
from .reference import elsa_attention_shifted, elsa_attention_unfold

__all__ = ["Backend", "backends", "elsa_attention", "elsa_attention_shifted", "elsa_attention_unfold"]
