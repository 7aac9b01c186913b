"""Inputs for tests of the operator, and what to do with them."""

from __future__ import annotations

import pytest
import torch

from elsa_det.ops import backends

BACKENDS = {backend.name: backend for backend in backends()}


def needs(name: str) -> pytest.MarkDecorator:
    """Skips, with the reason, where this backend cannot run."""
    return pytest.mark.skipif(not BACKENDS[name].usable, reason=f"{name} operator: {BACKENDS[name].reason}")


#: the devices whose compiled operator can run here
DEVICES = [pytest.param("cpu", marks=needs("cpu")), pytest.param("cuda", marks=needs("cuda"))]


def sample(
    batch=2, heads=2, head_dim=3, kernel_size=3, size=(5, 4), mul=True, add=True, dtype=torch.float64, seed=0, lead=()
):
    """Value, logits and ghosts; ``lead`` is put before all shapes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*lead, *shape, generator=generator, dtype=torch.float64).to(dtype)

    channels = heads * head_dim
    return (
        draw(batch, channels, *size),
        draw(batch, heads * kernel_size**2, *size),
        draw(channels, kernel_size, kernel_size) if mul else None,
        draw(channels, kernel_size, kernel_size) if add else None,
    )


def values_and_gradients(form, tensors, grad_out=None, **kwargs):
    """The output and the gradients of ``tensors``, None for those that are."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    out = form(*leaves, **kwargs)
    out.backward(torch.ones_like(out) if grad_out is None else grad_out)
    return [out.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]
