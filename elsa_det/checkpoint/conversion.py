"""What comes out of a conversion of published weights, and checks that every conversion shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import list_some
from .reading import CheckpointError

#: names that a message lists before it says how many more there are
_LISTED = 6


@dataclass
class Conversion:
    """Converted weights, and an account of every key of the published file."""

    state_dict: dict[str, Tensor] = field(default_factory=dict)
    #: published key -> what it is called in ``state_dict``
    renamed: dict[str, str] = field(default_factory=dict)
    #: published key -> why it has no counterpart
    left_over: dict[str, str] = field(default_factory=dict)
    #: our key -> why the file gives no value for it
    initialised: dict[str, str] = field(default_factory=dict)
    #: what the weights look like, for messages
    kind: str = ""

    def add(self, published: str, name: str, value: Tensor) -> None:
        """Take over one tensor.

        Raises:
            CheckpointError: two published keys stand for the same weight.
        """
        if name in self.state_dict:
            other = next(key for key, known in self.renamed.items() if known == name)
            raise CheckpointError(f"both {other} and {published} of the checkpoint stand for {name}: it is a mixture")
        self.state_dict[name] = value
        self.renamed[published] = name


def listed(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    return list_some(names, _LISTED)


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raise if weights are NaN or infinite: such a file is broken, or its training had diverged.

    Raises:
        CheckpointError: naming the tensors, with the number of bad values in each.
    """
    bad = {}
    for key, value in weights.items():
        if value.is_floating_point() and not (finite := torch.isfinite(value)).all():
            bad[key] = f"{key} ({value.numel() - int(finite.sum()):,} of {value.numel():,})"
    if bad:
        raise CheckpointError(
            f"the checkpoint has NaN or infinite values in {len(bad)} of {len(weights)} tensors: "
            f"{listed(bad.values())}. Its training diverged or the file is damaged: use another one"
        )


def check_shapes(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], headline: str) -> None:
    """Raise unless ``weights`` has the names and the shapes of ``expected``, no fewer and no more.

    Raises:
        CheckpointError: ``headline``, then the keys that lack, are too many, or have another shape.
    """
    problems = []
    if missing := [key for key in expected if key not in weights]:
        problems.append(f"{len(missing)} missing: {listed(missing)}")
    if unexpected := [key for key in weights if key not in expected]:
        problems.append(f"{len(unexpected)} unexpected: {listed(unexpected)}")
    mismatched = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in weights and weights[key].shape != expected[key].shape
    ]
    if mismatched:
        problems.append(f"{len(mismatched)} of another shape: {listed(mismatched)}")
    if problems:
        raise CheckpointError("\n  ".join([headline, *problems]))
