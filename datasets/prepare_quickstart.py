#!/usr/bin/env python
"""Draw the quickstart set: textured shapes in COCO's format. Takes seconds and downloads nothing."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from elsa_det.data.shapes import CLASSES, SceneSpec, SetSpec, is_complete, write_shapes


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    spec, scene = SetSpec(), SceneSpec()
    parser.add_argument("--output", type=Path, default=Path("datasets/quickstart"), help="folder to write")
    parser.add_argument("--train", type=int, default=spec.train, help="training images")
    parser.add_argument("--val", type=int, default=spec.val, help="validation images")
    parser.add_argument("--image-size", type=int, default=scene.image_size, help="side of an image in pixels")
    parser.add_argument("--min-object", type=int, default=scene.min_object, help="smallest object in pixels")
    parser.add_argument("--max-object", type=int, default=scene.max_object, help="largest object in pixels")
    parser.add_argument("--min-objects", type=int, default=scene.min_objects, help="fewest objects drawn per image")
    parser.add_argument("--max-objects", type=int, default=scene.max_objects, help="most objects drawn per image")
    parser.add_argument(
        "--min-visible", type=float, default=scene.min_visible, help="objects seen by a smaller share are left out"
    )
    parser.add_argument("--seed", type=int, default=scene.seed, help="another seed, another set")
    parser.add_argument("--force", action="store_true", help="draw even if the folder is complete")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = argument_parser().parse_args(argv)
    try:
        scene = SceneSpec(**{entry.name: getattr(args, entry.name) for entry in dataclasses.fields(SceneSpec)})
        spec = SetSpec(train=args.train, val=args.val, scene=scene)
        drawn = args.force or not is_complete(args.output, spec)
        if drawn:
            with Progress(TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
                task = bar.add_task("drawing", total=args.train + args.val)
                write_shapes(args.output, spec, force=True, progress=lambda done, _: bar.update(task, completed=done))
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    what = f"{args.train} training and {args.val} validation images of {len(CLASSES)} classes"
    print(f"{args.output}: {what} {'drawn' if drawn else 'are there already, nothing to do'}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
