"""Reading and writing eraser folders: atomic, safetensors and JSON only, every failure one clear line."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..pipelines import PICKLES
from ..prompts import InputError, out_of_memory, usual_mode

LORA_FILE = "pytorch_lora_weights.safetensors"
KOHYA_FILE = "eraser_kohya.safetensors"
DELTA_FILE = "delta.safetensors"
HYPER_FILE = "hypernet/model.safetensors"
HYPER_CONFIG = "hypernet/config.json"
COMPONENT_FILE = "erased_component.json"
CONFIG_FILE = "eraser_config.json"
HEADER = "erasers"


def check_target(target: Path, force: bool, *, holds: str | None = None) -> None:
    """Make sure an output can be written, before any work is done.

    Args:
        target: the file, or the folder, to be written.
        force: whether one that is there may be replaced.
        holds: for a folder, the file that marks one of ours; only such a folder is ever replaced. None: a file.

    Raises:
        InputError: it exists and `force` is off, it is something else than what would replace it, or its place is not
            writable.
    """
    try:
        _check_what_is_there(target, force, holds)
        parent = target.absolute().parent
        while not parent.exists():
            parent = parent.parent
        with tempfile.NamedTemporaryFile(dir=parent, prefix=".erasers-"):
            pass
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}; choose another place") from error


def _check_what_is_there(target: Path, force: bool, holds: str | None) -> None:
    if target.is_symlink():
        raise InputError(f"{target} is a link and is not replaced: name the place itself")
    if not target.exists():
        return
    if target.is_dir() != (holds is not None):
        got, want = ("folder", "file") if target.is_dir() else ("file", "folder")
        raise InputError(f"{target} is a {got} and a {want} would be written: choose another place")
    if holds is not None and not any(target.iterdir()):
        return
    if not force:
        raise InputError(f"{target} exists already: add --force to replace it, or choose another place")
    if holds is not None and not (target / holds).exists():
        raise InputError(f"{target} holds no {holds}, so it is not ours to replace: choose another place")


def write_folder(target: Path, fill: Callable[[Path], None], *, holds: str = CONFIG_FILE, force: bool = False) -> Path:
    """Let `fill` write into a fresh folder and move it to `target` in one step; a failure leaves nothing behind.

    Raises:
        InputError: see `check_target`.
    """
    check_target(target, force, holds=holds)
    made = _missing_parents(target)
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}-"))
    try:
        fill(partial)
        usual_mode(partial)  # a temporary folder is its owner's alone
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.absolute().parent, prefix=f".{target.name}-old-"))
            target.replace(old / "it")
            partial.replace(target)
            shutil.rmtree(old)
        else:
            partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    return target


def _missing_parents(target: Path) -> list[Path]:
    """The folders above the target that do not exist yet, innermost first."""
    return [p for p in target.absolute().parents if not p.exists()]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file, atomically. The header's entries stand in their own order: the same eraser is the same
    bytes.
    """
    partial = path.with_name(f".{path.name}.part")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, dict(header))
    if len(header) > 1:
        _order(partial, list(header))
    usual_mode(partial)  # safetensors writes for the owner's eyes only
    os.replace(partial, path)


def _order(path: Path, keys: Sequence[str]) -> None:
    """Put a file's header entries, which safetensors writes in random order, into one order; their bytes are moved and
    nothing else is touched.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(size))
        entries = head.pop("__metadata__")
        head = {"__metadata__": {k: entries[k] for k in keys}, **head}
        text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > size:
            raise ValueError(f"{path}: the header does not fit into its {size} bytes")
        file.seek(8)
        file.write(text.ljust(size))


def write_text(path: Path, text: str) -> None:
    """Write a text file that ends in a line break, atomically.

    Raises:
        InputError: it cannot be written there.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file.

    Raises:
        InputError: the file is missing, is a pickle, or is truncated or damaged.
    """
    if path.suffix.lower() in PICKLES:
        raise InputError(f"{path} is a pickle, which can run code when loaded: expected a .safetensors file")
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if out_of_memory(error):
            raise
        raise InputError(f"{path} is no whole safetensors file ({error}): download or write it again") from error


def write_scheduler(folder: Path, config: Mapping[str, Any]) -> None:
    """A scheduler's config where diffusers looks for it: `from_pretrained(folder, subfolder="scheduler")`."""
    (folder / "scheduler").mkdir(exist_ok=True)
    write_text(folder / "scheduler" / "scheduler_config.json", json.dumps(config, indent=2, sort_keys=True))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: missing or malformed.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


# ---------------------------------------------------------------- LoRA files


def one_rank(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """The same update with every pair padded by zeros to the largest rank: mixed ranks without alphas are mis-scaled
    by older diffusers releases.
    """
    rank = max(a.shape[0] for a, _ in factors.values())
    out = {}
    for name, (a, b) in factors.items():
        more = rank - a.shape[0]
        below, beside = a.new_zeros(more, *a.shape[1:]), b.new_zeros(b.shape[0], more, *b.shape[2:])
        out[name] = torch.cat([a, below]), torch.cat([b, beside], 1)
    return out


def peft_keys(factors: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """`<component>.<module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r]; alpha = rank is not written."""
    out = {}
    for name, (a, b) in one_rank(factors).items():
        out[f"{name}.lora_A.weight"], out[f"{name}.lora_B.weight"] = a, b
    return out


def from_peft_keys(tensors: Mapping[str, Tensor], origin: str) -> dict[str, tuple[Tensor, Tensor]]:
    """The pairs in a PEFT-keyed file.

    Raises:
        InputError: a key is not of that form, or half of a pair is missing.
    """
    names = {k.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight") for k in tensors}
    out = {}
    for name in sorted(names):
        try:
            out[name] = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
        except KeyError as error:
            raise InputError(f"{origin}: expected pairs of lora_A and lora_B weights, {error} is missing") from error
    return out
