"""The networks under LPIPS: AlexNet, VGG-16 and SqueezeNet with the published weights, and the Canvas judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import models

from ..pipelines import canvas_folder, quiet
from ..prompts import InputError, unknown
from ._distances import lpips
from ._weights import read_state, torch_weights

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29), "squeeze": (1, 4, 7, 9, 10, 11, 12)}
NETS = {"alex": models.alexnet, "vgg": models.vgg16, "squeeze": models.squeezenet1_1}
WEIGHTS = {
    "alex": models.AlexNet_Weights.IMAGENET1K_V1,
    "vgg": models.VGG16_Weights.IMAGENET1K_V1,
    "squeeze": models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}


class Perceptual:
    """A perceptual distance between pairs of images.

    Attributes:
        name: how it was asked for.
        convention: network, weights and input.
    """

    def __init__(
        self, name: str, convention: str, layers: Callable[[Tensor], list[Tensor]], weights: list[Tensor] | None
    ) -> None:
        self.name, self.convention, self._layers, self._weights = name, convention, layers, weights

    @torch.no_grad()
    def pixels(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance [n] of paired images in -1..1 [n, 3, H, W]."""
        return lpips(self._layers(x), self._layers(y), self._weights)

    def __call__(self, x: Sequence[Image.Image], y: Sequence[Image.Image], batch: int = 32) -> list[float]:
        """Distance of each pair of images.

        Raises:
            InputError: images of several sizes.
        """
        device = torch.device("cuda" if torch.cuda.is_available() and self.name != "canvas" else "cpu")
        out: list[float] = []
        for k in range(0, len(x), batch):
            pairs = [[_pixels(image) for image in side[k : k + batch]] for side in (x, y)]
            if len(sizes := {i.shape for side in pairs for i in side}) > 1:
                words = " and ".join(f"{s[3]} x {s[2]}" for s in sorted(sizes))
                raise InputError(f"LPIPS compares images of one size, got {words}: draw them alike")
            a, b = (torch.cat(side).to(device) for side in pairs)
            out += self.pixels(a, b).tolist()
        return out


def _pixels(image: Image.Image) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1


@lru_cache(maxsize=4)
def perceptual(name: str) -> Perceptual:
    """`alex[:FILE]`, `vgg[:FILE]`, `squeeze[:FILE]` (torchvision's ImageNet weights from a file, or downloaded once;
    LPIPS 0.1's layer weights as torchmetrics ships them) or `canvas`.

    Raises:
        InputError: no such network, or its weights cannot be had.
    """
    kind, _, where = name.partition(":")
    if name == "canvas":
        return Perceptual(name, "LPIPS' formula over the bundled judges' stages, unweighted, 64 px", _judges(), None)
    if kind not in NETS:
        raise unknown("LPIPS network", name, ["canvas", *NETS])
    features: nn.Module = NETS[kind](weights=None).features
    torch_weights(nn.ModuleDict({"features": features}), WEIGHTS[kind].url, where, f"LPIPS' {kind} weights")
    what = f"{kind}, LPIPS 0.1 weights, images in -1..1, not resized"
    return Perceptual(name, what, tapped(features, kind), layer_weights(kind))


def tapped(features: nn.Module, kind: str) -> Callable[[Tensor], list[Tensor]]:
    """The layers that LPIPS compares, of images in -1..1: the outputs of the places in `TAPS`."""
    features = features.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def layers(x: Tensor) -> list[Tensor]:
        x = (x - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]
        out = []
        for k, part in enumerate(features.children()):
            x = part(x)
            if k in TAPS[kind]:
                out.append(x.clone())  # the next ReLU may work in place
        return out

    return layers


def layer_weights(kind: str) -> list[Tensor]:
    """LPIPS 0.1's weight of every channel, layer by layer, from torchmetrics' files."""
    spec = find_spec("torchmetrics")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "functional/image/lpips_models"
    state = read_state(folder / f"{kind}.pth", f"LPIPS' {kind} layer weights")
    return [state[f"lin{k}.model.1.weight"].flatten() for k in range(len(TAPS[kind]))]


def _judges() -> Callable[[Tensor], list[Tensor]]:
    from transformers import AutoModelForImageClassification

    with quiet():
        nets = [
            AutoModelForImageClassification.from_pretrained(canvas_folder(f), use_safetensors=True).eval().resnet
            for f in ("judge-object", "judge-style")
        ]
    return lambda x: [h for net in nets for h in net(pixel_values=x, output_hidden_states=True).hidden_states]
