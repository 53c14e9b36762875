"""What trains ESD's student: its prompts, draws and loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..pipelines import Condition
from ._finetune import Finetuner, flat, pick, together
from ._needs import Call, Sheet

if TYPE_CHECKING:
    from .esd import ESD


def away(host: Tensor, concept: Tensor, null: Tensor, eta: float) -> Tensor:
    """The erased prediction e_host - eta (e_concept - e_null), equation 7, all of one shape.

    Its coefficients sum to 1, so it holds for epsilon, v and flow outputs alike.
    """
    return host - eta * (concept - null)


def looking(settings: ESD, sheet: Sheet, rows: int) -> tuple[Call, ...]:
    """For planning: the passes that find latents on the way and what the student should answer there."""
    sides = 2 if settings.keep else 1
    walk = sheet.walk(rows, settings.sampler_steps, settings.guidance)
    return *(walk,) * sides, Call(rows * (2 if settings.from_ is None else 3)), *(Call(rows),) * (sides - 1)


class Trainer(Finetuner):
    """ESD's prompts, draws and loss."""

    settings: ESD

    def encode(self) -> None:
        s, concepts, preserve = self.settings, self.task.concepts, self.task.preserve
        texts = flat([s.sentences(c) for c in concepts])
        compose = s.compose and s.from_ is None
        pairs = together(concepts, preserve, synonyms=s.synonyms) if compose else {}
        self.concept, self.origin = self.backbone.encode([*texts, *pairs]), self.null[[0] * len(texts)]
        if pairs:
            self.origin = self.origin + self.backbone.encode(list(pairs.values()))
        self.host = None if self.settings.from_ is None else self.backbone.encode([self.settings.from_])
        kept = ["", *flat([s.sentences(c) for c in preserve])]
        if compose:
            kept += together([c for c in preserve if c.kind == "object"], preserve, synonyms=False)
        self.kept = self.backbone.encode(kept) if self.settings.keep else self.null

    def setup(self, rng: torch.Generator) -> None:
        self.pool = self._looks(self.settings.pool, rng)

    def step(self, k: int, rng: torch.Generator) -> Mapping[str, float]:
        s = self.settings
        if s.pool and s.refresh and k and k % s.refresh == 0:
            stay = s.pool // 2
            new = self._looks(s.pool - stay, rng)
            self.pool = {n: torch.cat([v[:stay], new[n].to(v.device)]) for n, v in self.pool.items()}
        return super().step(k, rng)

    def _looks(self, size: int, rng: torch.Generator) -> dict[str, Tensor]:
        draws, chunk = self._fresh(size, rng), self.settings.batch
        with self.session.autocast():
            parts = [self._look({k: v[i : i + chunk] for k, v in draws.items()}) for i in range(0, size, chunk)]
        return {k: torch.cat([p[k] for p in parts]) for k in (parts[0] if parts else ())}

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"pool/{k}": v for k, v in self.pool.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        self.pool = {k[5:]: v.to(self.backbone.device) for k, v in state.items() if k.startswith("pool/")}

    def _fresh(self, n: int, rng: torch.Generator) -> dict[str, Tensor]:
        prompts, draws = {"prompt": len(self.concept), "kept": len(self.kept)}, dict[str, Tensor]()
        stop = pick(n, self.settings.sampler_steps, rng)  # the same for what goes and what stays: they share a weight
        for name in ("prompt", "kept") if self.settings.keep else ("prompt",):
            draws |= {name: pick(n, prompts[name], rng), f"{name} stop": stop}
            draws[f"{name} noise"] = torch.randn(n, *self.backbone.latent_shape, generator=rng)
        return draws

    def draw(self, rng: torch.Generator) -> Mapping[str, Tensor]:
        s = self.settings
        return {"row": pick(s.batch, s.pool, rng)} if s.pool else self._fresh(s.batch, rng)

    @torch.no_grad()
    def _look(self, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Latents on the student's own way to the concept and what it should answer there; likewise for the kept."""
        n = len(draws["prompt"])
        concept, null = self.concept[draws["prompt"]], self.origin[draws["prompt"]]
        host = concept if self.host is None else self.host[[0] * n]
        asked = concept + null if self.host is None else concept + null + host
        with self.student.on():
            x, t = self._walk(host, draws, "prompt")
            ways = (x, t, *self._walk(self.kept[draws["kept"]], draws, "kept")) if self.settings.keep else (x, t)
        with self.student.teacher():
            m = len(asked) // n
            out = self.backbone.denoise(x.repeat(m, *[1] * (x.ndim - 1)), t.repeat(m), asked).float().split(n)
            target = away(out[-1], out[0], out[1], self.settings.eta)
            seen = {"x": x, "t": t, "prompt": draws["prompt"], "target": target}
            if self.settings.relative:
                pull = (out[0] - out[1]).square().flatten(1).mean(1)
                seen["weight"] = pull.clamp(min=1e-6) ** -self.settings.relative
            if self.settings.keep:
                *_, x, t = ways
                stay = self.backbone.denoise(x, t, self.kept[draws["kept"]]).float()
                seen |= {"kept": draws["kept"], "kept x": x, "kept t": t, "stay": stay}
        return seen

    def _walk(self, cond: Condition, draws: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
        s = self.settings
        stop, noise = draws[f"{name} stop"], draws[f"{name} noise"]
        return self.backbone.partial(cond, stop, noise, steps=s.sampler_steps, guidance=s.guidance, null=self.null)

    def loss(self, draws: Mapping[str, Tensor]) -> Tensor:
        s = self.settings
        seen = {k: v[draws["row"].to(v.device)] for k, v in self.pool.items()} if s.pool else self._look(draws)
        x, t, n = seen["x"], seen["t"], len(seen["t"])
        asked = self.concept[seen["prompt"]] if self.host is None else self.host[[0] * n]
        if s.keep:
            x, t = torch.cat([x, seen["kept x"]]), torch.cat([t, seen["kept t"]])
            asked = asked + self.kept[seen["kept"]]
        with self.student.on():
            out = self.backbone.denoise(x, t, asked).float()
        error = (out[:n] - seen["target"]).square().flatten(1).mean(1)
        if s.keep:
            error = error + s.keep * (out[n:] - seen["stay"]).square().flatten(1).mean(1)
        return (error * seen["weight"]).mean() if s.relative else error.mean()
