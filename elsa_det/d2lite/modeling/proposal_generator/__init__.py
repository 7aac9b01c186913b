from .build import PROPOSAL_GENERATOR_REGISTRY
from .rpn import RPN, RPN_HEAD_REGISTRY, StandardRPNHead

__all__ = ["PROPOSAL_GENERATOR_REGISTRY", "RPN", "RPN_HEAD_REGISTRY", "StandardRPNHead"]
