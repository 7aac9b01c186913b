"""What a demo looks at: image files, videos, a camera."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError
from ..images import check_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
_FPS_IF_UNKNOWN = 25.0


@dataclass(frozen=True)
class DemoInputs:
    """Files in the order in which they were named, each once."""

    images: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """One line for each input that stands for no file."""


def find_inputs(inputs: Sequence[str]) -> DemoInputs:
    """Expand files, folders (their images and videos, not those of subfolders) and glob patterns.

    Files are told apart by their endings; one that is named and has none of a video is taken for an image.
    """
    files: dict[Path, None] = {}
    problems: list[str] = []
    suffixes = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower() in suffixes)
            missing = f"folder {name} has no images and no videos ({', '.join(suffixes)})"
        elif path.exists():
            found, missing = [path], ""
        elif glob.has_magic(name):
            found = sorted(p for p in map(Path, glob.glob(name, recursive=True)) if p.is_file())
            missing = f"pattern {name} matches no file"
        else:
            hint = "; put key=value changes of the config after another option" if "=" in name else ""
            found, missing = [], f"there is no {name}{hint}"
        files.update(dict.fromkeys(found))
        if not found:
            problems.append(missing)
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    return DemoInputs([path for path in files if path not in videos], videos, problems)


class FrameSource:
    """The frames of a video file or of a camera, one after the other.

    Attributes:
        name: Of the source, for messages.
        fps: Frames per second, > 0; 25 where the source does not tell.
        fps_known: Whether it does.
        count: How many frames the file states; None if it does not, and for cameras.
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        """
        Args:
            source: A video file, or the number of a camera, from 0.

        Raises:
            FileNotFoundError: There is no such file.
            UserError: It cannot be read as a video, its frames are larger than :mod:`elsa_det.images` allows, or there
                is no such camera.
        """
        if isinstance(source, int):
            self.name, opened = f"camera {source}", cv2.VideoCapture(source)
        else:
            self.name = os.fspath(source)
            if not os.path.isfile(self.name):
                raise FileNotFoundError(f"There is no video '{self.name}'.")
            opened = cv2.VideoCapture(self.name)
        if not opened.isOpened():
            opened.release()
            if isinstance(source, int):
                raise UserError(
                    f"Camera {source} cannot be opened. Cameras are numbered from 0 (on Linux: /dev/video0 …); another "
                    "program may be using it, or this user may not have access to it."
                )
            raise UserError(f"Video '{self.name}' cannot be read: it is no video, or OpenCV lacks its codec.")
        size = (opened.get(cv2.CAP_PROP_FRAME_WIDTH), opened.get(cv2.CAP_PROP_FRAME_HEIGHT))
        try:
            check_size(*size, f"a frame of video '{self.name}'")
        except UserError:
            opened.release()
            raise
        self._capture = opened
        fps, count = opened.get(cv2.CAP_PROP_FPS), opened.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps_known = math.isfinite(fps) and 0 < fps <= 1000
        self.fps = float(fps) if self.fps_known else _FPS_IF_UNKNOWN
        self.count = int(count) if not isinstance(source, int) and math.isfinite(count) and count > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames (H, W, 3) uint8, BGR, upright, until there are no more."""
        while True:
            read, frame = self._capture.read()
            if not read:
                return
            yield frame

    def close(self) -> None:
        self._capture.release()

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
