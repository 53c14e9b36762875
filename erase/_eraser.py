"""The eraser: what a method hands back; what a user keeps, loads, attaches, bakes in and gives away."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..pipelines import (
    ROUNDED,
    SAME,
    Backbone,
    Drawing,
    activate,
    backbone_of,
    check_writable,
    components,
    distance,
    draw_in,
    fingerprint,
    overlay,
    watch,
    writers,
)
from ..prompts import InputError
from . import _files as files
from ._base import shared
from ._card import card
from ._convert import as_factors
from ._delta import Delta
from ._export import Layout, base_values, check_bare, export
from ._hub import fetch, push
from ._hyper import STATIC, Hyper
from ._lora import Lora
from ._payload import Payload, digest
from ._recipe import Recipe

KINDS: dict[str, type[Payload]] = {"lora": Lora, "delta": Delta, "hyper": Hyper}


@dataclass(frozen=True)
class Eraser:
    """An update that removes concepts from one base model, and the record of how it was made.

    Attributes:
        recipe: see `Recipe`.
        payload: the update itself, a `Lora`, a `Delta` or a `Hyper`.
    """

    recipe: Recipe
    payload: Payload

    # ------------------------------------------------------------ files

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> Eraser:
        """Load from a folder, a `.safetensors` file with our header, or a Hub id.

        Args:
            source: where; what is on this computer goes before the Hub.
            revision: of a Hub id: a branch, a tag or a commit.
            token: of an account that may read it; by default the one that is logged in.

        Raises:
            InputError: nothing there, a pickle, a damaged file, or a LoRA that is no eraser; on the Hub, no access.
        """
        path = Path(source)
        if not path.exists():
            path = fetch(os.fspath(source), revision=revision, token=token)
        elif revision is not None:
            raise InputError(f"{path} is here on this computer and has no revision {revision!r}: leave it out")
        if path.is_dir():
            config = path / files.CONFIG_FILE
            if not config.exists():
                raise InputError(f"{path} is no eraser: expected {files.CONFIG_FILE} in it")
            recipe = Recipe.read(files.read_json(config), str(config))
            kind = _kind(recipe, config)
            return cls(recipe, kind.read(path / kind.file)[0])
        recipe = Recipe.from_header(files.read_tensors(path)[1], str(path))
        return cls(recipe, _kind(recipe, path).read(path)[0])

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, force: bool = False, verify: Backbone | None = None
    ) -> Path:
        """Write the folder: the weights (a LoRA for diffusers and a kohya file, a delta, or a hypernetwork with the
        `pipeline.py` that runs it without this package), record and model card; of a generator of few steps its
        scheduler too. All or nothing.

        With `verify`, the written file is loaded back before it takes its place (a LoRA by diffusers' own loader):
        every tensor must find its module and the network's output must change (unless the update is zero).

        Raises:
            InputError: the folder exists and `force` is off, or cannot be written.
            VerifyError: the written file is not what it should be.
        """

        def fill(partial: Path) -> None:
            self._write(partial)
            if verify is not None:
                _verify(partial, verify)

        return files.write_folder(Path(folder), fill, force=force)

    def _write(self, folder: Path) -> None:
        """Weights, record and model card."""
        self.payload.write(folder, self.recipe)
        files.write_text(folder / files.CONFIG_FILE, json.dumps(asdict(self.recipe), indent=1, ensure_ascii=False))
        files.write_text(folder / "README.md", card(self.recipe))
        if self.recipe.drawing:
            files.write_scheduler(folder, self.recipe.drawing["scheduler"])

    def export(
        self,
        path: str | os.PathLike[str],
        to: Layout = "peft",
        *,
        dtype: torch.dtype | None = None,
        base: Backbone | None = None,
        force: bool = False,
    ) -> Path:
        """Write the eraser for another app.

        Args:
            path: a file ending in .safetensors; for "component", a folder.
            to: "peft" (diffusers; ComfyUI for transformers) or "kohya" (ComfyUI, A1111, diffusers; UNets, Flux, Chroma,
                Qwen-Image and Z-Image), one file each, of a LoRA; "lycoris" (ComfyUI, A1111; UNets), the full
                differences of a delta; "component", the whole denoiser with the update in it, for
                `from_pretrained(..., unet=...)`. For a LoRA of a delta see `to_lora`.
            dtype: precision of a file's weights; their own by default.
            base: the base model, which "lycoris" and "component" need.
            force: replace what is there.

        Raises:
            InputError: unknown layout, one that this kind does not have or that has no name for some of its layers, no
                base where one is needed, or the place exists, cannot be written or is not named `.safetensors`.
        """
        return export(self, Path(path), to, dtype=dtype, base=base, force=force)

    def to_lora(self, base: Backbone, *, rank: int | None = None, energy: float | None = None) -> Eraser:
        """A LoRA close to a delta: the largest singular values of each Linear's and convolution's change. What it holds
        of the change's square norm is in its record (`derived`); what it erases must be scored anew.

        Args:
            base: the base model.
            rank: of every layer; or
            energy: the share of each layer's square norm to hold, above 0 and at most 1.

        Raises:
            InputError: it is a LoRA already, both or none of rank and energy, or no layer fits a LoRA.
        """
        if isinstance(self.payload, Hyper):
            raise InputError(f"a hypernetwork is no single update of which a LoRA could be made: {STATIC}")
        if not isinstance(self.payload, Delta):
            raise InputError(f"a {self.recipe.kind} is not made into a LoRA: --rank and --energy are for a delta")
        factors, about = as_factors(self.payload, base_values(self, base), rank=rank, energy=energy)
        lora = Lora(factors)
        with base.using(None):
            weights = lora.weights(base)
            edited = fingerprint(weights, factors)
        record = replace(
            self.recipe,
            kind="lora",
            targets=sorted(factors),
            base={**self.recipe.base, "fingerprint": edited},
            derived=about,
            scores={},
        )
        return Eraser(record, lora)

    @classmethod
    def record_scores(cls, path: str | os.PathLike[str], scores: Mapping[str, Any]) -> Eraser:
        """Write what was measured of an eraser into its own record: the header of its file, or the headers, the
        configuration and the model card of its folder. Its weights stay as they are.

        Args:
            path: an eraser's folder or `.safetensors` file on this computer.
            scores: plain JSON values, such as `Report.summary()`.

        Raises:
            InputError: no eraser there (a Hub id is none), or it cannot be written.
        """
        place = Path(path)
        if not place.exists():
            raise InputError(f"scores are written into an eraser on this computer: no folder or file {place}")
        eraser = cls.from_pretrained(place)
        eraser = replace(eraser, recipe=shared(replace(eraser.recipe, scores=dict(scores))))
        try:
            if place.is_dir():
                eraser._write(place)
            else:
                files.write_tensors(place, files.read_tensors(place)[0], eraser.recipe.header())
        except OSError as error:
            raise InputError(f"cannot write into {place}: {error.strerror or error}") from error
        return eraser

    def materialize(self, base: Backbone, prompt: str, *, time: float | None = None) -> Eraser:
        """The LoRA that a hypernetwork writes for one prompt, as an ordinary eraser. It is static: it acts on every
        prompt alike, so the hypernetwork's selectivity is lost, and what it erases and keeps must be scored anew.

        Args:
            base: the base model.
            prompt: which prompt.
            time: virtual time, from 0 (nothing) to the end of training's (the default).

        Raises:
            InputError: it is no hypernetwork, an empty prompt, or a time outside of its training's.
        """
        if not isinstance(self.payload, Hyper):
            raise InputError(f"a {self.recipe.kind} is the same for every prompt: only a hypernetwork is materialized")
        if not prompt.strip():
            raise InputError("expected a prompt to write the LoRA for, got none: name one that asks for the concept")
        self.check_base(base)
        lora = Lora(self.payload.factors(base, prompt, time))
        about: dict[str, Any] = {"from": "hyper", "prompt": prompt, "acts on": "every prompt alike (static)"}
        about |= {} if time is None else {"virtual time": time}
        return Eraser(replace(self.recipe, kind="lora", derived=about, scores={}), lora)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        verify: Backbone | None = None,
    ) -> str:
        """Upload the folder, verified as in `save_pretrained`, to the Hub and return its address. Its model card names
        the repository in every line to copy; of places on this computer it holds the last part of their names only.

        Args:
            repo: "owner/name"; made if it is not there.
            private: make a new repository private, and refuse one that is not.
            token: of an account that may write it; by default the one that is logged in.
            revision: a branch, made if it is not there; by default the main one.
            verify: load the written folder back before anything is uploaded.

        Raises:
            InputError: not logged in, no right to write there, a public repository where a private one was asked for,
                or the Hub cannot be reached.
            VerifyError: see `save_pretrained`.
        """
        mine = replace(self, recipe=shared(self.recipe))
        with tempfile.TemporaryDirectory() as scratch:
            folder = mine.save_pretrained(Path(scratch) / "eraser", verify=verify)
            files.write_text(folder / "README.md", card(mine.recipe, repo))
            return push(folder, repo, private=private, token=token, revision=revision)

    # ------------------------------------------------------------ use

    def attach(
        self,
        pipe: Any,  # noqa: ANN401
        scale: float | None = None,
        *,
        name: str | None = None,
        force: bool = False,
    ) -> Attached:
        """Switch the eraser on in a pipeline (or backbone). Adapters that were on stay on. When loading another LoRA
        switches it off later, the next image says so with a `UserWarning`. One that draws in few steps gives the
        pipeline its scheduler for as long, and a call with other steps says which to ask for.

        Args:
            pipe: a diffusers pipeline or a `Backbone`.
            scale: strength; 0 changes nothing, 1 is what the eraser was made for (default: the recipe's).
            name: of the adapter; made from the concepts by default.
            force: attach although the base model's weights are not those the eraser was made for.

        Raises:
            InputError: the eraser was made for another family or base model, or the name is taken.
        """
        backbone = backbone_of(pipe)
        self.check_base(backbone, force=force)
        taken = {n for m in components(backbone.pipe) for n in getattr(m, "peft_config", {})}
        taken |= set(over.covers) if (over := overlay(backbone.denoiser)) else set()
        taken |= set(writers(backbone.denoiser))
        label = name or _free_name(self.adapter_name, taken)
        if label in taken:
            raise InputError(f"an adapter named {label!r} is attached already: choose another name or detach it")
        undo = [self.payload.plug(backbone, label, self.recipe.scale if scale is None else scale)]
        if isinstance(self.payload, Lora):  # no other kind is switched off by a LoRA that comes later
            message = (
                f"the eraser of {', '.join(self.recipe.names)} no longer acts: another adapter was loaded or set, "
                "which switches the others off; call handle.activate(), or pipe.set_adapters with "
                f"{label!r} among the names"
            )
            undo.append(watch(backbone.pipe, label, backbone.denoiser, message).remove)
        if drawing := self.drawing:
            undo.append(draw_in(backbone.pipe, drawing))
        return Attached(backbone.pipe, label, lambda: self.payload.acting(backbone, label), tuple(undo))

    @contextmanager
    def attached(self, pipe: Any, scale: float | None = None) -> Iterator[Attached]:  # noqa: ANN401
        """`attach` for the length of a `with` block."""
        handle = self.attach(pipe, scale)
        try:
            yield handle
        finally:
            handle.detach()

    def bake(self, pipe: Any, scale: float | None = None, *, force: bool = False) -> None:  # noqa: ANN401
        """Write the update into the base weights for good (and the scheduler of few steps into the pipeline). LoRA
        adapters stay as they are.

        Raises:
            InputError: see `attach`; or a delta is attached, whose removal would undo the baking.
        """
        backbone = backbone_of(pipe)
        self.check_base(backbone, force=force)
        check_bare(backbone, "bake", loras=True)
        check_writable(backbone.denoiser, "cannot bake")
        self.payload.bake(backbone, self.recipe.scale if scale is None else scale)
        if self.drawing:
            draw_in(backbone.pipe, self.drawing)

    def check_base(self, backbone: Backbone, *, force: bool = False) -> None:
        """Refuse a base model that the eraser was not made for.

        Raises:
            InputError: another family, missing modules, other shapes, or (without `force`) other weights.
        """
        made_for = f"this eraser of {', '.join(self.recipe.names)} was made for {self.recipe.base['id']!r}"
        if self.recipe.family != backbone.family:
            raise InputError(f"{made_for} (family {self.recipe.family}), got {backbone.name!r} ({backbone.family})")
        with backbone.using(None):
            weights = self.payload.weights(backbone)
            for path, want in self.payload.shapes.items():
                have = tuple(weights[path].shape) if path in weights else None
                if have != want:
                    raise InputError(
                        f"{made_for}: {path} should be {want}, in {backbone.name!r} it is {have or 'missing'}"
                    )
            here = fingerprint(weights, self.payload.shapes)
        away = distance(self.recipe.base["fingerprint"]["weights"], here["weights"])
        few = backbone.quantized or self.recipe.base.get("quantized")
        if not (away <= (ROUNDED if few else SAME) or force):  # so that NaN weights are refused too
            raise InputError(
                f"{made_for}; the weights of {backbone.name!r} differ by {away:.1%}: "
                "use that base (in Python, force=True tries it on a relative of it)"
            )

    @property
    def fingerprint(self) -> str:
        """A hash of its numbers, 16 hexadecimal digits: the same of every copy in one precision, saved or not."""
        payload = self.payload
        return digest(Lora(files.one_rank(payload.factors)) if isinstance(payload, Lora) else payload)

    @property
    def drawing(self) -> Drawing | None:
        """How it draws, if it is a generator of few steps."""
        return Drawing.from_json(self.recipe.drawing) if self.recipe.drawing else None

    @property
    def adapter_name(self) -> str:
        """The adapter's default name, like "erase-moon-star"."""
        return "erase-" + re.sub(r"[^a-z0-9]+", "-", "-".join(self.recipe.names).lower())[:48].strip("-")


@dataclass(frozen=True)
class Attached:
    """An eraser that sits in a pipeline.

    Attributes:
        pipe: the pipeline.
        name: the adapter's name there, for `pipe.set_adapters`.
    """

    pipe: Any
    name: str
    _acting: Callable[[], bool] = field(repr=False)
    _undo: tuple[Callable[[], None], ...] = field(repr=False)
    _gone: list[bool] = field(default_factory=list, repr=False)

    def is_active(self) -> bool:
        """Whether it acts now. Loading another LoRA with diffusers' own loader switches it off until `activate()` or
        `pipe.set_adapters([...all names...])`; that does not touch a delta or a hypernetwork.
        """
        return self._acting()

    def activate(self) -> None:
        """Switch it on again, beside the adapters that are on now (all of them off: `pipe.enable_lora()` first, or this
        one acts alone).

        Raises:
            InputError: it is no longer in the pipeline.
        """
        if not activate(self.pipe, self.name) and not self.is_active():
            raise InputError(
                f"the eraser {self.name!r} is no longer in the pipeline (unload_lora_weights takes all LoRAs out): "
                "attach it again"
            )

    def detach(self) -> None:
        """Take it out; the base is as it was, bit for bit.

        Raises:
            InputError: it, or a LoRA over it, was fused into the weights; unfuse first.
        """
        if self._gone:  # another eraser may have the name by now
            return
        for step in self._undo:
            step()
        self._gone.append(True)


class VerifyError(InputError):
    """An eraser was written, loaded back, and found not to do what it should."""


def _kind(recipe: Recipe, origin: Path) -> type[Payload]:
    if recipe.kind not in KINDS:
        raise InputError(
            f"{origin}: this release knows the kinds {', '.join(KINDS)}, got {recipe.kind!r}: update erasers"
        )
    return KINDS[recipe.kind]


def _free_name(wanted: str, taken: set[str]) -> str:
    name, k = wanted, 2
    while name in taken:
        name, k = f"{wanted}-{k}", k + 1
    return name


@torch.no_grad()
def _verify(folder: Path, backbone: Backbone) -> None:
    """Load the written folder with diffusers' own loader, look for every pair, and compare the network's output."""
    eraser = Eraser.from_pretrained(folder)
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([500]), backbone.encode([eraser.recipe.names[0]])
    before = backbone.denoise(x, t, cond)
    with eraser.attached(backbone, 1.0):
        after = backbone.denoise(x, t, cond)
    changed, names = not torch.equal(before, after), ", ".join(eraser.recipe.names)
    if before.isfinite().all() and not after.isfinite().all():
        raise VerifyError(
            f"the eraser of {names} loads but drives the denoiser out of all bounds in {str(after.dtype)[6:]} (inf or "
            "nan): its update is too strong; make it with a lower learning rate (--lr) or a smaller edit"
        )
    if not torch.equal(before, backbone.denoise(x, t, cond)):
        raise VerifyError(f"{folder}: taking the eraser out did not restore the base")
    held = [p.name for p in folder.rglob(files.LORA_FILE)]
    if isinstance(eraser.payload, Hyper) and held:
        raise VerifyError(f"{folder}: a hypernetwork's folder must hold no {files.LORA_FILE}, which apps would load")
    if changed == eraser.payload.zero():
        raise VerifyError(
            f"the eraser of {names} loads but {'changes' if changed else 'does not change'} "
            "the output: its update is too small for the weights' precision, or its settings cancel it"
        )
