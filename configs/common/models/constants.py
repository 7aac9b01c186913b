"""Pixel statistics of the ImageNet-pretrained backbones, RGB in 0..255."""

pixel_mean = [123.675, 116.28, 103.53]
pixel_std = [58.395, 57.12, 57.375]
