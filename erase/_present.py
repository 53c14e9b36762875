"""Which weights are on the device in each part of a run: all, or with `--offload` those of what computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..pipelines import Backbone, Offload, held_bytes, tensor_bytes


@dataclass(frozen=True)
class Present:
    """Bytes of weights on the device, by what runs.

    Attributes:
        texts: text encoders.
        denoiser: the denoiser computes, or its weights learn.
        both: prompts are encoded after it has computed.
        decoder: images are made of latents.
    """

    texts: int
    denoiser: int
    both: int
    decoder: int

    @classmethod
    def of(cls, backbone: Backbone, weights: Mapping[str, int], offload: Offload) -> Present:
        """Of a pipeline whose loaded components have so many bytes.

        Whole components come when they are called and go when the next one in the pipeline's order is. So the last text
        encoder is still there when the first one is called again, unless a UNet has computed meanwhile, and the
        denoiser when prompts are encoded in the midst of training. Pipelines of transformers are asked for sizes and
        times when the denoiser has come and not computed.
        """
        if offload == "none":
            return cls(*(sum(weights.values()),) * 4)
        if offload == "sequential":
            nets = {n: m for n, m in backbone.pipe.components.items() if n in weights}
            kept, layer = sum(map(staying, nets.values())), {n: largest_layer(m) for n, m in nets.items()}
            one = max((v for n, v in layer.items() if n.startswith("text_encoder")), default=0)
            own = layer[backbone.component]
            return cls(kept + one, kept + own, kept + max(one, own), kept + layer.get("vae", 0))
        order = [n for n in backbone.pipe.model_cpu_offload_seq.split("->") if n in weights]
        texts = [weights[n] for n in order if n.startswith("text_encoder")]
        two = max((t + texts[-1] for t in texts[:-1]), default=sum(texts))
        denoiser = weights[backbone.component]
        again = max(texts, default=0) if backbone.component == "unet" else two
        return cls(two, denoiser, denoiser + again, weights.get("vae", 0))


def whole_buffers(net: nn.Module) -> bool:
    """Whether a network's buffers go with its layers: diffusers lets them where it has parameters of its own."""
    return len(net._parameters) > 0


def largest_layer(net: nn.Module) -> int:
    """Most bytes that `--offload sequential` brings at once: each layer comes with its own tensors, while what calls it
    keeps those it has itself.
    """
    also = whole_buffers(net)

    def brought(m: nn.Module) -> int:
        own = [b for n, b in m.named_buffers(recurse=False) if also and n not in m._non_persistent_buffers_set]
        here = sum(tensor_bytes(t) for t in (*m.parameters(recurse=False), *own))
        return here + max((brought(child) for child in m.children()), default=0)

    return brought(net)


def staying(net: nn.Module) -> int:
    """Bytes of buffers that stay on the device meanwhile."""
    also = whole_buffers(net)
    return sum(
        b.nbytes
        for m in net.modules()
        for n, b in m.named_buffers(recurse=False)
        if not also or n in m._non_persistent_buffers_set
    )


def loaded(backbone: Backbone, *, embeddings: bool) -> dict[str, int]:
    """Bytes of the components' weights as they are held, by name; with remembered prompts no text encoders'."""
    found = [(n, m) for n, m in backbone.pipe.components.items() if isinstance(m, nn.Module)]
    return {n: held_bytes(m) for n, m in found if not (embeddings and n.startswith("text_encoder"))}
