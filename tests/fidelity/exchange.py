"""Files that go from one provider to the other: a checkpoint in the middle of training, and the config beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fidelity.cases_detectors import CLASSES, batch, tested, trained
from fidelity.cases_layers import Pyramid
from fidelity.harness import RECORDS, Case, fill
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig

from elsa_det import d2

FOLDER = RECORDS / "exchange"
CASE = Case(
    "exchange",
    "outputs",
    dict,
    (),
    "",
    rtol=1e-4,
    atol=1e-5,
    why="float32 through a detector and two steps of training",
)
LEVELS = ["p3", "p4", "p5"]


def config() -> DictConfig:
    """Mask R-CNN of a few kilobytes, its optimizer and schedule: calls, names, tuples, references."""
    call = d2.LazyCall
    pooler = call(d2.ROIPooler)(
        output_size=4, scales=(1 / 8, 1 / 16, 1 / 32), sampling_ratio=0, pooler_type="ROIAlignV2"
    )
    roi_heads = call(d2.StandardROIHeads)(
        num_classes=CLASSES,
        batch_size_per_image=16,
        positive_fraction=0.25,
        proposal_matcher=call(d2.Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False),
        box_in_features=LEVELS,
        box_pooler=pooler,
        box_head=call(d2.FastRCNNConvFCHead)(
            input_shape=call(d2.ShapeSpec)(channels=8, height=4, width=4), conv_dims=[], fc_dims=[16]
        ),
        box_predictor=call(d2.FastRCNNOutputLayers)(
            input_shape=call(d2.ShapeSpec)(channels=16),
            box2box_transform=call(d2.Box2BoxTransform)(weights=(10, 10, 5, 5)),
            num_classes="${..num_classes}",
            test_score_thresh=0.05,
            test_topk_per_image=6,
        ),
        mask_in_features="${.box_in_features}",
        mask_pooler=pooler,
        mask_head=call(d2.MaskRCNNConvUpsampleHead)(
            input_shape=call(d2.ShapeSpec)(channels=8, width=4, height=4),
            num_classes="${..num_classes}",
            conv_dims=[8, 8],
        ),
    )
    rpn = call(d2.RPN)(
        in_features=[*LEVELS, "p6"],
        head=call(d2.StandardRPNHead)(in_channels=8, num_anchors=3),
        anchor_generator=call(d2.DefaultAnchorGenerator)(
            sizes=[[12], [24], [48], [64]], aspect_ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64], offset=0.0
        ),
        anchor_matcher=call(d2.Matcher)(thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=call(d2.Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=32,
        positive_fraction=0.5,
        pre_nms_topk=(100, 50),
        post_nms_topk=(40, 20),
    )
    model = call(d2.GeneralizedRCNN)(
        backbone=call(d2.FPN)(
            bottom_up=call(Pyramid)(),
            in_features=["res3", "res4", "res5"],
            out_channels=8,
            top_block=call(d2.LastLevelMaxPool)(),
        ),
        proposal_generator=rpn,
        roi_heads=roi_heads,
        pixel_mean=[103.5, 116.3, 123.7],
        pixel_std=[57.4, 57.1, 58.4],
        input_format="BGR",
    )
    optimizer = call(torch.optim.SGD)(
        params=call(d2.get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0, bias_lr_factor=2.0),
        lr=1e-3,
        momentum=0.9,
    )
    schedule = call(d2.WarmupParamScheduler)(
        scheduler=call(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[6, 8]),
        warmup_factor=0.1,
        warmup_length=0.2,
        warmup_method="linear",
    )
    train = {
        "seed": 3,
        "amp": {"enabled": False},
        "checkpointer": {"period": 5, "max_to_keep": None},
        "output_dir": "x y",
    }
    return DictConfig({"model": model, "optimizer": optimizer, "lr_multiplier": schedule, "train": train})


def _parts(cfg: DictConfig) -> tuple[Any, Any, Any]:
    model = d2.instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = d2.instantiate(cfg.optimizer)
    schedule = d2.hooks.LRScheduler(optimizer, d2.instantiate(cfg.lr_multiplier))
    return model, optimizer, schedule


def _train(model: Any, optimizer: Any, schedule: Any, checkpointer: Any, start: int, end: int) -> dict[str, Any]:
    trainer = d2.SimpleTrainer(model, [batch()] * end, optimizer)
    trainer.register_hooks([schedule])
    if start:
        checkpointer.add_checkpointable("trainer", trainer)
        checkpointer.load(checkpointer.get_checkpoint_file())
    torch.manual_seed(start)
    trainer.train(start, end)
    if not start:
        checkpointer.add_checkpointable("trainer", trainer)
        checkpointer.save("model", iteration=end - 1)
    return {name: [list(pair) for pair in trainer.storage.history(name).values()] for name in ("lr", "total_loss")}


def write(folder: Path) -> None:
    """Train for two steps, save the checkpoint and the config."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = config()
    d2.LazyConfig.save(cfg, str(folder / "config.yaml"))
    model, optimizer, schedule = _parts(cfg)
    fill(model, 0.25)
    _train(model, optimizer, schedule, d2.DetectionCheckpointer(model, str(folder)), 0, 2)


def read(folder: Path) -> dict[str, Any]:
    """What comes of the files: detections, losses, gradients, and two more steps of the training."""
    model, optimizer, schedule = _parts(d2.LazyConfig.load(str(folder / "config.yaml")))
    d2.DetectionCheckpointer(model).load(str(folder / "model.pth"))
    out = {"detections": tested(model, batch()), "step": trained(model, batch())}
    model.zero_grad()
    checkpointer = d2.DetectionCheckpointer(model, str(folder), save_to_disk=False)
    out["more"] = _train(model, optimizer, schedule, checkpointer, 2, 4)
    out["weights"] = {name: float(value.double().sum()) for name, value in model.state_dict().items()}
    out["momentum"] = [
        float(state["momentum_buffer"].double().sum()) for state in optimizer.state_dict()["state"].values()
    ]
    return out


def there_and_back(source: Path, target: Path) -> tuple[list[str], list[str]]:
    """Read a provider's files and write them again; what the config and the checkpoint say, before and after."""
    cfg = d2.LazyConfig.load(str(source / "config.yaml"))
    d2.LazyConfig.save(cfg, str(target / "config.yaml"))
    model, optimizer, schedule = _parts(cfg)
    trainer = d2.SimpleTrainer(model, [], optimizer)
    trainer.register_hooks([schedule])
    trainer.max_iter = 10
    schedule.before_train()
    rest = d2.DetectionCheckpointer(model, str(source), trainer=trainer).load(str(source / "model.pth"))
    d2.DetectionCheckpointer(model, str(target), trainer=trainer).save("model", iteration=rest["iteration"])
    return _content(source), _content(target)


def _content(folder: Path) -> list[str]:
    lines = (folder / "config.yaml").read_text().splitlines()
    content = torch.load(folder / "model.pth", weights_only=True)
    state = content["trainer"]
    texts = [f"{name} {value.sum().item()}" for name, value in content["model"].items()]
    texts += [f"{key} {value}" for key, value in sorted(content.items()) if key not in ("model", "trainer")]
    texts += [str(state["iteration"]), str(state["hooks"]), str(state["optimizer"])]
    return [line for line in lines if not line.startswith("#")] + texts
