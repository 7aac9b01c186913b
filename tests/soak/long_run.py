#!/usr/bin/env python
"""Train a tiny detector for long, with workers, evaluations, pictures and checkpoints, and watch what it takes.

tests/soak/long_run.py --output long_run
tests/soak/long_run.py --output long_run --iterations 20000 --every 50

Writes long_run.json (every sample) and long_run.png to the output folder; ends with 1 if memory of the process (without
garbage and freed memory) or of its workers, open files or shared memory grow beyond the limits of usage.py, after a
quarter of the iterations.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.insert(0, str(Path(__file__).parent))

from usage import LIMITS, Usage, judge, usage

from elsa_det.config import config_root
from elsa_det.d2 import default_argument_parser
from elsa_det.data.shapes import SceneSpec, SetSpec, overrides_for, write_shapes
from elsa_det.engine.training import main as train

_TITLES = {
    "held": ("memory of the process", "MB", 1e6),
    "workers_rss": ("memory of the workers", "MB", 1e6),
    "fds": ("open file descriptors", "", 1),
    "shm": ("shared memory", "MB", 1e6),
}


@contextlib.contextmanager
def watched(every: int) -> Iterator[list[Usage]]:
    """Within it, a sample is taken after each ``every`` steps of an optimizer."""
    samples: list[Usage] = []
    steps, began = 0, time.perf_counter()

    def stepped(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps % every == 0:
            samples.append(usage(steps, time.perf_counter() - began))

    handle = register_optimizer_step_post_hook(stepped)
    try:
        yield samples
    finally:
        handle.remove()


def run(folder: Path, iterations: int, period: int, overrides: Sequence[str] = ()) -> None:
    """Train on drawn shapes, 64 pixels wide.

    Args:
        folder: Where the set and the run go.
        iterations: How many.
        period: Iterations from one evaluation, and from one checkpoint, to the next.
        overrides: More of the config.
    """
    write_shapes(folder / "data", SetSpec(train=24, val=4, scene=SceneSpec(image_size=64, max_object=40)))
    data = overrides_for(folder / "data")
    small = [
        "model.backbone.bottom_up.embed_dim=8",
        "model.backbone.bottom_up.depths=[1,1,1,1]",
        "model.backbone.bottom_up.num_heads=[1,1,2,2]",
        "model.backbone.out_channels=16",
        "model.proposal_generator.pre_nms_topk=[60,40]",
        "model.proposal_generator.post_nms_topk=[30,20]",
        "model.roi_heads.batch_size_per_image=8",
        "model.roi_heads.box_head.fc_dims=[32,32]",
        "model.roi_heads.mask_head.conv_dims=[8]",
    ]
    options = [
        "dataloader.train.total_batch_size=2",
        "dataloader.train.num_workers=2",
        "dataloader.test.num_workers=1",
        f"train.max_iter={iterations}",
        f"train.eval_period={period}",
        f"train.checkpointer.period={period}",
        "train.checkpointer.max_to_keep=2",
        "train.ema.enabled=True",
        "train.bad_numbers.action=rollback",
        "train.seed=3",
        f"train.output_dir={folder}/run",
    ]
    config = str(Path(config_root()) / "quickstart" / "elsa_nano_mrcnn.py")
    train(default_argument_parser().parse_args(["--config-file", config, *data, *small, *options, *overrides]))


def draw(samples: list[Usage], slopes: dict[str, float], warm_up: int, path: Path) -> None:
    """A panel for each quantity against iterations, with its growth after the warm-up."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, (title, unit, scale)) in zip(figure.subplots(2, 2).flat, _TITLES.items(), strict=True):
        values = [getattr(sample, name) / scale for sample in samples]
        iterations = [sample.iteration for sample in samples]
        axes.plot(iterations, values, color="#1f77b4", linewidth=1.2)
        if name == "held":
            resident = [sample.rss / scale for sample in samples]
            axes.plot(iterations, resident, color="#ff7f0e", linewidth=0.8, label="with garbage and freed memory")
            axes.legend(loc="lower right", fontsize=8)
            values += resident
        axes.axvspan(0, warm_up, color="#eeeeee", label="warm-up")
        axes.set_ylim(0, 1.15 * max(*values, 0.01))
        axes.set_xlim(0, samples[-1].iteration)
        per = f"{1000 * slopes[name] / scale:+.3g} {unit}".strip()
        most = f"{1000 * LIMITS[name] / scale:g} {unit}".strip()
        axes.set_title(f"{title}: {per} per 1,000 iterations (limit {most})", fontsize=9)
        axes.set_ylabel(unit or "number")
        axes.set_xlabel("iteration")
        axes.grid(color="#e2e2e2")
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if nothing grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--every", type=int, default=20, help="iterations from one sample to the next")
    parser.add_argument("--period", type=int, default=200, help="iterations from one evaluation to the next")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, watched(args.every) as samples:
        run(Path(folder), args.iterations, args.period)
    warm_up = args.iterations // 4
    slopes, faults = judge(samples, warm_up)
    found = {"warm_up": warm_up, "limits": LIMITS, "growth": slopes, "faults": faults}
    content = {**found, "samples": [dataclasses.asdict(sample) for sample in samples]}
    (args.output / "long_run.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(samples, slopes, warm_up, args.output / "long_run.png")
    print(json.dumps(found))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
