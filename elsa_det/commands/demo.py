"""Run a model on images, videos or a camera: draw what it finds, cut it out, write it as JSON.

%(prog)s --config-file run/config.yaml --checkpoint run/model_final.pth --input a.jpg folder '*.png' --output drawn
%(prog)s --config-file … --checkpoint … --input clip.mp4 --output drawn --json found.json --classes person,dog
%(prog)s --config-file … --checkpoint … --webcam --show
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..engine.demo import Demo, DemoTargets
from ..engine.demo_inputs import DemoInputs, FrameSource, find_inputs
from ..engine.predictor import Predictor
from ..errors import UserError
from .entry import command


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="LazyConfig, .py or a run's config.yaml")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; default: train.init_checkpoint of the config")
    source = parser.add_argument_group("what to look at")
    source.add_argument("--input", nargs="+", metavar="PATH", help="images, videos, folders or quoted patterns")
    source.add_argument("--webcam", type=int, nargs="?", const=0, metavar="N", help="a camera; default number: 0")
    source.add_argument("--max-frames", type=int, metavar="N", help="end a video or the camera after N frames")
    target = parser.add_argument_group("what to make of it (at least one)")
    target.add_argument("--output", metavar="FOLDER", help="images and videos, drawn upon; videos lose their sound")
    target.add_argument("--show", action="store_true", help="open a window; Q or Escape ends")
    target.add_argument("--crops", metavar="FOLDER", help="each instance cut out: image_index_class_score.png")
    target.add_argument("--labels", metavar="FOLDER", help="label maps of a segmentor: class indices, PNG")
    target.add_argument(
        "--json", metavar="FILE", help="all that was found; the format stands in elsa_det/engine/demo_outputs.py"
    )
    target.add_argument("--coco-json", metavar="FILE", help="COCO's format of results")
    target.add_argument("--annotations", metavar="FILE", help="COCO-format json that --coco-json takes its ids from")
    chosen = parser.add_argument_group("which of it")
    chosen.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="leave out instances that score less; default: 0.5, for evaluation of a --coco-json: 0",
    )
    chosen.add_argument("--classes", default="", metavar="A,B", help="only these classes; label maps stay whole")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images given to the model at once")
    parser.add_argument("--device", help="such as cpu or cuda:1; default: train.device of the config")
    parser.add_argument(
        "--allow-mismatch", action="store_true", help="run even if checkpoint and model do not fit each other wholly"
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if everything was done, 1 if not."""
    parser = argument_parser()
    args = parser.parse_args(argv)
    if not args.input and args.webcam is None:
        parser.error("give --input, --webcam or both")
    for word in args.opts:
        if "=" not in word:
            raise UserError(
                f"{word!r} is not understood: changes to the config are key=value and come last, and several --classes "
                "have commas between them and no spaces"
            )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    targets = DemoTargets(
        pictures=args.output,
        crops=args.crops,
        labels=args.labels,
        json=args.json,
        coco_json=args.coco_json,
        annotations=args.annotations,
        show=args.show,
    )
    inputs = find_inputs(args.input or [])
    if args.webcam is not None:
        FrameSource(args.webcam).close()  # told before the model is built
    predictor = Predictor(
        args.config_file,
        args.checkpoint,
        overrides=args.opts,
        device=args.device,
        strict=not args.allow_mismatch,
    )
    with Demo(
        predictor,
        targets,
        threshold=args.confidence_threshold,
        classes=args.classes.split(","),
        batch_size=args.batch_size,
    ) as demo:
        _run(demo, inputs, args)
    report = demo.report
    seen = [f"{report.images} images"] if report.images or not report.frames else []
    seen += [f"{report.frames} frames"] if report.frames else []
    found = "labels for every pixel" if report.labelled else f"{report.instances} instances"
    where = f" written to {args.output}" if args.output else ""
    print(f"{' and '.join(seen)}{where} with {found}.", *report.notes, sep="\n")
    problems = inputs.problems + report.problems
    if problems:
        print(f"{len(problems)} inputs could not be done:", *problems, sep="\n  ", file=sys.stderr)
    return 1 if problems else 0


def _run(demo: Demo, inputs: DemoInputs, args: argparse.Namespace) -> None:
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), BarColumn(), *columns, console=Console(stderr=True)) as bar:

        def follow(what: str) -> Callable[[int, int | None], None]:
            task = bar.add_task(what, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        if inputs.images:
            demo.run_images(inputs.images, follow("Images"))
        for video in inputs.videos:
            if not demo.report.stopped:
                demo.run_video(video, follow(video.name), max_frames=args.max_frames)
        if args.webcam is not None and not demo.report.stopped:
            demo.run_camera(args.webcam, follow("Camera, Ctrl-C ends"), max_frames=args.max_frames)
