"""A model that does what its images ask for, and batches that ask."""

from __future__ import annotations

import torch
from torch import nn

from elsa_det import d2


class Faulty(nn.Module):
    """With batch norm, whose running statistics a forward pass moves. An image may have a "fault"."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh())
        self.head = nn.Linear(7, 2)

    def forward(self, batch):
        x = torch.stack([item["image"] for item in batch])
        faults = {item.get("fault") for item in batch}
        out = self.head(self.net(x))
        if "refuse" in faults:
            raise FloatingPointError("scores are not finite")
        if "crash" in faults:
            raise KeyError("no such thing")
        losses = {"loss_a": out[:, 0].square().mean(), "loss_b": (out[:, 1] - 1).abs().mean()}
        if "nan" in faults:
            losses["loss_a"] = losses["loss_a"] * torch.nan
        if "gradient" in faults:  # sqrt has an infinite slope at 0: a finite loss with a gradient that is not
            losses["loss_b"] = losses["loss_b"] + (self.head.bias * 0).abs().sum().sqrt()
        return losses


def batches(faults, seed=1, size=3):
    """One for each of the faults (None: a good one), in the second of its images."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number, fault in enumerate(faults):
        batch = []
        for i in range(size):
            instances = d2.Instances((9, 8), gt_classes=torch.tensor([2, i]), gt_boxes=d2.Boxes(torch.ones(2, 4) * i))
            item = {"file_name": f"{number}_{i}.jpg", "image_id": 10 * number + i, "height": 90, "width": 80}
            batch.append({**item, "image": torch.randn(5, generator=generator), "instances": instances})
        if fault is not None:
            batch[1]["fault"] = fault
        made.append(batch)
    return made


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    """Whether two states are equal bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
