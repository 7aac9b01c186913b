"""Reading checkpoints: published weights, our own, and an account of what was loaded."""

from .atomic import remove_unfinished, write_atomically
from .backbone import convert_backbone_state_dict, describe_backbone
from .checkpointer import SafeCheckpointer, numbered_checkpoints
from .conversion import Conversion
from .convert_file import account, convert_file, convert_published, summary
from .detector import (
    PARTS,
    convert_detector,
    convert_detector_state_dict,
    describe_detector,
    take_parts,
    to_mmdetection_state_dict,
)
from .initial import FROM_SCRATCH, LoadReport, check_initial_weights, load_initial_weights
from .reading import CheckpointError, read_checkpoint, unwrap_state_dict
from .segmentor import convert_segmentor, convert_segmentor_state_dict

__all__ = [
    "FROM_SCRATCH",
    "PARTS",
    "CheckpointError",
    "Conversion",
    "LoadReport",
    "SafeCheckpointer",
    "account",
    "check_initial_weights",
    "convert_backbone_state_dict",
    "convert_detector",
    "convert_detector_state_dict",
    "convert_file",
    "convert_published",
    "convert_segmentor",
    "convert_segmentor_state_dict",
    "describe_backbone",
    "describe_detector",
    "load_initial_weights",
    "numbered_checkpoints",
    "read_checkpoint",
    "remove_unfinished",
    "summary",
    "take_parts",
    "to_mmdetection_state_dict",
    "unwrap_state_dict",
    "write_atomically",
]
