"""A pipeline from its configs alone: every network on torch's "meta" device, no weight read, no tokenizer needed."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin, SchedulerMixin
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..prompts import InputError, first_line
from ._backbone import Backbone
from ._bundled import BUNDLED
from ._hub import pipeline_index
from ._ledger import META
from ._load import canvas_mark, check_options, check_source, wrap
from ._loading import Loading
from ._memory import Embeddings
from ._place import precision
from ._prompt_shapes import prompt_shapes
from ._quiet import quiet
from ._single import is_file

LABEL = "erasers-blueprint"
SKIPPED = ("safety_checker", "feature_extractor", "image_encoder")


def blueprint(
    source: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    device: str = "cpu",
    call: Mapping[str, Any] | None = None,
    how: Loading | None = None,
) -> Backbone:
    """A `Backbone` that knows shapes only: groups, conditions and passes, of which `Ledger` counts the memory. Of a
    folder or a Hub id only the configs are read.

    Args:
        source: a bundled name, a diffusers folder (weights may be missing), or a Hub id.
        dtype: precision of the weights; by default what `load` chooses on that device.
        device: where it would be loaded.
        call: more arguments of every stock call, such as `height` and `width`.
        how: its revision, variant and config, as `load` takes them; of a single file the pipeline that `config` names
            is read. What else is in it changes nothing here.

    Raises:
        InputError: no such model, no configs, a family without a backbone, or options that do not fit.
    """
    name, how = os.fspath(source), how or Loading()
    precision(dtype, device, None)  # refuse an unknown one
    found = BUNDLED.get(name)
    if found is not None and found.base:
        found = BUNDLED[found.base]
    where = found.folder if found else Path(name)
    if found is None:
        check_source(name, where)
    check_options(os.fspath(source), where, how)
    if how.config:  # a single file's: its pipeline tells enough
        return blueprint(how.config, dtype=dtype, device=device, call=call)
    place: Path | str = where if where.is_dir() else name
    if found is None and is_file(name):
        raise InputError(
            f"{name} is a single file: name the folder or Hub id of its pipeline with --model-config, whose configs "
            "tell enough"
        )
    try:
        with quiet():
            index = pipeline_index(place, how.revision)
            kind = precision(dtype, device, index.get("_class_name"))
            pipe = _assemble(place, index, dtype=kind, revision=how.revision)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise InputError(f"cannot read the configs of {name!r}: {first_line(error)}") from error
    backbone: Any = wrap(pipe, name, call={**canvas_mark(where).get("call", {}), **(call or {})})
    backbone.embeddings = _Blank(*prompt_shapes(backbone))
    return backbone  # type: ignore[no-any-return]


def _assemble(
    place: Path | str, index: Mapping[str, Any], *, dtype: torch.dtype, revision: str | None
) -> DiffusionPipeline:
    """The pipeline with networks on the meta device, real schedulers, and nothing else."""
    cls = getattr(diffusers, str(index.get("_class_name")), None)
    if cls is None:
        raise ValueError(f"diffusers has no pipeline {index.get('_class_name')!r}")
    parts: dict[str, Any] = {}
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if isinstance(value, (list, tuple)) and len(value) == 2:
            kept = name not in SKIPPED and value[0] is not None
            configs = {"subfolder": name, "revision": revision}
            parts[name] = _part(place, configs, tuple(value), dtype) if kept else None
        else:
            parts[name] = value
    taken = inspect.signature(cls.__init__).parameters
    # the stock call's own tensors are small and real: masks, times and places
    here = property(lambda _self: torch.device("cpu"))
    plain = type(cls.__name__, (cls,), {"_execution_device": here, "device": here, "__module__": cls.__module__})
    needed = {k: None for k, p in taken.items() if p.default is inspect.Parameter.empty and k != "self"}
    pipe = plain(**{**needed, **{k: v for k, v in parts.items() if k in taken}})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _part(place: Path | str, configs: Mapping[str, str | None], what: tuple[str, ...], dtype: torch.dtype) -> Any:  # noqa: ANN401
    """One component: a scheduler, a network on the meta device, or nothing (tokenizers, processors of images)."""
    library, kind = what
    home = {"diffusers": diffusers, "transformers": transformers}.get(library)
    cls = getattr(home or importlib.import_module(f"diffusers.pipelines.{library}"), kind)
    if issubclass(cls, SchedulerMixin):
        return cls.from_config(cls.load_config(place, **configs))
    if not issubclass(cls, nn.Module):
        return None
    with torch.device("meta"):
        if issubclass(cls, ModelMixin) and issubclass(cls, ConfigMixin):
            net = cls.from_config(cls.load_config(place, **configs))
        else:
            net = cls(cls.config_class.from_pretrained(place, **configs))
    if kind == "HiDreamImageTransformer2DModel":  # the same numbers, in an order that needs no sizes read from a tensor
        net.unpatchify = partial(_in_rows, net.unpatchify)
    for m in net.modules():
        if type(m).__name__ == "MOEFeedForwardSwiGLU":  # which expert a token goes to is in numbers that are not there
            m.moe_infer = partial(_any_expert, m)
    net = net.to(META, dtype).requires_grad_(False).eval()
    # what is kept in float32 whatever is asked for: by transformers beside float16 only
    half = torch.float16 if home is transformers else dtype
    kept = getattr(net, "_keep_in_fp32_modules", None) if dtype != torch.float32 and dtype == half else None
    for path, p in net.named_parameters() if kept else ():
        if set(kept or ()) & set(path.split(".")):
            p.data = p.data.float()
    return net


def _any_expert(module: Any, x: Tensor, places: Tensor, weights: Tensor) -> Tensor:  # noqa: ANN401
    """As many experts for each token as a mixture asks."""
    with torch.no_grad():
        out = torch.zeros_like(x)
        for expert in module.experts[: module.num_activated_experts]:
            out = out + expert(x)
        return out


def _in_rows(own: Any, x: Tensor, sizes: Any, training: bool) -> Tensor:  # noqa: ANN401
    """The latents patch by patch."""
    out: Tensor = own(x, sizes, True)
    return out


class _Every(Mapping[str, Mapping[str, Tensor]]):
    """The same row for every prompt."""

    def __init__(self, row: Mapping[str, Tensor]) -> None:
        self._row = row

    def __getitem__(self, prompt: str) -> Mapping[str, Tensor]:
        return self._row

    def __contains__(self, prompt: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Blank(Embeddings):
    """Prompts without content, of the right shapes."""

    def __init__(self, row: Mapping[str, Tensor], free: Mapping[str, Tensor]) -> None:
        super().__init__(_Every(row), free, {"encoders": [], "call": {}})


@contextmanager
def adapted(backbone: Backbone, layers: Mapping[str, nn.Linear], rank: int) -> Iterator[list[nn.Parameter]]:
    """Inside, the blueprint's denoiser has low-rank factors on these Linears, in float32 as a student's are: those."""
    root: Any = backbone.denoiser
    paths = [n.partition(".")[2] for n in layers]
    sizes = {p: min(rank, m.in_features, m.out_features) for p, m in zip(paths, layers.values(), strict=True)}
    ranks = {f"^{p}$": r for p, r in sizes.items() if r != rank}
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=paths, rank_pattern=ranks)
    with quiet():
        inject_adapter_in_model(config, root, LABEL, low_cpu_mem_usage=True)
    try:
        found = [p for n, p in root.named_parameters() if f".{LABEL}." in n]
        for p in found:
            p.data = p.data.to(META, torch.float32)
        yield found
    finally:
        for path, m in list(root.named_modules()):
            if isinstance(m, BaseTunerLayer):
                root.set_submodule(path, m.get_base_layer())
        vars(root).pop("peft_config", None)
