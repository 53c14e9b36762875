"""The eraser: what a method hands back; what a user keeps, loads, attaches, bakes in and gives away."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from ..pipelines import Backbone, State, acting, components, distance, fingerprint, plug, unplug, wrap
from ..prompts import Concept, InputError, unknown
from . import _files as files
from ._card import card

SCHEMA = 1
SAME_BASE = 0.01
Layout = Literal["peft", "kohya"]
LAYOUTS: tuple[Layout, ...] = ("peft", "kohya")


@dataclass(frozen=True)
class Recipe:
    """How an eraser was made: written beside its weights and into the weights' own header.

    Attributes:
        method: the method's public name.
        settings: every setting of the method.
        seed: of every draw it made.
        family: "sd", "sdxl", ...
        base: `id` of the base model and a `fingerprint` of the edited weights.
        concepts: what was erased, each with name, anchor, synonyms, neighbours, kind.
        preserve: names that were protected.
        targets: full names of the edited modules.
        scale: the strength it was made for.
        kind: "lora".
        versions: libraries used.
        schema: version of this record.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    family: str
    base: dict[str, Any]
    concepts: list[dict[str, Any]]
    preserve: list[str]
    targets: list[str]
    scale: float = 1.0
    kind: str = "lora"
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @classmethod
    def read(cls, value: Mapping[str, Any], origin: str) -> Recipe:
        """From JSON.

        Raises:
            InputError: not an eraser's record, or one from a newer release.
        """
        schema = value.get("schema")
        if not isinstance(schema, int):
            raise InputError(f"{origin} is no eraser's record: expected a schema number, got {schema!r}")
        if schema > SCHEMA:
            raise InputError(f"{origin} has schema {schema}, this release reads up to {SCHEMA}: update erasers")
        try:
            recipe = cls(**{k: v for k, v in value.items() if k in cls.__dataclass_fields__})
            _ = recipe.base["id"], [float(w) for w in recipe.base["fingerprint"]["weights"]]
            _ = [Concept.from_json(c) for c in recipe.concepts]
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{origin} is no eraser's record ({type(error).__name__}: {error})") from error
        return recipe

    @classmethod
    def from_header(cls, header: Mapping[str, str], origin: str) -> Recipe:
        """From the header of a safetensors file.

        Raises:
            InputError: it has none, or a damaged one.
        """
        if files.HEADER not in header:
            raise InputError(f"{origin} is a safetensors file but no eraser: its header has no {files.HEADER!r} record")
        try:
            value = json.loads(header[files.HEADER])
        except json.JSONDecodeError as error:
            raise InputError(f"{origin}: the {files.HEADER!r} record in its header is damaged ({error})") from error
        if not isinstance(value, dict):
            raise InputError(f"{origin}: the {files.HEADER!r} record in its header is no JSON object")
        return cls.read(value, origin)

    @property
    def names(self) -> list[str]:
        """Names of the erased concepts."""
        return [c["name"] for c in self.concepts]


def library_versions() -> dict[str, str]:
    """Versions of what made an eraser."""
    out = {}
    for name in ("erasers", "torch", "diffusers", "transformers", "peft"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "unknown"
    return out


@dataclass(frozen=True)
class Eraser:
    """A low-rank update that removes concepts from one base model, and the record of how it was made.

    Attributes:
        recipe: see `Recipe`.
        factors: A [r, in] and B [out, r] for each full module name; the weight becomes W + scale * B A.
    """

    recipe: Recipe
    factors: Mapping[str, tuple[Tensor, Tensor]]

    # ------------------------------------------------------------ files

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> Eraser:
        """Load from a folder, a `.safetensors` file with our header, or a Hub id.

        Raises:
            InputError: nothing there, a pickle, a damaged file, or a LoRA that is no eraser.
        """
        path = Path(source)
        if not path.exists():
            path = _download(os.fspath(source))
        if path.is_dir():
            weights, config = path / files.LORA_FILE, path / files.CONFIG_FILE
            if not config.exists():
                raise InputError(f"{path} is no eraser: expected {files.CONFIG_FILE} in it")
            recipe = Recipe.read(files.read_json(config), str(config))
            tensors, _ = files.read_tensors(weights)
            return cls(recipe, files.from_peft_keys(tensors, str(weights)))
        tensors, header = files.read_tensors(path)
        return cls(Recipe.from_header(header, str(path)), files.from_peft_keys(tensors, str(path)))

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, force: bool = False, verify: Backbone | None = None
    ) -> Path:
        """Write the folder: LoRA for diffusers, kohya file, record and model card. All or nothing.

        With `verify`, the written file is loaded back by diffusers' own loader before it takes its place: every
        tensor must find its module and the network's output must change (unless every factor is zero).

        Raises:
            InputError: the folder exists and `force` is off, or cannot be written.
            VerifyError: the written file is not what it should be.
        """

        def fill(partial: Path) -> None:
            self._write(partial / files.LORA_FILE, "peft")
            self._write(partial / files.KOHYA_FILE, "kohya")
            record = json.dumps(asdict(self.recipe), indent=1, ensure_ascii=False)
            (partial / files.CONFIG_FILE).write_text(record + "\n", encoding="utf-8")
            (partial / "README.md").write_text(card(self.recipe), encoding="utf-8")
            if verify is not None:
                _verify(partial, verify)

        return files.write_folder(Path(folder), fill, force=force)

    def export(
        self,
        path: str | os.PathLike[str],
        to: Layout = "peft",
        *,
        dtype: torch.dtype | None = None,
        force: bool = False,
    ) -> Path:
        """Write one file: "peft" (diffusers; ComfyUI for transformers) or "kohya" (ComfyUI, A1111, diffusers).

        Raises:
            InputError: unknown layout, or the file exists, cannot be written or is not named `.safetensors`.
        """
        target = Path(path)
        if to not in LAYOUTS:
            raise unknown("file layout", to, LAYOUTS)
        if target.suffix != ".safetensors":
            raise InputError(f"expected a file name ending in .safetensors, got {target.name!r}")
        files.check_target(target, force)
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        self._write(target, to, dtype)
        return target

    def _write(self, path: Path, to: Layout, dtype: torch.dtype | None = None) -> None:
        tensors = (files.peft_keys if to == "peft" else files.kohya_keys)(self.factors)
        if dtype is not None:
            tensors = {k: v.to(dtype) for k, v in tensors.items()}
        files.write_tensors(path, tensors, {files.HEADER: json.dumps(asdict(self.recipe), ensure_ascii=False)})

    def push_to_hub(
        self, repo: str, *, private: bool = False, token: str | None = None, verify: Backbone | None = None
    ) -> str:
        """Upload the folder, verified as in `save_pretrained`, to the Hub and return its address."""
        api = HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "eraser", verify=verify)
            info = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Add a concept eraser")
        return str(info.commit_url)

    # ------------------------------------------------------------ use

    def attach(
        self,
        pipe: Any,  # noqa: ANN401
        scale: float | None = None,
        *,
        name: str | None = None,
        force: bool = False,
    ) -> Attached:
        """Switch the eraser on in a pipeline (or backbone). Adapters that were on stay on.

        Args:
            pipe: a diffusers pipeline or a `Backbone`.
            scale: strength; 0 changes nothing, 1 is what the eraser was made for (default: the recipe's).
            name: of the adapter; made from the concepts by default.
            force: attach although the base model's weights are not those the eraser was made for.

        Raises:
            InputError: the eraser was made for another family or base model, or the name is taken.
        """
        backbone = pipe if isinstance(pipe, Backbone) else wrap(pipe)
        self.check_base(backbone, force=force)
        taken = {n for m in components(backbone.pipe) for n in getattr(m, "peft_config", {})}
        label = name or _free_name(self.adapter_name, taken)
        if label in taken:
            raise InputError(f"an adapter named {label!r} is attached already: choose another name or detach it")
        strength = self.recipe.scale if scale is None else scale
        # the scale goes into B: `pipe.set_adapters([...])` without weights would set it back to 1
        tensors = files.peft_keys({n: (a, strength * b) for n, (a, b) in self.factors.items()})
        return Attached(backbone.pipe, label, plug(backbone.pipe, tensors, label))

    @contextmanager
    def attached(self, pipe: Any, scale: float | None = None) -> Iterator[Attached]:  # noqa: ANN401
        """`attach` for the length of a `with` block."""
        handle = self.attach(pipe, scale)
        try:
            yield handle
        finally:
            handle.detach()

    def bake(self, pipe: Any, scale: float | None = None, *, force: bool = False) -> None:  # noqa: ANN401
        """Add the update to the base weights for good. Other adapters stay as they are.

        Raises:
            InputError: see `attach`.
        """
        backbone = pipe if isinstance(pipe, Backbone) else wrap(pipe)
        self.check_base(backbone, force=force)
        strength = self.recipe.scale if scale is None else scale
        layers = backbone.modules("all")
        with torch.no_grad():
            for path, (a, b) in self.factors.items():
                w = layers[path].weight
                update = strength * b.to(w.device, torch.float32) @ a.to(w.device, torch.float32)
                w.copy_((w.float() + update).to(w.dtype))

    def check_base(self, backbone: Backbone, *, force: bool = False) -> None:
        """Refuse a base model that the eraser was not made for.

        Raises:
            InputError: another family, missing modules, other shapes, or (without `force`) other weights.
        """
        made_for = f"this eraser of {', '.join(self.recipe.names)} was made for {self.recipe.base['id']!r}"
        if self.recipe.family != backbone.family:
            raise InputError(f"{made_for} (family {self.recipe.family}), got {backbone.name!r} ({backbone.family})")
        layers = backbone.modules("all")
        for path, (a, b) in self.factors.items():
            have = tuple(layers[path].weight.shape) if path in layers else None
            if have != (b.shape[0], a.shape[1]):
                want = (b.shape[0], a.shape[1])
                raise InputError(f"{made_for}: {path} should be {want}, in {backbone.name!r} it is {have or 'missing'}")
        here = fingerprint({n: layers[n] for n in self.factors})
        away = distance(self.recipe.base["fingerprint"]["weights"], here["weights"])
        if not (away <= SAME_BASE or force):  # so that NaN weights are refused too
            raise InputError(
                f"{made_for}; the weights of {backbone.name!r} differ by {away:.1%}: "
                "use that base (in Python, force=True tries it on a relative of it)"
            )

    @property
    def adapter_name(self) -> str:
        """The adapter's default name, like "erase-moon-star"."""
        return "erase-" + re.sub(r"[^a-z0-9]+", "-", "-".join(self.recipe.names).lower())[:48].strip("-")

    @property
    def rank(self) -> int:
        """The largest rank of any pair."""
        return max(a.shape[0] for a, _ in self.factors.values())


@dataclass(frozen=True)
class Attached:
    """An eraser that sits in a pipeline.

    Attributes:
        pipe: the pipeline.
        name: the adapter's name there, for `pipe.set_adapters`.
        before: which adapters were on when it was attached.
    """

    pipe: Any
    name: str
    before: State = field(default_factory=dict, repr=False)

    def is_active(self) -> bool:
        """Whether it acts now. Loading another LoRA with diffusers' own loader switches it off until
        `pipe.set_adapters([...all names...])`.
        """
        return acting(self.name, *components(self.pipe))

    def detach(self) -> None:
        """Take it out; the base is as it was, bit for bit.

        Raises:
            InputError: it was fused into the weights; unfuse it first.
        """
        unplug(self.pipe, self.name, self.before)


class VerifyError(InputError):
    """An eraser was written, loaded back, and found not to do what it should."""


def _free_name(wanted: str, taken: set[str]) -> str:
    name, k = wanted, 2
    while name in taken:
        name, k = f"{wanted}-{k}", k + 1
    return name


def _download(name: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/")) or name.endswith((".safetensors", *files.PICKLES)):
        raise InputError(f"no eraser at {name}: expected a folder, a .safetensors file or a Hub id (owner/name)")
    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "README.md"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"no eraser at {name}: it is no folder or file here, and the Hub says: {first}") from error


@torch.no_grad()
def _verify(folder: Path, backbone: Backbone) -> None:
    """Load the written folder with diffusers' own loader, look for every pair, and compare the network's output."""
    eraser = Eraser.from_pretrained(folder)
    c, *_ = backbone.latent_shape
    x = torch.randn(1, c, 8, 8, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([500]), backbone.encode([eraser.recipe.names[0]])
    before = backbone.denoise(x, t, cond)
    with eraser.attached(backbone, 1.0):
        changed = not torch.equal(before, backbone.denoise(x, t, cond))
    if not torch.equal(before, backbone.denoise(x, t, cond)):
        raise VerifyError(f"{folder}: taking the eraser out did not restore the base")
    zero = not any((a.any() and b.any()) for a, b in eraser.factors.values())
    if changed == zero:
        raise VerifyError(
            f"the eraser of {', '.join(eraser.recipe.names)} loads but {'changes' if changed else 'does not change'} "
            "the output: its update is too small for the weights' precision, or its settings cancel it"
        )
