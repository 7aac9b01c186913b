"""The compiled operator: its library is found, checked and loaded at first use, and made known to torch.

The schemas and the CPU and CUDA kernels are in C++ (``kernels/``), under the names
``elsa_det::elsa_attention_forward`` and ``elsa_det::elsa_attention_backward``. Here are the parts that torch takes in
Python: fake implementations (shapes and strides without numbers, for ``torch.compile``, ``torch.export`` and meta
tensors), the derivative, and batching rules for ``torch.func.vmap``.

``ELSA_DET_OP=reference`` never uses the library, ``ELSA_DET_OP=compiled`` makes it an error when it cannot be used.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("_C.so")
RECORD = Path(__file__).with_name("_build_info.json")
SWITCH = "ELSA_DET_OP"
REMEDY = "run `pip install --no-build-isolation -e .` again (`python -m elsa_det.doctor` says more)"

MAX_KERNEL_SIZE = 13
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_loading = threading.RLock()


def build_record() -> dict[str, Any]:
    """What the build wrote beside the library: versions, the parts built and those not built, with reasons."""
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {"torch": None, "cuda": None, "not_built": {}}
    if LIBRARY.is_file():
        return {"built": {}} | record
    reason = f"{LIBRARY} is gone" if record.get("built") else "this is a source tree that has not been installed"
    return record | {"built": {}, "not_built": {"cpu": reason, "cuda": reason} | record["not_built"]}


@torch.compiler.assume_constant_result
def use_compiled(device: torch.device, dtype: torch.dtype, kernel_size_fits: bool) -> bool:
    """Whether the compiled operator computes tensors like these. Says why not: once, in the log or as a warning.

    Raises:
        ImportError: the library is there but cannot be used.
        RuntimeError: ``ELSA_DET_OP`` forces it and there is no kernel for these tensors.
        ValueError: ``ELSA_DET_OP`` is not understood.
    """
    return _decide(device, dtype, kernel_size_fits)


@functools.cache
def _decide(device: torch.device, dtype: torch.dtype, kernel_size_fits: bool) -> bool:
    forced = os.environ.get(SWITCH, "").strip().lower()
    if forced not in ("", "reference", "compiled"):
        raise ValueError(f"{SWITCH}={forced!r} is not understood: use 'reference', 'compiled', or leave it unset")
    if forced == "reference":
        logger.debug("elsa_attention runs as a sum of shifted products: %s=reference", SWITCH)
        return False
    reason = missing_part(device.type) or missing_kernel(device, dtype, kernel_size_fits)
    if reason is None:
        return True
    if forced == "compiled":
        raise RuntimeError(f"{SWITCH}=compiled, but {reason}")
    if missing_part(device.type):
        _warn_once(reason)
    else:
        logger.debug("elsa_attention runs as a sum of shifted products: %s", reason)
    return False


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"elsa_attention runs as a sum of shifted products, which is several times slower: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )


def missing_part(device_type: str) -> str | None:
    """Why the library, or its part for CUDA devices, is not there, and the remedy; None when it is there and loaded.

    Raises:
        ImportError: the library is there but cannot be used.
    """
    record = build_record()
    if not LIBRARY.is_file():
        return f"the compiled operator was not built ({record['not_built']['cpu']}); once that is settled, {REMEDY}"
    load()
    if device_type == "cuda" and "cuda" not in record["built"]:
        reason = record["not_built"].get("cuda", "the reason was not recorded")
        return f"the CUDA part of the compiled operator was not built ({reason}); once that is settled, {REMEDY}"
    return None


def missing_kernel(device: torch.device, dtype: torch.dtype, kernel_size_fits: bool = True) -> str | None:
    """Why a library with all parts cannot compute such tensors, or None if it can."""
    if device.type == "meta":
        return None
    if device.type not in DTYPES:
        return f"it has no kernels for {device.type} devices"
    if dtype not in DTYPES[device.type]:
        return f"it has no {device.type} kernel for {dtype}"
    if not kernel_size_fits:
        return f"its kernels go up to kernel_size {MAX_KERNEL_SIZE}"
    if device.type == "cuda":
        built = build_record()["built"]["cuda"]["architectures"]
        major, minor = torch.cuda.get_device_capability(device)
        if not runs_on(built, major, minor):
            return (
                f"its CUDA part is built for {', '.join(built)}, and {torch.cuda.get_device_name(device)} is "
                f"sm_{major}{minor}: set TORCH_CUDA_ARCH_LIST={major}.{minor} and {REMEDY}"
            )
    return None


def runs_on(architectures: Iterable[str], major: int, minor: int) -> bool:
    """Whether machine code (``sm_80``) or PTX (``compute_90``) of these kinds runs on a GPU of this capability."""
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if match is None:
            continue
        built = (int(match[2]), int(match[3]))
        exact = built == (major, minor)
        machine_code = built[0] == major and built <= (major, minor)
        if exact or (not match[4] and (machine_code or (match[1] == "compute" and built <= (major, minor)))):
            return True
    return False


def load() -> None:
    """Load the library and register what torch takes in Python. Does nothing the second time.

    Raises:
        ImportError: it was built against another torch, or the system cannot load it.
    """
    with _loading:
        _load_once()


@functools.cache
def _load_once() -> None:
    record = build_record()
    for name, built, running in (
        ("torch", record["torch"], torch.__version__),
        ("CUDA", record["cuda"] if "cuda" in record["built"] else None, torch.version.cuda),
    ):
        digits = 2 if name == "torch" else 1
        if built is not None and _leading(built, digits) != _leading(running or "none", digits):
            raise ImportError(
                f"the compiled operator ({LIBRARY}) was built against {name} {built}, and this is {name} "
                f"{running or 'none'}: {REMEDY}. {SWITCH}=reference does without it."
            )
    try:
        torch.ops.load_library(LIBRARY)
    except OSError as error:
        raise ImportError(
            f"the compiled operator ({LIBRARY}) cannot be loaded: {error.__cause__ or error}. It was built against "
            f"torch {record['torch']}, this is torch {torch.__version__}. To build it anew, {REMEDY}. "
            f"{SWITCH}=reference does without it."
        ) from error
    for operator, fake, vmap, setup_context, backward in (
        (FORWARD, _fake_forward, _vmap_forward, _save, _backward),
        (BACKWARD, _fake_backward, _vmap_backward, None, _refuse_second_derivative),
    ):
        torch.library.register_fake(operator, fake)
        torch.library.register_vmap(operator, vmap)
        torch.library.register_autograd(operator, backward, setup_context=setup_context)
    logger.debug("loaded the compiled operator from %s: %s", LIBRARY, ", ".join(record["built"]))


def _leading(version: str, digits: int) -> list[str]:
    return version.split("+")[0].split(".")[:digits]


# --- what torch takes in Python ---------------------------------------------------------------------------------------

FORWARD = "elsa_det::elsa_attention_forward"
BACKWARD = "elsa_det::elsa_attention_backward"


def _empty_map_like(tensor: Tensor) -> Tensor:
    """With the strides that the kernels give: channels-last on CUDA; on the CPU as the input, made dense."""
    channels_last = tensor.device.type == "cuda" or (not tensor.is_contiguous() and tensor.stride(1) == 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device, memory_format=layout)


def _fake_forward(
    value: Tensor, logits: Tensor, ghost_mul: Tensor | None, ghost_add: Tensor | None, kernel_size: int, dilation: int
) -> Tensor:
    return _empty_map_like(value)


def _fake_backward(
    grad_out: Tensor,
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    kernel_size: int,
    dilation: int,
) -> tuple[Tensor, ...]:
    ghosts = [value.new_empty(0) if t is None else t.new_empty(t.shape) for t in (ghost_mul, ghost_add)]
    return _empty_map_like(value), _empty_map_like(logits), *ghosts


def compiled_elsa_attention(*arguments: Any) -> Tensor:
    """The operator of the loaded library, arguments in the order of its schema."""
    if torch._C._are_functorch_transforms_active():
        return _InTransforms.apply(*arguments)
    return torch.ops.elsa_det.elsa_attention_forward(*arguments)


class _InTransforms(torch.autograd.Function):
    """The same with the same derivative, in the form that ``torch.func``'s transforms take; they refuse what
    ``register_autograd`` makes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Tensor:
        return torch.ops.elsa_det.elsa_attention_forward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _save(ctx, inputs, output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grad_out)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.elsa_det.elsa_attention_backward(grad_out, *ctx.saved_tensors, ctx.kernel_size, ctx.dilation)
    needed = ctx.needs_input_grad[: len(gradients)]
    return *(gradient if need else None for gradient, need in zip(gradients, needed, strict=True)), None, None


def _refuse_second_derivative(ctx: Any, *gradients: Tensor) -> tuple:
    raise RuntimeError(
        "elsa_attention is differentiable once: its gradients cannot be differentiated again. "
        "elsa_det.ops.elsa_attention_unfold is differentiable any number of times."
    )


def _vmap_forward(info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
    folded, unfold_map, _ = _fold(info.batch_size, in_dims, args, maps=2, sum_over_batch=False)
    return unfold_map(torch.ops.elsa_det.elsa_attention_forward(*folded)), 0


def _vmap_backward(info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    folded, unfold_map, unfold_ghost = _fold(info.batch_size, in_dims, args, maps=3, sum_over_batch=True)
    *maps, grad_mul, grad_add = torch.ops.elsa_det.elsa_attention_backward(*folded)
    ghosts = [(grad, None) if grad.numel() == 0 else (unfold_ghost(grad), 0) for grad in (grad_mul, grad_add)]
    gradients = [*((unfold_map(grad), 0) for grad in maps), *ghosts]
    return tuple(grad for grad, _ in gradients), tuple(dim for _, dim in gradients)


def _fold(size: int, in_dims: tuple, args: tuple, *, maps: int, sum_over_batch: bool) -> tuple:
    """Fold vmap's dimension into the batch or, where every sample has ghosts (or their gradients) of its own, into the
    channels: heads do not mix. Returns the folded arguments and the way back for maps and for ghosts."""
    tensors, ghosts, numbers = args[:maps], args[maps:-2], args[-2:]
    present = [dim for dim, ghost in zip(in_dims[maps:], ghosts, strict=False) if ghost is not None]
    into = 1 if any(dim is not None for dim in present) or (present and sum_over_batch) else 0

    def fold(tensor: Tensor | None, dim: int | None, target: int) -> Tensor | None:
        if tensor is None:
            return None
        front = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return front.movedim(0, target).flatten(target, target + 1)

    def unfold(tensor: Tensor, target: int) -> Tensor:
        return tensor.unflatten(target, (size, tensor.shape[target] // size)).movedim(target, 0)

    folded = [fold(tensor, dim, into) for tensor, dim in zip(tensors, in_dims, strict=False)]
    folded += [fold(ghost, dim, 0) if into else ghost for ghost, dim in zip(ghosts, in_dims[maps:], strict=False)]
    return [*folded, *numbers], lambda t: unfold(t, into), lambda t: unfold(t, 0)
