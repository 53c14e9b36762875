"""Scores of two galleries that are there already: any pipeline, any prompts, no judge needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..prompts import Concept, InputError
from ._evaluator import Case, Evaluator, choose
from ._gallery import Gallery
from ._score import NotApplicable, Score

IMAGE_METRICS = ("lpips", "clip_score", "drift")


def compare(
    erased: Gallery,
    original: Gallery,
    concept: Concept | str = "",
    *,
    only: Sequence[str] | Mapping[str, Evaluator] | None = None,
) -> dict[str, Score | NotApplicable]:
    """Score an erased model's gallery beside the original model's: same prompts, same seeds, in the same order.

    Args:
        erased: with the eraser; `erasers draw --eraser E --out DIR` writes it into DIR/erased.
        original: without; the same command writes it into DIR/original.
        concept: what was erased; prompts that name it in their columns `concept`, `object` or `style` count as asking
            for it. By default what the erased gallery's manifest says.
        only: names of evaluators, or evaluators with settings of their own by name; `IMAGE_METRICS` by default.

    Raises:
        InputError: two galleries of other prompts, no concept to be known, or an unknown evaluator.
    """
    if erased.prompts != original.prompts:
        raise InputError(
            f"expected two galleries of the same prompts and seeds, got {len(erased.prompts)} and "
            f"{len(original.prompts)} images that do not pair up: draw both with one prompt set"
        )
    known = {c["name"]: Concept.from_json(c) for e in erased.manifest.get("erasers", ()) for c in e["concepts"]}
    name = concept.name if isinstance(concept, Concept) else concept
    if not name and len(known) != 1:
        raise InputError(f"expected the name of the erased concept, as the manifest names {sorted(known) or 'none'}")
    what = concept if isinstance(concept, Concept) else known.get(name) if name else next(iter(known.values()))
    what = what or Concept(name)
    tools = only if isinstance(only, Mapping) else choose(only or IMAGE_METRICS)
    case = Case(what, frozenset({what.name, *known}), erased, original)
    return {n: t.score(case) for n, t in tools.items()}
