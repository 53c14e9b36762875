"""Every family that has a backbone, small and random."""

import tiny_transformers
import torch

import tiny
from erasers.pipelines import Backbone, wrap

TRANSFORMERS = (
    *("flux", "flux_cfg", "chroma", "aura_flow", "pixart", "pixart_alpha"),
    *("sana", "lumina2", "cogview4", "qwen_image", "z_image", "flux2", "flux2_klein", "hidream"),
)
EVERY = (*tiny.FAMILIES, *TRANSFORMERS)


def build(family: str, *where: str | torch.dtype) -> Backbone:
    """A fresh one, in a precision and on a device."""
    ours = ("negative_prompt", "true_cfg_scale")  # guidance is the backbone's own business
    call = {k: v for k, v in tiny_transformers.CALLS.get(family, {}).items() if k not in ours}
    pipe = {**tiny.FAMILIES, **tiny_transformers.TRANSFORMERS}[family]()
    return wrap(pipe.to(*where) if where else pipe, family, call=call)
