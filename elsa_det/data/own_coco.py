"""Own COCO-format data: several files together, a share of the images kept for testing, classes read from the json."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..d2 import DatasetCatalog, MetadataCatalog
from ..errors import UserError
from ..nearby import looked_for
from .coco import registered_coco
from .coco_check import read_coco
from .coco_merge import merge, split, write_json

TRAIN, TEST = "train", "test"

#: Parts that this process has written, from what, and their image folders: a config asks for its data several times.
_written: dict[Path, tuple[Any, str]] = {}


@dataclass(frozen=True)
class Source:
    """A COCO-format json and the folder that its ``file_name`` entries start from."""

    json_file: str
    image_root: str


def own_coco(part: str, dataset: Mapping[str, Any], folder: str) -> str:
    """The name under which a part of own data is registered.

    A single json is used as it is. Where a part is made of several, is a share of the images, or has its classes in
    another order than the training data, its json is written to ``<folder>/<part>.json``: it says which images are in
    it, and evaluation reads it.

    Args:
        part: "train" or "test".
        dataset: the config's ``dataset`` node: ``train`` and ``test`` with ``json_file`` and ``image_root`` (one, or
            lists of the same length; one folder may serve several files) or the ``name`` of a registered dataset;
            ``val_fraction``, the share of the training images in (0, 1) that is kept for testing, or None;
            ``split_seed``, another one of which keeps other images.
        folder: where files are written, made if need be.

    Raises:
        UserError: what is given contradicts itself, the files have different classes, or a part would be empty.
        FileNotFoundError: a json or folder does not exist.
    """
    if part not in (TRAIN, TEST):
        raise ValueError(f"part={part!r}: use {TRAIN!r} or {TEST!r}")
    fraction = _fraction(dataset)
    used = sources(dataset, TRAIN if fraction is not None else part)
    if fraction is not None and not used:
        raise UserError(f"dataset.val_fraction={fraction} divides dataset.train.json_file, which is not set")
    if not used:
        name = _get(dataset, part, "name")
        if name is None:
            also = ", or keep a share of the training images with dataset.val_fraction=0.2" if part == TEST else ""
            raise UserError(
                f"no data is named for {part}: set dataset.{part}.json_file and dataset.{part}.image_root{also}"
            )
        return registered_coco(name)
    first = _first_source(dataset)
    assert first is not None
    for source in used:
        _check_same_classes(first, source)
    in_order = all([*categories(s.json_file).values()] == [*categories(first.json_file).values()] for s in used)
    if fraction is None and len(used) == 1 and in_order:
        return registered_coco(None, used[0].json_file, used[0].image_root)

    seed = _get(dataset, "split_seed") or 0
    path = Path(folder) / f"{part}.json"
    state = (fraction, seed, first, *((source, _state(source.json_file)) for source in (first, *used)))
    before, root = _written.get(path, (None, ""))
    if before != state or not path.is_file():
        root = _write(path, part, used, categories(first.json_file), fraction, seed)
        _written[path] = (state, root)
    return registered_coco(None, str(path), root)


def _write(
    path: Path, part: str, used: list[Source], classes: dict[int, str], fraction: float | None, seed: int
) -> str:
    """Write the json of a part; gives the folder that its ``file_name`` entries start from."""
    contents = [(read_coco(Path(source.json_file)), source.json_file, source.image_root) for source in used]
    content, root = merge(contents, [{"id": i, "name": name} for i, name in classes.items()])
    content["info"] = {"part": part, "sources": [asdict(source) for source in used]}
    if fraction is not None:
        content["info"] |= {"val_fraction": fraction, "split_seed": seed}
        content = split(content, fraction, seed, test=part == TEST)
    write_json(content, path)
    return root


def count_classes(dataset: Mapping[str, Any], without_data: int) -> int:
    """The number of classes of own data: of the training data's json, or the test data's if there is no other.

    Args:
        dataset: see :func:`own_coco`.
        without_data: the number where no data is named, so that a model can be made and counted.

    Raises:
        FileNotFoundError, UserError: the json is not there, or not in COCO format.
    """
    first = _first_source(dataset)
    if first is not None:
        return len(categories(first.json_file))
    for part in (TRAIN, TEST):
        name = _get(dataset, part, "name")
        if name is not None:
            registered_coco(name)
            if MetadataCatalog.get(name).get("thing_classes") is None:
                DatasetCatalog.get(name)  # reading a json brings its classes
            return len(MetadataCatalog.get(name).thing_classes)
    return without_data


def sources(dataset: Mapping[str, Any], part: str) -> list[Source]:
    """The files of a part as they are given; none where the part is a registered dataset, or not given.

    Raises:
        UserError: a file without a folder, or the other way round, or lists of different lengths.
    """
    files, roots = (_listed(_get(dataset, part, key)) for key in ("json_file", "image_root"))
    if not files and not roots:
        return []
    if not files or not roots:
        raise UserError(
            f"own data needs both: got dataset.{part}.json_file={files or None}, dataset.{part}.image_root="
            f"{roots or None}"
        )
    if len(roots) == 1:
        roots *= len(files)
    if len(files) != len(roots):
        raise UserError(
            f"dataset.{part}.json_file lists {len(files)} files and dataset.{part}.image_root {len(roots)} folders: "
            "give a folder for each file, or one for all"
        )
    twice = sorted({file for file in files if files.count(file) > 1})
    if twice:
        raise UserError(f"dataset.{part}.json_file lists {', '.join(twice)} twice")
    for file, root in zip(files, roots, strict=True):
        if not Path(file).is_file():
            raise FileNotFoundError(f"dataset.{part}.json_file={file} does not exist {looked_for(file)}")
        if not Path(root).is_dir():
            raise FileNotFoundError(
                f"dataset.{part}.image_root={root} is not a folder (looked for {Path(root).absolute()})"
            )
    return [Source(file, root) for file, root in zip(files, roots, strict=True)]


def categories(json_file: str) -> dict[int, str]:
    """Class names by category id, in the order of the ids, which is that of the classes.

    Raises:
        FileNotFoundError, UserError: the file is not there, not in COCO format, or an id or a name is not its own.
    """
    return _categories(json_file, _state(json_file))


def _state(json_file: str) -> tuple[int, int]:
    """What changes when a file does."""
    path = Path(json_file)
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.is_file() else (0, 0)


@functools.lru_cache(maxsize=64)
def _categories(json_file: str, state: tuple[int, int]) -> dict[int, str]:
    """Once for each state of a file: large ones take their time."""
    entries = read_coco(Path(json_file))["categories"]
    try:
        found = {entry["id"]: entry["name"] for entry in entries}
        ordered = dict(sorted(found.items()))
    except (KeyError, TypeError) as error:
        raise UserError(f"{json_file}: a category needs an integer 'id' and a 'name' ({error})") from error
    if len(ordered) < len(entries) or len(set(ordered.values())) < len(entries):
        raise UserError(
            f"{json_file}: two categories share an id or a name: {[entry['name'] for entry in entries]}. Number the "
            "categories anew, and name each once"
        )
    return ordered


def _fraction(dataset: Mapping[str, Any]) -> float | None:
    fraction = _get(dataset, "val_fraction")
    if fraction is None:
        return None
    if not isinstance(fraction, (int, float)) or isinstance(fraction, bool) or not 0 < fraction < 1:
        raise UserError(f"dataset.val_fraction={fraction!r} is a share of the training images: between 0 and 1")
    given = [key for key in ("json_file", "image_root", "name") if _get(dataset, TEST, key) is not None]
    if given:
        raise UserError(
            f"dataset.val_fraction={fraction} keeps training images for testing, but dataset.test.{given[0]}="
            f"{_get(dataset, TEST, given[0])} names test data: set one of them to null"
        )
    return float(fraction)


def _first_source(dataset: Mapping[str, Any]) -> Source | None:
    """Whose classes are the model's."""
    return next((source for part in (TRAIN, TEST) for source in sources(dataset, part)), None)


def _check_same_classes(first: Source, other: Source) -> None:
    names, others = (list(categories(source.json_file).values()) for source in (first, other))
    lacking, more = ([name for name in a if name not in b] for a, b in ((names, others), (others, names)))
    if lacking or more:
        differences = [f"lacks {', '.join(map(repr, lacking))}"] * bool(lacking)
        differences += [f"has {', '.join(map(repr, more))} more"] * bool(more)
        raise UserError(
            f"{other.json_file} has other classes than {first.json_file}: it {' and '.join(differences)}. Files used "
            "together need the same list of categories, those that do not occur in a file included"
        )


def _get(dataset: Mapping[str, Any], *keys: str) -> Any:
    """A value of the config; None where there is none, or it is left open."""
    node: Any = dataset
    for key in keys:
        if node is None or key not in node or (OmegaConf.is_config(node) and OmegaConf.is_missing(node, key)):
            return None
        node = node[key]
    return node


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    return [str(value)] if isinstance(value, str) or not isinstance(value, Sequence) else [str(each) for each in value]
