"""What a check of a dataset found, as tables and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
from rich.table import Table

from ..d2 import DatasetCatalog, MetadataCatalog
from ..data import registered_coco
from ..data.coco_check import DROPPED, ERROR, CocoReport
from ..errors import UserError
from .contact_sheet import contact_sheet, evenly
from .datasets import dataset_names
from .drawing import draw_ground_truth
from .predictor import read_image

_STYLES = {ERROR: "bold red", DROPPED: "yellow"}


def datasets_of(cfg: Any) -> list[tuple[str, str]]:
    """The (json, image folder) pairs of a config's training and test data.

    Raises:
        UserError, FileNotFoundError: the config names no COCO-format data, or it is not there.
    """
    found: list[tuple[str, str]] = []
    for loader in ("train", "test"):
        for name in dataset_names(cfg, loader):
            metadata = MetadataCatalog.get(name)
            json_file, root = metadata.get("json_file"), metadata.get("image_root")
            if json_file is None or root is None:
                raise UserError(f"dataset {name} is not COCO-format: it was registered without a json")
            if (json_file, root) not in found:
                found.append((json_file, root))
    if not found:
        raise UserError("the config names no data")
    return found


def coco_tables(report: CocoReport, *, shown: int = 5) -> list[Table]:
    """What the data holds, the classes, and the faults with the first ``shown`` places of each kind."""
    holds = Table(show_header=False)
    holds.add_row("images", f"{report.images}")
    holds.add_row("images without objects", f"{report.without_objects} (left out of training)")
    holds.add_row("objects", f"{sum(report.instances.values())}")
    holds.add_row("crowd regions", f"{report.crowds} (not trained on, ignored in evaluation)")
    holds.add_row("small / medium / large", " / ".join(str(report.sizes[s]) for s in ("small", "medium", "large")))
    if report.image_sizes:
        widths, heights = zip(*report.image_sizes)
        holds.add_row("image sizes", f"{min(widths)} x {min(heights)} to {max(widths)} x {max(heights)}")
    tables = [holds]
    classes = Table("class", "objects", title="Classes", title_justify="left")
    for name, count in report.instances.most_common():
        classes.add_row(name, str(count))
    if report.instances:
        tables.append(classes)
    if report.findings:
        faults = Table("", "count", "what", "where", title="Faults", title_justify="left")
        for (severity, kind), findings in report.by_kind().items():
            where = "\n".join(finding.where for finding in findings[:shown])
            more = f"\n… and {len(findings) - shown} more" if len(findings) > shown else ""
            remedy = f"\n[dim]{findings[0].remedy}[/]" if findings[0].remedy else ""
            faults.add_row(severity, str(len(findings)), kind + remedy, where + more, style=_STYLES.get(severity))
        tables.append(faults)
    return tables


def coco_contact_sheet(report: CocoReport, path: str | Path, *, count: int = 24) -> None:
    """Draw the annotations of ``count`` images, spread evenly over the data, as training reads them.

    Raises:
        UserError: the data cannot be read, or the picture not be written.
    """
    name = registered_coco(None, report.json_file, report.image_root)
    try:
        entries = DatasetCatalog.get(name)
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(f"no contact sheet: {error}") from error
    metadata = MetadataCatalog.get(name)
    pictures = []
    for index in evenly(count, len(entries)):
        entry = entries[index]
        try:
            image = read_image(entry["file_name"])
        except (OSError, ValueError):
            continue  # reported by the check
        objects = len(entry["annotations"])
        pictures.append((draw_ground_truth(image, entry, metadata), f"{Path(entry['file_name']).name}: {objects}"))
    if not pictures:
        raise UserError("no contact sheet: none of the images can be read")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), contact_sheet(pictures)):
        raise UserError(f"the contact sheet cannot be written to {path}: use a name that ends with .png or .jpg")
