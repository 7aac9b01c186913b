"""Own data is looked through before a training meets their faults."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from ..d2 import DatasetCatalog, MetadataCatalog, comm
from ..data.coco_check import AUTO, DROPPED, HEADERS, NAMES, NOTE, PIXELS, CocoReport, Finding, check_coco
from ..data.own_coco import sources
from ..data.semantic import label_encoding
from ..data.semantic.check import check_pairs
from ..errors import UserError
from .datasets import dataset_names

OFF = "off"
_LEVELS = (OFF, AUTO, NAMES, HEADERS, PIXELS)


def check_own_data(cfg: Any, look: str | None = None) -> list[str]:
    """Check the COCO-format files and the label folders that a config names, as ``train.check_data`` says.

    Registered datasets are known, and are not checked. The main process checks, and all of a job raise.

    Args:
        cfg: the config.
        look: "auto", "names", "headers" or "pixels", see :func:`elsa_det.data.coco_check.check_coco` and
            :func:`elsa_det.data.semantic.check.check_pairs`, or "off"; default: :func:`check_level`.

    Returns:
        A line for each file and for each kind of objects that are dropped, with counts; empty on other processes.

    Raises:
        UserError: training would stop or learn wrong things.
        FileNotFoundError: a file or folder is not there.
    """
    look = check_level(cfg) if look is None else look
    if look == OFF:
        return []
    lines: list[str] = []
    failure = None
    if comm.is_main_process():
        try:
            reports = [check_coco(json_file, image_root, look=look) for json_file, image_root in own_files(cfg)]
            for report in reports:
                report.raise_for_errors()
                lines += _lines(report)
            _require_objects(reports[: len(own_files(cfg, ["train"]))])
            for name in own_label_folders(cfg):
                pairs = check_pairs(DatasetCatalog.get(name), label_encoding(name), name, look)
                pairs.raise_for_errors()
                lines.append(f"{name}: {pairs.images} images with label maps, {pairs.decoded} of the maps decoded")
        except (UserError, FileNotFoundError) as error:
            failure = error
    failure = comm.all_gather(failure)[0]
    if failure is not None:
        raise failure
    return lines


def check_level(cfg: Any) -> str:
    """``train.check_data``; "auto" where the config has none.

    Raises:
        UserError: it is something else than one of the levels.
    """
    look = OmegaConf.select(cfg, "train.check_data", default=AUTO)
    look = OFF if look is False else look  # as YAML, and with it the command line, reads off
    if look not in _LEVELS:
        raise UserError(f"train.check_data={look!r} must be one of {', '.join(_LEVELS)}")
    return look


def own_label_folders(cfg: Any) -> list[str]:
    """The registered names of own folders of images and label maps that a config names, each once."""
    found = []
    for part in ("train", "test"):
        if OmegaConf.select(cfg, f"dataset.{part}.label_root") is not None:
            found += dataset_names(cfg, part)
    return list(dict.fromkeys(found))


def own_files(cfg: Any, parts: Sequence[str] = ("train", "test")) -> list[tuple[str, str]]:
    """The (json, image folder) pairs of own COCO-format data that a config names, each once."""
    found = []
    for part in parts:
        group = OmegaConf.select(cfg, f"dataset.{part}")
        if group is None or group.get("json_file") is None:
            continue
        names = dataset_names(cfg, part)
        if all(MetadataCatalog.get(name).get("evaluator_type") == "coco" for name in names):
            found += [(source.json_file, source.image_root) for source in sources(cfg.dataset, part)]
    return list(dict.fromkeys(found))


def _require_objects(reports: Sequence[CocoReport]) -> None:
    if reports and not any(sum(report.instances.values()) for report in reports):
        raise UserError(
            f"there is nothing to train on: none of the {sum(report.images for report in reports)} images in "
            f"{', '.join(report.json_file for report in reports)} has an object that is used. Name the file with the "
            f"annotations; tools/check_data.py --json {reports[0].json_file} --images {reports[0].image_root} says "
            "what was left out"
        )


def _lines(report: CocoReport) -> list[str]:
    objects = sum(report.instances.values())
    lines = [
        f"{report.json_file}: {report.images} images, {report.without_objects} of them without objects; {objects} "
        f"objects of {sum(count > 0 for count in report.instances.values())} classes, {report.crowds} crowd regions"
    ]
    alike: dict[tuple[str, str], list[Finding]] = {}
    for finding in report.of(DROPPED) + report.of(NOTE):  # kinds that differ in their numbers only are one here
        alike.setdefault((finding.severity, re.sub(r"[\d.]+", "#", finding.kind)), []).append(finding)
    for (severity, _), findings in alike.items():
        of_kind = f" ({len(findings)} of this kind)" if len(findings) > 1 else ""
        where = f"{', such as' if of_kind else ':'} {findings[0].where}"
        lines.append(f"{report.json_file}: {severity}: {findings[0].kind}{of_kind}{where}")
    return lines
