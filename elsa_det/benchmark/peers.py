"""The operator and what it is compared with, ready to call. Each gets the memory layout that suits it best."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ELSAAttention, WindowAttention
from ..layers.elsa import hadamard_dim
from ..layers.pointwise import Pointwise
from ..modeling import ELSA_SWIN_VARIANTS, SWIN_VARIANTS, ELSASwin, Swin
from ..ops import elsa_attention, elsa_attention_shifted, elsa_attention_unfold
from .cases import BOTH, DTYPES, FORWARD, GROUP_WIDTH, KERNEL_SIZE, Case


class Unavailable(Exception):
    """A peer cannot run here; the message says why."""


@dataclass
class Peer:
    """Something to measure.

    Args:
        call: the forward; returns a tensor or several.
        leaves: tensors that the backward differentiates by.
        inputs: all tensors that are there before a call.
        step: a whole training step, in place of forward and backward.
        threads: CPU threads, where they differ from those of the other peers.
    """

    call: Callable[[], Any]
    leaves: Sequence[Tensor] = ()
    inputs: Sequence[Tensor] = ()
    step: Callable[[], None] | None = None
    threads: int | None = None
    _grads: list[Tensor] = field(default_factory=list)

    def run(self, direction: str) -> None:
        if direction == FORWARD:
            with torch.no_grad():
                self.call()
        elif self.step is not None:
            self.step()
        else:
            out = self.call()
            outputs = [out] if isinstance(out, Tensor) else list(out)
            if not self._grads:
                self._grads = [torch.randn_like(output) for output in outputs]
            torch.autograd.grad(outputs, list(self.leaves), self._grads, allow_unused=True)


LABELS = {
    "elsa": "ELSA",
    "unfold": "ELSA by unfold",
    "plain": "ELSA by unfold, plain layers",
    "shifted": "ELSA by shifted sum",
    "compiled": "shifted sum, torch.compile",
    "compiled_nhwc": "the same, channels-last",
    "depthwise": "depthwise convolution",
    "window": "Swin window attention",
    "natten": "NATTEN",
    "swin": "Swin-T",
    "timm": "Swin-T (timm)",
    "elsa_bf16": "ELSA, bfloat16",
    "elsa_recompute": "ELSA, logits recomputed",
    "elsa_one_thread": "ELSA, one thread",
}


def build(name: str, case: Case) -> Peer:
    """Make the peer ``name`` for a case, with random inputs.

    Raises:
        Unavailable: it cannot run here.
        ValueError: there is no such peer at the case's level.
    """
    builders = BUILDERS[case.level]
    if name not in builders:
        raise ValueError(f"the level {case.level!r} has no peer {name!r}, only {', '.join(builders)}")
    torch.manual_seed(0)
    return builders[name](case)


@contextmanager
def using_operator(operator: Callable[..., Tensor]) -> Iterator[None]:
    """Within it, attention modules call ``operator`` in place of :func:`elsa_det.ops.elsa_attention`."""
    layer = importlib.import_module(ELSAAttention.__module__)
    original = layer.elsa_attention  # type: ignore[attr-defined]
    layer.elsa_attention = operator  # type: ignore[attr-defined]
    try:
        yield
    finally:
        layer.elsa_attention = original  # type: ignore[attr-defined]


@contextmanager
def composed_plainly() -> Iterator[None]:
    """Within it, backbones run as the published code composes them from PyTorch's layers: linear layers by
    ``F.linear``, the attention's convolutions on contiguous (B, C, H, W) maps, and the operator by unfold.
    """
    users = [importlib.import_module(kind.__module__) for kind in (ELSAAttention, Pointwise)]
    fast = [user.pointwise for user in users]  # type: ignore[attr-defined]
    forward = ELSAAttention.forward
    try:
        for user in users:
            user.pointwise = F.linear  # type: ignore[attr-defined]
        ELSAAttention.forward = _plain_attention  # type: ignore[method-assign, assignment]
        yield
    finally:
        for user, original in zip(users, fast):
            user.pointwise = original  # type: ignore[attr-defined]
        ELSAAttention.forward = forward  # type: ignore[method-assign]


def _plain_attention(module: ELSAAttention, x: Tensor) -> Tensor:
    qkv = module.pre_proj(x.permute(0, 3, 1, 2).contiguous())
    q, k, value = qkv.split([module.dim_qk, module.dim_qk, x.shape[-1]], dim=1)
    logits = module.attn(q * k * module.scale)
    out = elsa_attention_unfold(
        value, logits, *module.ghost_matrices(), kernel_size=module.kernel_size, dilation=module.dilation
    )
    return module.proj_drop(module.post_proj(out.permute(0, 2, 3, 1)))


# The operator's core -------------------------------------------------------------------------------------------------


def core_inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Value, logits and additive ghost as the attention module makes them: channels-last, value a slice of q/k/v."""
    (height, width), channels = case.map_size, case.channels
    make = partial(torch.randn, device=case.device, dtype=DTYPES[case.dtype])
    before = 2 * hadamard_dim(channels, GROUP_WIDTH)
    qkv = make(case.batch, height, width, before + channels)
    logits = make(case.batch, height, width, case.heads * KERNEL_SIZE**2)
    ghost_add = make(channels, KERNEL_SIZE, KERNEL_SIZE) * 0.02
    return qkv[..., before:].permute(0, 3, 1, 2), logits.permute(0, 3, 1, 2), ghost_add


def plain_shifted_sum(value: Tensor, logits: Tensor, ghost_add: Tensor) -> Tensor:
    """ELSA as 49 terms that a compiler can fuse into one loop; the faster form in the forward."""
    batch, channels, height, width = value.shape
    heads = logits.shape[1] // KERNEL_SIZE**2
    pad = KERNEL_SIZE // 2
    padded = F.pad(value, [pad] * 4).view(batch, heads, channels // heads, height + 2 * pad, width + 2 * pad)
    attention = logits.view(batch, heads, 1, KERNEL_SIZE**2, height, width).softmax(dim=3)
    static = ghost_add.view(heads, channels // heads, KERNEL_SIZE**2, 1, 1)
    out = torch.zeros_like(padded[..., :height, :width])
    for tap in range(KERNEL_SIZE**2):
        row, column = divmod(tap, KERNEL_SIZE)
        shifted = padded[..., row : row + height, column : column + width]
        out = out + shifted * (attention[:, :, :, tap] + static[:, :, tap])
    return out.view(batch, channels, height, width)


def plain_shifted_sum_nhwc(value: Tensor, logits: Tensor, ghost_add: Tensor) -> Tensor:
    """The same on channels-last memory; the faster form with the backward."""
    channels, height, width = value.shape[1:]
    heads = logits.shape[1] // KERNEL_SIZE**2
    pad = KERNEL_SIZE // 2
    padded = F.pad(value.permute(0, 2, 3, 1), [0, 0] + [pad] * 4).unflatten(3, (heads, channels // heads))
    attention = logits.permute(0, 2, 3, 1).unflatten(3, (heads, 1, KERNEL_SIZE**2)).softmax(dim=5)
    static = ghost_add.view(heads, channels // heads, KERNEL_SIZE**2)
    out = torch.zeros_like(padded[:, :height, :width])
    for tap in range(KERNEL_SIZE**2):
        row, column = divmod(tap, KERNEL_SIZE)
        shifted = padded[:, row : row + height, column : column + width]
        out = out + shifted * (attention[..., tap] + static[..., tap])
    return out.flatten(3).permute(0, 3, 1, 2)


def _core(operator: Callable[..., Tensor], case: Case, *, contiguous: bool, threads: int | None = None) -> Peer:
    leaves = [t.contiguous() if contiguous else t for t in core_inputs(case)]
    leaves = [t.detach().requires_grad_() for t in leaves]
    return Peer(lambda: operator(*leaves), leaves, leaves, threads=threads)


def _elsa(value: Tensor, logits: Tensor, ghost_add: Tensor) -> Tensor:
    return elsa_attention(value, logits, None, ghost_add, kernel_size=KERNEL_SIZE)


def _unfold(value: Tensor, logits: Tensor, ghost_add: Tensor) -> Tensor:
    return elsa_attention_unfold(value, logits, None, ghost_add, kernel_size=KERNEL_SIZE)


def _shifted(value: Tensor, logits: Tensor, ghost_add: Tensor) -> Tensor:
    return elsa_attention_shifted(value, logits, None, ghost_add, kernel_size=KERNEL_SIZE)


def _core_compiled(case: Case, *, channels_last: bool = False) -> Peer:
    function = plain_shifted_sum_nhwc if channels_last else plain_shifted_sum
    return _core(torch.compile(function, dynamic=False, fullgraph=True), case, contiguous=not channels_last)


def _core_depthwise(case: Case) -> Peer:
    value, _, ghost_add = core_inputs(case)
    value = value.contiguous(memory_format=torch.channels_last).detach().requires_grad_()
    weight = ghost_add[:, None].detach().requires_grad_()
    leaves = [value, weight]
    return Peer(
        lambda: F.conv2d(value, weight, padding=KERNEL_SIZE // 2, groups=case.channels), leaves=leaves, inputs=leaves
    )


def _core_window(case: Case) -> Peer:
    """Attention within windows that cover the map, partitioned already, with a position bias."""
    height, width = (-(-side // KERNEL_SIZE) for side in case.map_size)
    taps, head_dim = KERNEL_SIZE**2, case.channels // case.heads
    make = partial(torch.randn, device=case.device, dtype=DTYPES[case.dtype], requires_grad=True)
    q, k, v = (make(case.batch * height * width, case.heads, taps, head_dim) for _ in range(3))
    bias = make(1, case.heads, taps, taps)
    leaves = [q, k, v, bias]
    return Peer(lambda: F.scaled_dot_product_attention(q, k, v, bias), leaves=leaves, inputs=leaves)


def _core_natten(case: Case) -> Peer:
    """Neighbourhood attention from q, k and v: windows are moved inside at the border, and there is no static part."""
    try:
        natten = importlib.import_module("natten")
    except ModuleNotFoundError as error:
        raise Unavailable("not installed") from error
    except Exception as error:
        raise Unavailable(f"installed, but not importable: {error}") from error
    shape = (case.batch, *case.map_size, case.heads, case.channels // case.heads)
    leaves = [
        torch.randn(shape, device=case.device, dtype=DTYPES[case.dtype], requires_grad=True)
        for _ in range(3)
    ]  # fmt: skip
    return Peer(lambda: natten.na2d(*leaves, kernel_size=KERNEL_SIZE), leaves, leaves)


# Modules and backbones -----------------------------------------------------------------------------------------------


def _model(
    model: nn.Module,
    x: Tensor,
    case: Case,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
    *,
    x_grad: bool = False,
) -> Peer:
    """A model that runs within the contexts of ``within``."""
    model.to(case.device, x.dtype)
    if x_grad:
        x.requires_grad_()
    parameters = list(model.parameters())

    def call() -> Any:
        with within():
            out = model(x)
        return list(out.values()) if isinstance(out, dict) else out

    return Peer(call, [*parameters, *([x] if x_grad else [])], [*parameters, x])


def _module(
    case: Case, *, swin: bool = False, within: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Peer:
    if swin:
        module: nn.Module = WindowAttention(case.channels, case.heads, KERNEL_SIZE)
    else:
        module = ELSAAttention(case.channels, case.heads, KERNEL_SIZE, group_width=GROUP_WIDTH)
    x = torch.randn(case.batch, *case.map_size, case.channels, device=case.device, dtype=DTYPES[case.dtype])
    return _model(module, x, case, within, x_grad=True)


def _image(case: Case, dtype: str | None = None) -> Tensor:
    return torch.randn(case.batch, 3, case.height, case.width, device=case.device, dtype=DTYPES[dtype or case.dtype])


def _backbone(
    case: Case,
    *,
    within: Callable[[], AbstractContextManager[None]] = nullcontext,
    dtype: str | None = None,
    recompute: bool = False,
) -> Peer:
    model = ELSASwin(**ELSA_SWIN_VARIANTS["tiny"], recompute_logits=recompute)
    return _model(model, _image(case, dtype), case, within)


def _backbone_swin(case: Case) -> Peer:
    return _model(Swin(**SWIN_VARIANTS["tiny"]), _image(case), case)


def _backbone_timm(case: Case) -> Peer:
    import timm

    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        features_only=True,
        pretrained=False,
        img_size=(case.height, case.width),
        drop_path_rate=0.0,
    )
    return _model(model, _image(case), case)


def _training(case: Case, kind: type[nn.Module], variants: dict[str, dict[str, Any]]) -> Peer:
    """A training step of a backbone: autocast, random gradients at its maps, AdamW."""
    model = kind(**variants["tiny"], drop_path_rate=0.2).to(case.device).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=case.device == "cuda")
    image = _image(case, "float32")
    autocast = partial(torch.autocast, case.device, DTYPES[case.dtype], enabled=case.dtype != "float32")
    grads: list[Tensor] = []

    def call() -> list[Tensor]:
        with autocast():
            return list(model(image).values())

    def step() -> None:
        outputs = call()
        if not grads:
            grads.extend(torch.randn_like(output) for output in outputs)
        torch.autograd.backward(outputs, grads)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Peer(call, parameters, [*parameters, image], step=step)


BUILDERS: dict[str, dict[str, Callable[[Case], Peer]]] = {
    "core": {
        "elsa": partial(_core, _elsa, contiguous=False),
        "unfold": partial(_core, _unfold, contiguous=True),
        "shifted": partial(_core, _shifted, contiguous=True),
        "compiled": _core_compiled,
        "compiled_nhwc": partial(_core_compiled, channels_last=True),
        "depthwise": _core_depthwise,
        "window": _core_window,
        "natten": _core_natten,
        "elsa_one_thread": partial(_core, _elsa, contiguous=False, threads=1),
    },
    "module": {
        "elsa": _module,
        "unfold": partial(_module, within=partial(using_operator, elsa_attention_unfold)),
        "plain": partial(_module, within=composed_plainly),
        "shifted": partial(_module, within=partial(using_operator, elsa_attention_shifted)),
        "window": partial(_module, swin=True),
    },
    "backbone": {
        "elsa": _backbone,
        "unfold": partial(_backbone, within=partial(using_operator, elsa_attention_unfold)),
        "plain": partial(_backbone, within=composed_plainly),
        "shifted": partial(_backbone, within=partial(using_operator, elsa_attention_shifted)),
        "swin": _backbone_swin,
        "timm": _backbone_timm,
        "elsa_bf16": partial(_backbone, dtype="bfloat16"),
        "elsa_recompute": partial(_backbone, recompute=True),
    },
    "training": {
        "elsa": partial(_training, kind=ELSASwin, variants=ELSA_SWIN_VARIANTS),
        "swin": partial(_training, kind=Swin, variants=SWIN_VARIANTS),
    },
}

#: measured unless others are asked for
USUAL = {
    "core": ("elsa", "unfold", "shifted", "compiled", "compiled_nhwc", "depthwise", "window", "natten"),
    "module": ("elsa", "unfold", "shifted", "window"),
    "backbone": ("elsa", "unfold", "plain", "shifted", "swin", "timm"),
    "training": ("elsa", "swin"),
}


def directions_of(name: str, level: str) -> list[str]:
    """The directions that a peer is measured in."""
    if level == "training":
        return [BOTH]
    return [FORWARD] if name == "elsa_bf16" else [FORWARD, BOTH]
