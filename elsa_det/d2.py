"""The one door to Detectron2: every name of it that elsa_det uses is re-exported here.

With Detectron2 installed the names are Detectron2's; without it they are those of :mod:`elsa_det.d2lite`, the embedded
default with the same API. ``ELSA_DET_D2=upstream`` or ``ELSA_DET_D2=lite`` forces one of the two.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import Any

UPSTREAM, LITE = "upstream", "lite"


def _choose_provider() -> str:
    forced = os.environ.get("ELSA_DET_D2", "").strip().lower()
    if forced not in ("", UPSTREAM, LITE):
        raise ImportError(f"ELSA_DET_D2={forced!r} is not understood: use 'upstream', 'lite', or leave it unset.")
    if forced == LITE:
        if "detectron2" in sys.modules:
            raise ImportError(
                "ELSA_DET_D2=lite, but detectron2 is already imported in this process and the two cannot be mixed. "
                "Import elsa_det before detectron2 is imported by anything else, or unset ELSA_DET_D2."
            )
        return LITE
    try:
        import detectron2
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise  # an install that is there but broken speaks for itself
        if forced == UPSTREAM:
            raise ModuleNotFoundError(
                "ELSA_DET_D2=upstream, but detectron2 is not installed in this environment. "
                "Install it from its sources, or unset ELSA_DET_D2 to use the embedded d2lite.",
                name="detectron2",
            ) from error
        return LITE
    if getattr(detectron2, "__file__", None) is None:
        where = list(getattr(detectron2, "__path__", []))
        raise ImportError(
            f"'import detectron2' found only a folder of that name, not the package: {where}. "
            "It is probably a clone of the repository beside your script. Install it (pip install -e on that folder), "
            "run from another directory, or set ELSA_DET_D2=lite to use the embedded d2lite."
        )
    return UPSTREAM


PROVIDER = _choose_provider()

# fvcore compiles losses when it is imported, in a way that newer torch calls deprecated; should it be missing, the
# provider's import says so
with warnings.catch_warnings(), contextlib.suppress(ModuleNotFoundError):
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
    import fvcore.nn as _

if PROVIDER == UPSTREAM:
    from detectron2 import __version__ as PROVIDER_VERSION
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import LazyCall, LazyConfig, instantiate
    from detectron2.data import (
        DatasetCatalog,
        DatasetFromList,
        DatasetMapper,
        MetadataCatalog,
        build_detection_test_loader,
        build_detection_train_loader,
        detection_utils,
        get_detection_dataset_dicts,
        transforms,
    )
    from detectron2.data.datasets import (
        load_coco_json,
        load_lvis_json,
        register_coco_instances,
        register_lvis_instances,
    )
    from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
    from detectron2.engine import (
        AMPTrainer,
        HookBase,
        SimpleTrainer,
        TrainerBase,
        create_ddp_model,
        default_argument_parser,
        default_setup,
        default_writers,
        hooks,
        launch,
    )
    from detectron2.evaluation import (
        COCOEvaluator,
        DatasetEvaluator,
        DatasetEvaluators,
        LVISEvaluator,
        inference_context,
        inference_on_dataset,
        print_csv_format,
    )
    from detectron2.layers import Conv2d, ShapeSpec, get_norm
    from detectron2.modeling import (
        BACKBONE_REGISTRY,
        FPN,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        GeneralizedRCNN,
        RetinaNet,
        detector_postprocess,
    )
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
    from detectron2.modeling.roi_heads import (
        FastRCNNConvFCHead,
        FastRCNNOutputLayers,
        MaskRCNNConvUpsampleHead,
        ROIHeads,
        StandardROIHeads,
        select_foreground_proposals,
    )
    from detectron2.solver import WarmupParamScheduler, get_default_optimizer_params
    from detectron2.structures import BitMasks, Boxes, BoxMode, ImageList, Instances, PolygonMasks
    from detectron2.utils import comm
    from detectron2.utils.collect_env import collect_env_info
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import (
        CommonMetricPrinter,
        EventStorage,
        EventWriter,
        JSONWriter,
        TensorboardXWriter,
        get_event_storage,
    )
    from detectron2.utils.file_io import PathManager
    from detectron2.utils.logger import setup_logger
    from detectron2.utils.visualizer import ColorMode, Visualizer
else:
    from elsa_det.d2lite import __version__ as PROVIDER_VERSION
    from elsa_det.d2lite.checkpoint import DetectionCheckpointer
    from elsa_det.d2lite.config import LazyCall, LazyConfig, instantiate
    from elsa_det.d2lite.data import (
        DatasetCatalog,
        DatasetFromList,
        DatasetMapper,
        MetadataCatalog,
        build_detection_test_loader,
        build_detection_train_loader,
        detection_utils,
        get_detection_dataset_dicts,
        transforms,
    )
    from elsa_det.d2lite.data.datasets import (
        load_coco_json,
        load_lvis_json,
        register_coco_instances,
        register_lvis_instances,
    )
    from elsa_det.d2lite.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
    from elsa_det.d2lite.engine import (
        AMPTrainer,
        HookBase,
        SimpleTrainer,
        TrainerBase,
        create_ddp_model,
        default_argument_parser,
        default_setup,
        default_writers,
        hooks,
        launch,
    )
    from elsa_det.d2lite.evaluation import (
        COCOEvaluator,
        DatasetEvaluator,
        DatasetEvaluators,
        LVISEvaluator,
        inference_context,
        inference_on_dataset,
        print_csv_format,
    )
    from elsa_det.d2lite.layers import Conv2d, ShapeSpec, get_norm
    from elsa_det.d2lite.modeling import (
        BACKBONE_REGISTRY,
        FPN,
        META_ARCH_REGISTRY,
        SEM_SEG_HEADS_REGISTRY,
        Backbone,
        GeneralizedRCNN,
        RetinaNet,
        detector_postprocess,
    )
    from elsa_det.d2lite.modeling.anchor_generator import DefaultAnchorGenerator
    from elsa_det.d2lite.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
    from elsa_det.d2lite.modeling.box_regression import Box2BoxTransform
    from elsa_det.d2lite.modeling.matcher import Matcher
    from elsa_det.d2lite.modeling.meta_arch.retinanet import RetinaNetHead
    from elsa_det.d2lite.modeling.poolers import ROIPooler
    from elsa_det.d2lite.modeling.proposal_generator import RPN, StandardRPNHead
    from elsa_det.d2lite.modeling.roi_heads import (
        FastRCNNConvFCHead,
        FastRCNNOutputLayers,
        MaskRCNNConvUpsampleHead,
        ROIHeads,
        StandardROIHeads,
        select_foreground_proposals,
    )
    from elsa_det.d2lite.solver import WarmupParamScheduler, get_default_optimizer_params
    from elsa_det.d2lite.structures import BitMasks, Boxes, BoxMode, ImageList, Instances, PolygonMasks
    from elsa_det.d2lite.utils import comm
    from elsa_det.d2lite.utils.collect_env import collect_env_info
    from elsa_det.d2lite.utils.env import seed_all_rng
    from elsa_det.d2lite.utils.events import (
        CommonMetricPrinter,
        EventStorage,
        EventWriter,
        JSONWriter,
        TensorboardXWriter,
        get_event_storage,
    )
    from elsa_det.d2lite.utils.file_io import PathManager
    from elsa_det.d2lite.utils.logger import setup_logger
    from elsa_det.d2lite.utils.visualizer import ColorMode, Visualizer

# What is not Detectron2's, and serves both: reading files without running code that they name.
from elsa_det.d2lite.checkpoint.pickle_arrays import (  # noqa: E402
    NUMPY_GLOBALS,
    RefusedGlobal,
    unpickle_arrays,
    with_arrays,
)
from elsa_det.d2lite.config.trusted import NotTrusted, check_trusted, find_trusted  # noqa: E402
from elsa_det.d2lite.config.yaml_io import load_yaml  # noqa: E402
from elsa_det.d2lite.utils.registry import locate as locate_in_lite  # noqa: E402
from elsa_det.d2lite.utils.trust import CHECKPOINTS, PATHS, TRUST_VARIABLE, trusted  # noqa: E402


def locate(name: str) -> Any:
    """The object with this dotted name; ``detectron2.…`` is the provider's.

    Raises:
        ImportError: nothing has this name.
    """
    return locate_in_lite(name, lite=PROVIDER == LITE)


def describe_provider() -> str:
    """One line that says which Detectron2 runs, for logs and reports."""
    if PROVIDER == UPSTREAM:
        import detectron2

        return f"Detectron2 {PROVIDER_VERSION} from {os.path.dirname(detectron2.__file__)}"
    reason = "asked for by ELSA_DET_D2=lite" if os.environ.get("ELSA_DET_D2") else "detectron2 is not installed"
    return f"d2lite {PROVIDER_VERSION}, the embedded default ({reason})"


_NOT_EXPORTED = ("Any", "annotations", "contextlib", "os", "sys", "warnings")
__all__ = [name for name in globals() if not name.startswith("_") and name not in _NOT_EXPORTED]
