"""A model on images, videos and a camera: what ``tools/demo.py`` runs."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..errors import UserError
from .demo_inputs import IMAGE_SUFFIXES, VIDEO_SUFFIXES, FrameSource
from .demo_outputs import (
    Answer,
    CocoOutput,
    CropOutput,
    JsonOutput,
    LabelOutput,
    Output,
    Selection,
    class_indices,
    write_image,
)
from .demo_video import VideoFile, Window
from .predictor import Predictor, class_names, read_image

_WRITTEN_AS_IS = (".jpg", ".jpeg", ".png")
_PathLike = str | os.PathLike[str]
_Item = TypeVar("_Item")
Progress = Callable[[int, int | None], None]
"""Called with the number of images or frames that are done, and of all, None where nobody knows."""


@dataclass(frozen=True)
class DemoTargets:
    """Where results go; None for what is not wanted. Folders are made if need be."""

    pictures: _PathLike | None = None
    """Folder for images and videos, drawn upon."""
    crops: _PathLike | None = None
    """Folder for the instances cut out, PNG."""
    labels: _PathLike | None = None
    """Folder for the label maps of a segmentor, PNG."""
    json: _PathLike | None = None
    """File for everything that was found; format in :mod:`elsa_det.engine.demo_outputs`."""
    coco_json: _PathLike | None = None
    """File for detections in COCO's format of results."""
    annotations: _PathLike | None = None
    """COCO-format file that the ids in ``coco_json`` are taken from."""
    show: bool = False
    """Open a window."""


@dataclass
class DemoReport:
    """What became of a run."""

    written: list[Path] = field(default_factory=list)
    """Pictures and videos."""
    images: int = 0
    frames: int = 0
    instances: int = 0
    labelled: int = 0
    """Images and frames whose every pixel was labelled, by a segmentor."""
    stopped: bool = False
    """Whether the user ended the run before its time."""
    notes: list[str] = field(default_factory=list)
    """One line for each thing to know."""
    problems: list[str] = field(default_factory=list)
    """One line for each image or video that could not be done, or not wholly."""


class Demo:
    """Runs a model on images, videos and a camera, and puts what it finds where it is wanted.

    ::

        with Demo(predictor, DemoTargets(pictures="drawn", json="found.json"), threshold=0.7) as demo:
            demo.run_images([Path("street.jpg")])
            demo.run_video(Path("street.mp4"))
        print(demo.report)

    Files that are written in one piece (JSON) are there after the ``with`` block; not if it ends with an error.
    """

    def __init__(
        self,
        predictor: Predictor,
        targets: DemoTargets,
        *,
        threshold: float = 0.5,
        classes: Sequence[str] = (),
        batch_size: int = 1,
    ) -> None:
        """
        Args:
            predictor: The model.
            targets: Where results go.
            threshold: Instances that score less are left out, in [0, 1].
            classes: Names of the classes to look at; default: all. Label maps stay whole.
            batch_size: Images or frames given to the model at once.

        Raises:
            UserError: One of them cannot be: a threshold that is no score, an unknown class, no target at all,
                a window where there is none, annotations without the model's classes.
            FileNotFoundError: There are no such annotations.
            OSError: A target cannot be written.
        """
        if batch_size < 1:
            raise UserError(f"A batch has at least 1 image, got {batch_size}.")
        self.predictor, self.batch_size = predictor, batch_size
        self.metadata = predictor.metadata
        names = class_names(self.metadata)
        self.selection = Selection(threshold, class_indices(classes, names))
        self.report = DemoReport()
        _check_targets(targets)
        self._window = Window("elsa_det") if targets.show else None
        self._pictures = None if targets.pictures is None else Path(targets.pictures)
        if self._pictures is not None:
            self._pictures.mkdir(parents=True, exist_ok=True)
        self._outputs: list[Output] = []
        self._taken: set[str] = set()
        try:
            if targets.crops is not None:
                self._outputs.append(CropOutput(targets.crops, names))
            if targets.labels is not None:
                self._outputs.append(LabelOutput(targets.labels, names))
            if targets.json is not None:
                with_labels = targets.labels is not None
                self._outputs.append(JsonOutput(targets.json, threshold, names, label_files=with_labels))
            if targets.coco_json is not None:
                self._outputs.append(CocoOutput(targets.coco_json, names, self.metadata, targets.annotations))
        except BaseException:
            self._abort()
            raise

    def run_images(self, images: Sequence[Path], progress: Progress | None = None) -> None:
        """Predict on image files, and write them, drawn upon, under their own names.

        Where two images share a name, the later one gets a number. What is neither JPEG nor PNG is written as PNG.
        An image that cannot be done is a line in ``report.problems``; the others go on.
        """
        done = 0
        try:
            for paths in _batches(images, self.batch_size):
                self._image_batch(paths)
                done += len(paths)
                if progress is not None:
                    progress(done, len(images))
                if self.report.stopped:
                    break
        except KeyboardInterrupt:
            self.report.stopped = True
        if self.report.stopped and done < len(images):
            self.report.problems.append(f"stopped after {done} of {len(images)} images")

    def run_video(self, video: Path, progress: Progress | None = None, *, max_frames: int | None = None) -> None:
        """Predict on the frames of a video, and write them, drawn upon, as a video of the same size and speed.

        Sound is not kept. A video that cannot be read is a line in ``report.problems``.
        """
        try:
            source = FrameSource(video)
        except (FileNotFoundError, UserError) as error:
            self.report.problems.append(str(error))
            return
        with source:
            read = self._run_frames(source, video, progress, max_frames)
            if not source.fps_known:
                self.report.notes.append(f"{video} does not tell its speed: taken for {source.fps:g} frames/s")
            if self.report.stopped:
                self.report.problems.append(f"stopped after {read} frames of video '{video}'")
            elif read == 0:
                self.report.problems.append(f"no frame of video '{video}' was done")
            elif source.count and read < source.count and max_frames is None:
                self.report.problems.append(f"of video '{video}' {read} frames of {source.count} could be read")

    def run_camera(self, number: int = 0, progress: Progress | None = None, *, max_frames: int | None = None) -> None:
        """Predict on what a camera sees until the user stops it, by Ctrl-C or in the window.

        The video ``camera.mp4`` keeps pace with the clock: where the model is slower than the camera, pictures repeat.

        Raises:
            UserError: There is no such camera.
        """
        with FrameSource(number) as source:
            self._run_frames(source, Path("camera.mp4"), progress, max_frames, live=True)

    def close(self) -> list[str]:
        """End the outputs; lines for the user about what there is now."""
        lines = [line for output in self._outputs for line in output.close()]
        self._outputs = []
        if self._window is not None:
            self._window.close()
        return lines

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.report.notes += self.close()
        else:
            self._abort()

    def _abort(self) -> None:
        for output in self._outputs:
            output.abort()
        self._outputs = []
        if self._window is not None:
            self._window.close()

    def _image_batch(self, paths: Sequence[Path]) -> None:
        read: list[tuple[Path, str, Path | None, np.ndarray]] = []
        for path in paths:
            name = self._name(path)
            try:
                suffix = path.suffix if path.suffix.lower() in _WRITTEN_AS_IS else ".png"
                read.append((path, name, self._target(path, name + suffix), read_image(path)))
            except (FileNotFoundError, ValueError) as error:
                self.report.problems.append(str(error))
        outputs = self._predict([image for *_, image in read])
        for (path, name, target, image), found in zip(read, outputs):
            answer = self._take(self.selection.answer(found, image, str(path), name))
            self.report.images += 1
            if target is None and self._window is None:
                continue
            drawn = self.selection.draw(answer, self.metadata)
            if target is not None:
                write_image(target, drawn)
                self.report.written.append(target)
            if self._window is not None and not self._window.show(drawn, wait=True):
                self.report.stopped = True
                return

    def _run_frames(
        self, source: FrameSource, path: Path, progress: Progress | None, max_frames: int | None, live: bool = False
    ) -> int:
        """The number of frames done. Pictures of a ``live`` source repeat where needed to keep pace with the clock."""
        if max_frames is not None and max_frames < 1:
            raise UserError(f"At least 1 frame must be looked at, got max_frames={max_frames}.")
        name, done, start = self._name(path, frames=True), 0, time.monotonic()
        total = min((count for count in (source.count, max_frames) if count is not None), default=None)
        try:
            target = self._target(path, name + path.suffix)
        except ValueError as error:
            self.report.problems.append(str(error))
            return 0
        if progress is not None:
            progress(0, total)
        video: VideoFile | None = None
        try:
            for frames in _batches(itertools.islice(source, max_frames), 1 if live else self.batch_size):
                for frame, found in zip(frames, self._predict(frames)):
                    seconds = time.monotonic() - start if live else done / source.fps
                    file, number = source.name, f"{name}_{done:06d}"
                    answer = self._take(self.selection.answer(found, frame, file, number, frame=done, time=seconds))
                    done += 1
                    self.report.frames += 1
                    if target is None and self._window is None:
                        continue
                    drawn = self.selection.draw(answer, self.metadata, scale=1, legend=False)
                    if target is not None:
                        if video is None:
                            video = VideoFile(target, source.fps, (drawn.shape[1], drawn.shape[0]))
                        due = int(seconds * source.fps) + 1 - video.frames if live else 1
                        for _ in range(max(1, due)):
                            video.write(drawn)
                    if self._window is not None and not self._window.show(drawn, wait=False):
                        self.report.stopped = True
                        return done
                if progress is not None:
                    progress(done, total)
        except KeyboardInterrupt:
            self.report.stopped = True
        finally:
            if video is not None:
                video.close()
                self.report.written.append(video.path)
                width, height = video.size
                written = (
                    f"{video.path}: {video.frames} frames, {width}×{height}, {video.fps:g} frames/s, {video.codec}"
                )
                self.report.notes += [written, video.note] if video.note else [written]
        return done

    def _predict(self, images: list[np.ndarray]) -> list[dict]:
        if len(images) == 1:
            return [self.predictor(images[0])]
        return self.predictor.predict_batch(images)

    def _take(self, answer: Answer) -> Answer:
        for output in self._outputs:
            output.add(answer)
        self.report.labelled += answer.labels is not None
        self.report.instances += 0 if answer.instances is None else len(answer.instances)
        return answer

    def _target(self, source: Path, name: str) -> Path | None:
        if self._pictures is None:
            return None
        target = self._pictures / name
        if target.resolve() == source.resolve():
            raise UserError(f"'{source}' lies in the output folder and would be replaced.")
        return target

    def _name(self, path: Path, *, frames: bool = False) -> str:
        """A name that no other result of the run has, nor, with ``frames``, any with a frame's number after it."""

        def taken(name: str) -> bool:
            numbered = re.compile(re.escape(name) + r"_\d{6,}")
            return name in self._taken or (frames and any(numbered.fullmatch(other) for other in self._taken))

        name, number = path.stem, 2
        while taken(name.lower()):
            name, number = f"{path.stem}_{number}", number + 1
        self._taken.add(name.lower())
        return name


def run_demo(
    predictor: Predictor,
    images: Sequence[Path],
    output: _PathLike,
    *,
    threshold: float = 0.5,
    progress: Progress | None = None,
) -> DemoReport:
    """Predict on image files and write them, drawn upon, into a folder: :class:`Demo` in one call.

    Raises:
        ValueError: The threshold is not in [0, 1].
        OSError: The folder cannot be made or written to.
    """
    with Demo(predictor, DemoTargets(pictures=output), threshold=threshold) as demo:
        demo.run_images(images, progress)
    return demo.report


def _check_targets(targets: DemoTargets) -> None:
    for folder in (targets.pictures, targets.crops, targets.labels):
        path = Path("." if folder is None else folder)
        if path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and not path.is_dir():
            raise UserError(
                f"results go to a folder, each under the name of its input, and '{path}' looks like a file: name a "
                f"folder, such as '{path.with_suffix('')}'"
            )
    wanted = (targets.pictures, targets.crops, targets.labels, targets.json, targets.coco_json)
    if not targets.show and all(target is None for target in wanted):
        raise UserError("Nothing would be kept: give an output folder, or crops, labels, json, coco_json or show.")
    if targets.annotations is not None and targets.coco_json is None:
        raise UserError("Annotations give ids to COCO's format of results: give coco_json with them.")
    files = [Path(file).resolve() for file in (targets.json, targets.coco_json) if file is not None]
    if len(files) != len(set(files)):
        raise UserError(f"json and coco_json are the same file, {targets.json}.")


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch
