"""The public ELSA operator: checks of its arguments and the choice of what computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import elsa_attention_shifted
from .registration import MAX_KERNEL_SIZE, compiled_elsa_attention, use_compiled


def elsa_attention(
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None = None,
    ghost_add: Tensor | None = None,
    *,
    kernel_size: int,
    dilation: int = 1,
) -> Tensor:
    """Enhanced local self-attention: aggregate the K x K neighbourhood of every pixel with per-head attention.

    With ``A = softmax(logits)`` over the K*K offsets of a head, head ``g = c // (C / G)`` of channel ``c`` and zero
    padding::

        out[c, i] = sum_j value[c, i + dilation * j] * (ghost_mul[c, j] * A[g, j, i] + ghost_add[c, j])

    The softmax runs over all K*K offsets, those outside the map included. Source: Zhou et al., arXiv 2112.12786.

    Args:
        value: (B, C, H, W), any strides; channels-last is the fast layout.
        logits: (B, G*K*K, H, W), channel ``g*K*K + row*K + column``; unnormalised.
        ghost_mul: (C, K, K) factor on the attention as used (already raised to lambda), or None for ones.
        ghost_add: (C, K, K) summand as used (already scaled by gamma), or None for zeros.
        kernel_size: K, odd and positive.
        dilation: distance in pixels between neighbouring offsets, at least 1.

    Returns:
        (B, C, H, W), dtype of ``value``. Under autocast all tensors are taken in the autocast dtype.

    Raises:
        TypeError: a tensor is not a floating-point tensor of the same dtype as ``value``.
        ValueError: a shape, device, kernel size or dilation does not fit; the message names the tensor and both sizes.
    """
    if isinstance(value, Tensor) and not value.is_meta and torch.is_autocast_enabled(value.device.type):
        dtype = torch.get_autocast_dtype(value.device.type)
        cast = [
            t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
            for t in (value, logits, ghost_mul, ghost_add)
        ]
        with torch.autocast(value.device.type, enabled=False):
            return elsa_attention(*cast, kernel_size=kernel_size, dilation=dilation)  # type: ignore[arg-type]
    _check({"value": value, "logits": logits, "ghost_mul": ghost_mul, "ghost_add": ghost_add}, kernel_size, dilation)
    if use_compiled(value.device, value.dtype, kernel_size <= MAX_KERNEL_SIZE):
        return compiled_elsa_attention(value, logits, ghost_mul, ghost_add, kernel_size, dilation)
    return elsa_attention_shifted(value, logits, ghost_mul, ghost_add, kernel_size=kernel_size, dilation=dilation)


def _check(tensors: dict[str, Tensor | None], kernel_size: int, dilation: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    value, logits = tensors["value"], tensors["logits"]
    for name, tensor in tensors.items():
        if tensor is None and name.startswith("ghost"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating-point, got {tensor.dtype}")
        assert isinstance(value, Tensor)
        if tensor.dtype != value.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, value has {value.dtype}: they must be the same")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device}, value on {value.device}: they must be on the same device")
    assert isinstance(value, Tensor)
    assert isinstance(logits, Tensor)
    for name in ("value", "logits"):
        tensor = tensors[name]
        if tensor.dim() != 4:  # type: ignore[union-attr]
            raise ValueError(f"{name} must have 4 dimensions (B, channels, H, W), got shape {_shape(tensor)}")
    if (value.shape[0], *value.shape[2:]) != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"logits of shape {_shape(logits)} do not fit value of shape {_shape(value)}: "
            "batch, height and width must be equal"
        )
    channels, taps = value.shape[1], kernel_size * kernel_size
    heads, rest = divmod(logits.shape[1], taps)
    if rest or heads < 1:
        raise ValueError(
            f"logits has {logits.shape[1]} channels, which is not heads * kernel_size**2 = heads * {taps} "
            f"(shape {_shape(logits)}, kernel_size {kernel_size})"
        )
    if channels < 1 or channels % heads:
        raise ValueError(
            f"value has {channels} channels, which {heads} heads (from logits of shape {_shape(logits)}) do not divide"
        )
    for name in ("ghost_mul", "ghost_add"):
        ghost = tensors[name]
        if ghost is not None and tuple(ghost.shape) != (channels, kernel_size, kernel_size):
            raise ValueError(
                f"{name} must have shape (C, K, K) = {(channels, kernel_size, kernel_size)}, got {_shape(ghost)}"
            )


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)
