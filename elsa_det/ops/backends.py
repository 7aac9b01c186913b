"""What can compute the operator here, and why not the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .registration import build_record, missing_kernel, missing_part


@dataclass(frozen=True)
class Backend:
    """One way to compute :func:`elsa_det.ops.elsa_attention`."""

    name: str  # "shifted sum", "cpu" or "cuda"
    built: bool
    usable: bool
    detail: str  # what it is made for: instruction set, GPU architectures
    reason: str | None  # why it is not usable

    def __str__(self) -> str:
        state = "usable" if self.usable else "built, not usable" if self.built else "not built"
        return f"{self.name} ({self.detail}): {state}" + (f": {self.reason}" if self.reason else "")


def backends() -> list[Backend]:
    """The plain-PyTorch form and the compiled ones, built or not. Loads the library if there is one; raises nothing."""
    record = build_record()
    made = {
        "cpu": torch.backends.cpu.get_cpu_capability()
        + ("" if record["built"].get("cpu", {}).get("openmp", True) else ", one thread"),
        "cuda": ", ".join(record["built"].get("cuda", {}).get("architectures", ())) or "NVIDIA GPUs",
    }
    found = [Backend("shifted sum", True, True, "plain PyTorch, any device", None)]
    for name, detail in made.items():
        built = name in record["built"]
        try:
            reason = missing_part(name)
        except ImportError as error:
            reason = str(error)
        if reason is None and name == "cuda" and not torch.cuda.is_available():
            reason = "torch sees no CUDA device"
        elif reason is None and name == "cuda":
            reason = missing_kernel(torch.device("cuda", torch.cuda.current_device()), torch.float32)
        found.append(Backend(name, built, reason is None, detail, reason))
    return found
