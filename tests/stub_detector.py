"""A detector that answers without looking, and a LazyConfig around it: for tests of what lies around a model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from elsa_det.d2 import Boxes, Instances

CONFIG = """
from elsa_det.d2 import DatasetMapper, LazyCall as L, MetadataCatalog, build_detection_test_loader
from elsa_det.d2 import get_detection_dataset_dicts, transforms as T
from stub_detector import StubDetector

MetadataCatalog.get("stub_val").thing_classes = ["cat", "dog"]
model = L(StubDetector)(num_classes=2)
dataloader = dict(
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="stub_val"),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=20, max_size=60)],
            image_format="RGB",
        ),
    )
)
train = dict(device="cpu", init_checkpoint="")
"""


class StubDetector(nn.Module):
    """Finds a dog in the left half (score ``weight[1]``) and a cat in the top half (score ``weight[0]``)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes))
        self.inputs: list[dict] = []

    def forward(self, batch: list[dict]) -> list[dict]:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.inputs += batch
        answers = []
        for entry in batch:
            height, width = entry["height"], entry["width"]
            masks = torch.zeros(2, height, width, dtype=torch.bool)
            masks[0, :, : width // 2] = True
            masks[1, : height // 2] = True
            found = Instances((height, width))
            found.pred_boxes = Boxes(torch.tensor([[0, 0, width // 2, height], [0, 0, width, height // 2]]).float())
            found.pred_classes = torch.tensor([1, 0])
            found.scores = self.weight[[1, 0]]
            found.pred_masks = masks
            answers.append({"instances": found})
        return answers


def write_stub(folder: Path) -> tuple[Path, Path]:
    """Write ``config.py`` and ``model.pth``, with which the dog scores 0.9 and the cat 0.3."""
    config, checkpoint = folder / "stub_config.py", folder / "model.pth"
    config.write_text(CONFIG, encoding="utf-8")
    torch.save({"model": {"weight": torch.tensor([0.3, 0.9])}, "iteration": 7}, checkpoint)
    return config, checkpoint
