"""One face for every diffusers pipeline: what a method may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from ..prompts import InputError

if TYPE_CHECKING:
    from ._few import Drawing
    from ._held import Values
    from ._memory import Embeddings
    from ._prompted import Read

Group = Literal["text-in", "prompt", "text-kv", "cross", "self", "not-cross", "all", "text-encoder"]
"""Parts of a network. With cross-attention: the projections that act on the prompt's states (its keys and values) under
two names, all of cross-attention, self-attention, everything but cross-attention. With joint attention: the one
projection that acts on the prompt's states, keys and values of the text tokens, everything of the text tokens' side,
attention of the image tokens, everything but the text side. Everywhere, "prompt": what acts on the prompt's states
("text-in") and on its pooled vector, where the network is given one: every way by which the prompt comes in. Then the
whole denoiser; or the text encoders."""


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told besides the latent and the time, recorded from the stock pipeline's own call.

    Attributes:
        kwargs: the denoiser's keyword arguments with a row for each prompt (text states [B, L, D], pooled vectors,
            sizes ...), nested as recorded.
        count: B, the number of prompts.
        shared: its keyword arguments that are the same for all prompts (positions of tokens).
    """

    kwargs: Mapping[str, Any]
    count: int
    shared: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Condition:
        """The condition of some of the prompts, in the order given."""
        index = torch.arange(self.count)[rows.cpu() if isinstance(rows, Tensor) else rows]
        return Condition({k: _rows(v, index, self.count) for k, v in self.kwargs.items()}, len(index), self.shared)

    def __add__(self, other: Condition) -> Condition:
        """Both conditions, one after the other. Where a mask goes with text states, the shorter ones are padded.

        Raises:
            InputError: text states of different lengths without a mask.
        """
        masked = any(k.endswith("mask") for k in self.kwargs)
        kwargs = {k: _joined(v, other.kwargs[k], masked) for k, v in self.kwargs.items()}
        return Condition(kwargs, self.count + other.count, self.shared)


def _rows(value: Any, index: Tensor, count: int) -> Any:  # noqa: ANN401
    if isinstance(value, Tensor):
        return value[index.to(value.device)] if value.ndim and len(value) == count else value
    if isinstance(value, list):
        return [value[int(k)] for k in index]
    if isinstance(value, Mapping):
        return {k: _rows(v, index, count) for k, v in value.items()}
    return value


def _joined(a: Any, b: Any, masked: bool) -> Any:  # noqa: ANN401
    if isinstance(a, Tensor):
        if not a.ndim:
            return a
        if a.ndim > 1 and a.shape[1] != b.shape[1]:
            if not masked:
                raise InputError(
                    f"texts of {a.shape[1]} and {b.shape[1]} tokens cannot be joined in this family: use shorter "
                    "prompts, or contexts of like length"
                )
            n = max(a.shape[1], b.shape[1])
            a, b = (F.pad(x, [0, 0] * (x.ndim - 2) + [0, n - x.shape[1]]) for x in (a, b))
        return torch.cat([a, b])
    if isinstance(a, list):
        return [*a, *b]
    if isinstance(a, Mapping):
        return {k: _joined(v, b[k], masked) for k, v in a.items()}
    return a


@dataclass(frozen=True)
class TextStates:
    """What the text side of the denoiser sees of some texts, token by token, end-of-text included, padding not.

    Attributes:
        ids: token numbers of each text, int64 [n].
        states: hidden states of each text, float [n, D].
        spell: the token numbers of a name, at the start of a text and within one.
    """

    ids: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    spell: Callable[[str], list[list[int]]]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(self.ids, self.states, strict=True))


@runtime_checkable
class Backbone(Protocol):
    """Wraps a stock diffusers pipeline without changing it. Latents are [B, *latent_shape], times int or float [B]."""

    pipe: DiffusionPipeline
    name: str
    family: str
    preset: str
    pooled: str | None
    """The Linear that reads the pooled text vector, if there is one."""

    reads: Read
    """Where the denoiser is best asked what prompt it is given."""

    free_first: bool
    """Where both sides of guidance share one call, whether the unconditional rows come first."""

    shared: bool
    """Whether both sides of guidance share one call."""

    embeddings: Embeddings | None
    """The prompts it remembers: `encode`, `unconditional`, `text_states` and `draw` need no text encoder for them."""

    drawing: Drawing | None
    """How it draws, where it is a generator of few steps."""

    provenance: Mapping[str, str]
    """What else than its name says what it was loaded from: revision, commit, variant, config, quantized."""

    compiler: str
    """The backend of `torch.compile` that it draws with; "" is none."""

    @property
    def world(self) -> str:
        """The world whose concepts it draws: "canvas", or "" for any."""
        ...

    @property
    def component(self) -> str:
        """The denoiser's name in the pipeline."""
        ...

    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def quantized(self) -> str:
        """How the denoiser is quantised, in a few words; "" where it is not."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]: ...
    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of what it draws, in pixels."""
        ...

    @property
    def denoiser(self) -> nn.Module: ...

    def encode(self, prompts: Sequence[str]) -> Condition:
        """The condition of each prompt, as the stock pipeline makes it."""
        ...

    def unconditional(self, n: int) -> Condition:
        """What the stock pipeline puts on the other side of guidance, n times."""
        ...

    def remember(self, prompts: Sequence[str]) -> Embeddings:
        """What the stock pipeline's own `encode_prompt` makes of each prompt alone, and of "" on both sides of
        guidance; for `save`, and for `wrap` and `load` without text encoders. Adapters on these act on it.

        Raises:
            InputError: the text encoders are not there.
        """
        ...

    def unencodable(self, prompts: Sequence[str]) -> list[str]:
        """Those of the prompts that it neither remembers nor can encode, its text encoders being gone."""
        ...

    def noting(self) -> AbstractContextManager[Mapping[str, None]]:
        """Inside, every prompt that is asked for is noted, in order."""
        ...

    def text_states(self, texts: Sequence[str], *, padded: bool = False) -> tuple[TextStates, ...]:
        """What the "text-in" Linears are given of each text, by tokenizer: states up to the end-of-text token, or all
        of them if `padded`.
        """
        ...

    def inputs(self, module: str, cond: Condition) -> Tensor:
        """What enters a named Linear of the denoiser under a condition, [B, in] or [B, L, in]."""
        ...

    def denoise(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw network output, the shape of x."""
        ...

    def guided(self, cond: Condition, guidance: float) -> Condition:
        """The condition with guidance in it, where the denoiser takes it as an input; else the condition itself."""
        ...

    def combine(self, free: Tensor, led: Tensor, guidance: float) -> Tensor:
        """The guided raw output from the unconditional and the conditional one."""
        ...

    def few(self, steps: int, first: int) -> Drawing:
        """How a generator distilled from it draws in so few steps, from unit noise: the first at time `first`, or at
        pure noise for flows.

        Raises:
            InputError: no such times.
        """
        ...

    def noise(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t, the clean latent x0 noised to time t with eps."""
        ...

    def x0(self, x: Tensor, t: Tensor, out: Tensor) -> Tensor:
        """The clean latent that the raw output implies."""
        ...

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the raw output should be in training."""
        ...

    def times(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """N training times, [n]."""
        ...

    def latents(self, images: Sequence[Image.Image]) -> Tensor:
        """Scaled latents of RGB images."""
        ...

    def decode(self, z: Tensor) -> list[Image.Image]:
        """Images of scaled latents."""
        ...

    def partial(
        self,
        cond: Condition,
        stop: Tensor,
        noise: Tensor,
        *,
        steps: int,
        guidance: float,
        null: Condition | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Partially denoised latents and the times [B] they have reached, as `denoise` takes them.

        Args:
            cond: of B prompts.
            stop: how many of `steps` deterministic sampler steps (DDIM, or Euler for flows) each latent takes, int [B];
                `steps` gives the clean latent and time 0.
            noise: what they start from, [B, *latent_shape].
            steps: of the whole trajectory.
            guidance: classifier-free guidance scale; 1 is off.
            null: `unconditional(1)`, if it is at hand.
        """
        ...

    def modules(self, group: Group) -> dict[str, nn.Linear]:
        """Explicit Linears of a group by full name, component first ("unet.down_blocks.0...attn2.to_k")."""
        ...

    def parameters(self, group: Group) -> dict[str, nn.Parameter]:
        """Everything trainable there: convolutions, norms and biases too."""
        ...

    def values(self, group: Group) -> Values:
        """What the parameters of a group hold, by the same names: for reading, one by one, also where they are
        offloaded or quantised.
        """
        ...

    def wake(self) -> None:
        """Bring a denoiser that is offloaded as a whole to where it computes."""
        ...

    def using(self, adapter: str | None) -> AbstractContextManager[None]:
        """Inside, only the named adapter, cover or writer is on; with None, the untouched base."""
        ...

    def cover(self, values: Mapping[str, Tensor], label: str) -> None:
        """Put other values over some of the denoiser's parameters (full names) until `uncover(label)`; the base values
        are kept and come back bit for bit.

        Raises:
            InputError: a LoRA is fused into the denoiser.
        """
        ...

    def uncover(self, label: str) -> None:
        """Take that cover away."""
        ...

    @property
    def defaults(self) -> tuple[int, float]:
        """Sampler steps and guidance scale of a stock call that names neither."""
        ...

    def save_denoiser(self, folder: Path) -> None:
        """Write the denoiser as a component folder, as it is now."""
        ...

    @property
    def recomputes(self) -> bool:
        """Whether the denoiser has gradient checkpointing."""
        ...

    def checkpointed(self) -> AbstractContextManager[None]:
        """Inside, the denoiser keeps no activations for the backward pass but computes them again.

        Raises:
            InputError: it does not `recomputes`.
        """
        ...

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int | torch.Generator],
        *,
        steps: int = 25,
        guidance: float = 7.5,
        sampler: str | None = None,
        batch: int = 8,
    ) -> list[Image.Image]:
        """Images, by the stock pipeline itself, one CPU generator per seed; a generator stands for itself."""
        ...
