"""Faster R-CNN, ELSA-Swin-T, 12 epochs on COCO: Mask R-CNN without its masks. The paper has no such detector.

``model.roi_heads.mask_in_features=null`` on the command line makes any of the Mask R-CNN and cascade recipes one for
boxes only. The data is left as it is by that: masks are read to fit boxes tightly after a crop. This config does
without, so it also trains on data that has no masks.
"""

from .elsa_t_mrcnn_1x import dataloader, dataset, lr_multiplier, model, optimizer, train

model.roi_heads.mask_in_features = None
dataloader.train.mapper.update(use_instance_mask=False, recompute_boxes=False)

train.output_dir = "output/elsa_t_faster_1x"
