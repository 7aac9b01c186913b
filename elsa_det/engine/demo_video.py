"""Where the frames of a demo go: video files and windows."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import cv2
import numpy as np

from ..errors import UserError

# What OpenCV's own FFmpeg can write; it has no H.264 encoder.
_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "XVID", ".webm": "VP80"}
_LAST_RESORT = (".avi", "MJPG")  # OpenCV writes it by itself
_QUIT = (ord("q"), 27)
_LARGEST_WINDOW = (1280, 800)


class VideoFile:
    """A video being written.

    Attributes:
        path: The file.
        codec: Four letters.
        note: What differs from the file that was asked for, a line for the user; empty if nothing does.
        frames: How many were written.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, size: tuple[int, int]) -> None:
        """
        Args:
            path: Its ending says the format; where OpenCV cannot write it, another one is taken (see ``note``).
            fps: Frames per second, > 0.
            size: (width, height) of the frames in pixels.

        Raises:
            UserError: This OpenCV writes no videos.
            OSError: The file cannot be written.
        """
        wanted = Path(path)
        suffix = wanted.suffix.lower()
        choices = [(wanted, _CODECS[suffix])] if suffix in _CODECS else [(wanted.with_suffix(".mp4"), "mp4v")]
        choices.append((wanted.with_suffix(_LAST_RESORT[0]), _LAST_RESORT[1]))
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with open(choices[0][0], "wb"):  # OpenCV does not say why it cannot write
            pass
        self.fps, self.size, self.frames = fps, size, 0
        self._missing = (size[1] % 2, size[0] % 2)
        even = (size[0] + self._missing[1], size[1] + self._missing[0])
        for self.path, self.codec in choices:
            self._writer = cv2.VideoWriter(os.fspath(self.path), cv2.VideoWriter_fourcc(*self.codec), fps, even)  # type: ignore[attr-defined]
            if self._writer.isOpened():
                break
            self._writer.release()
            self.path.unlink(missing_ok=True)
        else:
            tried = ", ".join(f"{codec} in {file.suffix}" for file, codec in choices)
            raise UserError(f"This OpenCV writes no videos (tried {tried}): install opencv-python from PyPI.")
        notes = []
        if self.path != wanted:
            notes.append(f"{wanted.name} is written as {self.path.name} ({self.codec}): OpenCV cannot write the other")
        if even != size:
            notes.append(
                f"{self.path.name} is {even[0]}×{even[1]} for {size[0]}×{size[1]}: codecs take even sizes only"
            )
        self.note = "; ".join(notes)

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, (H, W, 3) uint8, BGR, of the video's size.

        Raises:
            ValueError: It is of another size: OpenCV would leave it out without a word.
        """
        if (frame.shape[1], frame.shape[0]) != self.size:
            raise ValueError(f"frame of {frame.shape[1]}×{frame.shape[0]} in a video of {self.size[0]}×{self.size[1]}")
        if any(self._missing):  # OpenCV would cut the last row or column off
            frame = cv2.copyMakeBorder(frame, 0, self._missing[0], 0, self._missing[1], cv2.BORDER_REPLICATE)
        self._writer.write(frame)
        self.frames += 1

    def close(self) -> None:
        self._writer.release()


class Window:
    """A window on the screen."""

    def __init__(self, title: str) -> None:
        """
        Raises:
            UserError: This OpenCV has no windows, or there is no screen.
        """
        check_windows()
        self.title, self._sized = title, False
        cv2.namedWindow(title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)

    def show(self, image: np.ndarray, *, wait: bool) -> bool:
        """Show an image, (H, W, 3) uint8, BGR.

        Args:
            image: What to show.
            wait: Until a key is pressed or the window closed; otherwise go on at once.

        Returns:
            False if the user wants to end: Q, Escape, or the window is closed.
        """
        cv2.imshow(self.title, image)
        if not self._sized:
            height, width = image.shape[:2]
            fit = min(1.0, _LARGEST_WINDOW[0] / width, _LARGEST_WINDOW[1] / height)
            cv2.resizeWindow(self.title, max(320, round(width * fit)), max(240, round(height * fit)))
            self._sized = True
        while True:
            key = cv2.waitKey(50 if wait else 1) & 0xFF
            closed = cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1
            if closed or key in _QUIT:
                return False
            if not wait or key != 0xFF:
                return True

    def close(self) -> None:
        cv2.destroyAllWindows()


def check_windows() -> None:
    """
    Raises:
        UserError: OpenCV cannot open a window here, with the reason and what to do.
    """
    found = re.search(r"^\s*GUI:\s*(\S+)", cv2.getBuildInformation(), re.MULTILINE)
    if found is None or found.group(1) == "NONE":
        raise UserError(
            "This OpenCV has no windows (it is opencv-python-headless). Leave --show out and look at the files, or: "
            "pip uninstall opencv-python-headless && pip install opencv-python"
        )
    # Qt ends the whole process where there is no screen.
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UserError(
            "There is no screen to show a window on (neither DISPLAY nor WAYLAND_DISPLAY is set). "
            "Leave --show out and look at the files, or log in with a screen (such as ssh -X)."
        )
