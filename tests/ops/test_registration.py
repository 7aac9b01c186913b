"""What torch knows of the compiled operator, and what happens when it cannot be used."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from elsa_cases import needs, sample, values_and_gradients

from elsa_det.layers import ELSAAttention
from elsa_det.ops import backends, elsa_attention, elsa_attention_unfold, registration

pytestmark = needs("cpu")
MASKS = [(False, False), (False, True), (True, False), (True, True)]


def attention(*tensors):
    return elsa_attention(*tensors, kernel_size=3)


def definition(*tensors):
    return elsa_attention_unfold(*tensors, kernel_size=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("mul", "add"), MASKS)
def test_opcheck(dtype, layout, mul, add):
    registration.load()
    value, logits, *ghosts = sample(mul=mul, add=add, dtype=dtype)
    leaves = [value.contiguous(memory_format=layout), logits.contiguous(memory_format=layout), *ghosts]
    leaves = [None if t is None else t.requires_grad_() for t in leaves]
    torch.library.opcheck(torch.ops.elsa_det.elsa_attention_forward.default, (*leaves, 3, 1))
    inputs = [None if t is None else t.detach() for t in leaves]
    torch.library.opcheck(torch.ops.elsa_det.elsa_attention_backward.default, (torch.ones_like(value), *inputs, 3, 1))


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t,
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.transpose(2, 3),
        lambda t: t[:0],
    ],
)
def test_fake_results_have_the_real_strides(make):
    tensors = [make(t) if t.dim() == 4 else t for t in sample(size=(5, 5))]
    real = values_and_gradients(attention, tensors)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = values_and_gradients(attention, [mode.from_tensor(t) for t in tensors])
    meta = attention(*(t.to("meta") for t in tensors))
    assert meta.shape == real[0].shape
    for got, want in zip(fake[:3], real[:3], strict=True):
        assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)


@pytest.mark.parametrize(("mul", "add"), MASKS)
def test_compiled_without_graph_breaks(mul, add):
    torch._dynamo.reset()
    fast = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for size in ((5, 4), (7, 9), (8, 6)):  # the second makes the sizes dynamic
        tensors = sample(size=size, mul=mul, add=add)
        for got, want in zip(
            values_and_gradients(fast, tensors), values_and_gradients(definition, tensors), strict=True
        ):
            torch.testing.assert_close(got, want)


def test_compiled_without_a_library(operator_library):
    torch._dynamo.reset()
    operator_library(None, None)
    fast = torch.compile(attention, fullgraph=True, backend="aot_eager")
    with pytest.warns(RuntimeWarning, match="was not built"):
        found = values_and_gradients(fast, sample())
    torch.testing.assert_close(found, values_and_gradients(definition, sample()))
    torch._dynamo.reset()


def test_compiled_by_inductor():
    torch._dynamo.reset()
    tensors = [t.requires_grad_() for t in sample(dtype=torch.float32)]
    torch.compile(attention, fullgraph=True)(*tensors).sum().backward()
    for leaf, want in zip(tensors, values_and_gradients(definition, tensors)[1:], strict=True):
        torch.testing.assert_close(leaf.grad, want, rtol=1e-4, atol=1e-5)


def _module(**kwargs):
    torch.manual_seed(0)
    return ELSAAttention(24, 2, 5, lam=1.0, **kwargs), torch.randn(2, 9, 8, 24, requires_grad=True)


@pytest.mark.parametrize("recompute_logits", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_module_compiles_without_graph_breaks(autocast, recompute_logits):
    torch._dynamo.reset()
    module, x = _module(recompute_logits=recompute_logits)
    results = []
    for run in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = run(x)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), [x, *module.parameters()])])
        assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
    tolerance = dict(rtol=5e-2, atol=5e-2 * 24) if autocast else dict(rtol=1e-4, atol=1e-4)
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager, **tolerance)


@pytest.mark.parametrize("strict", [False, True])
def test_the_module_is_exported_for_any_size(strict):
    module, x = _module()
    dims = {"x": {1: torch.export.Dim("height", min=2, max=512), 2: torch.export.Dim("width", min=2, max=512)}}
    program = torch.export.export(module.eval(), (x.detach(),), dynamic_shapes=dims, strict=strict)
    assert [n for n in program.graph.nodes if n.target is torch.ops.elsa_det.elsa_attention_forward.default]
    for size in ((9, 8), (17, 3), (2, 31)):
        y = torch.randn(2, *size, 24)
        torch.testing.assert_close(program.module()(y), module(y))


@pytest.mark.parametrize("dims", [(0, 0, None, None), (0, 0, 0, 0), (0, None, None, None), (None, 1, None, 0)])
def test_vmap_and_gradients_in_it(dims):
    tensors = [
        t[0] if dim is None else t.movedim(0, dim).contiguous() for t, dim in zip(sample(lead=(3,)), dims, strict=True)
    ]

    def gradients(form):
        return torch.vmap(torch.func.grad(lambda *t: form(*t).sin().sum(), argnums=(0, 1, 2, 3)), dims)(*tensors)

    torch.testing.assert_close(torch.vmap(attention, dims)(*tensors), torch.vmap(definition, dims)(*tensors))
    torch.testing.assert_close(gradients(attention), gradients(definition))


def test_vmap_without_ghosts_and_gradient_of_it():
    tensors = [t.requires_grad_() for t in sample(lead=(3,), mul=False, add=False)[:2]]
    results = []
    for form in (attention, definition):
        out = torch.vmap(lambda v, z, form=form: form(v, z, None, None))(*tensors)
        results.append([out, *torch.autograd.grad(out.sin().sum(), tensors)])
    torch.testing.assert_close(*results)


def test_func_transforms():
    tensors = sample(size=(3, 4))
    for transform in (
        lambda form: torch.func.grad(lambda *t: form(*t).sin().sum(), argnums=(0, 1, 2, 3)),
        lambda form: torch.func.jacrev(form, argnums=(0, 3)),
    ):
        torch.testing.assert_close(transform(attention)(*tensors), transform(definition)(*tensors))


def test_second_derivatives_are_refused():
    tensors = [t.requires_grad_() for t in sample()]
    (grad,) = torch.autograd.grad(attention(*tensors).square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once.*elsa_attention_unfold"):
        grad.sum().backward()


RECORD = {"torch": torch.__version__, "cuda": torch.version.cuda, "built": {"cpu": {}}, "not_built": {}}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "source tree that has not been installed.*pip install --no-build-isolation"),
        (RECORD | {"built": {}, "not_built": {"cpu": "no C++ compiler was found"}}, "no C.. compiler was found"),
        (RECORD, "_C.so is gone"),
    ],
)
def test_without_a_library_there_is_one_warning(operator_library, record, message):
    operator_library(None, record)
    wide, narrow = sample(), sample(dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match=message) as caught:
        found = attention(*wide), attention(*narrow)
    assert len(caught) == 1
    torch.testing.assert_close(found, (definition(*wide), definition(*narrow)))
    assert [b.usable for b in backends()] == [True, False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"torch": "2.7.1"},
            rf"built against torch 2.7.1, and this is torch {torch.__version__[:4]}.*no-build-isolation",
        ),
        ({"cuda": "11.8", "built": {"cpu": {}, "cuda": {}}}, "built against CUDA 11.8, and this is CUDA"),
        ({}, "cannot be loaded: .*(too short|invalid ELF).*no-build-isolation.*ELSA_DET_OP=reference"),
    ],
)
def test_a_library_that_cannot_be_used_is_an_error(operator_library, change, message):
    operator_library(b"not a library", RECORD | change)
    for _ in range(2):
        with pytest.raises(ImportError, match=message):
            attention(*sample())
    cpu = backends()[1]
    assert (cpu.built, cpu.usable) == (True, False)
    assert "no-build-isolation" in cpu.reason


def test_another_patch_release_of_torch_will_do(monkeypatch):
    monkeypatch.setattr(registration, "_load_once", registration._load_once.__wrapped__)
    record = registration.build_record()
    monkeypatch.setattr(registration, "build_record", lambda: record | {"torch": f"{record['torch'][:4]}.77+cpu"})
    for name in ("register_fake", "register_vmap", "register_autograd"):
        monkeypatch.setattr(torch.library, name, lambda *args, **kwargs: None)
    registration.load()  # no error


def test_forced_paths(operator_library, monkeypatch):
    def path():
        registration._decide.cache_clear()
        return type(attention(*(t.requires_grad_() for t in sample())).grad_fn).__name__

    assert "elsa_attention_forward" in path()
    monkeypatch.setenv("ELSA_DET_OP", "reference")
    assert "ShiftedSum" in path()
    monkeypatch.setenv("ELSA_DET_OP", "compiled")
    assert "elsa_attention_forward" in path()
    operator_library(None, None)
    with pytest.raises(RuntimeError, match="ELSA_DET_OP=compiled, but the compiled operator was not built"):
        path()
    monkeypatch.setenv("ELSA_DET_OP", "fastest")
    with pytest.raises(ValueError, match="ELSA_DET_OP='fastest' is not understood: use 'reference', 'compiled'"):
        path()


def test_tensors_without_a_kernel_take_the_shifted_sum_and_say_so(operator_library, caplog):
    tensors = sample(kernel_size=15, size=(4, 4))
    with caplog.at_level(logging.DEBUG, logger=registration.logger.name), warnings.catch_warnings(action="error"):
        out = elsa_attention(*tensors, kernel_size=15)
    torch.testing.assert_close(out, elsa_attention_unfold(*tensors, kernel_size=15))
    assert "its kernels go up to kernel_size 13" in caplog.text


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (torch.device("mps"), torch.float32, "no kernels for mps"),
        (torch.device("cuda", 0), torch.float64, "no cuda kernel for torch.float64"),
        (torch.device("cpu"), torch.float8_e5m2, "no cpu kernel for torch.float8_e5m2"),
        (torch.device("cpu"), torch.bfloat16, None),
        (torch.device("meta"), torch.float32, None),
    ],
)
def test_kernels_there_are(device, dtype, reason):
    found = registration.missing_kernel(device, dtype)
    assert found is None if reason is None else reason in found


def test_a_gpu_without_the_cuda_part(operator_library, monkeypatch):
    record = RECORD | {"not_built": {"cuda": "nvcc is of CUDA 11.8, torch is built for CUDA 13.2"}}
    monkeypatch.setattr(registration, "build_record", lambda: record)
    monkeypatch.setattr(registration, "load", lambda: None)
    with pytest.warns(RuntimeWarning, match="CUDA part.*was not built .nvcc is of CUDA 11.8.*no-build-isolation"):
        assert not registration.use_compiled(torch.device("cuda", 0), torch.float32, True)


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (9, 0), True),
        (["compute_90"], (12, 0), True),
        (["compute_90"], (8, 9), False),
        (["sm_90a"], (9, 0), True),
        (["compute_90a"], (10, 0), False),
        (["sm_100", "sm_120"], (12, 0), True),
        ([], (9, 0), False),
    ],
)
def test_architectures(built, capability, runs):
    assert registration.runs_on(built, *capability) == runs
