"""What is measured: the cases and the jobs that child processes are given."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

#: ELSA-T: channels and heads of stage 1, doubled from stage to stage; neighbourhoods and windows of 7 x 7.
EMBED_DIM, HEADS, KERNEL_SIZE, GROUP_WIDTH = 96, 3, 7, 4

FORWARD, BOTH = "forward", "forward+backward"
DIRECTIONS = (FORWARD, BOTH)
LEVELS = ("core", "module", "backbone", "training")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Args:
        level: "core" (softmax and aggregation from given logits), "module" (the attention module), "backbone", or
            "training" (a backbone's step with autocast and AdamW).
        height, width: the image's size in pixels.
        stage: 1 to 4; 0 for the levels that have all stages.
        batch: images.
        dtype: "float32", "bfloat16" or "float16".
        device: "cpu" or "cuda".
    """

    level: str
    height: int
    width: int
    stage: int = 0
    batch: int = 1
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {self.level!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.has_stage and not 1 <= self.stage <= 4:
            raise ValueError(f"stage must be 1 to 4, got {self.stage}")
        if not self.has_stage and self.stage:
            raise ValueError(f"the level {self.level!r} has all stages, got stage {self.stage}")
        if min(self.height, self.width, self.batch) < 1:
            raise ValueError(f"sizes must be positive, got {self.batch} images of {self.height}x{self.width}")

    @property
    def has_stage(self) -> bool:
        return self.level in ("core", "module")

    @property
    def pixels(self) -> int:
        """Pixels of the images, the batch's together."""
        return self.batch * self.height * self.width

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the stage's map: a quarter of the image, then halved from stage to stage, rounded up."""
        stride = 4 * 2 ** (self.stage - 1)
        return -(-self.height // stride), -(-self.width // stride)

    @property
    def channels(self) -> int:
        return EMBED_DIM * 2 ** (self.stage - 1)

    @property
    def heads(self) -> int:
        return HEADS * 2 ** (self.stage - 1)

    def __str__(self) -> str:
        size = f"{self.height}²" if self.height == self.width else f"{self.height}×{self.width}"
        stage = f" stage {self.stage}" if self.has_stage else ""
        return f"{self.level}{stage} {size}" + (f" batch {self.batch}" if self.batch > 1 else "")


@dataclass
class Job:
    """What one child process does: ``kind`` is "time", "memory", "saved" or "values"."""

    kind: str
    case: Case
    plan: dict[str, list[str]]  #: per peer the directions to measure
    threads: int = 1
    repeats: int = 9
    seconds: float = 120.0  #: per peer and direction; past it, three samples are enough

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        return cls(**{**values, "case": Case(**values["case"])})


@dataclass
class Answer:
    """What a child process found: seconds or bytes per peer and direction, and why a peer has none."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)  #: bytes of a peer's inputs, for jobs of memory
    reasons: dict[str, str] = field(default_factory=dict)
    compiled: bool = False  #: whether the compiled operator was there

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Answer:
        return cls(**values)


def parse_size(text: str) -> tuple[int, int]:
    """``"512"`` or ``"800x1333"`` to (height, width).

    Raises:
        ValueError: ``text`` is neither.
    """
    match = re.fullmatch(r"([1-9]\d*)(?:[x×]([1-9]\d*))?", text)
    if not match:
        raise ValueError(f"a size is a number of pixels or HEIGHTxWIDTH, such as 512 or 800x1333; got {text!r}")
    height = int(match[1])
    return height, int(match[2] or height)
