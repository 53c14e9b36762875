"""StableDiffusionPipeline with a concept eraser that writes its update prompt by prompt. Needs no erasers.

    pipe = DiffusionPipeline.from_pretrained(BASE, custom_pipeline=THIS_FOLDER, trust_remote_code=True)
    pipe.load_eraser(THIS_FOLDER)
"""

from __future__ import annotations

import inspect
import json
import math
import sys
import torch
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from torch import Tensor, nn
from typing import Any, Literal
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

Read = Literal["pooled", "last", "mean"]
"""Where a prompt's signal is read: the pooled vector; the last text state, which in a causal encoder has seen the whole
prompt, whatever its length; or the mean of the text states, without masked and zero ones."""

Rows = Literal["all", "first", "second", "none"]
"""Which rows of a call are the conditional side of guidance."""

Pairs = Mapping[str, tuple[Tensor, Tensor]]
"""Of each layer x_L [B, in, r] and x_R [B, r, out]: row b of its input x becomes W x + (x x_L[b]) x_R[b]."""

Write = Callable[[Tensor], Pairs]
"""From the signals of some prompts, float32 [B, D], to their factors."""

POOLED = ("pooled_projections", "pooled_embeds", "text_embeds")
TEXT = ("encoder_hidden_states_t5", "encoder_hidden_states", "cap_feats")
MASKS = ("encoder_hidden_states_mask", "encoder_attention_mask", "attention_mask")
KEY = "_erasers_writers"


def unwrapped(root: nn.Module) -> nn.Module:
    """The network itself where `torch.compile` has wrapped it."""
    return getattr(root, "_orig_mod", root)


def writers(root: nn.Module) -> dict[str, Writer]:
    """What writes into this network, by label."""
    return dict(vars(unwrapped(root)).get(KEY, {}))


def by_name(root: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a network's call by name, those within `added_cond_kwargs` too."""
    names = inspect.signature(type(unwrapped(root)).forward).parameters
    call = {**dict(zip([n for n in names if n != "self"], args, strict=False)), **kwargs}
    return {**call, **(call.get("added_cond_kwargs") or {})}


def source(call: Mapping[str, Any], read: Read) -> tuple[str, Any]:
    """Name and value of the argument that a signal is read from.

    Raises:
        KeyError: the call has none.
    """
    for name in POOLED if read == "pooled" else TEXT:
        if call.get(name) is not None:
            return name, call[name]
    raise KeyError(f"the denoiser is given nothing to read as {read!r}, only {sorted(call)}")


def weights(text: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Which of the text states [B, L, D] count in a mean, float [B, L]: neither masked nor zero."""
    keep = (text != 0).any(-1)
    for name in MASKS:
        mask = call.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= text.shape[1]:
            keep = keep & (mask[:, : text.shape[1]] > 0)  # some masks go on over the image's tokens
            break
    return keep.float()


def signal(call: Mapping[str, Any], read: Read) -> Tensor:
    """The signal of each prompt of a call, float32 [B, D]."""
    value = source(call, read)[1]
    if isinstance(value, (list, tuple)):  # one [L, D] for each prompt
        return torch.stack([v[-1].float() if read == "last" else v.float().mean(0) for v in value])
    if read == "pooled":
        return value.float()
    if read == "last":
        return value[:, -1].float()
    w = weights(value, call)
    return (value.float() * w[..., None]).sum(1) / w.sum(1, keepdim=True).clamp(min=1)


def disguise(call: Mapping[str, Any], read: Read, other: Tensor, rows: Tensor) -> dict[str, Any]:
    """What of a call changes when some rows' signal becomes another one, [D], and nothing else does: the pooled vector,
    the last state, or all states moved alike.
    """
    name, value = source(call, read)
    if isinstance(value, (list, tuple)):
        moved = list(value)
        for k in rows.nonzero().flatten().tolist():
            moved[k] = value[k].clone()
            if read == "last":
                moved[k][-1] = other.to(value[k])
            else:
                moved[k] += (other - value[k].float().mean(0)).to(value[k])
        return {name: moved}
    new = value.clone()
    other, rows = other.to(value), rows.to(value.device)
    if read == "pooled":
        new[rows] = other
    elif read == "last":
        new[rows, -1] = other
    else:
        w = weights(value, call)
        shift = (other.float() - signal(call, read))[:, None] * w[..., None]
        new[rows] = (value.float() + shift).to(value.dtype)[rows]
    if name == "text_embeds":
        return {"added_cond_kwargs": {**call["added_cond_kwargs"], name: new}}
    return {name: new}


def conditional(root: nn.Module, parts: Sequence[Tensor], n: int, free_first: bool) -> Rows:
    """Which rows of a call are conditional, as the stock pipeline that makes it has arranged them.

    Guidance in one call doubles the rows of the pipeline's own `latents`; guidance in calls of their own hands over a
    tensor of its own whose name starts with "negative". Both are read off the calling frame, because a pipeline's
    attributes are stale outside its call, its truncation of guidance is in none of them, and the network may be
    another pipeline's too. Called by nobody like that, all rows are conditional.

    Args:
        root: the network.
        parts: the text tensors it is given.
        n: rows of the call.
        free_first: whether the unconditional rows come first.
    """
    frame = sys._getframe(1)
    while frame is not None:
        names = (*frame.f_code.co_varnames, *frame.f_code.co_cellvars)
        if "latents" in names and "self" in names:
            there = frame.f_locals
            mine = getattr(there.get("self"), "__dict__", {})
            parts_of_it = (mine.get("unet"), mine.get("transformer"))
            if any(isinstance(m, nn.Module) and unwrapped(m) is unwrapped(root) for m in parts_of_it):
                free = [v for k, v in there.items() if k.startswith("negative") and isinstance(v, Tensor)]
                if all(any(p is v for v in free) for p in parts):
                    return "none"
                latents = there.get("latents")
                if isinstance(latents, Tensor) and n == 2 * len(latents):
                    return "second" if free_first else "first"
                return "all"
        frame = frame.f_back  # type: ignore[assignment]
    return "all"


def mask(rows: Rows, n: int) -> Tensor:
    """The same as booleans, [n]."""
    out = torch.full((n,), rows in ("all", "first"))
    if rows in ("first", "second"):
        out[n // 2 :] = rows == "second"
    return out


class Writer:
    """Updates of some Linears of one network that depend on the prompt.

    A hook on the network reads the prompts' signals, lets `write` make factors of them, once for each prompt, and hooks
    on the layers add them, row by row. Nothing else of the network changes; `remove` leaves nothing behind.

    Args:
        root: the network.
        layers: what is updated, by name.
        write: what makes the factors.
        read: where the signal is.
        free_first: where guidance shares a call, whether the unconditional rows come first.
        label: under which `writers` finds it.

    Attributes:
        on: whether it acts.
        scale: strength.
        told: which rows of the next calls are conditional, where that is known.
        calls: how often `write` was called.
    """

    def __init__(
        self,
        root: nn.Module,
        layers: Mapping[str, nn.Module],
        write: Write,
        *,
        read: Read,
        free_first: bool = True,
        label: str = "",
    ) -> None:
        self.root, self.read, self.free_first, self.label = root, read, free_first, label
        self.on, self.scale, self.calls = True, 1.0, 0
        self.told: Rows | None = None
        self.pipe: Any = None
        self._write = write
        self._names = [n for n in inspect.signature(type(unwrapped(root)).forward).parameters if n != "self"]
        self._pairs: dict[str, tuple[Tensor, Tensor]] | None = None
        self._given = False
        self._seen: tuple[Rows, list[Tensor], list[int], Tensor] | None = None
        self._text: tuple[Tensor | None, int] = (None, 0)
        self._made: dict[str, Tensor] = {}
        vars(unwrapped(root)).setdefault(KEY, {})[label] = self
        self._handles = [root.register_forward_pre_hook(self._look, with_kwargs=True)]
        self._handles += [m.register_forward_hook(self._adder(n)) for n, m in layers.items()]

    def remove(self) -> None:
        """Take every hook out."""
        for handle in self._handles:
            handle.remove()
        found = vars(unwrapped(self.root)).get(KEY, {})
        if found.get(self.label) is self:
            del found[self.label]
            if not found:
                del vars(unwrapped(self.root))[KEY]

    @contextmanager
    def giving(self, pairs: Pairs) -> Iterator[None]:
        """Inside, these factors are added, whatever the prompt; gradients flow to them. A layer computed again in a
        backward pass needs them too.
        """
        self._given, self._pairs = True, dict(pairs)
        self._forget()
        try:
            yield
        finally:
            self._given, self._pairs, self._seen = False, None, None
            self._forget()

    # ------------------------------------------------------------ hooks

    def _look(self, _root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._given:
            return
        if not self.on or self.scale == 0.0:
            self._pairs, self._seen = None, None
            self._forget()
            return
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        call = {**call, **(call.get("added_cond_kwargs") or {})}
        if torch.compiler.is_compiling():  # neither frames nor memory there: made anew in every call
            u = signal(call, self.read)
            self._pairs = self._factors(u, self.told or self._guess(len(u)))
            return
        text = call.get("encoder_hidden_states")
        if not isinstance(text, Tensor) or text.is_inference():
            self._forget()
        elif text is not self._text[0] or text._version != self._text[1]:
            self._forget()
            self._text = (text, text._version)
        value = source(call, self.read)[1]
        parts = list(value) if isinstance(value, (list, tuple)) else [value]
        n = len(value)
        rows = self.told or conditional(self.root, parts, n, self.free_first)
        # an inference tensor does not count its changes, so it is never the same for sure
        counts = [-1 if p.is_inference() else p._version for p in parts]
        if self._seen is not None and self._seen[0] == rows and -1 not in counts and counts == self._seen[2]:
            before = self._seen[1]
            if len(before) == len(parts) and all(a is b for a, b in zip(before, parts, strict=True)):
                return
        u = signal(call, self.read)
        if u.requires_grad or self._seen is None or self._seen[0] != rows or not _same(self._seen[3], u):
            self._pairs = self._factors(u, rows)
            self._made.clear()
        # who asks for gradients by the prompt gets a graph of its own in each call
        self._seen = None if u.requires_grad else (rows, parts, counts, u.clone())

    def _forget(self) -> None:
        """Forget what was made of the text."""
        self._text = (None, 0)
        self._made.clear()

    def _guess(self, n: int) -> Rows:
        """Inside a compiled network: by the pipeline's own guidance, which is what it was last called with."""
        guided = float(getattr(self.pipe, "_guidance_scale", None) or 0.0) > 1.0
        if not guided or n % 2:
            return "all"
        return "second" if self.free_first else "first"

    def _factors(self, u: Tensor, rows: Rows) -> dict[str, tuple[Tensor, Tensor]] | None:
        if rows == "none":
            return None
        self.calls += 1
        keep = self.scale * mask(rows, len(u)).to(u)[:, None, None]
        pairs = {n: (left, right * keep) for n, (left, right) in self._write(u).items()}
        if torch.compiler.is_compiling() or any(r.requires_grad for _, r in pairs.values()):
            return pairs
        silent = not bool(torch.stack([right.abs().amax() for _, right in pairs.values()]).any())
        return None if silent else pairs

    def _adder(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def add(_layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
            if self._pairs is None or not self.on:
                return None
            x: Tensor = args[0]
            # in cross-attention the layer's input is the text itself, in every step the same
            keep = not torch.compiler.is_compiling() and x is self._text[0]
            if keep and name in self._made and self._made[name].dtype == out.dtype:
                return out + self._made[name]
            left, right = self._pairs[name]
            if len(x) != len(left):
                raise RuntimeError(f"{name} is given {len(x)} rows for {len(left)} prompts")
            more = (x.flatten(1, -2) if x.ndim > 2 else x[:, None]) @ left.to(x.dtype) @ right.to(x.dtype)
            more = more.view(out.shape).to(out.dtype)
            if keep and not more.requires_grad and not more.is_inference():
                self._made[name] = more
            return out + more

        return add


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.device == b.device and torch.equal(a, b)


@contextmanager
def telling(root: nn.Module, rows: Rows) -> Iterator[None]:
    """Inside, calls of the network have their conditional rows there, whoever makes them; what was told further out
    stays.
    """
    mine = [w for w in writers(root).values() if w.told is None]
    for w in mine:
        w.told = rows
    try:
        yield
    finally:
        for w in mine:
            w.told = None


@contextmanager
def letting(root: nn.Module, label: str | None) -> Iterator[None]:
    """Inside, only the writer of that label acts; with None no writer does."""
    before = [(w, w.on) for w in writers(root).values()]
    for w, _ in before:
        w.on = w.label == label
    try:
        yield
    finally:
        for w, on in before:
            w.on = on


Architecture = Literal["per-layer", "compact"]


@dataclass(frozen=True)
class Plan:
    """Everything that a hypernetwork's shape follows from.

    Attributes:
        layers: full name, inputs and outputs of each Linear it writes for.
        text: D, numbers in a prompt's signal.
        read: where that signal is read.
        architecture: "per-layer", two small networks for each layer, as published; "compact", one trunk for all layers
            that makes a short code of a prompt, and a linear map from the code for each layer.
        rank: r, of what it writes.
        hidden: width of the hidden layers.
        code: numbers in the code (compact).
        times: S, the end of virtual time.
        waves: frequencies of the Fourier features of virtual time.
    """

    layers: tuple[tuple[str, int, int], ...]
    text: int
    read: Literal["pooled", "last", "mean"]
    architecture: Architecture = "per-layer"
    rank: int = 1
    hidden: int = 100
    code: int = 16
    times: int = 300
    waves: int = 16

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """From a JSON object, whose lists become tuples.

        Raises:
            TypeError, ValueError: a field is missing, unknown or of another form.
        """
        layers = tuple((str(name), int(n), int(m)) for name, n, m in value["layers"])
        return cls(**{**value, "layers": layers})


def fourier(share: Tensor, waves: int) -> Tensor:
    """Sines and cosines of pi k s / S for k = 1 .. waves, [B, 2 waves], of s / S [B]. Half periods, so that the two
    ends of virtual time differ.
    """
    angle = math.pi * share[:, None] * torch.arange(1, waves + 1, device=share.device)
    return torch.cat([angle.sin(), angle.cos()], 1)


class Revived(nn.Module):
    """max(z, 0), whose gradient where z < 0 is not 0 but a tenth: a number of the code that has gone silent for a
    prompt can come back, while what it writes until then is exactly nothing.
    """

    def forward(self, z: Tensor) -> Tensor:
        return z.relu() + 0.1 * torch.where(z < 0, z - z.detach(), 0.0)


class Pair(nn.Module):
    """What the published hypernetwork has for one layer: a network for each factor."""

    def __init__(self, plan: Plan, inputs: int, outputs: int) -> None:
        super().__init__()
        width = plan.text + 2 * plan.waves
        self.left = nn.Sequential(nn.Linear(width, plan.hidden), nn.ReLU(), nn.Linear(plan.hidden, inputs * plan.rank))
        self.right = nn.Sequential(
            nn.Linear(width, plan.hidden), nn.ReLU(), nn.Linear(plan.hidden, plan.rank * outputs)
        )

    @torch.no_grad()
    def silence(self) -> None:
        """Start with a right factor of zero."""
        for p in self.right[-1].parameters():
            p.zero_()

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(u), self.right(u)


class Heads(nn.Module):
    """What the compact one has for one layer: a linear map from the code for each factor, without a bias, so that a
    prompt whose code is zero is written nothing, exactly.
    """

    def __init__(self, plan: Plan, inputs: int, outputs: int) -> None:
        super().__init__()
        self.left = nn.Linear(plan.code, inputs * plan.rank, bias=False)
        self.right = nn.Linear(plan.code, plan.rank * outputs, bias=False)

    @torch.no_grad()
    def silence(self) -> None:
        """Start with factors that no prompt changes, the right one zero: then there is nothing to retain yet."""
        self.left.weight.zero_()
        self.right.weight.zero_()

    def forward(self, code: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(code), self.right(code)


class Hypernetwork(nn.Module):
    """H(c, s): of each layer x_L [B, in, r] and x_R [B, r, out], by which y = W x + (x x_L) x_R.

        u = [signal of c; Fourier features of s]
        x_L = alpha(s) (X_const + (s/S) left(u)),   alpha(s) = a_b + (s/S) a_l
        x_R = (s/S) right(u)

    At s = 0 the update is zero, exactly. X_const is drawn once and kept with the weights: N(0, 1) / sqrt(r) as
    published, in the compact one N(0, 1) / sqrt(r d_in), so that x X_const is about as large as x is. The signal is
    first shifted and scaled by two stored vectors, 0 and 1 as published.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.register_buffer("centre", torch.zeros(plan.text))
        self.register_buffer("spread", torch.ones(plan.text))
        compact = plan.architecture == "compact"
        width = plan.text + 2 * plan.waves
        trunk = (nn.Linear(width, plan.hidden), nn.ReLU(), nn.Linear(plan.hidden, plan.code), Revived())
        self.trunk = nn.Sequential(*(trunk if compact else ()))
        part = Heads if compact else Pair
        self.parts = nn.ModuleList(part(plan, n, m) for _, n, m in plan.layers)  # type: ignore[operator]
        self.base = nn.Parameter(torch.ones(len(plan.layers)))
        self.slope = nn.Parameter(torch.zeros(len(plan.layers)))
        for k, (_, n, _m) in enumerate(plan.layers):
            size = math.sqrt(plan.rank * (n if compact else 1))
            self.register_buffer(f"constant_{k}", torch.randn(n, plan.rank) / size)

    @classmethod
    def fresh(cls, plan: Plan, seed: int) -> Hypernetwork:
        """A new one: the same for the same seed, and no draw of anybody else's is used up."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = cls(plan)
        for part in net.parts:
            part.silence()  # type: ignore[operator]
        if plan.architecture == "compact":  # every number of the code starts alive for every prompt, and can learn
            nn.init.constant_(net.trunk[2].bias, 0.3)  # type: ignore[arg-type]
        return net

    @classmethod
    def stored(cls, plan: Plan, tensors: Mapping[str, Tensor]) -> Hypernetwork:
        """One from its tensors, silent to gradients.

        Raises:
            RuntimeError: they do not fit the plan.
        """
        with torch.device("meta"):
            net = cls(plan)
        net.load_state_dict(dict(tensors), assign=True)
        return net.requires_grad_(False).eval()

    def forward(self, signal: Tensor, s: Tensor | float) -> dict[str, tuple[Tensor, Tensor]]:
        plan, rows = self.plan, len(signal)
        share = torch.as_tensor(s, dtype=torch.float32, device=signal.device).expand(rows) / plan.times
        u = torch.cat([(signal.float() - self.centre) / self.spread, fourier(share, plan.waves)], 1)
        code, part = self.trunk(u), share[:, None, None]
        out = {}
        for k, (name, n, m) in enumerate(plan.layers):
            left, right = self.parts[k](code)
            alpha = self.base[k] + part * self.slope[k]
            constant = getattr(self, f"constant_{k}")
            x_l = alpha * (constant + part * left.view(rows, n, plan.rank))
            out[name] = x_l, part * right.view(rows, plan.rank, m)
        return out


def size(plan: Plan) -> int:
    """How many numbers a hypernetwork's file holds, without making it."""
    with torch.device("meta"):
        return sum(t.numel() for t in Hypernetwork(plan).state_dict().values())


def norms(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """Frobenius norm of each prompt's whole update, sqrt(sum over layers of |x_L x_R|^2), [B], without forming it."""
    total: Tensor | float = 0.0
    for left, right in pairs.values():
        total = total + ((left.mT @ left) * (right @ right.mT)).sum((1, 2)).clamp(min=0)
    return torch.as_tensor(total).sqrt()


class ErasedStableDiffusionPipeline(StableDiffusionPipeline):
    """The stock pipeline, and an eraser that can be put in and taken out."""

    def load_eraser(self, folder: str, scale: float = 1.0) -> None:
        """Switch the eraser of a folder on."""
        self.unload_eraser()
        place = Path(folder) / "hypernet"
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        known = Plan.__dataclass_fields__
        plan = Plan.from_json({k: v for k, v in config.items() if k in known})
        network = Hypernetwork.stored(plan, load_file(place / "model.safetensors"))
        root = getattr(self, "unet")
        found = dict(unwrapped(root).named_modules())

        def layer(name: str) -> nn.Module:
            module = found[name.partition(".")[2]]
            return getattr(module, "base_layer", module)

        @torch.no_grad()
        def write(u: Tensor) -> Pairs:
            return network.to(u.device)(u, float(plan.times))

        layers = {name: layer(name) for name, _, _ in plan.layers}
        self._eraser = Writer(root, layers, write, read=plan.read, free_first=True, label="eraser")
        self._eraser.scale, self._eraser.pipe = scale, self

    def unload_eraser(self) -> None:
        """Take it out again."""
        if getattr(self, "_eraser", None) is not None:
            self._eraser.remove()
            self._eraser = None
