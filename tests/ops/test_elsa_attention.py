"""The operator against naive loops, the recorded cases of the published one, and gradcheck."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from elsa_cases import sample, values_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_det.ops import elsa_attention, elsa_attention_shifted, elsa_attention_unfold

GOLDEN = torch.load(Path(__file__).parents[1] / "golden" / "elsa_op.pt", weights_only=True)
FORMS = [elsa_attention_unfold, elsa_attention_shifted, elsa_attention]


def naive(value, logits, ghost_mul, ghost_add, *, kernel_size, dilation=1):
    """The formula, pixel by pixel."""
    batch, channels, height, width = value.shape
    taps = kernel_size**2
    heads = logits.shape[1] // taps
    out = torch.zeros_like(value)
    for b in range(batch):
        for c in range(channels):
            g = c // (channels // heads)
            for y in range(height):
                for x in range(width):
                    weights = [math.exp(z) for z in logits[b, g * taps : (g + 1) * taps, y, x].tolist()]
                    for j in range(taps):
                        dy, dx = j // kernel_size - kernel_size // 2, j % kernel_size - kernel_size // 2
                        yy, xx = y + dilation * dy, x + dilation * dx
                        if not (0 <= yy < height and 0 <= xx < width):
                            continue
                        weight = weights[j] / sum(weights)
                        if ghost_mul is not None:
                            weight *= ghost_mul.flatten(1)[c, j].item()
                        if ghost_add is not None:
                            weight += ghost_add.flatten(1)[c, j].item()
                        out[b, c, y, x] += weight * value[b, c, yy, xx]
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("mul", "add"), [(False, False), (False, True), (True, False), (True, True)])
def test_agrees_with_naive_loops(form, dilation, mul, add):
    tensors = sample(mul=mul, add=add)
    expected = naive(*tensors, kernel_size=3, dilation=dilation)
    torch.testing.assert_close(form(*tensors, kernel_size=3, dilation=dilation), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 3e-6), (torch.float32, 1e-5)])
@pytest.mark.parametrize("index", range(len(GOLDEN)))
def test_recorded_values_and_gradients(form, dtype, tolerance, index):
    case = GOLDEN[index]
    lam, gamma = case["lam"], case["gamma"]
    leaves = {
        name: case[name].to(dtype).clone().requires_grad_() for name in ("value", "logits", "ghost_mul", "ghost_add")
    }
    out = form(
        leaves["value"],
        leaves["logits"],
        leaves["ghost_mul"] ** lam if lam else None,
        leaves["ghost_add"] * gamma if gamma else None,
        kernel_size=case["kernel_size"],
        dilation=case["dilation"],
    )
    out.backward(case["grad_out"].to(dtype))
    torch.testing.assert_close(out.float(), case["out"], rtol=1e-5, atol=tolerance)
    recorded = [name for name in leaves if f"grad_{name}" in case]
    assert {"value", "logits"} < set(recorded)
    for name in recorded:
        torch.testing.assert_close(leaves[name].grad.float(), case[f"grad_{name}"], rtol=1e-5, atol=tolerance)


@given(
    batch=st.integers(0, 2),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    kernel_size=st.sampled_from([1, 3, 5, 7, 9]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dilation=st.integers(1, 3),
    mul=st.booleans(),
    add=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_agrees_with_the_definition(
    batch, heads, head_dim, kernel_size, size, dilation, mul, add, channels_last, seed
):
    tensors = sample(batch, heads, head_dim, kernel_size, size, mul, add, seed=seed)
    if channels_last:
        tensors = [
            t.contiguous(memory_format=torch.channels_last) if t is not None and t.dim() == 4 else t for t in tensors
        ]
    kwargs = {"kernel_size": kernel_size, "dilation": dilation}
    grad_out = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = values_and_gradients(elsa_attention_unfold, tensors, grad_out, **kwargs)
    for form in (elsa_attention_shifted, elsa_attention):
        for got, want in zip(values_and_gradients(form, tensors, grad_out, **kwargs), expected, strict=True):
            if want is None:
                assert got is None
            else:
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_strided_slices_give_the_same():
    value, logits, mul, add = sample()
    wide = torch.randn(2, 16, 5, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    wide[:, 5:11] = value
    got = elsa_attention(wide[:, 5:11], logits.transpose(2, 3).contiguous().transpose(2, 3), mul, add, kernel_size=3)
    torch.testing.assert_close(got, elsa_attention_unfold(value, logits, mul, add, kernel_size=3))


@pytest.mark.parametrize(("mul", "add"), [(False, True), (True, True)])
def test_gradcheck(mul, add):
    tensors = [None if t is None else t.requires_grad_() for t in sample(1, 2, 2, 3, (3, 4), mul, add)]
    assert torch.autograd.gradcheck(lambda *t: elsa_attention(*t, kernel_size=3), tensors)
    assert torch.autograd.gradcheck(lambda *t: elsa_attention(*t, kernel_size=3, dilation=2), tensors)


def test_second_derivatives_are_refused_not_wrong():
    tensors = [t.requires_grad_() for t in sample()]
    (grad,) = torch.autograd.grad(elsa_attention(*tensors, kernel_size=3).square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentia"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reduced_precision_accumulates_in_float32(dtype):
    tensors = sample(1, 2, 16, 7, (9, 8), mul=False, dtype=dtype)
    exact = elsa_attention_unfold(*(None if t is None else t.double() for t in tensors), kernel_size=7)
    got = elsa_attention(*tensors, kernel_size=7)
    assert got.dtype == dtype
    # one rounding of the result: half a unit in the last place
    torch.testing.assert_close(got.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_autocast_takes_all_tensors_in_its_dtype():
    tensors = sample(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = elsa_attention(*tensors, kernel_size=3)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, elsa_attention(*(t.bfloat16() for t in tensors), kernel_size=3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_bad_numbers_spread_as_in_the_definition(bad, which):
    tensors = list(sample(1, 1, 2, 3, (6, 6)))
    tensors[which] = tensors[which].clone()
    tensors[which][0, 0, 2, 3] = bad
    got, expected = (form(*tensors, kernel_size=3) for form in (elsa_attention, elsa_attention_unfold))
    assert not expected.isfinite().all()
    torch.testing.assert_close(got, expected, equal_nan=True)


def _replace(index, tensor):
    tensors = list(sample())
    tensors[index] = tensor
    return tensors


@pytest.mark.parametrize(
    ("tensors", "kwargs", "error", "message"),
    [
        (sample(), {"kernel_size": 4}, ValueError, "kernel_size must be odd and positive, got 4"),
        (sample(), {"kernel_size": 3, "dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        (sample(), {"kernel_size": 5}, ValueError, "logits has 18 channels.*kernel_size 5"),
        (
            _replace(0, torch.zeros(2, 7, 5, 4).double()),
            {"kernel_size": 3},
            ValueError,
            "value has 7 channels, which 2",
        ),
        (
            _replace(0, torch.zeros(2, 6, 5, 5).double()),
            {"kernel_size": 3},
            ValueError,
            r"\(2, 18, 5, 4\).*\(2, 6, 5, 5\)",
        ),
        (
            _replace(0, torch.zeros(6, 5, 4).double()),
            {"kernel_size": 3},
            ValueError,
            r"value must have 4 dim.*\(6, 5, 4\)",
        ),
        (_replace(1, sample()[1].float()), {"kernel_size": 3}, TypeError, "logits has dtype torch.float32, value has"),
        (_replace(1, sample()[1].to("meta")), {"kernel_size": 3}, ValueError, "logits is on meta, value on cpu"),
        (
            _replace(2, torch.zeros(6, 3, 5).double()),
            {"kernel_size": 3},
            ValueError,
            r"ghost_mul .*\(6, 3, 3\).*\(6, 3, 5\)",
        ),
        (
            _replace(3, torch.zeros(4, 3, 3).double()),
            {"kernel_size": 3},
            ValueError,
            r"ghost_add .*\(6, 3, 3\).*\(4, 3, 3\)",
        ),
        (_replace(0, torch.zeros(2, 6, 5, 4).long()), {"kernel_size": 3}, TypeError, "value must be floating-point"),
        (_replace(1, None), {"kernel_size": 3}, TypeError, "logits must be a tensor, got NoneType"),
    ],
)
def test_bad_input_is_named(tensors, kwargs, error, message):
    with pytest.raises(error, match=message):
        elsa_attention(*tensors, **kwargs)
