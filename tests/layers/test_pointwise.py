"""Both routines of the pointwise linear map give the same values, gradients and layouts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from elsa_det.layers.pointwise import Pointwise, pointwise


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 3, 5, 8), (1, 1, 1, 8), (0, 3, 5, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_is_a_linear_map(threads, shape, bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator, requires_grad=True)
    weight = torch.randn(6, 8, generator=generator, requires_grad=True)
    offset = torch.randn(6, generator=generator, requires_grad=True) if bias else None
    leaves = [t for t in (x, weight, offset) if t is not None]
    grad = torch.randn(*shape[:-1], 6, generator=generator)
    out, expected = pointwise(x, weight, offset), F.linear(x, weight, offset)
    assert out.shape == expected.shape
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, leaves, grad)):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_slices_of_wider_maps(threads):
    wide = torch.randn(2, 4, 5, 20)
    layer = Pointwise(8, 3)
    torch.testing.assert_close(layer(wide[..., 4:12]), F.linear(wide[..., 4:12], layer.weight, layer.bias))


def test_other_dtypes_and_autocast(threads):
    x, layer = torch.randn(2, 3, 4, 8), Pointwise(8, 6)
    assert layer.double()(x.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16
