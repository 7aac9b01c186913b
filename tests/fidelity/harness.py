"""Cases of d2lite's fidelity: what is computed, what it covers, how it is stored and compared.

A case is a function that gives a dict of tensors, arrays, numbers, strings and lists of these (dicts nest), computed
through :mod:`elsa_det.d2` on inputs that do not depend on the provider. ``record.py`` stores what Detectron2 gives;
``test_fidelity.py`` compares whichever provider runs with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import logging
import tempfile
import types
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elsa_det import d2

HERE = Path(__file__).parent
RECORDS = HERE.parent / "golden" / "d2"
# What d2.py says of itself.
OF_THE_DOOR = {"UPSTREAM", "LITE", "PROVIDER", "PROVIDER_VERSION", "describe_provider"}
# What d2.py adds for both providers: reading files without running what they name. Detectron2 has nothing to compare.
OF_BOTH = {
    *("NUMPY_GLOBALS", "RefusedGlobal", "unpickle_arrays", "with_arrays"),
    *("NotTrusted", "check_trusted", "find_trusted", "load_yaml", "locate_in_lite"),
    *("CHECKPOINTS", "PATHS", "TRUST_VARIABLE", "trusted"),
}
_CONDENSED_TO = 96


@dataclass(frozen=True)
class Case:
    """One case: ``covers`` are names of d2.py; floats may differ by ``atol + rtol * |recorded|``, all else not at all.

    ``why`` says where the tolerance comes from, in the table's words.
    """

    subject: str
    name: str
    run: Callable[[], dict[str, Any]]
    covers: tuple[str, ...]
    what: str
    rtol: float
    atol: float
    why: str

    def __str__(self) -> str:
        return f"{self.subject}.{self.name}"

    @property
    def tolerance(self) -> str:
        """In words, for the table."""
        parts = [f"{self.rtol:g} of the value"] if self.rtol else []
        parts += [f"{self.atol:g}"] if self.atol else []
        return " + ".join(parts) or "equal"


_CASES: dict[str, Case] = {}


def case(
    *covers: str, what: str, rtol: float = 0.0, atol: float = 0.0, why: str = ""
) -> Callable[[Callable], Callable]:
    """Make a function a case; ``what`` says what is compared."""
    why = why or (
        "float32: another CPU sums in another order" if rtol or atol else "the same numbers, in the same order"
    )

    def register(run: Callable) -> Callable:
        subject = run.__module__.rpartition(".")[2].removeprefix("cases_")
        entry = Case(subject, run.__name__, run, covers, what, rtol, atol, why)
        assert str(entry) not in _CASES, entry
        _CASES[str(entry)] = entry
        return run

    return register


def all_cases() -> list[Case]:
    """Every case of every ``cases_*.py``."""
    for path in sorted(HERE.glob("cases_*.py")):
        importlib.import_module(f"fidelity.{path.stem}")
    return list(_CASES.values())


def names_to_cover() -> set[str]:
    """The names of d2.py that stand for something of Detectron2."""
    return set(d2.__all__) - OF_THE_DOOR - OF_BOTH


# Inputs


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(number: int, height: int, width: int, seed: int = 0, smallest: float = 2.0) -> torch.Tensor:
    """(number, 4) float32 boxes within the image, XYXY in pixels."""
    r = torch.rand(number, 4, generator=generator(seed))
    size = torch.tensor([width, height])
    wh = smallest + r[:, 2:] * (0.6 * size - smallest)
    xy = r[:, :2] * (size - wh)
    return torch.cat([xy, xy + wh], 1)


def fill(module: torch.nn.Module, scale: float = 0.1) -> torch.nn.Module:
    """Give every parameter and running statistic values that follow from its name alone."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if (
                not value.is_floating_point()
                or "anchor_generator" in name
                or name.endswith(("pixel_mean", "pixel_std"))
            ):
                continue
            drawn = torch.randn(value.shape, generator=generator(zlib.crc32(name.encode()))) * scale
            value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    return module


def first_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Three values of each parameter: after a seed, they show how and in which order the weights are drawn."""
    return {name: value.detach().reshape(-1)[:3] for name, value in module.named_parameters()}


def gradient_norms(module: torch.nn.Module) -> dict[str, float]:
    """Of each parameter that has a gradient."""
    return {name: float(p.grad.norm()) for name, p in module.named_parameters() if p.grad is not None}


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@contextlib.contextmanager
def log_lines(level: int = logging.INFO) -> Iterator[list[str]]:
    """The messages that the provider, and fvcore, log meanwhile."""
    root = "detectron2" if d2.PROVIDER == d2.UPSTREAM else "elsa_det.d2lite"
    lines: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in (root, "fvcore")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield lines
    finally:
        for logger, (old, _) in zip(loggers, before):
            logger.removeHandler(handler)
            logger.setLevel(old)


def error_of(run: Callable[[], Any]) -> str:
    """``"raises"`` if it does (of which kind, each provider words for itself), else ``"works"``."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            run()
    except (Exception, SystemExit):
        return "raises"
    return "works"


# Values


def condensed(value: torch.Tensor | np.ndarray) -> dict[str, Any]:
    """A large tensor in few numbers: shape, sum, sum of magnitudes, and values at even distances."""
    tensor = torch.as_tensor(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value).detach()
    flat = tensor.reshape(-1)
    step = max(1, -(-len(flat) // _CONDENSED_TO))
    if step > 1 and step % 2 == 0:
        step += 1  # odd, so that it does not fall in with the usual widths
    return {
        "shape": list(tensor.shape),
        "mean": float(flat.double().mean()) if len(flat) else 0.0,
        "mean_magnitude": float(flat.double().abs().mean()) if len(flat) else 0.0,
        "values": flat[::step].clone(),
    }


def digest(value: torch.Tensor | np.ndarray) -> str:
    """Shape, type and hash of values that have to be equal."""
    array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return f"{array.shape} {array.dtype} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:24]}"


def of_instances(instances: Any) -> dict[str, Any]:
    """Every field of an Instances; masks condensed."""
    out: dict[str, Any] = {"image_size": list(instances.image_size), "number": len(instances)}
    for name, field in sorted(instances.get_fields().items()):
        value = getattr(field, "tensor", field)
        if type(field).__name__ == "PolygonMasks":
            out[name] = [[torch.as_tensor(p) for p in polygons] for polygons in field.polygons]
        elif isinstance(value, torch.Tensor):
            value = value.detach()
            out[name] = (
                condensed(value)
                if value.numel() > 1000 and value.is_floating_point()
                else (digest(value) if value.numel() > 1000 else value)
            )
        else:
            out[name] = list(value)
    return out


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict of ``a/b`` to tensor, number, string, bool or None."""
    if isinstance(value, dict):
        items = [(str(key), each) for key, each in value.items()]
        head = {f"{prefix}#keys": [key for key, _ in items]} if not prefix else {}
        return head | {
            k: v for key, each in items for k, v in flatten(each, f"{prefix}/{key}" if prefix else key).items()
        }
    if isinstance(value, (list, tuple)):
        plain = _plain(value)
        if plain is not None:
            return {prefix: plain}
        out: dict[str, Any] = {f"{prefix}#len": len(value)}
        for index, each in enumerate(value):
            out |= flatten(each, f"{prefix}/{index}")
        return out
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(np.ascontiguousarray(value))
    if isinstance(value, (np.generic,)):
        value = value.item()
    if isinstance(value, torch.Tensor):
        return {prefix: value.detach().clone()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {prefix: value}
    raise TypeError(f"{prefix}: a case gave a {type(value).__name__}: {value!r}")


def _plain(value: Any) -> Any:
    """Lists of plain values, tuples as lists; None where something else is inside."""
    if isinstance(value, (list, tuple)):
        items = [_plain(each) for each in value]
        return None if any(i is None for i in items) else items
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (bool, int, float, str)) else None


# The record


def store(subject: str, results: dict[str, dict[str, Any]]) -> int:
    """Write one subject's results; gives the size in bytes.

    Values that are not tensors are one string of JSON; tensors of a type are one tensor, cut by ``index``.
    """
    plain: dict[str, Any] = {}
    index: list[tuple[str, str, int, list[int]]] = []
    parts: dict[str, list[torch.Tensor]] = {}
    for name, values in results.items():
        for key, value in values.items():
            path = f"{name}:{key}"
            if isinstance(value, torch.Tensor):
                kind = str(value.dtype)
                start = sum(p.numel() for p in parts.get(kind, []))
                index.append((path, kind, start, list(value.shape)))
                parts.setdefault(kind, []).append(value.contiguous().reshape(-1))
            else:
                plain[path] = value
    packed = {kind: torch.cat(values) for kind, values in parts.items()}
    path = RECORDS / f"{subject}.pt"
    torch.save({"plain": json.dumps(plain), "index": json.dumps(index), "tensors": packed}, path)
    return path.stat().st_size


def recorded(subject: str) -> dict[str, dict[str, Any]]:
    """What Detectron2 gave: case to key to value."""
    path = RECORDS / f"{subject}.pt"
    if not path.is_file():
        return {}
    file = torch.load(path, weights_only=True)
    out: dict[str, dict[str, Any]] = {}

    def put(path: str, value: Any) -> None:
        name, _, key = path.partition(":")
        out.setdefault(name, {})[key] = value

    for path, value in json.loads(file["plain"]).items():
        put(path, value)
    for path, kind, start, shape in json.loads(file["index"]):
        size = int(np.prod(shape, dtype=np.int64))
        put(path, file["tensors"][kind][start : start + size].reshape(shape))
    return out


@dataclass
class Comparison:
    """``faults``: what differs beyond the tolerance; ``largest``: the largest difference of a float, as it stands."""

    faults: list[str]
    largest: float = 0.0


def compare(case: Case, found: dict[str, Any], expected: dict[str, Any]) -> Comparison:
    """Flattened results with the record of a case."""
    result = Comparison([])
    for key in sorted(expected.keys() ^ found.keys()):
        result.faults.append(
            f"{key}: only {'recorded' if key in expected else 'found'}: {(expected | found)[key]!r}"[:300]
        )
    for key in sorted(expected.keys() & found.keys()):
        _compare_values(case, key, found[key], expected[key], result)
    return result


def _compare_values(case: Case, key: str, found: Any, expected: Any, result: Comparison) -> None:
    if isinstance(expected, torch.Tensor):
        if not isinstance(found, torch.Tensor) or (found.dtype, found.shape) != (expected.dtype, expected.shape):
            result.faults.append(f"{key}: {_kind(found)} instead of {_kind(expected)}")
            return
        if not expected.is_floating_point():
            if not torch.equal(found, expected):
                result.faults.append(f"{key}: {int((found != expected).sum())} of {found.numel()} values differ")
            return
        _compare_floats(case, key, found.double(), expected.double(), result)
    elif _is_floats(expected) and _is_floats(found) and np.shape(expected) == np.shape(found):
        pair = [torch.as_tensor(value, dtype=torch.float64) for value in (found, expected)]
        _compare_floats(case, key, *pair, result)
    elif type(found) is not type(expected) or found != expected:
        result.faults.append(_first_difference(key, found, expected))


def _first_difference(key: str, found: Any, expected: Any) -> str:
    """Of long lists and texts, the place where they part."""
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        index = next(i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1])
        return _first_difference(f"{key}[{index}]", found[index], expected[index])
    if isinstance(found, str) and isinstance(expected, str):
        same = next((i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]), 0)
        found, expected = (text[max(0, same - 20) :][:200] for text in (found, expected))
    return f"{key}: {found!r} instead of {expected!r}"[:600]


def _kind(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else repr(value)


def _is_floats(value: Any) -> bool:
    if isinstance(value, list):
        try:
            return bool(value) and np.asarray(value).dtype.kind == "f"
        except ValueError:
            return False
    return isinstance(value, float)


def _compare_floats(case: Case, key: str, found: torch.Tensor, expected: torch.Tensor, result: Comparison) -> None:
    same = (found == expected) | (found.isnan() & expected.isnan())
    if bool(same.all()):
        return
    difference = (found - expected).abs().where(~same, torch.zeros(()))
    largest = float(difference.max())
    result.largest = max(result.largest, largest)
    allowed = case.atol + case.rtol * expected.abs()
    if not bool(((difference <= allowed) | same).all()):
        result.faults.append(f"{key}: differs by up to {largest:.3g}, {case.tolerance} is allowed")


def module_of(value: Any) -> str | None:
    """The module of a name of d2.py, as Detectron2 calls it; None for objects that have none."""
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return None if name is None else name.replace("elsa_det.d2lite", "detectron2")
