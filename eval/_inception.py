"""The Inception network of FID and KID: TensorFlow's of December 2015, in torchvision's parts."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import BasicConv2d as Conv
from torchvision.models.inception import Inception3, InceptionA, InceptionB, InceptionC, InceptionD, InceptionE

from ._weights import torch_weights

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SIDE = 299


class _Uncounted(nn.Module):
    """Average pooling that does not count the padding, as TensorFlow's does."""

    branch_pool: nn.Module

    def _forward(self, x: Tensor) -> list[Tensor]:
        *rest, _ = super()._forward(x)  # type: ignore[misc]
        return [*rest, self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))]


class _A(_Uncounted, InceptionA): ...


class _C(_Uncounted, InceptionC): ...


class _E(_Uncounted, InceptionE): ...


class _Last(InceptionE):
    """The last block, which pools by the maximum."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        *rest, _ = super()._forward(x)
        return [*rest, self.branch_pool(F.max_pool2d(x, 3, 1, 1))]


class FidInception(Inception3):
    """Images in -1..1 [n, 3, 299, 299] -> pooled features [n, 2048].

    torchvision's blocks with the three differences of the TensorFlow graph that every FID is measured with: padding is
    not counted in average pools, the last block's pool is a maximum, 1008 classes. Its names are those of the ported
    weights, so these load as they are.
    """

    def __init__(self) -> None:
        blocks = [Conv, _A, InceptionB, _C, InceptionD, _E, nn.Identity]
        super().__init__(num_classes=1008, aux_logits=False, inception_blocks=blocks, init_weights=False)
        self.Mixed_7c = _Last(2048)
        self.eval()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Pooled features."""
        for name, part in self.named_children():
            if name == "avgpool":
                break
            x = part(x)
        return x.mean((2, 3))


def fid_inception(weights: str | Path = "") -> FidInception:
    """The network with the ported weights, from a file, or downloaded once and checked by its hash.

    Raises:
        InputError: the weights cannot be had, or are another network's.
    """
    net = FidInception()
    torch_weights(net, URL, weights, "FID's Inception weights")
    return net


def clean_pixels(images: Tensor) -> Tensor:
    """clean-fid's resize (Parmar et al. 2022, arXiv 2104.11222): Pillow's bicubic on float channels, not rounded back
    to bytes, cut to 0..255.

    uint8 [n, 3, H, W] -> -1..1 [n, 3, 299, 299], scaled by (x - 128) / 128 as the network expects.
    """
    import numpy as np
    from PIL import Image

    out = np.empty((len(images), 3, SIDE, SIDE), np.float32)
    for n, image in enumerate(images.numpy()):
        for c, channel in enumerate(image):
            big = Image.fromarray(channel.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            out[n, c] = np.asarray(big).clip(0, 255)
    return (torch.from_numpy(out) - 128) / 128


def torchmetrics_pixels(images: Tensor) -> Tensor:
    """As torchmetrics by default: bilinear with antialiasing; shapes and scale as `clean_pixels`."""
    big = F.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
    return (big - 128) / 128
