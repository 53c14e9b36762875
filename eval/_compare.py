"""Scores of two galleries that are there already: any pipeline, any prompts, no judge needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..prompts import Concept, InputError, Prompt, unknown
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

    Both must be drawn alike in all that both manifests tell: model, weights, precision, sampling. Only erasers that
    draw in few steps differ in how they do, and a gallery without erasers in its model, as one that was baked does.
    What a manifest does not tell, as of images made elsewhere, is taken on trust.

    Args:
        erased: with the eraser; `erasers draw --eraser E --out DIR` writes it into DIR/erased.
        original: without; the same command writes it into DIR/original.
        concept: what was erased; prompts that name it in their columns `concept`, `object` or `style`, however
            capitalised, count as asking for it. By default what the erased gallery's manifest says.
        only: names of evaluators, or evaluators with settings of their own by name; `IMAGE_METRICS` by default.

    Raises:
        InputError: two galleries of other prompts, without images or not drawn alike, an original drawn with erasers,
            no concept to be known, one that no prompt names, or an unknown evaluator.
    """
    if erased.prompts != original.prompts:
        raise InputError(
            f"expected two galleries of the same prompts and seeds, got {len(erased.prompts)} and "
            f"{len(original.prompts)} images that do not pair up: draw both with one prompt set"
        )
    if not erased.prompts:
        raise InputError("expected galleries with at least one image, got two empty ones: draw them first")
    check_alike(erased.manifest, original.manifest)
    known = {c["name"].casefold(): Concept.from_json(c) for c in _concepts(erased.manifest)}
    if not concept and len(known) != 1:
        names = sorted(c.name for c in known.values())
        raise InputError(f"expected the name of the erased concept, as the manifest names {names or 'none'}")
    if isinstance(concept, str):
        found = known.get(concept.strip().casefold()) if concept else next(iter(known.values()))
        concept = found or Concept(concept)
    spelling = {n.casefold(): n for p in reversed(erased.prompts) for n in _named(p)}
    _check_named(concept, erased.prompts, list(spelling.values()))

    def spelled(name: str) -> str:
        """As the first prompt that names it has it."""
        return spelling.get(name.casefold(), name)

    prompts = tuple(
        replace(p, concept=spelled(p.concept), object=spelled(p.object), style=spelled(p.style)) for p in erased.prompts
    )
    gone = frozenset(spelled(c.name) for c in (concept, *known.values()))
    mine, other = (replace(g, prompts=prompts) for g in (erased, original))
    case = Case(replace(concept, name=spelled(concept.name)), gone, mine, other)
    tools = only if isinstance(only, Mapping) else choose(only or IMAGE_METRICS)
    return {n: t.score(case) for n, t in tools.items()}


def _concepts(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the erasers of a gallery erase."""
    return [c for e in manifest.get("erasers", ()) for c in e["concepts"]]


def erased_in(manifest: Mapping[str, Any]) -> list[str]:
    """The names of what the erasers of a gallery erase."""
    return [c["name"] for c in _concepts(manifest)]


def _named(p: Prompt) -> list[str]:
    return [n for n in (p.concept, p.object, p.style) if n]


def check_alike(erased: Mapping[str, Any], original: Mapping[str, Any]) -> None:
    """Make sure that nothing but the erasers tells two galleries apart, as far as both manifests tell."""
    if original.get("erasers"):
        names = ", ".join(erased_in(original))
        raise InputError(
            f"expected an original drawn without erasers, got one without {names}: name the erased gallery first, then "
            "the unerased one"
        )
    own = any(e.get("drawing") for e in erased.get("erasers", ()))  # in few steps, as the eraser says
    baked = not erased.get("erasers")  # then what was erased is in the weights, of which nothing is known here
    free = {"batch", *(("steps", "guidance", "sampler") if own else ()), *(("model", "fingerprint") if baked else ())}
    mine, other = (
        {k: v for k in ("model", "fingerprint", "precision") if (v := m.get(k))} | m.get("sampling", {})
        for m in (erased, original)
    )
    differ = [k for k in mine if k in other and k not in free and mine[k] != other[k]]
    if differ:
        told = "; ".join(f"{k} {mine[k]!r} and {other[k]!r}" for k in differ)
        raise InputError(
            f"expected two galleries that differ in the eraser alone, got {told}: draw both with one "
            "`erasers draw --eraser E --out DIR`"
        )


def _check_named(concept: Concept, prompts: Sequence[Prompt], named: Sequence[str]) -> None:
    """Make sure that no prompt which asks for the concept would count as retained: some prompt names it, or none names
    anything and none has it in its text.
    """
    if concept.name.casefold() in {n.casefold() for n in named}:
        return
    if named:
        raise unknown("concept among those that the prompts name", concept.name, named)
    words = [n.casefold() for n in concept.names]
    asking = [p.text for p in prompts if any(w in p.text.casefold() for w in words)]
    if asking:
        raise InputError(
            f"expected prompts that name {concept.name!r} in a column `concept`, got none, though {len(asking)} ask "
            f"for it, such as {asking[0]!r}: add that column and draw again"
        )
