"""Boxes, masks, instances and image lists."""

from __future__ import annotations

import numpy as np
import torch
from fidelity.harness import case, digest, error_of, generator, of_instances, random_boxes

from elsa_det import d2

POLYGONS = [
    [[2.0, 3.0, 20.5, 4.0, 18.0, 22.0, 3.0, 18.0]],
    [[5.0, 5.0, 12.0, 5.0, 9.0, 14.0], [20.0, 20.0, 30.0, 21.0, 28.0, 29.5, 21.0, 27.0]],
    [[0.0, 0.0, 39.0, 0.0, 39.0, 31.0, 0.0, 31.0]],
]


@case("Boxes", what="areas, clipping, non-empty, inside, centres, scaling, indexing, joining", rtol=1e-6, atol=1e-5)
def boxes():
    made = d2.Boxes(torch.cat([random_boxes(5, 40, 50, 1) * 1.4 - 8, torch.tensor([[3.0, 4, 3, 9]])]))
    clipped, scaled = made.clone(), made.clone()
    clipped.clip((40, 50))
    edges = d2.Boxes([[-5, 0, 9, 9], [-5.5, 0, 9, 9], [0, -5, 9, 9], [3, 3, 55, 44], [2, 2, 54, 44], [0, 0, 50, 40]])
    scaled.scale(0.5, 3.0)
    return {
        "area": made.area(),
        "clipped": clipped.tensor,
        "scaled": scaled.tensor,
        "nonempty": made.nonempty(),
        "wide": made.nonempty(threshold=9),
        "inside": made.inside_box((40, 50)),
        "edges": [edges.inside_box((40, 50)), edges.inside_box((40, 50), 5)],
        "near": made.inside_box((40, 50), 5),
        "centers": made.get_centers(),
        "joined": d2.Boxes.cat([made[1:3], made[0]]).tensor,
        "nothing": d2.Boxes.cat([]).tensor,
        "mask": made[made.area() > 200].tensor,
        "each": [list(map(float, box)) for box in made],
        "text": repr(made[:1]),
        "from_list": d2.Boxes([[1, 2, 3, 4]]).tensor,
        "from_integers": d2.Boxes(torch.tensor([[1, 2, 3, 4]])).tensor,
        "empty": list(d2.Boxes([]).tensor.shape),
        "not_finite": error_of(lambda: d2.Boxes([[0, 0, float("nan"), 1]]).clip((4, 4))),
    }


@case("BoxMode", what="members and conversions of lists, tuples, arrays, tensors", rtol=1e-6, atol=1e-6)
def box_modes():
    xyxy, xywh, rotated = d2.BoxMode.XYXY_ABS, d2.BoxMode.XYWH_ABS, d2.BoxMode.XYWHA_ABS
    out = {"members": [f"{m.name}={m.value}" for m in d2.BoxMode]}
    for name, box in {
        "list": [1, 2, 5.5, 7],
        "tuple": (1.0, 2.0, 5.5, 7.0),
        "array": np.array([[1.0, 2, 5, 7]]),
        "tensor": torch.tensor([[1.0, 2.0, 5.0, 7.0]]),
        "integers": torch.tensor([[1, 2, 5, 7]]),
    }.items():
        for start, end in ((xyxy, xywh), (xywh, xyxy), (xyxy, xyxy)):
            result = d2.BoxMode.convert(box, start, end)
            out[f"{name}_{start.name}_{end.name}"] = {"kind": type(result).__name__, "value": result}
    out["to_itself"] = d2.BoxMode.convert([1, 2, 3, 4], rotated, rotated)
    out["error"] = error_of(lambda: d2.BoxMode.convert([1, 2, 3], xyxy, xywh))
    return out


@case("BitMasks", what="from polygons, boxes, cropping and resizing, non-empty, indexing, joining")
def bit_masks():
    made = d2.BitMasks.from_polygon_masks(POLYGONS, 32, 40)
    made = d2.BitMasks.cat([made, d2.BitMasks(torch.zeros(1, 32, 40, dtype=torch.bool))])
    crops = made.crop_and_resize(
        torch.tensor([[1.0, 2, 22, 23], [4.5, 4.5, 30.5, 30], [-3, -2, 50, 40], [0, 0, 5, 5]]), 14
    )
    from_array = d2.BitMasks(np.arange(24).reshape(2, 3, 4) % 5)
    return {
        "masks": digest(made.tensor),
        "areas": made.tensor.sum((1, 2)),
        "boxes": made.get_bounding_boxes().tensor,
        "nonempty": made.nonempty(),
        "crops": crops,
        "one": digest(made[1].tensor),
        "some": digest(made[torch.tensor([2, 0])].tensor),
        "number": len(made),
        "from_array": from_array.tensor,
        "each": [digest(mask) for mask in made],
        "text": repr(made),
    }


@case(
    "PolygonMasks",
    what="boxes, areas, cropping and resizing, non-empty, indexing, joining, errors",
    rtol=1e-6,
    atol=1e-6,
)
def polygon_masks():
    made = d2.PolygonMasks(POLYGONS)
    crops = made.crop_and_resize(torch.tensor([[1.0, 2, 22, 23], [4.5, 4.5, 30.5, 30], [-3, -2, 50, 40]]), 14)
    return {
        "boxes": made.get_bounding_boxes().tensor,
        "area": made.area(),
        "nonempty": made.nonempty(),
        "crops": crops,
        "number": len(made),
        "picked": [
            made[1].polygons[0],
            made[[2, 0]].polygons[1],
            made[torch.tensor([False, True, False])].polygons[0],
            made[1:].polygons[1],
        ],
        "joined": [len(d2.PolygonMasks.cat([made, made[:1]])), repr(made)],
        "each": [len(polygons) for polygons in made],
        "none": made[torch.zeros(3, dtype=torch.bool)].get_bounding_boxes().tensor,
        "errors": [error_of(lambda: d2.PolygonMasks([1, 2])), error_of(lambda: d2.PolygonMasks([[[1, 2, 3, 4]]]))],
    }


@case("Instances", what="fields, indexing, joining, devices, errors, text")
def instances():
    made = d2.Instances(
        (30, 40), pred_boxes=d2.Boxes(random_boxes(4, 30, 40, 1)), scores=torch.rand(4, generator=generator(2))
    )
    made.names = ["a", "b", "c", "d"]
    made.set("gt_masks", d2.PolygonMasks(POLYGONS + POLYGONS[:1]))
    with_names, made = made, d2.Instances((30, 40), **{k: v for k, v in made.get_fields().items() if k != "names"})
    masked = made[made.scores > made.scores.median()]
    joined = d2.Instances.cat([made, masked])
    twice = d2.Instances.cat([with_names[1:], with_names[:2]])
    copied = d2.Instances((30, 40), **made.get_fields())
    copied.remove("scores")
    return {
        "all": of_instances(made),
        "masked_scores": masked.scores,
        "one": of_instances(made[2]),
        "last": of_instances(made[-1]),
        "slice": of_instances(made[1:3]),
        "joined": {"names": twice.names, "scores": joined.scores, "number": len(joined)},
        "has": [made.has("scores"), copied.has("names"), sorted(copied.get_fields())],
        "text": str(d2.Instances((3, 4), a=torch.tensor([1]))),
        "to": with_names.to("cpu").names,
        "by_mask": error_of(lambda: with_names[made.scores > 0]),
        "errors": [
            error_of(lambda: made.other),
            error_of(lambda: made.set("few", [1])),
            error_of(lambda: made[9]),
            error_of(lambda: len(d2.Instances((1, 2)))),
            error_of(lambda: setattr(made, "image_size", (1, 1))),
            error_of(lambda: iter(made)),
        ],
    }


@case("ImageList", what="padded batch, sizes, divisibility, padding value, square padding, indexing")
def image_list():
    images = [torch.randint(1, 9, (2, h, w), generator=generator(h)).float() for h, w in ((5, 7), (6, 4), (3, 9))]
    out = {}
    for name, arguments in {
        "plain": {},
        "divisible": {"size_divisibility": 4, "pad_value": -1.5},
        "square": {"padding_constraints": {"square_size": 12, "size_divisibility": 4}},
        "constraint": {"padding_constraints": {"size_divisibility": 8}},
    }.items():
        made = d2.ImageList.from_tensors(images, **arguments)
        out[name] = {
            "tensor": made.tensor,
            "sizes": [list(size) for size in made.image_sizes],
            "second": made[1],
            "number": len(made),
        }
    single = d2.ImageList.from_tensors(images[:1], 4)
    labels = d2.ImageList.from_tensors([image[0].long() for image in images], pad_value=255)
    return out | {
        "single": single.tensor,
        "labels": labels.tensor,
        "device": str(single.device),
        "to": single.to(torch.float64).tensor,
    }
