"""The prompts of a run, encoded before it, so that it needs no text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..pipelines import Backbone, Embeddings
from ..prompts import Concept
from ._below import check_below, concepts_of
from ._erase import chosen, prepared
from ._eraser import Eraser
from ._method import Method, Task
from ._train import Loop, Session, Trainer


def remember(
    concepts: str | Concept | Sequence[str | Concept],
    backbone: Backbone,
    *,
    method: str | tuple[str, Mapping[str, Any]] | Method = "uce",
    preserve: Sequence[str] | None = None,
    also: Sequence[str] = (),
    on: Eraser | Sequence[Eraser] = (),
) -> Embeddings:
    """What `erase` of the same arguments would encode, for `load(..., embeddings=...)`: then no text encoder is loaded.
    A closed form is worked out for it, a trained method starts and takes no step.

    Args:
        concepts: as `erase` takes them.
        backbone: with its text encoders.
        method: as `erase` takes it.
        preserve: as `erase` takes it.
        also: more prompts, such as those that are to be drawn.
        on: as `erase` takes them.

    Raises:
        InputError: what `erase` would refuse, or the text encoders are not there.
    """
    below = (on,) if isinstance(on, Eraser) else tuple(on)
    check_below(below)
    task, tool = Task(*prepared(concepts, backbone, preserve, concepts_of(below))), chosen(method, backbone)
    with backbone.noting() as asked:
        with backbone.using(None):
            made = tool.run(backbone, task)
        if isinstance(made, Trainer):
            try:
                made.start(Session(backbone, Loop(checkpoint_every=0)))
            finally:
                made.close()
    shown = [c.name for c in (*task.concepts, *task.preserve[:2])]  # in validation images, and to check the file
    return backbone.remember([*asked, *shown, *also])
