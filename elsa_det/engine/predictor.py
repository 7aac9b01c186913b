"""From a LazyConfig and a checkpoint to predictions on images."""

from __future__ import annotations

import copy
import functools
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps
from torch import nn

from ..checkpoint import FROM_SCRATCH, CheckpointError, SafeCheckpointer, load_initial_weights
from ..config import load_config, settle_device
from ..config_targets import calls_in, check_calls
from ..d2 import LazyConfig, MetadataCatalog, PathManager, inference_context, instantiate
from ..d2 import transforms as T
from ..errors import UserError
from ..images import check_size, open_image
from ..json_files import read_json
from ..nearby import looked_for

logger = logging.getLogger(__name__)

_MAPPER = "dataloader.test.mapper"
_DATASET = "dataloader.test.dataset.names"


class Predictor:
    """Detectron2's ``DefaultPredictor`` for LazyConfig models.

    The test-time transforms and the channel order come from ``dataloader.test.mapper``, the class names from the
    metadata of ``dataloader.test.dataset.names``. Images are (H, W, 3) uint8 in BGR order, as OpenCV reads them, or PIL
    images; boxes and masks of the answers are in pixels of the image as it was given.

    One image::

        from elsa_det.engine import Predictor

        predictor = Predictor("output/config.yaml", "output/model_final.pth", device="cuda")
        instances = predictor(cv2.imread("street.jpg"))["instances"].to("cpu")
        for box, score, index in zip(instances.pred_boxes, instances.scores, instances.pred_classes):
            print(predictor.class_names[index], f"{score:.2f}", box.tolist())  # x0, y0, x1, y1

    A list of images, through the model together where they are of one size, with the answers in their order::

        answers = predictor.predict_batch([PIL.Image.open(path) for path in paths])
        masks = [answer["instances"].pred_masks for answer in answers]  # of each: (N, H, W) bool

    A segmentor answers with ``"sem_seg_labels"`` (H, W) or ``"sem_seg"`` (C, H, W) in place of ``"instances"``.
    ``elsa_det.engine.drawing.draw_predictions`` and ``elsa_det.engine.semantic_figures.draw_segmentor_answer`` draw.
    Files, videos and JSON: :class:`elsa_det.engine.demo.Demo`.

    A config that is changed on the way, a model that is built already::

        Predictor("config.yaml", "model.pth", overrides=["model.roi_heads.box_predictor.test_score_thresh=0.3"])
        Predictor(cfg, model=model)

    Attributes:
        cfg: The config as it was used.
        model: The model.
        image_format: "RGB" or "BGR", what the model is given.
        dataset_name: Of the (first) test dataset, None where it is not known.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | DictConfig,
        checkpoint: str | os.PathLike[str] | None = None,
        *,
        overrides: Sequence[str] = (),
        device: str | torch.device | None = None,
        strict: bool = True,
        model: nn.Module | None = None,
    ) -> None:
        """
        Args:
            config: A LazyConfig file (``.py`` or a saved ``.yaml``), or a loaded one.
            checkpoint: The weights; default: ``train.init_checkpoint`` of the config.
            overrides: ``"key=value"`` changes to the config.
            device: Where to run; default: ``train.device`` of the config.
            strict: Whether every weight of the model must come from the checkpoint and every weight of the checkpoint
                must have its place in the model. Otherwise differences are logged only.
            model: A model that is built and loaded already; it stays on its device, and ``checkpoint`` and ``device``
                must not be given.

        Raises:
            FileNotFoundError: There is no such config or checkpoint.
            UserError: The config cannot be loaded or lacks what prediction needs, the checkpoint cannot be read or
                does not fit (``CheckpointError``), or the device is not there.
        """
        self.cfg = _load_config(config, overrides, device)
        mapper = OmegaConf.select(self.cfg, _MAPPER)
        if mapper is None or "augmentations" not in mapper or "image_format" not in mapper:
            raise UserError(f"The config has no {_MAPPER} with 'augmentations' and 'image_format'.")
        self.image_format: str = mapper.image_format
        if self.image_format not in ("RGB", "BGR"):
            raise UserError(f"{_MAPPER}.image_format must be 'RGB' or 'BGR', got {self.image_format!r}.")
        self.augmentations = T.AugmentationList([instantiate(augmentation) for augmentation in mapper.augmentations])
        if model is None:
            model = _load_model(self.cfg, checkpoint, strict)
        elif checkpoint is not None or device is not None:
            raise UserError("A ready model brings its weights and device: give no checkpoint and no device with it.")
        self.model = model

        self.dataset_name = _dataset_name(self.cfg)

    @property
    def metadata(self) -> Any:
        """The metadata of the (first) test dataset; without a known one, empty metadata."""
        return MetadataCatalog.get(self.dataset_name or "__no_dataset__")

    @property
    def class_names(self) -> list[str] | None:
        """The names of the test dataset's classes, or None where nothing tells them."""
        return class_names(self.metadata)

    def __call__(self, image: np.ndarray | Image.Image) -> dict[str, Any]:
        """Predict on one image.

        Args:
            image: (H, W, 3) uint8 in BGR order, as ``cv2.imread`` gives it, or a PIL image.

        Returns:
            What the model says about the image, such as ``{"instances": Instances}``, in pixels of the given image.

        Raises:
            TypeError: It is neither of the two.
            UserError: It has another shape or another type of numbers.
        """
        return self.predict_batch([image])[0]

    def predict_batch(self, images: Sequence[np.ndarray | Image.Image]) -> list[dict[str, Any]]:
        """Predict on several images; otherwise as calling the predictor on each.

        Those of one size, after resizing, go through the model together. Images of different sizes do not: they would
        be padded to the largest, and a model that looks at the padding would give other answers than for each alone.

        Returns:
            The answers in the order of the images.
        """
        inputs = [self._prepare(image) for image in images]
        of_size: dict[tuple[int, ...], list[int]] = {}
        for index, entry in enumerate(inputs):
            of_size.setdefault(tuple(entry["image"].shape), []).append(index)
        answers: list[dict[str, Any]] = [{}] * len(inputs)
        with inference_context(self.model), torch.no_grad():
            for indices in of_size.values():
                for index, answer in zip(indices, self.model([inputs[index] for index in indices])):
                    answers[index] = answer
        return answers

    def _prepare(self, image: np.ndarray | Image.Image) -> dict[str, Any]:
        pixels = as_bgr(image)
        height, width = pixels.shape[:2]
        if self.image_format == "RGB":
            pixels = pixels[:, :, ::-1]
        prepared = T.AugInput(np.ascontiguousarray(pixels))
        self.augmentations(prepared)
        channels_first = np.ascontiguousarray(prepared.image.transpose(2, 0, 1))
        return {"image": torch.from_numpy(channels_first), "height": height, "width": width}


def _load_config(
    config: str | os.PathLike[str] | DictConfig, overrides: Sequence[str], device: str | torch.device | None
) -> DictConfig:
    if device is not None:
        overrides = [*overrides, f"train.device={device}"]
    for override in overrides:
        if "=" not in override:
            raise UserError(f"Override {override!r} is not understood: write key=value, such as train.device=cpu.")
    try:
        if not isinstance(config, DictConfig):
            cfg = load_config(os.fspath(config), overrides)
        else:
            cfg = LazyConfig.apply_overrides(copy.deepcopy(config), list(overrides))
            check_calls(cfg, "overrides", calls_in(config))
            if "train" in cfg:
                settle_device(cfg.train)
    except (FileNotFoundError, ValueError):
        raise
    except Exception as error:  # a config is a program: anything may go wrong in it
        what = "The config" if isinstance(config, DictConfig) else f"Config '{os.fspath(config)}'"
        changes = f" with {list(overrides)}" if overrides else ""
        raise UserError(f"{what} cannot be loaded{changes}: {type(error).__name__}: {error}") from error
    if not isinstance(cfg, DictConfig) or "model" not in cfg:
        raise UserError("The config has no 'model'.")
    return cfg


def _load_model(cfg: DictConfig, checkpoint: str | os.PathLike[str] | None, strict: bool) -> nn.Module:
    path = os.fspath(checkpoint) if checkpoint is not None else OmegaConf.select(cfg, "train.init_checkpoint")
    if not path or path == FROM_SCRATCH:
        raise UserError(f"Prediction needs weights: give a checkpoint or set train.init_checkpoint, not {path!r}.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no checkpoint '{path}' {looked_for(path)}.")
    model = instantiate(cfg.model)
    if strict:
        report = load_initial_weights(model, path)
        if report is None or report.initialised:
            raise CheckpointError(f"Prediction needs the weights of the whole model. {report}")
    else:
        SafeCheckpointer(model).load(path)
    return model.to(OmegaConf.select(cfg, "train.device") or "cpu").eval()


def _dataset_name(cfg: DictConfig) -> str | None:
    """The first test dataset, registered if the config does that; None, with a warning, if it is not there."""
    names = OmegaConf.select(cfg, _DATASET)
    try:
        if isinstance(names, DictConfig):
            names = instantiate(names)
    except (FileNotFoundError, KeyError, UserError) as error:
        reason = error.args[0] if isinstance(error, KeyError) else error  # str() of a KeyError adds quotes
        logger.warning("The names of the classes are not known: %s", reason)
        return None
    if names is not None and not isinstance(names, str):
        names = names[0] if len(names) else None
    return names


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as (H, W, 3) uint8 in BGR order, turned upright as its EXIF data say.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is not an image that can be read, or larger than :mod:`elsa_det.images` allows.
    """
    try:
        with open_image(path) as image:
            return as_bgr(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no image '{path}'.") from None
    except UserError:
        raise
    except Exception as error:  # Pillow raises anything for damaged files
        raise UserError(f"Image '{path}' cannot be read: {error}") from error


def as_bgr(image: np.ndarray | Image.Image) -> np.ndarray:
    """Check an image and bring it to (H, W, 3) uint8 in BGR order.

    Raises:
        TypeError: It is neither a NumPy array nor a PIL image.
        UserError: The array is not (H, W, 3) uint8, or is empty.
    """
    if isinstance(image, Image.Image):
        check_size(*image.size, "an image")
        upright = ImageOps.exif_transpose(image)
        return np.asarray(upright.convert("RGB"))[:, :, ::-1]
    if not isinstance(image, np.ndarray):
        hint = " (cv2.imread returns None for a file it cannot read)" if image is None else ""
        raise TypeError(f"An image must be a NumPy array or a PIL image, got {type(image).__name__}{hint}.")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise UserError(f"An image must be (H, W, 3) uint8 in BGR order, got {image.shape} {image.dtype}.")
    check_size(image.shape[1], image.shape[0], "an image")
    return image


def class_names(metadata: Any) -> list[str] | None:
    """The names of a dataset's classes, by class index, or None where nothing tells them.

    Datasets in COCO's format know them only once they are loaded; before that they are read from their json file.
    """
    names = metadata.get("thing_classes") or metadata.get("stuff_classes")
    if names is not None:
        return list(names)
    json_file = metadata.get("json_file")
    if json_file is None or not PathManager.isfile(json_file):
        return None
    return list(_category_names(json_file))


@functools.lru_cache(maxsize=8)  # asked for with every image that is drawn, and COCO's files are large
def _category_names(json_file: str) -> tuple[str, ...]:
    content = read_json(PathManager.get_local_path(json_file))
    try:
        categories = sorted(content.get("categories", []), key=lambda category: category["id"])
        return tuple(category["name"] for category in categories)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{json_file} is not in COCO format: {type(error).__name__}: {error}") from error
