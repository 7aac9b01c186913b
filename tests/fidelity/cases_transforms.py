"""Augmentations: what they make of an image, boxes, polygons, points and a label map, after a seed."""

from __future__ import annotations

import numpy as np
import torch
from fidelity.harness import case, condensed, digest, error_of, of_instances
from PIL import Image

from elsa_det import d2

T = d2.transforms
HEIGHT, WIDTH = 36, 48


def image(kind: str = "uint8") -> np.ndarray:
    """Smooth colours with some noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    values = np.stack([x * 5, y * 7, (x * y) % 256], 2) + np.random.default_rng(0).integers(0, 9, (HEIGHT, WIDTH, 3))
    values = np.clip(values, 0, 255).astype(np.uint8)
    return values if kind == "uint8" else values.astype(np.float32) / 255


def labels() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return ((x // 12) + 4 * (y // 12)).astype(np.uint8)


BOXES = np.array([[2.0, 3, 20, 30], [10, 5, 47, 20], [30, 25, 40, 35.5]], dtype=np.float32)
POLYGON = np.array([[5.0, 5], [30, 8], [25, 30], [8, 28]])


def augmentations() -> dict:
    names = {
        "RandomFlip": T.RandomFlip(),
        "RandomFlip_vertical": T.RandomFlip(0.8, horizontal=False, vertical=True),
        "Resize": T.Resize((20, 30)),
        "Resize_square": T.Resize(25, Image.NEAREST),
        "RandomResize": T.RandomResize([(20, 30), (50, 40)]),
        "ResizeShortestEdge": T.ResizeShortestEdge((20, 24, 50), 60, "choice"),
        "ResizeShortestEdge_range": T.ResizeShortestEdge((20, 60), 70, "range"),
        "ResizeScale": T.ResizeScale(0.4, 1.7, 40, 40),
        "FixedSizeCrop": T.FixedSizeCrop((30, 60), pad=True, pad_value=99.0),
        "FixedSizeCrop_inside": T.FixedSizeCrop((20, 20), pad=False),
        "FixedSizeCrop_labels": T.FixedSizeCrop((50, 30), pad_value=7.0, seg_pad_value=254),
        "RandomCrop": T.RandomCrop("relative", (0.5, 0.7)),
        "RandomCrop_range": T.RandomCrop("relative_range", (0.4, 0.3)),
        "RandomCrop_absolute": T.RandomCrop("absolute", (20, 60)),
        "RandomCrop_absolute_range": T.RandomCrop("absolute_range", (10, 30)),
        "RandomCrop_CategoryAreaConstraint": T.RandomCrop_CategoryAreaConstraint("absolute", (14, 14), 0.4, 255),
        "RandomRotation": T.RandomRotation([-40, 50]),
        "RandomRotation_kept": T.RandomRotation([30, 75], expand=False, center=[[0.3, 0.3], [0.6, 0.7]]),
        "RandomRotation_choice": T.RandomRotation([0, 90, 17], sample_style="choice"),
        "RandomRotation_whole": T.RandomRotation([360], sample_style="choice"),
        "MinIoURandomCrop_high": T.MinIoURandomCrop(min_ious=(0.2, 0.5), min_crop_size=0.2),
        "RandomContrast": T.RandomContrast(0.5, 1.5),
        "RandomBrightness": T.RandomBrightness(0.5, 1.5),
        "RandomSaturation": T.RandomSaturation(0.3, 1.8),
        "RandomLighting": T.RandomLighting(20.0),
        "MinIoURandomCrop": T.MinIoURandomCrop(),
        "RandomApply": T.RandomApply(T.RandomContrast(0.2, 0.4), 0.6),
        "AugmentationList": T.AugmentationList(
            [T.RandomFlip(), T.ResizeShortestEdge(24), T.RandomCrop("relative", (0.8, 0.8))]
        ),
    }
    return names


@case(
    "transforms",
    what="every augmentation, four times after a seed: images, float ones scaled to 255 levels",
    rtol=1e-5,
    atol=1e-3,
)
def images_of_augmentations():
    out = {}
    for name, augmentation in augmentations().items():
        for seed in range(4):
            np.random.seed(seed)
            for kind in ("uint8", "float32"):
                if name == "RandomLighting" and kind == "uint8":
                    continue
                given = T.AugInput(image(kind), boxes=BOXES.copy(), sem_seg=labels())
                augmentation(given)
                made = given.image.astype(np.float64) * (255 if kind == "float32" else 1)
                out[f"{name}/{seed}/{kind}"] = {
                    "type": str(given.image.dtype),
                    "shape": list(made.shape),
                    "mean": float(made.mean()),
                    "values": torch.as_tensor(made.reshape(-1)[:: max(1, made.size // 23) | 1].astype(np.float32)),
                }
    return out


@case(
    "transforms",
    what="every augmentation, four times after a seed: boxes, polygons, points, label map, text",
    rtol=1e-5,
    atol=1e-4,
)
def places_of_augmentations():
    out = {}
    for name, augmentation in augmentations().items():
        if name != "RandomApply":  # has Python's own text, with an address
            out[f"{name}/text"] = repr(augmentation)
        for seed in range(4):
            np.random.seed(seed)
            given = T.AugInput(image(), boxes=BOXES.copy(), sem_seg=labels())
            transform = augmentation(given)
            result = {
                "boxes": given.boxes,
                "points": transform.apply_coords(POLYGON.copy()),
                "labels": digest(given.sem_seg),
            }
            result["next"] = float(np.random.uniform())
            try:
                polygons = transform.apply_polygons([POLYGON.copy()])
                result["polygons"] = [torch.as_tensor(np.ascontiguousarray(p)) for p in polygons]
            except (AttributeError, NotImplementedError):
                result["polygons"] = "none"
            try:
                result["back"] = transform.inverse().apply_coords(transform.apply_coords(POLYGON.copy()))
            except (NotImplementedError, AssertionError):
                result["back"] = "none"
            out[f"{name}/{seed}"] = result
    needs_labels = augmentations()["RandomCrop_CategoryAreaConstraint"]
    out["needs_labels"] = error_of(lambda: needs_labels(T.AugInput(image())))
    return out


@case(
    "transforms",
    what="single transforms: resizing of several kinds and types, rotation, padding, colours; the public names",
    rtol=1e-5,
    atol=1e-4,
)
def single_transforms():
    out = {}
    resize = T.ResizeTransform(HEIGHT, WIDTH, 20, 31)
    for mode in (Image.NEAREST, Image.BILINEAR, Image.BICUBIC):
        out[f"resize_{int(mode)}"] = digest(resize.apply_image(image(), mode))
        out[f"resize_float_{int(mode)}"] = condensed(resize.apply_image(image("float32"), mode))
    out["grey"] = digest(resize.apply_image(image()[:, :, 0]))
    out["one_channel"] = digest(resize.apply_image(image()[:, :, :1]))
    out["labels"] = digest(resize.apply_segmentation(labels().astype(np.float64) * 1000))
    rotation = T.RotationTransform(HEIGHT, WIDTH, 33.0)
    out["rotation"] = {
        "image": condensed(rotation.apply_image(image())),
        "points": rotation.apply_coords(POLYGON.copy()),
        "labels": digest(rotation.apply_segmentation(labels())),
        "boxes": rotation.apply_box(BOXES.copy()),
        "back": rotation.inverse().apply_image(rotation.apply_image(image("float32"))).shape,
    }
    pad = T.PadTransform(2, 3, 4, 5, HEIGHT, WIDTH, 11)
    out["pad"] = [digest(pad.apply_image(image())), digest(pad.apply_segmentation(labels()))]
    out["color"] = digest(T.ColorTransform(lambda x: 255 - x).apply_image(image()))
    out["pil"] = digest(T.PILColorTransform(lambda x: x.convert("L").convert("RGB")).apply_image(image()))
    mixed = np.full((HEIGHT, WIDTH), 255, np.uint8)  # mostly ignored, the rest in halves
    mixed[::3, : WIDTH // 2], mixed[::3, WIDTH // 2 :] = 1, 2
    for ignored in (None, 255):
        constrained = T.RandomCrop_CategoryAreaConstraint("absolute", (14, 14), 0.6, ignored)
        windows = []
        for seed in range(6):
            np.random.seed(seed)
            window = constrained.get_transform(image(), mixed)
            windows.append([window.x0, window.y0, float(np.random.uniform())])
        out[f"ignored_{ignored}"] = [[int(x), int(y), drawn] for x, y, drawn in windows]
    changed, used = T.apply_augmentations([T.HFlipTransform(WIDTH), T.Resize((10, 12))], image())
    out["list"] = {"image": digest(changed), "points": used.apply_coords(POLYGON.copy()), "kind": type(used).__name__}
    return out


def annotation(**changes) -> dict:
    return (
        dict(
            bbox=[4.0, 5.0, 26.0, 20.0],
            bbox_mode=d2.BoxMode.XYWH_ABS,
            category_id=2,
            iscrowd=0,
            segmentation=[POLYGON.reshape(-1).tolist()],
        )
        | changes
    )


@case(
    "detection_utils",
    what="annotations to instances as polygons and bitmaps, RLE, empty ones dropped, image formats, EXIF, size check",
    rtol=1e-5,
    atol=1e-4,
)
def annotations():
    import pycocotools.mask as mask_util

    utils = d2.detection_utils
    out = {}
    transforms = T.TransformList([T.HFlipTransform(WIDTH), T.ResizeTransform(HEIGHT, WIDTH, 30, 60)])
    rle = mask_util.encode(np.asfortranarray((labels() == 5).astype(np.uint8)))
    for kind, segmentation in (("polygon", None), ("bitmask", None), ("bitmask", rle)):
        given = [annotation() if segmentation is None else annotation(segmentation=segmentation) for _ in range(2)] + [
            annotation(bbox=[60.0, 3, 8, 9])
        ]
        changed = [utils.transform_instance_annotations(each, transforms, (30, 60)) for each in given]
        made = utils.annotations_to_instances(changed, (30, 60), kind)
        fields = of_instances(made)
        out[f"{kind}_{'rle' if segmentation else 'polygon'}"] = fields | {
            "kept": of_instances(utils.filter_empty_instances(made))["number"]
        }
    _, mask = utils.filter_empty_instances(made, by_mask=False, return_mask=True)
    out["mask"] = mask
    picture = Image.fromarray(image())
    for form in ("RGB", "BGR", "L", "YUV-BT.601"):
        array = utils.convert_PIL_to_numpy(picture, form)
        out[f"read_{form}"] = condensed(array)
        out[f"rgb_{form}"] = condensed(np.asarray(utils.convert_image_to_rgb(array, form), dtype=np.float64))
    from fidelity.harness import folder

    with folder() as at:
        for orientation in (1, 3, 6, 8):
            exif = Image.Exif()
            exif[0x0112] = orientation
            picture.save(at / f"{orientation}.png", exif=exif)
            out[f"exif_{orientation}"] = digest(utils.read_image(str(at / f"{orientation}.png"), "BGR"))
        known = {"file_name": "x"}
        utils.check_image_size(known, image())
        out["size"] = [known["width"], known["height"]]
    out["other_size"] = error_of(lambda: utils.check_image_size({"width": 3, "height": 4, "file_name": "x"}, image()))
    return out
