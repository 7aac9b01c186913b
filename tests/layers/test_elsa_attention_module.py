"""The attention module: logits kept or recomputed."""

from __future__ import annotations

import pytest
import torch

from elsa_det.layers import ELSAAttention
from elsa_det.modeling import ELSASwin


def _run(make, x, **kwargs):
    """Output, gradients and the bytes kept for the backward, parameters left out and storages counted once."""
    torch.manual_seed(0)
    module = make(**kwargs)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(x)
    total = sum(storage.nbytes() for storage in kept.values())
    out = sum(m.square().sum() for m in out.values()) if isinstance(out, dict) else out.square().sum()
    return [out, *torch.autograd.grad(out, list(module.parameters()))], total


@pytest.mark.parametrize("lam", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_logits_give_the_same_gradients_from_less_memory(lam, autocast):
    x = torch.randn(1, 20, 24, 48, generator=torch.Generator().manual_seed(1), requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        kept, kept_bytes = _run(ELSAAttention, x, dim=48, num_heads=3, lam=lam)
        recomputed, recomputed_bytes = _run(ELSAAttention, x, dim=48, num_heads=3, lam=lam, recompute_logits=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))
    logits = 20 * 24 * 3 * 49 * (2 if autocast else 4)
    assert kept_bytes - recomputed_bytes >= logits


def test_the_backbone_passes_it_on():
    settings = dict(embed_dim=12, depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 4), group_width=4)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    kept, kept_bytes = _run(ELSASwin, image, **settings)
    recomputed, recomputed_bytes = _run(ELSASwin, image, **settings, recompute_logits=True)
    for a, b in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(a, b)
    assert recomputed_bytes < kept_bytes - 4 * 49 * (1 * 16**2 + 2 * 2 * 8**2 + 3 * 4**2)


def test_nothing_is_kept_without_gradients():
    module = ELSAAttention(24, 2, 5, recompute_logits=True)
    x = torch.randn(1, 6, 5, 24)
    with torch.no_grad():
        assert torch.equal(module(x), ELSAAttention.forward(module.eval(), x))
