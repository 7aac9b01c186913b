"""The names of a two-stage detector's parts: mmdetection's (2.x, 3.x) and ours, which are Detectron2's."""

from __future__ import annotations

import re
from collections.abc import Iterator

# mmdetection's module, ours, and where ours starts to count. "{n}" is a number, "{s}" the stage of a cascade (".0", or
# nothing). Where several published names stand for one of ours, the first is written when names are turned back.
_MODULES = (
    ("neck.lateral_convs.{n}.conv", "backbone.fpn_lateral{n}", 2),
    ("neck.lateral_convs.{n}.bn", "backbone.fpn_lateral{n}.norm", 2),
    ("neck.lateral_convs.{n}.gn", "backbone.fpn_lateral{n}.norm", 2),
    ("neck.fpn_convs.{n}.conv", "backbone.fpn_output{n}", 2),
    ("neck.fpn_convs.{n}.bn", "backbone.fpn_output{n}.norm", 2),
    ("neck.fpn_convs.{n}.gn", "backbone.fpn_output{n}.norm", 2),
    ("rpn_head.rpn_conv", "proposal_generator.rpn_head.conv", 0),
    ("rpn_head.rpn_conv.{n}.conv", "proposal_generator.rpn_head.conv.conv{n}", 0),
    ("rpn_head.rpn_cls", "proposal_generator.rpn_head.objectness_logits", 0),
    ("rpn_head.rpn_reg", "proposal_generator.rpn_head.anchor_deltas", 0),
    ("roi_head.bbox_head{s}.shared_convs.{n}.conv", "roi_heads.box_head{s}.conv{n}", 1),
    ("roi_head.bbox_head{s}.shared_convs.{n}.bn", "roi_heads.box_head{s}.conv{n}.norm", 1),
    ("roi_head.bbox_head{s}.shared_convs.{n}.gn", "roi_heads.box_head{s}.conv{n}.norm", 1),
    ("roi_head.bbox_head{s}.shared_fcs.{n}", "roi_heads.box_head{s}.fc{n}", 1),
    ("roi_head.bbox_head{s}.fc_cls", "roi_heads.box_predictor{s}.cls_score", 0),
    ("roi_head.bbox_head{s}.fc_reg", "roi_heads.box_predictor{s}.bbox_pred", 0),
    ("roi_head.mask_head{s}.convs.{n}.conv", "roi_heads.mask_head{s}.mask_fcn{n}", 1),
    ("roi_head.mask_head{s}.convs.{n}.bn", "roi_heads.mask_head{s}.mask_fcn{n}.norm", 1),
    ("roi_head.mask_head{s}.convs.{n}.gn", "roi_heads.mask_head{s}.mask_fcn{n}.norm", 1),
    ("roi_head.mask_head{s}.upsample", "roi_heads.mask_head{s}.deconv", 0),
    ("roi_head.mask_head{s}.conv_logits", "roi_heads.mask_head{s}.predictor", 0),
)


def _pattern(module: str) -> re.Pattern[str]:
    escaped = re.escape(module).replace(r"\{s\}", r"(?P<s>(?:\.\d+)?)").replace(r"\{n\}", r"(?P<n>\d+)")
    return re.compile(escaped + r"\.(?P<parameter>\w+)")


def _rules(forward: bool) -> Iterator[tuple[re.Pattern[str], str, int]]:
    for published, ours, first in _MODULES:
        source, target = (published, ours) if forward else (ours, published)
        yield _pattern(source), f"{target}.{{parameter}}", first if forward else -first


_TO_OURS, _TO_MMDETECTION = list(_rules(forward=True)), list(_rules(forward=False))


def _rename(key: str, rules: list[tuple[re.Pattern[str], str, int]]) -> str | None:
    for pattern, template, shift in rules:
        if match := pattern.fullmatch(key):
            found = match.groupdict()
            number = int(found.get("n") or 0) + shift
            if number < 0:
                return None
            return template.format(s=found.get("s") or "", n=number, parameter=found["parameter"])
    return None


def to_ours(key: str) -> str | None:
    """Our name for mmdetection's name of a weight of the neck, the RPN or the heads; None for any other."""
    return _rename(key, _TO_OURS)


def to_mmdetection(key: str) -> str | None:
    """The opposite of :func:`to_ours`."""
    return _rename(key, _TO_MMDETECTION)
