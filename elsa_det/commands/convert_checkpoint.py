"""Published detectors and backbones to checkpoints of elsa_det, with an account of every key.

%(prog)s mask_elsa_tiny_1x.pth elsa_t.pth --config-file configs/coco/elsa_t_mrcnn_1x.py
%(prog)s elsa_t.pth elsa_t_mmdetection.pth --to mmdetection
%(prog)s model_final_f10217.pkl start.pth --parts neck,rpn,roi_heads --backbone elsa_swin_tiny.pth \\
    --config-file configs/coco/elsa_t_mrcnn_1x.py

Reads Mask R-CNN and Cascade Mask R-CNN of mmdetection 2.x and 3.x on ELSA-Swin and Swin, and backbones alone. The last
form starts a model with parts of a detector on another backbone, such as those of Detectron2's model zoo: what fits is
taken, the rest is initialised.
"""

from __future__ import annotations

import argparse

from ..checkpoint import PARTS, account, convert_file, summary
from ..config import load_config
from ..d2 import instantiate
from .entry import command


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help=".pth, .pt, .safetensors or Detectron2's .pkl")
    parser.add_argument("output", metavar="OUTPUT", help=".pth, .pt or .safetensors")
    parser.add_argument("--config-file", metavar="FILE", help="refuse weights that do not fit this config's model")
    parser.add_argument("--to", choices=["elsa_det", "mmdetection"], default="elsa_det", help="default: elsa_det")
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=[],
        metavar="PART,…",
        help=f"take these only, as far as they fit the config: {', '.join(PARTS)}",
    )
    parser.add_argument("--backbone", metavar="FILE", help="with --parts: where the backbone is taken from")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument("--summary", action="store_true", help="print the counts only")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="changes to the config")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 if OUTPUT was written, 1 if not."""
    args = argument_parser().parse_intermixed_args(argv)
    model = None
    if args.config_file is not None:
        model = instantiate(load_config(args.config_file, args.opts).model)
    conversion = convert_file(
        args.input,
        args.output,
        model=model,
        parts=args.parts,
        backbone=args.backbone,
        to_mmdetection=args.to == "mmdetection",
        overwrite=args.overwrite,
    )
    if not args.summary:
        print(*account(conversion), sep="\n")
    print(f"{args.output} written from {args.input}\n{summary(conversion)}")
    return 0
