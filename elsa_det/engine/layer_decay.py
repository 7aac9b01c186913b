"""Layer-wise decay of the learning rate for Swin and ELSA-Swin backbones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ..errors import UserError

_STAGED = re.compile(r"layers\.(\d+)\.(?:blocks\.(\d+)|(downsample))\.")


class SwinLayerDecay:
    """The factor on a parameter's learning rate: ``decay`` to the power of its layer's distance from the heads.

    Layers are counted as for BEiT and SimMIM: 0 is the patch embedding, 1 the first block, and so on through all
    stages; the patch merging behind a stage belongs to the last block before it. Everything else (the norms of the
    outputs, which ImageNet weights do not have, neck and heads) is the layer after the last block, of factor 1.

    Use: ``optimizer.params.lr_factor_func = LazyCall(SwinLayerDecay)(decay=0.8, depths=…)``, an argument of
    ``get_default_optimizer_params``.

    Args:
        decay: in (0, 1]; 0.7 to 0.9 are usual, the larger the model the nearer to 1.
        depths: blocks per stage of the backbone.
        backbone: what the names of the backbone's parameters start with.

    Raises:
        UserError: ``decay`` or ``depths`` is out of range.
    """

    def __init__(self, decay: float, depths: Sequence[int], backbone: str = "backbone.") -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay <= 1:
            raise UserError(f"layer-wise learning-rate decay must be in (0, 1], got {decay!r}; 0.8 is usual")
        self.decay, self.depths, self.backbone = float(decay), tuple(depths), backbone
        if not self.depths or any(not isinstance(n, int) or n < 1 for n in self.depths):
            raise UserError(f"layer-wise learning-rate decay needs the blocks per stage, got depths={list(depths)}")

    @property
    def num_layers(self) -> int:
        """Blocks, patch embedding and all the rest."""
        return sum(self.depths) + 2

    def layer_id(self, name: str) -> int:
        """Which layer, in 0 … ``num_layers - 1``, a parameter belongs to.

        Raises:
            UserError: the name is of a block beyond ``depths``.
        """
        if name.startswith(self.backbone):
            if ".patch_embed." in f".{name}":
                return 0
            found = _STAGED.search(name)
            if found is not None:
                return self._in_stage(name, int(found[1]), None if found[3] else int(found[2]))
        return self.num_layers - 1

    def _in_stage(self, name: str, stage: int, block: int | None) -> int:
        if stage >= len(self.depths) or (block is not None and block >= self.depths[stage]):
            raise UserError(f"layer-wise learning-rate decay: depths={list(self.depths)} has no place for {name}")
        if block is None:
            return sum(self.depths[: stage + 1])
        return sum(self.depths[:stage]) + block + 1

    def __call__(self, name: str) -> float:
        """The factor for the parameter of that name."""
        return self.decay ** (self.num_layers - 1 - self.layer_id(name))

    def check(self, names: Iterable[str]) -> None:
        """Raise unless the parameters of a model are those of a backbone with these stages.

        Raises:
            UserError: it has no stages, or others.
        """
        blocks = {
            (int(m[1]), int(m[2])) for n in names if n.startswith(self.backbone) and (m := _STAGED.search(n)) if m[2]
        }
        if not blocks:
            raise UserError(
                f"layer-wise learning-rate decay is for Swin and ELSA-Swin, but no parameter of the model is one of a "
                f"stage's block ({self.backbone}….layers.N.blocks.M.…): take optimizer.params.lr_factor_func out"
            )
        counted = Counter(stage for stage, _ in blocks)
        depths = [counted[stage] for stage in sorted(counted)]
        if depths != list(self.depths):
            raise UserError(
                f"layer-wise learning-rate decay: depths={list(self.depths)}, the model's stages have {depths} blocks"
            )
