"""Predictions drawn on image files: what ``tools/demo.py`` runs."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from .drawing import confident, draw_predictions
from .predictor import Predictor, read_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_WRITTEN_AS_IS = (".jpg", ".jpeg", ".png")


@dataclass
class DemoReport:
    """What became of the images of a run."""

    written: list[Path] = field(default_factory=list)
    instances: int = 0
    problems: list[str] = field(default_factory=list)
    """One line for each image or input that could not be done."""


def find_images(inputs: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Expand files, folders (their images, not those of subfolders) and glob patterns, each image once.

    Returns:
        The images, and one line for each input that stands for none.
    """
    images: dict[Path, None] = {}
    problems: list[str] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)
            missing = f"folder {name} has no images ({', '.join(IMAGE_SUFFIXES)})"
        elif path.exists():
            found, missing = [path], ""
        elif glob.has_magic(name):
            found = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
            missing = f"pattern {name} matches no file"
        else:
            hint = "; put key=value changes of the config after another option" if "=" in name else ""
            found, missing = [], f"there is no {name}{hint}"
        images.update(dict.fromkeys(found))
        if not found:
            problems.append(missing)
    return list(images), problems


def run_demo(
    predictor: Predictor,
    images: Sequence[Path],
    output: str | os.PathLike[str],
    *,
    threshold: float = 0.5,
    progress: Callable[[int], None] | None = None,
) -> DemoReport:
    """Predict on image files and write them, drawn upon, into a folder under their own names.

    Where two images share a name, the later one gets a number. What is neither JPEG nor PNG is written as PNG.

    Args:
        predictor: The model.
        images: The files.
        output: The folder; made if need be.
        threshold: Predictions that score less are not drawn, in [0, 1].
        progress: Called with the number of images done after each.

    Raises:
        ValueError: The threshold is not in [0, 1].
        OSError: The folder cannot be made or written to.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"The confidence threshold is a score in [0, 1], got {threshold}.")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    report = DemoReport()
    taken: set[str] = set()
    for done, path in enumerate(images, start=1):
        target = folder / _free_name(path, taken)
        try:
            if target.resolve() == path.resolve():
                raise ValueError(f"image '{path}' lies in the output folder and would be replaced.")
            image = read_image(path)
        except (FileNotFoundError, ValueError) as error:
            report.problems.append(str(error))
        else:
            outputs = predictor(image)
            _write(target, draw_predictions(image, outputs, predictor.metadata, threshold=threshold))
            report.written.append(target)
            report.instances += len(confident(outputs, threshold))
        if progress is not None:
            progress(done)
    return report


def _free_name(path: Path, taken: set[str]) -> str:
    suffix = path.suffix if path.suffix.lower() in _WRITTEN_AS_IS else ".png"
    name, number = path.stem + suffix, 2
    while name.lower() in taken:
        name, number = f"{path.stem}_{number}{suffix}", number + 1
    taken.add(name.lower())
    return name


def _write(path: Path, image: np.ndarray) -> None:
    encoded, data = cv2.imencode(path.suffix.lower(), image)
    if not encoded:
        raise OSError(f"{path} cannot be encoded.")
    path.write_bytes(data.tobytes())
