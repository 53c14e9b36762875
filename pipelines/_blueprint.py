"""A pipeline from its configs alone: every network on torch's "meta" device, no weight read, no tokenizer needed."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from ._load import canvas_mark, check_changed, check_options, check_source, wrap
from ._loading import Loading, Quantize
from ._memory import Embeddings
from ._place import check_offload, precision
from ._prompt_shapes import prompt_shapes
from ._quantize import check_works, shrunk
from ._quiet import quiet
from ._shrunk import shrink
from ._single import from_header, is_file, is_whole

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
        device: where it would be loaded, which need not be here.
        call: more arguments of every stock call, such as `height` and `width`.
        how: its revision, variant and config, as `load` takes them; of a single file the pipeline that `config` names
            is read, and of a .gguf file its header. Weights that it quantises are counted in their few bits. What it
            offloads changes nothing here.

    Raises:
        InputError: no such model, no configs, a family without a backbone, or options that do not fit.
    """
    name, how = os.fspath(source), how or Loading()
    precision(dtype, device, None)  # refuse an unknown one
    check_offload(device, how)
    if how.quantize != "none":
        check_works(how.quantize, f"--quantize {how.quantize}", device)
    found = BUNDLED.get(name)
    if found is not None and found.base:
        found = BUNDLED[found.base]
    where = found.folder if found else Path(name)
    if found is None:
        check_source(name, where)
    check_options(name, where, how)
    if found is None and is_file(name) and not how.config:
        raise InputError(
            f"{name} is a single file: name the folder or Hub id of its pipeline with --model-config, whose configs "
            "tell enough"
        )
    file, named = (name, how.config) if how.config else (None, name)  # of a file, its pipeline tells enough
    if file is not None:
        found = BUNDLED.get(named)
        where = found.folder if found else Path(named)
    place: Path | str = where if where.is_dir() else named
    try:
        with quiet():
            parts = _Parts.of(place, None if file else how.revision)
            parts = parts.held(how.quantize, precision(dtype, device, parts.index.get("_class_name")), file=file)
            pipe = _assemble(parts)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError) as error:
        raise InputError(f"cannot read the configs of {named!r}: {first_line(error)}") from error
    backbone: Any = wrap(pipe, name, call={**canvas_mark(where).get("call", {}), **(call or {})})
    backbone.embeddings = _Blank(*prompt_shapes(backbone))
    check_changed(backbone, how)
    return backbone  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Parts:
    """What a pipeline is put together of.

    Attributes:
        place: folder or Hub id.
        revision: of it.
        index: its `model_index.json`.
        dtype: precision of the weights.
        few: how its networks in few bits are held, by component.
        given: networks that come from elsewhere, by component.
    """

    place: Path | str
    revision: str | None
    index: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    few: Mapping[str, Quantize] = field(default_factory=dict)
    given: Mapping[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, place: Path | str, revision: str | None) -> _Parts:
        return cls(place, revision, pipeline_index(place, revision))

    def held(self, what: Quantize, dtype: torch.dtype, *, file: str | None) -> _Parts:
        """In that precision, with what is quantised; a whole checkpoint's text encoders are not."""
        given: dict[str, nn.Module] = {}
        without: Sequence[str] = ()
        if file is not None:
            component = "unet" if "unet" in self.index else "transformer"
            if file.lower().endswith(".gguf"):
                given[component] = from_header(file, str(self.place), self.index, dtype)
                without = [component]
            elif is_whole(file):
                without = [n for n in self.index if n != component]
        few = dict.fromkeys(shrunk(what, self.index, without), what)
        return replace(self, dtype=dtype, few=few, given=given)


def _assemble(parts: _Parts) -> DiffusionPipeline:
    """The pipeline with networks on the meta device, real schedulers, and nothing else."""
    cls = getattr(diffusers, str(parts.index.get("_class_name")), None)
    if cls is None:
        raise ValueError(f"diffusers has no pipeline {parts.index.get('_class_name')!r}")
    made: dict[str, Any] = {}
    for name, value in parts.index.items():
        if name.startswith("_"):
            continue
        if isinstance(value, (list, tuple)) and len(value) == 2:
            kept = name not in SKIPPED and value[0] is not None
            made[name] = _part(parts, name) if kept else None
        else:
            made[name] = value
    taken = inspect.signature(cls.__init__).parameters
    # the stock call's own tensors are small and real: masks, times and places
    here = property(lambda _self: torch.device("cpu"))
    plain = type(cls.__name__, (cls,), {"_execution_device": here, "device": here, "__module__": cls.__module__})
    needed = {k: None for k, p in taken.items() if p.default is inspect.Parameter.empty and k != "self"}
    pipe = plain(**{**needed, **{k: v for k, v in made.items() if k in taken}})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _part(parts: _Parts, name: str) -> Any:  # noqa: ANN401
    """One component: a scheduler, a network on the meta device, or nothing (tokenizers, processors of images)."""
    library, kind = parts.index[name]
    home = {"diffusers": diffusers, "transformers": transformers}.get(library)
    cls = getattr(home or importlib.import_module(f"diffusers.pipelines.{library}"), kind)
    configs = {"subfolder": name, "revision": parts.revision}
    if issubclass(cls, SchedulerMixin):
        return cls.from_config(cls.load_config(parts.place, **configs))
    if not issubclass(cls, nn.Module):
        return None
    if name in parts.given:
        return _readied(parts.given[name])
    with torch.device("meta"):
        if issubclass(cls, ModelMixin) and issubclass(cls, ConfigMixin):
            net = cls.from_config(cls.load_config(parts.place, **configs))
        else:
            net = cls(cls.config_class.from_pretrained(parts.place, **configs))
    dtype = parts.dtype
    net = _readied(net.to(META, dtype))
    # what is kept in float32 whatever is asked for: by transformers beside float16 only
    half = torch.float16 if home is transformers else dtype
    kept = getattr(net, "_keep_in_fp32_modules", None) if dtype != torch.float32 and dtype == half else None
    for path, p in net.named_parameters() if kept else ():
        if set(kept or ()) & set(path.split(".")):
            p.data = p.data.float()
    if name in parts.few:
        shrink(net, parts.few[name])
    return net


def _readied(net: Any) -> nn.Module:  # noqa: ANN401
    """A network that can be run without numbers."""
    if type(net).__name__ == "HiDreamImageTransformer2DModel":  # in an order that needs no sizes read from a tensor
        net.unpatchify = partial(_in_rows, net.unpatchify)
    for m in net.modules():
        if type(m).__name__ == "MOEFeedForwardSwiGLU":  # which expert a token goes to is in numbers that are not there
            m.moe_infer = partial(_any_expert, m)
    net.requires_grad_(False).eval()
    return net  # type: ignore[no-any-return]


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
