"""Prompts encoded once and remembered, so that a pipeline erases and draws without its text encoders."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..prompts import InputError, out_of_memory, usual_mode
from ._fingerprint import ROUNDED, SAME, distance

KEY = "erasers_embeddings"
ORIGIN = {"family", "base", "weights", "call", "encoders"}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4")

T = TypeVar("T")


@dataclass(frozen=True)
class Embeddings:
    """What a stock pipeline's `encode_prompt` returns for each prompt alone.

    Attributes:
        states: prompt -> name -> tensor with one row. The names are the stock call's own arguments ("prompt_embeds"),
            "text_ids" that it makes anew, and the token numbers and masks of text encoders ("text_encoder.ids").
        free: the other side of guidance, where `encode_prompt` returns both ("negative_prompt_embeds").
        origin: what a reader must check, as JSON has it: `family`; `base`, what the pipeline was called; `weights`, a
            spread of its denoiser's; `call`, the stock call's arguments that reach `encode_prompt`; `encoders`; and
            `quantized`, where it is.
    """

    states: Mapping[str, Mapping[str, Tensor]]
    free: Mapping[str, Tensor]
    origin: Mapping[str, Any]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file; one that is there is replaced in one step.

        Raises:
            InputError: it cannot be written.
        """
        target = Path(path)
        rows = enumerate([self.free, *self.states.values()])
        header = {**self.origin, "version": 1, "prompts": list(self.states)}
        partial = target.with_name(f".{target.name}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            tensors = {f"{k}.{name}": tensor for k, row in rows for name, tensor in row.items()}
            save_file(tensors, partial, {KEY: json.dumps(header)})
            usual_mode(partial)
            os.replace(partial, target)
        except (OSError, SafetensorError) as error:
            if partial.exists():
                partial.unlink()
            raise InputError(f"cannot write {target} ({error}): choose another place") from error
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Embeddings:
        """Read such a file: safetensors and JSON only.

        Raises:
            InputError: the file is missing, truncated or damaged, or another kind of file.
        """
        name = os.fspath(path)
        try:
            with safe_open(name, framework="pt") as file:
                header = json.loads((file.metadata() or {})[KEY])
                prompts, version = header.pop("prompts"), header.pop("version")
                rows: list[dict[str, Tensor]] = [{} for _ in range(len(prompts) + 1)]
                for key in file.keys():  # noqa: SIM118
                    place, _, rest = key.partition(".")
                    rows[int(place)][rest] = file.get_tensor(key)
            if version != 1 or "" not in prompts or not all(rows[1:]) or set(header) - {"quantized"} != ORIGIN:
                raise ValueError(f"version {version}, {len(prompts)} prompts")
            return cls(dict(zip(prompts, rows[1:], strict=True)), rows[0], header)
        except FileNotFoundError as error:
            raise InputError(
                f"no such file of remembered prompts: {name}; `erasers remember` writes it, --embeddings names it"
            ) from error
        except (SafetensorError, OSError) as error:
            if out_of_memory(error):
                raise
            raise InputError(f"{name} is no whole safetensors file ({error}): remember the prompts again") from error
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise InputError(f"{name} holds no remembered prompts ({error}): expected what `save` wrote") from error

    def check(self, name: str, origin: Mapping[str, Any]) -> None:
        """Make sure that the pipeline called `name`, of that origin, would encode as the one that remembered did.

        Raises:
            InputError: another family, other weights, more text encoders or other arguments of the stock call.
        """
        mine, made = self.origin, f"these prompts were remembered from {self.origin['base']!r}"
        if mine["family"] != origin["family"]:
            raise InputError(f"{made} (family {mine['family']}), got {name!r} ({origin['family']})")
        away = distance(mine["weights"], origin["weights"])
        few = mine.get("quantized") or origin.get("quantized")
        if not away <= (ROUNDED if few else SAME):  # so that NaN weights are refused too
            raise InputError(f"{made}; the weights of {name!r} differ by {away:.1%}: remember them with that pipeline")
        if more := [n for n in origin["encoders"] if n not in mine["encoders"]]:
            raise InputError(f"{made} without {', '.join(more)}, which {name!r} has: remember them again")
        if mine["call"] != origin["call"]:
            raise InputError(f"{made} with the arguments {mine['call']}, here they are {origin['call']}: give the same")

    def knows(self, prompts: Sequence[str]) -> bool:
        """Whether it holds every one of them; of none, it does not."""
        return bool(prompts) and all(p in self.states for p in prompts)

    def shape(self, prompt: str) -> tuple[Any, ...]:
        """What the prompts of one stock call have in common."""
        return tuple((k, *t.shape) for k, t in self.states[prompt].items())

    def tokens(self, prompts: Sequence[str]) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Token numbers and mask that each text encoder was given, [B, n], of prompts of one shape."""
        found = [n.removesuffix(".ids") for n in self.states[prompts[0]] if n.endswith(".ids")]
        given = {e: self.answer(prompts, (f"{e}.ids", f"{e}.mask"), guided=False) for e in found}
        return {e: (ids, mask) for e, (ids, mask) in given.items() if ids is not None}

    def answer(self, prompts: Sequence[str], names: Sequence[str], *, guided: bool) -> tuple[Tensor | None, ...]:
        """The tensors of those names for prompts of one shape, or None: what `encode_prompt` would return."""
        rows = [{**self.states[p], **(self.free if guided else {})} for p in prompts]
        return tuple(_stacked([r[n] for r in rows]) if n in rows[0] else None for n in names)


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """One row each, side by side where their size is 1; what has no such dimension is the same for all prompts."""
    axis = next((k for k, n in enumerate(rows[0].shape) if n == 1), None)
    return rows[0] if axis is None else torch.cat(list(rows), axis)


def named(names: Sequence[str], returned: Sequence[Any]) -> dict[str, Tensor]:
    """What `encode_prompt` returned for one prompt, on the CPU; of a list, its one tensor."""
    found = {n: v[0] if isinstance(v, list) and v else v for n, v in zip(names, returned, strict=True)}
    return {n: v.detach().cpu().clone() for n, v in found.items() if isinstance(v, Tensor)}


def in_order(groups: Sequence[Sequence[int]], results: Sequence[Sequence[T]]) -> list[T]:
    """The results of groups of prompts, each prompt's at its own place."""
    placed = dict(zip(chain(*groups), chain(*results), strict=True))
    return [placed[k] for k in range(len(placed))]


def encoders(pipe: DiffusionPipeline) -> list[str]:
    """The text encoders that a pipeline has now."""
    return [n for n in ENCODERS if getattr(pipe, n, None) is not None]


def unencodable(pipe: DiffusionPipeline, held: Embeddings | None, prompts: Sequence[str]) -> list[str]:
    """Those of the prompts that are not remembered and cannot be encoded, each once."""
    have = encoders(pipe)
    if set(held.origin["encoders"]) <= set(have) if held else have:
        return []
    return [p for p in dict.fromkeys(prompts) if held is None or p not in held.states]


def some(prompts: Sequence[str]) -> str:
    """The first few of many prompts, as a message quotes them."""
    return ", ".join(map(repr, prompts[:3])) + (", ..." if len(prompts) > 3 else "")


def check_known(pipe: DiffusionPipeline, held: Embeddings | None, prompts: Sequence[str]) -> None:
    """Make sure that the prompts are remembered or can be encoded.

    Raises:
        InputError: neither; it names the first of them.
    """
    if missing := unencodable(pipe, held, prompts):
        raise InputError(
            f"text encoders are gone and {len(missing)} of the prompts are not remembered ({some(missing)}): encode "
            "them with `erasers remember` and the flags of this command, or with `remember` and all text encoders there"
        )


@contextmanager
def _shadowed(pipe: DiffusionPipeline, encode: Callable[..., Any]) -> Iterator[None]:
    """Inside, the pipeline's `encode_prompt` is another."""
    before = vars(pipe).get("encode_prompt")
    pipe.encode_prompt = functools.wraps(pipe.encode_prompt)(encode)
    try:
        yield
    finally:
        if before is None:
            del pipe.encode_prompt
        else:
            pipe.encode_prompt = before


@contextmanager
def listening(pipe: DiffusionPipeline) -> Iterator[list[tuple[Any, ...]]]:
    """Inside, what `encode_prompt` returns is kept, call by call."""
    own, heard = pipe.encode_prompt, []

    def listen(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        heard.append(own(*args, **kwargs))
        return heard[-1]

    with _shadowed(pipe, listen):
        yield heard


@contextmanager
def answering(
    pipe: DiffusionPipeline, held: Embeddings | None, *, names: Sequence[str], dtype: torch.dtype, listed: bool
) -> Iterator[None]:
    """Inside, `encode_prompt` answers from memory where it knows the prompts, and refuses those it cannot encode.

    Args:
        pipe: whose it is.
        held: the memory, if there is one.
        names: of what it returns.
        dtype: precision of the answers.
        listed: they are lists of single prompts' tensors.
    """
    own, signature = pipe.encode_prompt, inspect.signature(pipe.encode_prompt)

    def answer(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        given = signature.bind(*args, **kwargs).arguments
        prompts = [p] if isinstance(p := given["prompt"], str) else list(p)
        check_known(pipe, held, prompts)
        if held is None or not held.knows(prompts):
            return own(*args, **kwargs)
        guided, device = bool(given.get("do_classifier_free_guidance")), pipe._execution_device

        def there(v: Tensor | None) -> Tensor | None:
            return None if v is None else v.to(device, dtype if v.is_floating_point() else v.dtype, copy=True)

        if not listed:
            return tuple(map(there, held.answer(prompts, names, guided=guided)))
        alone = [held.answer([p], names, guided=guided) for p in prompts]
        return tuple([there(v) for v in column if v is not None] for column in zip(*alone, strict=True))

    with _shadowed(pipe, answer):
        yield
