"""``python -m elsa_det.doctor``: what this installation is made of, and whether its operator computes the right thing.

Exit code 0 if every backend of the operator that can run agrees with the definition, else 1.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from . import __version__
from .ops import Backend, backends, elsa_attention, elsa_attention_shifted, elsa_attention_unfold
from .ops.registration import SWITCH, build_record, compiled_elsa_attention

#: largest error allowed, as a fraction of the largest value
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def main() -> int:
    """Print the report; the exit code."""
    warnings.simplefilter("ignore", FutureWarning)  # of libraries, about each other
    console = Console(highlight=False)
    facts = [("elsa_det", __version__), *versions(), ("Detectron2", provider()), ("Threads", threads())]
    console.print(_table(facts), "\nThe operator, with its largest errors against the definition (forward, backward)")
    right = True
    notes: dict[str, list[str]] = {}  # reason -> what it concerns
    rows: list[tuple[str | Text, ...]] = []
    for backend in backends():
        errors, agrees = self_check(backend) if backend.usable else ([], not broken(backend))
        right &= agrees
        state = "usable" if backend.usable else "built, not usable" if backend.built else "not built"
        colour = "red" if not agrees else "green" if backend.usable else "yellow"
        rows.append((backend.name, Text(state, colour), backend.detail, *errors))
        if backend.reason:
            notes.setdefault(backend.reason, []).append(f"{backend.name} is {state}")
    console.print(_table(rows, ("backend", "state", "made for", *map(_name, TOLERANCE))))
    for reason, names in notes.items():
        console.print(f"{', '.join(names)}: {reason}", markup=False)
    try:
        console.print(f"elsa_attention {choice()}", markup=False)
    except (ImportError, RuntimeError, ValueError) as error:
        console.print(f"elsa_attention fails: {error}", markup=False)
        right = False
    console.print("[green]The operator is right." if right else "[red]The operator is NOT right; see above.")
    return 0 if right else 1


def versions() -> list[tuple[str, str]]:
    """Names and versions of what the results depend on."""
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    record = build_record()
    library = f"built against torch {record['torch']}" if record["torch"] else "none"
    if "cuda" in record["built"]:
        library += f" with CUDA toolkit {record['built']['cuda']['toolkit']}"
    return [
        ("Python", f"{platform.python_version()}, {platform.platform()}"),
        ("torch", f"{torch.__version__}, {cuda}"),
        ("torchvision", importlib.metadata.version("torchvision")),
        ("GPU, driver", gpu()),
        ("Operator library", library),
    ]


def gpu() -> str:
    """The GPUs and the driver, or why there are none."""
    if not torch.cuda.is_available():
        driver = "nvidia-smi is there" if shutil.which("nvidia-smi") else "no nvidia-smi"
        return f"torch sees no CUDA device ({driver})"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        driver = ""
    return f"{', '.join(names)}; driver {driver or 'unknown'}"


def provider() -> str:
    """Which Detectron2 runs, and why."""
    try:
        from .d2 import describe_provider
    except ImportError as error:
        return f"fails: {error}"
    return describe_provider()


def threads() -> str:
    """Threads, what runs them, and the instruction set chosen for this processor."""
    openmp = build_record()["built"].get("cpu", {}).get("openmp")
    compiled = "" if openmp is None else f", operator {'with' if openmp else 'WITHOUT'} OpenMP"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{torch.get_num_threads()} on {cores} cores{compiled}; {torch.backends.cpu.get_cpu_capability()}"


def choice() -> str:
    """What :func:`elsa_det.ops.elsa_attention` uses on the best device here, tried out."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = [t.to(device, torch.float32).requires_grad_() for t in _sample()[:4]]
    output = elsa_attention(*inputs, kernel_size=7)
    compiled = "GeneratedBackwardFor_elsa_det" in type(output.grad_fn).__name__
    forced = f" ({SWITCH}={os.environ[SWITCH]})" if os.environ.get(SWITCH) else ""
    return f"on {device} runs {'compiled' if compiled else 'as a sum of shifted products'}{forced}."


def broken(backend: Backend) -> bool:
    """Whether a backend that is not usable is a fault of the installation rather than something left out."""
    return backend.built and backend.reason is not None and "no CUDA device" not in backend.reason


def self_check(backend: Backend) -> tuple[list[str], bool]:
    """Forward and backward against the definition: the errors for each dtype, and whether all are small enough."""
    device = "cuda" if backend.name == "cuda" else "cpu"
    compute = _shifted if backend.name == "shifted sum" else compiled_elsa_attention
    texts, right = [], True
    for dtype, tolerance in TOLERANCE.items():
        try:
            errors = _errors(compute, device, dtype)
        except Exception as error:  # whatever it is, the report goes on and shows it
            texts.append(f"{type(error).__name__}: {error}")
            right = False
        else:
            texts.append(", ".join(f"{error:.1e}" for error in errors))
            right &= all(error <= tolerance for error in errors)
    return texts, right


def _shifted(*arguments: Tensor | int) -> Tensor:
    *tensors, kernel_size, dilation = arguments
    return elsa_attention_shifted(*tensors, kernel_size=kernel_size, dilation=dilation)  # type: ignore[arg-type]


def _sample() -> list[Tensor]:
    """Value, logits, both ghosts, and the gradient of the output: 2 heads of 32 channels, K = 7."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 64, 23, 37), (1, 98, 23, 37), (64, 7, 7), (64, 7, 7), (1, 64, 23, 37))
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _errors(compute: Callable[..., Tensor], device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Largest error of the output and of its gradients, as fractions of the largest value."""
    *rounded, grad_out = (t.to(dtype) for t in _sample())
    results = []
    for where, kind in (("cpu", torch.float64), (device, dtype)):
        leaves = [t.to(where, kind).detach().requires_grad_() for t in rounded]
        if kind == torch.float64:
            output = elsa_attention_unfold(*leaves, kernel_size=7)
        else:
            output = compute(*leaves, 7, 1)
        output.backward(grad_out.to(where, kind))
        results.append([t.detach().double().cpu() for t in (output, *(leaf.grad for leaf in leaves))])  # type: ignore[union-attr]
    errors = [((got - want).abs().max() / want.abs().max()).item() for want, got in zip(*results, strict=True)]
    return errors[0], max(errors[1:])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _table(rows: Sequence[tuple[str | Text, ...]], header: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, show_header=bool(header), padding=(0, 1))
    for name in header or ("", ""):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    sys.exit(main())
