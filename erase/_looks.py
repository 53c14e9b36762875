"""What methods share that draw latents on the way to their prompts and use them again: for planning."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from ._needs import Call, Sheet, Stage


class Pooling(Protocol):
    """Settings of a pool of latents."""

    @property
    def pool(self) -> int:
        """Latents in it; 0: none."""
        ...

    @property
    def refresh(self) -> int:
        """Steps after which half of them are drawn again; 0: never."""
        ...

    @property
    def steps(self) -> int:
        """Of the training."""
        ...


def pooled(sheet: Sheet, settings: Pooling, look: tuple[Call, ...], *, batch: int, kept: int) -> tuple[Stage, ...]:
    """The stage that fills the pool and renews it, if there is one.

    Args:
        sheet: of the run.
        settings: how large the pool is, and how often it is renewed.
        look: passes for one batch of it.
        batch: latents in that.
        kept: tensors of a latent's size that are kept of each.
    """
    if not settings.pool:
        return ()
    again = (settings.steps - 1) // settings.refresh if settings.refresh else 0
    looks = settings.pool + again * (settings.pool - settings.pool // 2)
    calls = tuple(replace(c, times=c.times * looks / batch) for c in look)
    return (Stage("pool", calls, {"pool": sheet.latents(kept * settings.pool)}),)
