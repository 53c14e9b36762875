"""What trains a hypernetwork: prompts, latents, and two optimisers for one network."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..pipelines import (
    Backbone,
    Drawing,
    Learns,
    Ledger,
    Pairs,
    Read,
    Writer,
    check_trainable,
    check_unfused,
    prompt_signals,
    write_by_prompt,
)
from ..prompts import BOTH, EVERYDAY, Concept, InputError, fill
from ._detect import apart, codes, start_detecting, switched
from ._esd import away
from ._files import HYPER_CONFIG, HYPER_FILE
from ._finetune import pick, sentences
from ._hyper import Hyper
from ._hypernet import Hypernetwork, Plan, norms, size
from ._looks import pooled
from ._method import Task
from ._needs import NUMBER, Call, Needs, Sheet, Stage, adam_bytes, roots, saves
from ._train import KEPT, Session, optimiser_state, restore_optimiser
from ._virtual import direct, flat, leaves, retained, rowed, virtual_step

if TYPE_CHECKING:
    from .unhype import UnHype

LABEL = "erasers-hypernetwork"
MANY = 8
"""As many different prompts are kept silent for as this many steps draw at once."""

MANNERS = (
    *("", "high quality", "a painting", "black and white", "close-up", "wide shot", "at night", "digital art"),
    *("on a plain background", "a children's drawing"),
)
"""What is put after an everyday prompt, so that there are hundreds of them."""


def forgotten(
    concepts: Sequence[Concept],
    others: Sequence[Concept],
    *,
    contexts: int,
    synonyms: bool,
    compose: int,
    beside: Sequence[Concept] = (),
) -> list[tuple[str, str]]:
    """Sentences that name a concept, each with its mapping: the same sentence naming the anchor, or without an anchor
    the empty one. With `compose`, so many sentences too for each preserved concept of the other kind (object, style)
    that it is named beside; there, without an anchor, that other one stands alone. And half as many, one at least, for
    each of those `beside` it, which are erased as well: there both give way to their anchors, and what has none goes.
    """
    out: list[tuple[str, str]] = []
    for concept in concepts:
        plain = sentences(concept, contexts=contexts, synonyms=synonyms)
        out += zip(plain, sentences(concept, contexts=contexts, synonyms=synonyms, name=concept.anchor), strict=True)
        n = 0
        for name in concept.names if synonyms else concept.names[:1]:
            for other in (*others, *beside):
                if {concept.kind, other.kind} != {"object", "style"}:
                    continue
                kept = other.name if other in others else other.anchor
                for k in range(compose if other in others else -(-compose // 2)):
                    template = BOTH[(n + k) % len(BOTH)]
                    old = fill(template, **{concept.kind: name, other.kind: other.name})
                    new = {c.kind: a for c, a in ((concept, concept.anchor), (other, kept)) if a}
                    left = next((c for c in (concept, other) if c.kind in new), None)
                    if len(new) == 2:
                        out.append((old, fill(template, **new)))
                    elif left:
                        out.append((old, sentences(left, contexts=2, synonyms=False, name=new[left.kind])[1]))
                    else:
                        out.append((old, ""))
                n += compose
    return out


def silent(
    concepts: Sequence[Concept], others: Sequence[Concept], *, contexts: int, synonyms: bool, compose: int
) -> list[str]:
    """Prompts for which nothing is to be written: the empty one, the mappings, sentences of preserved concepts, alone
    and (with `compose`) two by two, and what people ask any model for. None of them names an erased concept.
    """
    how: dict[str, Any] = {"contexts": contexts, "synonyms": synonyms, "compose": compose}
    named = forgotten(concepts, others, **how, beside=concepts)
    texts = ["", *(new for _, new in named)]
    texts += [s for c in others for s in sentences(c, contexts=contexts, synonyms=True)]
    for concept in (c for c in others if c.kind == "object" and compose):
        texts += [old for old, _ in forgotten((concept,), others, contexts=1, synonyms=True, compose=compose)]
    texts += [f"{scene}, {manner}".removesuffix(", ") for scene in EVERYDAY for manner in MANNERS]
    gone = re.compile("|".join(rf"\b{re.escape(n)}" for c in concepts for n in c.names), re.IGNORECASE)
    return [t for t in dict.fromkeys(texts) if not gone.search(t)]


def turns(sizes: Sequence[int]) -> Tensor:
    """Which sentence comes at which of equally likely turns, when so many name the first concept, the second ...: every
    concept has as many turns as the others, and the sentences of those that have fewer come again.
    """
    most, starts = max(sizes), [sum(sizes[:k]) for k in range(len(sizes))]
    return torch.cat([start + torch.arange(most) % n for start, n in zip(starts, sizes, strict=True)])


class Training:
    """The `Trainer` of a hypernetwork."""

    drawing: Drawing | None = None

    def __init__(self, settings: UnHype, backbone: Backbone, task: Task) -> None:
        self.settings, self.backbone, self.task, self.steps = settings, backbone, task, settings.steps
        self.time, self._slope = 0.0, 0.0
        self._writer: Writer | None = None
        self._flags: list[tuple[torch.nn.Parameter, bool]] = []

    def start(self, session: Session) -> None:
        s, backbone = self.settings, self.backbone
        self.session = session
        check_unfused(backbone.denoiser, "cannot train")
        check_trainable(backbone.denoiser, f"cannot train {backbone.name}")
        layers = backbone.modules(s.train)
        if not layers:
            raise InputError(f"{backbone.name} has nothing to train in the group {s.train!r}")
        if s.pooled and backbone.pooled:
            layers = {**layers, backbone.pooled: backbone.modules("all")[backbone.pooled]}
        read = backbone.reads if s.signal == "auto" else s.signal
        with torch.no_grad(), backbone.using(None):
            self._encode(read)
        sizes = tuple((n, m.in_features, m.out_features) for n, m in layers.items())
        plan = Plan(sizes, self.asked.shape[1], read, s.architecture, s.rank, s.hidden, s.code, s.times, s.waves)
        network = Hypernetwork.fresh(plan, self.task.seed)
        if s.standardise:
            both = torch.cat([self.asked, self.kept])
            spread = both.std(0)
            network.centre.copy_(self.kept.mean(0))
            network.spread.copy_(spread.clamp(min=max(1e-6, 0.05 * float(spread.max()))))
        detect = s.architecture == "compact" and s.detect
        self.holds = detect and s.hold > 0
        if detect:
            start_detecting(network, self.asked, self.about, self.kept)
        network.load_state_dict(session.share(network.state_dict()))
        self.network = network.to(backbone.device)
        self._flags = [(p, p.requires_grad) for p in backbone.denoiser.parameters()]
        for p, _ in self._flags:
            p.requires_grad_(False)
        self._writer = write_by_prompt(backbone, list(layers), self._write, read=read, label=LABEL)
        learn = sorted(self.network.named_parameters(), key=lambda item: not item[0].startswith("trunk."))
        self.names = [n for n, _ in learn]
        groups = [
            {"params": params, "share": share}
            for share, trunk in ((s.trunk_lr if detect else 1.0, True), (1.0, False))
            if (params := [p for n, p in learn if n.startswith("trunk.") is trunk])
        ]
        self.removing, self.keeping = (session.adam([{**g} for g in groups], lr=s.lr) for _ in range(2))

    def _encode(self, read: Read) -> None:
        s, concepts, others = self.settings, self.task.concepts, self.task.preserve
        how: dict[str, Any] = {"contexts": s.contexts, "synonyms": s.synonyms, "compose": s.compose}
        each = [forgotten((c,), others, **how, beside=concepts) for c in concepts]
        self.turns = turns([len(pairs) for pairs in each])
        self.prompts, mappings = ([pair[k] for pairs in each for pair in pairs] for k in (0, 1))
        own = [[c is concept for c in concepts] for concept, pairs in zip(concepts, each, strict=True) for _ in pairs]
        words = [re.compile("|".join(rf"\b{re.escape(n)}\b" for n in c.names), re.IGNORECASE) for c in concepts]
        read_in = [[bool(w.search(text)) for w in words] for text in self.prompts]
        self.about = torch.tensor(own) | torch.tensor(read_in)
        self.concept = self.backbone.encode(self.prompts)
        unique = list(dict.fromkeys(mappings))
        self.mapping = self.backbone.encode(unique)
        self.maps_to = torch.tensor([unique.index(m) for m in mappings])
        self.null = self.backbone.unconditional(1)
        texts = silent(concepts, others, **how)
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(self.task.seed)).tolist()
        self.texts = [texts[k] for k in order[: MANY * s.retained]]
        said = json.dumps([self.prompts, mappings, self.texts]).encode()
        self.said = torch.tensor(list(hashlib.sha256(said).digest()), dtype=torch.uint8)
        self.asked = prompt_signals(self.backbone, self.prompts, read)
        self.kept = prompt_signals(self.backbone, self.texts, read)
        self.signals = torch.cat([self.asked, self.kept])
        self.on = torch.zeros(len(self.signals), s.code, dtype=torch.bool, device=self.signals.device)
        self.on[: len(self.asked)] = switched(self.about, s.code).to(self.on.device)

    @property
    def writer(self) -> Writer:
        """What puts the student into the network, once `start` has built it."""
        assert self._writer is not None
        return self._writer

    def _write(self, u: Tensor) -> Pairs:
        with torch.no_grad():
            return self.network(u, self.time)

    # ------------------------------------------------------------ latents

    def setup(self, rng: torch.Generator) -> None:
        self.pool = self._looks(self.settings.pool, rng)

    def _fresh(self, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        return {
            "prompt": self.turns[pick(n, len(self.turns), rng)],
            "stop": pick(n, self.settings.sampler_steps, rng),
            "noise": torch.randn(n, *self.backbone.latent_shape, generator=rng),
        }

    def _looks(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        draws, chunk = self._fresh(size, rng), max(2, self.settings.batch)
        self.time = float(self.settings.times)
        with self.session.autocast():
            parts = [self._look({k: v[i : i + chunk] for k, v in draws.items()}) for i in range(0, size, chunk)]
        return {k: torch.cat([p[k] for p in parts]) for k in (parts[0] if parts else ())}

    @torch.no_grad()
    def _look(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Latents on the way to the prompts, and what the student should answer there."""
        s, backbone, rows = self.settings, self.backbone, draws["prompt"]
        concept, mapping = self.concept[rows], self.mapping[self.maps_to[rows]]
        with self.showing_at(self.time) if s.walk == "student" else backbone.using(None):
            x, t = backbone.partial(
                concept, draws["stop"], draws["noise"], steps=s.sampler_steps, guidance=s.guidance, null=self.null
            )
        with backbone.using(None):
            e_m = backbone.denoise(x, t, mapping).float()
            e_p = backbone.denoise(x, t, concept).float() if s.gamma or s.relative else e_m
        seen = {"x": x, "t": t, "prompt": rows, "target": away(e_m, e_p, e_m, s.gamma)}
        pull = direct(e_p, e_m).clamp(min=1e-6) if s.relative else torch.ones(len(rows), device=x.device)
        return seen | {"weight": pull**-s.relative}

    # ------------------------------------------------------------ steps

    def draw(self, rng: torch.Generator) -> dict[str, Tensor]:
        """The draws of one step: virtual time, latents, and the prompts to be silent for."""
        s = self.settings
        end = torch.rand((), generator=rng) < s.ends
        draws = {"time": torch.where(end, s.times, pick(1, s.times, rng)[0])}
        draws |= {"row": pick(s.batch, s.pool, rng)} if s.pool else self._fresh(s.batch, rng)
        n = min(s.retained, len(self.kept))
        kept = [torch.randperm(len(self.kept), generator=rng)[:n] for _ in range(s.retain_times)]
        return draws | {"kept": torch.stack(kept) if kept else torch.zeros(0, n)}

    def step(self, k: int, rng: torch.Generator) -> Mapping[str, float]:
        """One removal and its retaining. The log's `loss` is the erasing loss, `kept` the retain loss, `slope` the norm
        of the emitted factors' gradient: a step of virtual time should move them by eta times that.
        """
        s = self.settings
        if s.pool and s.refresh and k and k % s.refresh == 0:
            stay = s.pool // 2
            new = self._looks(s.pool - stay, rng)
            self.pool = {n: torch.cat([v[:stay], new[n].to(v.device)]) for n, v in self.pool.items()}
        draws = self.draw(rng)
        self.time = float(draws["time"])
        self._pace(k)
        error, self._slope = 0.0, 0.0
        for part in self.session.parts(s.batch):
            error += self._remove(draws, part, (part.stop - part.start) / s.batch)
        gradient = self.session.update(self.removing, s.clip)
        kept = 0.0
        for rows in draws["kept"]:
            kept = 0.0
            for part in self.session.parts(len(rows)):
                kept += self._retain(rows[part], (part.stop - part.start) / len(rows))
            if self.holds:
                self._hold()
            self.session.update(self.keeping, s.clip)
        logs = {"loss": self.session.sum(error), "gradient": gradient}
        logs |= {"slope": self.session.sum(self._slope)} if s.objective != "direct" else {}
        return logs | ({"kept": self.session.sum(kept)} if s.retain_times else {})

    def _pace(self, k: int) -> None:
        """Learning rates of step k."""
        s = self.settings
        left = 1 - k / self.steps if s.decay else 1.0
        for optimiser, lr in ((self.removing, s.lr), (self.keeping, s.retain_lr or s.lr)):
            for group in optimiser.param_groups:
                group["lr"] = lr * group["share"] * left

    def _remove(self, draws: Mapping[str, Tensor], part: slice, share: float) -> float:
        """Gradients of the removal losses of some rows; the erasing loss itself."""
        s, backbone = self.settings, self.backbone
        if s.pool:
            seen = {k: v[draws["row"][part].to(v.device)] for k, v in self.pool.items()}
        else:
            with self.session.autocast():
                seen = self._look({k: draws[k][part] for k in ("prompt", "stop", "noise")})
        u, end = self.asked[seen["prompt"].to(self.asked.device)], self.time >= s.times
        now = self.network(u, self.time)
        through = s.objective != "trajectory"
        given = now if through else leaves(now)
        with backbone.using(LABEL), self.writer.giving(given):
            with self.session.autocast():
                out = backbone.denoise(seen["x"], seen["t"], self.concept[seen["prompt"]]).float()
            error = direct(out, seen["target"]) * seen["weight"]
            loss = error.mean() if through else error.new_zeros(())
            if s.objective != "direct" and not end:
                g = self.session.gradients(error.sum(), flat(given))
                self._slope += share * float(rowed(g).norm(dim=1).mean())
                later = self.network(u, self.time + 1)
                loss = loss + s.remove * virtual_step(now, later, g, s.eta)
            self.session.backward(share * loss)
        return share * error.mean().item()

    def _retain(self, rows: Tensor, share: float) -> float:
        """Gradients of the retain loss of some prompts, and its value."""
        u = self.kept[rows.to(self.kept.device)]
        loss = self.settings.retain * retained(self.network(u, self.time), self.network(u, 0.0))
        self.session.backward(share * loss)
        return share * loss.item()

    def _hold(self) -> None:
        """Gradients of the hinge that keeps the code a detector, over all sentences; every process does all of it."""
        s = self.settings
        z = codes(self.network, self.signals, self.time / s.times)
        self.session.backward(s.hold * apart(z, self.on) / self.session.accelerator.num_processes)

    # ------------------------------------------------------------ the rest of a trainer

    def state(self) -> dict[str, Tensor]:
        return {
            **{f"network/{n}": t.detach().to("cpu", copy=True) for n, t in self.network.state_dict().items()},
            **optimiser_state(self.removing, self.names, prefix="removing"),
            **optimiser_state(self.keeping, self.names, prefix="keeping"),
            **{f"pool/{k}": v for k, v in self.pool.items()},
            "sentences": self.said,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if not torch.equal(state.get("sentences", torch.zeros(0, dtype=torch.uint8)), self.said):
            raise InputError(
                "the checkpoint learnt from other sentences than these: resume with the version that wrote it"
            )
        self.network.load_state_dict({k[8:]: v for k, v in state.items() if k.startswith("network/")})
        restore_optimiser(self.removing, self.names, state=state, prefix="removing")
        restore_optimiser(self.keeping, self.names, state=state, prefix="keeping")
        self.pool = {k[5:]: v.to(self.backbone.device) for k, v in state.items() if k.startswith("pool/")}

    def showing_at(self, time: float) -> AbstractContextManager[None]:
        """Inside, only the student acts, as at that virtual time."""
        self.time = time
        return self.backbone.using(LABEL)

    def showing(self) -> AbstractContextManager[None]:
        return self.showing_at(float(self.settings.times))

    def payload(self) -> Hyper:
        tensors = {n: t.detach().to("cpu", copy=True) for n, t in self.network.state_dict().items()}
        done = Hyper(Hypernetwork.stored(self.network.plan, tensors), self.backbone.family)
        about: dict[str, dict[str, float]] = {}
        for name, u in (("erased", self.asked), ("kept", self.kept)):
            sizes = norms(done.pairs(u[:512].cpu()))
            row = {"median": sizes.median(), "lowest": sizes.min(), "highest": sizes.max()}
            about[name] = {k: float(f"{v:.4g}") for k, v in row.items()}
        return Hyper(done.network, done.family, about)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.remove()
        for p, flag in self._flags:
            p.requires_grad_(flag)


def planned(settings: UnHype, sheet: Sheet) -> Needs:
    """For planning: one network, two Adams, and a step of each."""
    s, backbone, loop, task = settings, sheet.backbone, sheet.loop, sheet.task
    check_trainable(backbone.denoiser, f"cannot train {backbone.name}")
    learns = Learns(s.train, s.rank, written=True, pooled=s.pooled)
    sizes = tuple((n, m.in_features, m.out_features) for n, m in learns.layers(backbone).items())
    if not sizes:
        raise InputError(f"{backbone.name} has nothing to train in the group {s.train!r}")
    how: dict[str, Any] = {"contexts": s.contexts, "synonyms": s.synonyms, "compose": s.compose}
    pairs = forgotten(task.concepts, task.preserve, **how, beside=task.concepts)
    texts = min(MANY * s.retained, len(silent(task.concepts, task.preserve, **how)))
    prompts = len(pairs) + len({m for _, m in pairs})
    read = backbone.reads if s.signal == "auto" else s.signal
    width = prompt_signals(backbone, ["a"], read).shape[1]
    plan = Plan(sizes, width, read, s.architecture, s.rank, s.hidden, s.code, s.times, s.waves)
    with torch.device("meta"):
        network = Hypernetwork(plan)
    learnt = [p.numel() for p in network.parameters()]
    n, whole = sum(learnt), NUMBER * size(plan)
    rows, count = sheet.parts(s.batch)

    def look(rows: int) -> tuple[Call, ...]:
        walk = sheet.walk(rows, s.sampler_steps, s.guidance)
        return walk, Call(rows, times=2 if s.gamma or s.relative else 1)

    pool = pooled(sheet, s, look(max(2, s.batch)), batch=max(2, s.batch), kept=2)
    moments = 2 * adam_bytes(loop, learnt)
    held = {"prompts": sheet.encoded(prompts), "signals": NUMBER * width * (len(pairs) + texts), "hypernetwork": whole}
    held |= pool[0].held if pool else {}
    learning = {**held, "moments": moments if s.steps > 1 else moments // 2, "gradients": NUMBER * n}
    calls = [*(() if s.pool else look(rows)), Call(rows, learns=learns)]
    step = Stage("step", tuple(replace(c, times=c.times * count) for c in calls), learning, repeats=s.steps)
    peak, flops = _retaining(network, sheet.parts(min(s.retained, texts))[0])
    again = int(s.steps * s.retain_times * sheet.parts(min(s.retained, texts))[1])
    retain = Stage("retain", (), learning, repeats=again, peak=peak, flops=flops)
    done = {**held, "moments": moments}
    stages = [*(replace(p, held={**held, **p.held}) for p in pool), step, retain]
    update = {**done, "gradients": NUMBER * n}
    stages += [Stage("update", (), update, device=roots(loop, NUMBER * n), repeats=2 * s.steps)]
    if kept := saves(loop, s.steps):
        stages.append(Stage("checkpoint", (), done, {"copy for the checkpoint": whole + moments}, repeats=kept))
    stages.append(Stage("result", (), done, {"result": 2 * whole}))
    names = {HYPER_FILE: whole + 100 * len(network.state_dict()), HYPER_CONFIG: 90 * len(sizes)}
    return Needs(tuple(stages), n, prompts + len(pairs) + texts, names, (KEPT + 1) * (whole + moments) * bool(kept))


def _retaining(network: Hypernetwork, rows: int) -> tuple[int, int]:
    """Bytes and operations of one retain loss with its backward pass."""
    u = torch.empty(rows, network.plan.text, device="meta")
    with Ledger() as ledger:
        ledger.keep(list(network.state_dict().values()))
        retained(network(u, torch.ones((), device="meta")), network(u, torch.ones((), device="meta"))).backward()
    grads = sum(NUMBER * p.numel() for p in network.parameters())
    return max(0, ledger.peak - grads), ledger.flops
