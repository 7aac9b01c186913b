"""The compiled operator on every device that has one: against the recorded cases and the definition."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from elsa_cases import BACKENDS, DEVICES, needs, sample, values_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from elsa_det.ops import elsa_attention_unfold
from elsa_det.ops.registration import DTYPES, MAX_KERNEL_SIZE, compiled_elsa_attention

GOLDEN = torch.load(Path(__file__).parents[1] / "golden" / "elsa_op.pt", weights_only=True)


def compiled(value, logits, ghost_mul, ghost_add, *, kernel_size, dilation=1):
    return compiled_elsa_attention(value, logits, ghost_mul, ghost_add, kernel_size, dilation)


def assert_as_defined(device, tensors, tolerance=None, grad_out=None, **kwargs):
    """Output and gradients within ``tolerance`` of the definition in float64, as a fraction of the largest value."""
    dtype = tensors[0].dtype
    if tolerance is None:
        tolerance = {torch.float64: 1e-12, torch.float32: 3e-6}.get(dtype, 2 * torch.finfo(dtype).eps)
    if grad_out is None:
        grad_out = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        grad_out = grad_out.to(dtype)
    exact = [None if t is None else t.double() for t in tensors]
    wanted = values_and_gradients(elsa_attention_unfold, exact, grad_out.double(), **kwargs)
    tensors = [None if t is None else t.to(device) for t in tensors]
    found = values_and_gradients(compiled, tensors, grad_out.to(device), **kwargs)
    for name, got, want in zip(("out", "value", "logits", "ghost_mul", "ghost_add"), found, wanted, strict=True):
        if want is None:
            assert got is None
            continue
        assert got.dtype == dtype
        assert got.shape == want.shape
        if want.numel():
            error = (got.cpu().double() - want).abs().max() / want.abs().max().clamp(min=1e-3)
            assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("index", range(len(GOLDEN)))
def test_recorded_cases(device, dtype, index):
    if dtype not in DTYPES[device]:
        pytest.skip(f"no {device} kernel for {dtype}")
    case = GOLDEN[index]
    lam, gamma = case["lam"], case["gamma"]
    kwargs = {"kernel_size": case["kernel_size"], "dilation": case["dilation"]}
    names = ("value", "logits", "ghost_mul", "ghost_add")
    leaves = [case[name].to(device, dtype).requires_grad_() for name in names]
    ghosts = leaves[2] ** lam if lam else None, leaves[3] * gamma if gamma else None
    if dtype in (torch.bfloat16, torch.float16):  # the recorded numbers are of inputs that were not rounded
        used = [None if t is None else t.detach().cpu() for t in (*leaves[:2], *ghosts)]
        return assert_as_defined(device, used, **kwargs)
    out = compiled(*leaves[:2], *ghosts, **kwargs)
    out.backward(case["grad_out"].to(device, dtype))
    torch.testing.assert_close(out.float().cpu(), case["out"], rtol=1e-5, atol=1e-5)
    for name, leaf in zip(names, leaves, strict=True):
        if f"grad_{name}" in case:
            torch.testing.assert_close(leaf.grad.float().cpu(), case[f"grad_{name}"], rtol=1e-5, atol=1e-5)


def _transposed(tensor):
    return tensor.transpose(2, 3).contiguous().transpose(2, 3)


def _slice_of_wider(tensor):
    batch, channels, height, width = tensor.shape
    wide = torch.zeros(batch, height, width, channels + 7, dtype=tensor.dtype)
    wide[..., 3 : 3 + channels] = tensor.permute(0, 2, 3, 1)
    return wide.permute(0, 3, 1, 2)[:, 3 : 3 + channels]


LAYOUTS = {
    "NCHW": lambda t: t.contiguous(),
    "NHWC": lambda t: t.contiguous(memory_format=torch.channels_last),
    "NCWH": _transposed,
    "slice": _slice_of_wider,
    "every other": lambda t: torch.stack([t, t], dim=4).flatten(3)[..., ::2],
    "flipped batch": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("device", DEVICES)
@given(
    batch=st.integers(0, 3),
    heads=st.integers(1, 3),
    head_dim=st.sampled_from([1, 2, 3, 5, 8, 12, 16, 17, 24, 31, 32, 33, 40]),
    kernel_size=st.sampled_from(range(1, MAX_KERNEL_SIZE + 1, 2)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    dilation=st.sampled_from([1, 1, 2, 3, 7]),
    mul=st.booleans(),
    add=st.booleans(),
    layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * 3),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_layout_and_dtype(
    device, batch, heads, head_dim, kernel_size, size, dilation, mul, add, layouts, dtype
):
    if dtype not in DTYPES[device]:
        dtype = torch.float32
    value, logits, *ghosts = sample(batch, heads, head_dim, kernel_size, size, mul, add, dtype)
    value, logits, grad_out = (
        LAYOUTS[name](t) for name, t in zip(layouts, (value, logits, value.flip(0)), strict=True)
    )
    assert_as_defined(device, (value, logits, *ghosts), None, grad_out, kernel_size=kernel_size, dilation=dilation)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dilation", [1, 2, 5])
@pytest.mark.parametrize("size", [(2, 300), (300, 2), (33, 145)])
def test_maps_of_several_tiles(device, size, dilation):
    tensors = sample(1, 2, 32, 7, size, dtype=torch.float32)
    assert_as_defined(
        device, [LAYOUTS["NHWC"](t) if t.dim() == 4 else t for t in tensors], kernel_size=7, dilation=dilation
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("wanted", range(16))
def test_only_gradients_that_are_needed(device, wanted):
    tensors = [t.to(device) for t in sample(dtype=torch.float32)]
    full = values_and_gradients(compiled, tensors, kernel_size=3)[1:]
    leaves = [t.requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(tensors)]
    out = compiled(*leaves, kernel_size=3)
    assert out.requires_grad == bool(wanted)
    if wanted:
        out.sum().backward()  # an expanded gradient, of stride 0
    for leaf, gradient in zip(leaves, full, strict=True):
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, gradient, rtol=1e-5, atol=1e-5)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_bad_numbers_spread_as_in_the_definition(device, bad, which):
    tensors = [t.clone() for t in sample(1, 2, 16, 3, (9, 20), dtype=torch.float32)]
    tensors[which].view(-1)[33] = bad
    wanted = values_and_gradients(elsa_attention_unfold, tensors, kernel_size=3)
    found = values_and_gradients(compiled, [t.to(device) for t in tensors], kernel_size=3)
    if which >= 2:  # the definition multiplies bad ghosts by the zeros around the map, kernels may leave those out
        wanted, found = [wanted[0][..., 1:-1, 1:-1]], [found[0][..., 1:-1, 1:-1]]
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-4, equal_nan=True)


@needs("cpu")
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize(("mul", "add"), [(False, False), (False, True), (True, False), (True, True)])
def test_gradcheck(kernel_size, dilation, mul, add):
    tensors = [None if t is None else t.requires_grad_() for t in sample(1, 2, 2, kernel_size, (3, 4), mul, add)]
    assert torch.autograd.gradcheck(lambda *t: compiled(*t, kernel_size=kernel_size, dilation=dilation), tensors)


@needs("cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_is_the_same_with_any_number_of_threads(dtype):
    tensors = sample(2, 3, 32, 7, (70, 33), dtype=dtype)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(values_and_gradients(compiled, tensors, kernel_size=7))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs("cuda")
def test_every_bit_is_the_same_again_on_a_gpu():
    tensors = [t.cuda() for t in sample(2, 3, 32, 7, (70, 33), dtype=torch.bfloat16)]
    first, second = (values_and_gradients(compiled, tensors, kernel_size=7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@needs("cuda")
def test_more_elements_than_32_bits_count():
    generator = torch.Generator("cuda").manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)  # noqa: E731
    value = draw(2, 2048, 2048, 96).permute(0, 3, 1, 2)
    logits = draw(2, 2048, 2048, 3 * 49).permute(0, 3, 1, 2)
    ghost = draw(96, 7, 7)
    out, *gradients = values_and_gradients(compiled, (value, logits, None, ghost), kernel_size=7)
    corner = (slice(1, 2), slice(None), slice(2048 - 40, None), slice(2048 - 40, None))
    small = [value[corner], logits[corner], None, ghost]
    expected = values_and_gradients(
        elsa_attention_unfold, [t if t is None else t.double() for t in small], kernel_size=7
    )
    for got, want, border in ((out, expected[0], 3), (gradients[0], expected[1], 3), (gradients[1], expected[2], 3)):
        inner = (..., slice(border, None), slice(border, None))
        torch.testing.assert_close(got[corner][inner].double(), want[inner], rtol=2e-2, atol=5e-2)


SCRIPT = """
import json, torch
from elsa_det.ops import elsa_attention_unfold
from elsa_det.ops.registration import compiled_elsa_attention, load
load()
errors = {}
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for head_dim, kernel_size in ((32, 7), (5, 3), (40, 5)):
        torch.manual_seed(0)
        maps = [(1, channels, 9, 19) for channels in (2 * head_dim, 2 * kernel_size**2)]
        shapes = (*maps, *[(2 * head_dim, kernel_size, kernel_size)] * 2)
        tensors = [torch.randn(*shape).to(dtype) for shape in shapes]
        exact, used = ([t.to(kind).requires_grad_() for t in tensors] for kind in (torch.float64, dtype))
        want = elsa_attention_unfold(*exact, kernel_size=kernel_size)
        got = compiled_elsa_attention(*used, kernel_size, 1)
        want.backward(exact[0].detach()), got.backward(used[0].detach())
        pairs = [(got, want), *((a.grad, b.grad) for a, b in zip(used, exact))]
        worst = max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        errors[str(dtype)] = max(errors.get(str(dtype), 0), worst)
print(json.dumps([torch.backends.cpu.get_cpu_capability(), errors]))
"""


@functools.cache
def run_without_gpu(capability):
    """The instruction set chosen, and errors by dtype, in a process limited to ``capability`` that sees no GPU."""
    environment = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "ATEN_CPU_CAPABILITY": capability.lower(),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs("cpu")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86")
@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_every_instruction_set(capability):
    order = ["DEFAULT", "AVX2", "AVX512"]
    here = torch.backends.cpu.get_cpu_capability()
    if here in order and order.index(capability) > order.index(here):
        pytest.skip(f"this processor has no {capability}")
    chosen, errors = run_without_gpu(capability)
    assert chosen == capability
    for dtype, bound in (("float32", 3e-6), ("float64", 1e-12), ("bfloat16", 1e-2), ("float16", 2e-3)):
        assert errors[f"torch.{dtype}"] <= bound, (dtype, errors)


@needs("cpu")
def test_a_library_with_its_cuda_part_loads_without_a_gpu():
    if not BACKENDS["cuda"].built:
        pytest.skip(f"cuda operator: {BACKENDS['cuda'].reason}")
    assert run_without_gpu("DEFAULT")[1]["torch.float32"] <= 3e-6


@needs("cpu")
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_openmp_runtime_in_the_process():
    compiled(*sample(), kernel_size=3)
    mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    runtimes = [file for file in mapped if file.name.startswith(("libgomp", "libomp", "libiomp"))]
    others = [file for file in runtimes if file.parent.name.endswith(".libs")]  # of other wheels, for themselves
    assert len(runtimes) - len(others) == 1, runtimes
