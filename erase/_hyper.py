"""Kind `hyper`: a hypernetwork that writes a low-rank update of its own for each prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from ..pipelines import Backbone, Pairs, bypassed, prompt_signals, write_by_prompt, writers
from ..prompts import InputError, first_line
from . import _files as files
from ._hypernet import Hypernetwork, Plan, norms
from ._lora import Factors, Lora
from ._payload import Undo
from ._portable import pipeline_file
from ._recipe import Recipe

if TYPE_CHECKING:
    from ._eraser import Eraser

STATIC = "materialize it for one prompt (`Eraser.materialize`; `erasers export --prompt`), which makes a LoRA of it"


@dataclass(frozen=True)
class Hyper:
    """A hypernetwork.

    Attributes:
        network: what it is.
        family: of the pipelines it is for, which its own `pipeline.py` names.
        about: norms of what it writes for prompts it was trained on.
    """

    network: Hypernetwork
    family: str
    about: Mapping[str, Any] = field(default_factory=dict)

    kind: ClassVar[str] = "hyper"
    file: ClassVar[str] = files.HYPER_FILE

    @property
    def plan(self) -> Plan:
        """Its shape."""
        return self.network.plan

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (m, n) for name, n, m in self.plan.layers}

    def weights(self, backbone: Backbone) -> Mapping[str, Tensor]:
        return Lora({}).weights(backbone)

    def finite(self) -> bool:
        return all(bool(t.isfinite().all()) for t in self.network.state_dict().values())

    def zero(self) -> bool:
        last = "right.2." if self.plan.architecture == "per-layer" else "right."
        return not any(bool(t.any()) for n, t in self.network.state_dict().items() if last in n)

    def summary(self) -> str:
        p = self.plan
        count = sum(t.numel() for t in self.network.state_dict().values())
        return f"{p.architecture} hypernetwork of {count:,} numbers, writes rank {p.rank} in {len(p.layers)} layers"

    def write(self, folder: Path, recipe: Recipe) -> None:
        (folder / files.HYPER_CONFIG).parent.mkdir(exist_ok=True)  # there already when scores are recorded
        config = {**asdict(self.plan), "family": self.family, "written": dict(self.about)}
        files.write_text(folder / files.HYPER_CONFIG, json.dumps(config, indent=1))
        files.write_tensors(folder / files.HYPER_FILE, self.network.state_dict(), recipe.header())
        files.write_text(folder / "pipeline.py", pipeline_file(self.family))

    @classmethod
    def read(cls, path: Path) -> tuple[Self, Mapping[str, str]]:
        tensors, header = files.read_tensors(path)
        config = files.read_json(path.with_name(Path(files.HYPER_CONFIG).name))
        try:
            family, about = str(config.pop("family")), dict(config.pop("written"))
            network = Hypernetwork.stored(Plan.from_json(config), tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{path} and its config.json do not belong together ({first_line(error)}): write them again"
            ) from error
        return cls(network, family, about), header

    def plug(self, backbone: Backbone, name: str, scale: float) -> Undo:
        layers = [n for n, _, _ in self.plan.layers]
        return write_by_prompt(backbone, layers, self.pairs, read=self.plan.read, label=name, scale=scale).remove

    def acting(self, backbone: Backbone, name: str) -> bool:
        writer = writers(backbone.denoiser).get(name)
        on = writer is not None and writer.on and writer.scale != 0.0 and not self.zero()
        return on and not bypassed(backbone.denoiser)

    def bake(self, backbone: Backbone, scale: float) -> None:
        raise InputError(f"a hypernetwork writes another update for each prompt, which no weights can hold: {STATIC}")

    # ------------------------------------------------------------ what it writes

    def pairs(self, signal: Tensor, time: float | None = None) -> Pairs:
        """The factors for some prompts' signals [B, D], at the end of virtual time or at another. Gradients flow to
        signals that ask for them.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and signal.requires_grad):
            return self.network.on(signal.device)(signal, float(self.plan.times if time is None else time))

    def factors(self, backbone: Backbone, prompt: str, time: float | None = None) -> Factors:
        """What it writes for one prompt, as a LoRA's A [r, in] and B [out, r].

        Raises:
            InputError: a time outside of 0 to S.
        """
        if time is not None and not 0 <= time <= self.plan.times:
            raise InputError(f"time: expected a virtual time from 0 to {self.plan.times}, got {time}")
        pairs = self.pairs(prompt_signals(backbone, [prompt], self.plan.read), time)
        return {
            n: (left[0].mT.cpu().contiguous(), right[0].mT.cpu().contiguous()) for n, (left, right) in pairs.items()
        }

    def norms(self, backbone: Backbone, prompts: list[str], time: float | None = None) -> list[float]:
        """Norm of what it writes for each prompt."""
        u = prompt_signals(backbone, prompts, self.plan.read)
        return [v for part in u.split(256) for v in norms(self.pairs(part, time)).tolist()]


def written_norms(
    eraser: Eraser, backbone: Backbone, prompts: Sequence[str], *, time: float | None = None
) -> list[float]:
    """Frobenius norm of the LoRA that a hypernetwork writes for each prompt: how much it interferes there.

    Raises:
        InputError: the eraser is no hypernetwork, or made for another base.
    """
    if not isinstance(eraser.payload, Hyper):
        raise InputError(f"a {eraser.recipe.kind} is the same for every prompt: only a hypernetwork writes for each")
    eraser.check_base(backbone)
    return eraser.payload.norms(backbone, list(prompts), time)
