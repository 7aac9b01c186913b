"""Small published detectors for tests: recorded weights, and what can be made of them."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import torch

import elsa_det

GOLDEN = Path(__file__).parent / "golden" / "mask_rcnn.pt.gz"


def recorded():
    """The recorded Mask R-CNN, a new copy each time."""
    return torch.load(io.BytesIO(gzip.decompress(GOLDEN.read_bytes())), weights_only=True)


def mask_rcnn():
    """Its weights, with the published names."""
    return recorded()["state_dict"]


def cascade(stages=3, masks=True):
    """A cascade with the published names, made from the Mask R-CNN: four convolutions with norm and one fc a stage."""
    torch.manual_seed(1)
    single = mask_rcnn()
    weights = {key: value for key, value in single.items() if not key.startswith("roi_head.")}
    channels = weights["neck.fpn_convs.0.conv.weight"].shape[0]
    for stage in range(stages):
        box = f"roi_head.bbox_head.{stage}"
        for n in range(4):
            weights[f"{box}.shared_convs.{n}.conv.weight"] = torch.randn(channels, channels, 3, 3)
            for name in ("weight", "bias", "running_mean"):
                weights[f"{box}.shared_convs.{n}.bn.{name}"] = torch.randn(channels)
            weights[f"{box}.shared_convs.{n}.bn.running_var"] = torch.rand(channels)
            weights[f"{box}.shared_convs.{n}.bn.num_batches_tracked"] = torch.tensor(7)
        for key, value in single.items():
            if key.startswith(("roi_head.bbox_head.shared_fcs.0.", "roi_head.bbox_head.fc_")):
                weights[key.replace("bbox_head", f"bbox_head.{stage}")] = value + stage
            if key.startswith("roi_head.mask_head.") and masks:
                weights[key.replace("mask_head", f"mask_head.{stage}")] = value + stage
    return weights


def config(*overrides):
    """The recipe of ELSA-T's Mask R-CNN, with the widths of the recorded one by plain changes."""
    return shrunk(elsa_det.get_config("coco/elsa_t_mrcnn_1x.py", ["train.device=cpu", *overrides]))


def shrunk(cfg):
    """Change the widths of a Mask R-CNN's config to those of the recorded one."""
    published = recorded()["config"]
    backbone, roi_head = published["backbone"], published["roi_head"]
    box, mask = roi_head["bbox_head"], roi_head["mask_head"]
    for name in ("embed_dim", "depths", "num_heads", "window_size", "group_width", "mlp_ratio", "qkv_bias"):
        cfg.model.backbone.bottom_up[name] = backbone[name]
    cfg.model.backbone.bottom_up.drop_path_rate = 0.0
    cfg.model.backbone.out_channels = published["neck"]["out_channels"]
    cfg.model.proposal_generator.head.conv_dims = [published["rpn_head"]["feat_channels"]]
    cfg.model.roi_heads.num_classes = box["num_classes"]
    cfg.model.roi_heads.box_head.fc_dims = [box["fc_out_channels"]] * 2
    cfg.model.roi_heads.mask_head.conv_dims = [mask["conv_out_channels"]] * (mask["num_convs"] + 1)
    return cfg
