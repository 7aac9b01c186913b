"""The published segmentor end to end: its recorded logits, predictions, losses and gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from segmentor_cases import segmentor_config

from elsa_det.checkpoint import convert_segmentor_state_dict
from elsa_det.d2 import instantiate

GOLDEN = torch.load(Path(__file__).parents[2] / "golden" / "upernet_full.pt", weights_only=True)
CONFIG = GOLDEN["config"]


@pytest.fixture(scope="module")
def model():
    backbone, decode, auxiliary = (CONFIG[part] for part in ("backbone", "decode_head", "auxiliary_head"))
    kept = ("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "drop_path_rate", "group_width")
    cfg = segmentor_config("upernet", **{key: backbone[key] for key in kept}).model
    cfg.decode_head.num_classes = decode["num_classes"]
    cfg.decode_head.channels = decode["channels"]
    cfg.decode_head.average_over_valid = False  # as published
    cfg.auxiliary_head.channels = auxiliary["channels"]
    cfg.pixel_mean, cfg.pixel_std = [0.0] * 3, [1.0] * 3  # the recorded images are normalised
    cfg.return_logits = True
    model = instantiate(cfg)
    model.load_state_dict(convert_segmentor_state_dict(GOLDEN["state_dict"]))
    return model.eval()


def inputs():
    height, width = GOLDEN["img_meta"]["ori_shape"][:2]
    return [{"image": image, "height": height, "width": width} for image in GOLDEN["img"]]


@torch.no_grad()
def test_logits_of_both_heads(model):
    """In double precision, so that of the two roundings in the last digits only the recording's is left."""
    image, precise = GOLDEN["img"].double(), copy.deepcopy(model).double()
    decoded, auxiliary = precise.predict_logits(image), precise.auxiliary_head(precise.backbone(image))
    torch.testing.assert_close(decoded, GOLDEN["decode_logits"].double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(auxiliary, GOLDEN["auxiliary_logits"].double(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_whole_image(model):
    results = model(inputs())
    rows = GOLDEN["rows_ori_size"]
    torch.testing.assert_close(
        results[0]["sem_seg"].softmax(0)[:, rows], GOLDEN["probs_ori_size_img0"][0], rtol=0, atol=1e-5
    )
    for result, expected in zip(results, GOLDEN["pred_ori_size"], strict=True):
        # Where two classes are level to the last digits, either is right.
        different = result["sem_seg_labels"] != expected.long()
        gap = result["sem_seg"].topk(2, dim=0).values.diff(dim=0)[0].abs()
        assert (gap[different] < 1e-4).all()
        assert different.sum() <= 2


@torch.no_grad()
def test_logits_at_the_size_of_the_input(model, monkeypatch):
    """What follows the recorded logits, which the test above compares with the network's."""
    monkeypatch.setattr(model, "predict_logits", lambda image: GOLDEN["decode_logits"][: len(image)])
    (result,) = model([{"image": GOLDEN["img"][0]}])
    rows = GOLDEN["rows_input_size"]
    torch.testing.assert_close(result["sem_seg"][:, rows], GOLDEN["seg_logits_input_size"][0], rtol=0, atol=5e-6)


def test_losses_and_gradients(model):
    train = GOLDEN["train"]
    labels = train["gt_semantic_seg"].squeeze(1)
    losses = model.losses([{"image": x, "sem_seg": y} for x, y in zip(GOLDEN["img"], labels, strict=True)])
    expected = train["losses"]
    assert losses["loss_sem_seg"].item() == pytest.approx(expected["decode.loss_seg"], abs=1e-5)
    assert losses["loss_aux"].item() == pytest.approx(expected["aux.loss_seg"], abs=1e-5)
    total = sum(losses.values())
    assert total.item() == pytest.approx(train["total_loss"], abs=1e-5)
    total.backward()
    # Norms of gradients, under the names that the weights' own conversion gives.
    names = convert_names(train["grad_norm"])
    own = dict(model.named_parameters())
    assert set(names.values()) == set(own)
    for published, name in names.items():
        assert own[name].grad.norm().item() == pytest.approx(train["grad_norm"][published], rel=1e-3, abs=1e-6), name
    model.zero_grad()


def convert_names(published):
    from elsa_det.checkpoint.segmentor import convert_segmentor

    renamed = convert_segmentor(GOLDEN["state_dict"]).renamed
    return {key: renamed[key] for key in published}


@torch.no_grad()
def test_published_average_shrinks_with_what_is_ignored(model):
    """Ours, by default, does not: the two differ by the share of valid pixels."""
    labels = GOLDEN["train"]["gt_semantic_seg"].squeeze(1)
    batch = [{"image": x, "sem_seg": y} for x, y in zip(GOLDEN["img"], labels)]
    published = model.losses(batch)["loss_sem_seg"]
    model.decode_head.average_over_valid = True
    ours = model.losses(batch)["loss_sem_seg"]
    model.decode_head.average_over_valid = False
    share = (labels != 255).float().mean()
    assert 0 < share < 1
    torch.testing.assert_close(published, ours * share)
    logits = F.interpolate(GOLDEN["decode_logits"], size=labels.shape[-2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels.long(), ignore_index=255), rtol=0, atol=1e-5)
