"""Reading checkpoints: published weights, our own, and an account of what was loaded."""

from .backbone import convert_backbone_state_dict, describe_backbone
from .initial import FROM_SCRATCH, LoadReport, check_initial_weights, load_initial_weights
from .reading import CheckpointError, read_checkpoint, unwrap_state_dict

__all__ = [
    "FROM_SCRATCH",
    "CheckpointError",
    "LoadReport",
    "check_initial_weights",
    "convert_backbone_state_dict",
    "describe_backbone",
    "load_initial_weights",
    "read_checkpoint",
    "unwrap_state_dict",
]
