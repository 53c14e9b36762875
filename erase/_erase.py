"""The verb: (concept, pipeline) -> eraser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..pipelines import Backbone, fingerprint
from ..prompts import Concept, InputError, canvas
from ._eraser import Eraser, Recipe, library_versions
from ._method import Method, Task, configure


def concept(name: str, backbone: Backbone, anchor: str | None = None) -> Concept:
    """What a name means for a pipeline: on a Canvas pipeline its concept, with synonyms and anchor; elsewhere the bare
    word. A given anchor replaces the known one.

    Raises:
        InputError: an empty name, or a name the Canvas world does not have.
    """
    known = Concept(name) if backbone.preset != "canvas" or not name.strip() else canvas.find(name)
    if anchor is None:
        return known
    return replace(known, anchor=anchor)


def _with_anchor_that_stays(one: Concept, gone: Sequence[Concept], backbone: Backbone) -> Concept:
    """A concept whose anchor is itself being erased gets another: on Canvas, when the anchor was the known one, a
    look-alike or else anything of its kind that stays.

    Raises:
        InputError: the user chose that anchor, or nothing of the kind stays.
    """
    names = {n.lower() for c in gone for n in c.names}
    if one.anchor.lower() not in names:
        return one
    if backbone.preset == "canvas" and one.anchor == canvas.CONCEPTS[one.name].anchor:
        domain = canvas.OBJECTS if one.kind == "object" else canvas.STYLES
        stay = [n for n in (*one.neighbours, *(c.name for c in domain)) if n not in names]
        if stay:
            return replace(one, anchor=stay[0])
    raise InputError(f"the anchor {one.anchor!r} of {one.name!r} is being erased too: choose another with --anchor")


def default_preserve(concepts: Sequence[Concept], backbone: Backbone) -> tuple[Concept, ...]:
    """What is protected when the user names nothing: on Canvas everything else the world has; elsewhere the concepts'
    own `keep` and `neighbours`. Never what is being erased.
    """
    gone = {n for c in concepts for n in c.names}
    if backbone.preset == "canvas":
        return tuple(c for c in canvas.CONCEPTS.values() if c.name not in gone)
    names = dict.fromkeys(n for c in concepts for n in (*c.keep, *c.neighbours))
    return tuple(Concept(n) for n in names if n not in gone)


def erase(
    concepts: str | Concept | Sequence[str | Concept],
    backbone: Backbone,
    *,
    method: str | tuple[str, Mapping[str, Any]] = "uce",
    preset: str | None = None,
    preserve: Sequence[str] | None = None,
    seed: int = 0,
) -> Eraser:
    """Remove concepts from a pipeline and hand back the eraser. The pipeline itself is left as it was.

    Args:
        concepts: names or `Concept`s, one or several.
        backbone: from `pipelines.load` or `pipelines.wrap`.
        method: a method's name, or (name, settings) to change some of them; "package.module:Class" for your own.
        preset: which of the method's settings to start from; the one that suits the pipeline by default.
        preserve: names to protect; see `default_preserve`.
        seed: of every draw.

    Raises:
        InputError: no concept, an unknown name or setting, a concept both erased and preserved, an anchor that is being
            erased, or settings that give no finite numbers.
    """
    several = [concepts] if isinstance(concepts, (str, Concept)) else list(concepts)
    if not several:
        raise InputError("expected at least one concept to erase, got none: name one, for example moon")
    wanted = tuple(c if isinstance(c, Concept) else concept(c, backbone) for c in several)
    wanted = tuple(_with_anchor_that_stays(c, wanted, backbone) for c in wanted)
    kept = default_preserve(wanted, backbone) if preserve is None else tuple(concept(n, backbone) for n in preserve)
    clash = {n for c in wanted for n in c.names} & {c.name for c in kept}
    if clash:
        raise InputError(f"{', '.join(sorted(clash))} cannot be erased and preserved at once: drop one of the two")
    name, settings = (method, {}) if isinstance(method, str) else method
    tool: Method = configure(name, preset or backbone.preset, settings)
    factors = {n: (a.cpu(), b.cpu()) for n, (a, b) in tool.run(backbone, Task(wanted, kept, seed)).items()}
    if not all(t.isfinite().all() for pair in factors.values() for t in pair):
        raise InputError(f"{name} with {asdict(tool)} gave numbers that are not finite: choose milder settings")  # type: ignore[call-overload]
    layers = backbone.modules("all")
    recipe = Recipe(
        method=name,
        settings=asdict(tool),  # type: ignore[call-overload]
        seed=seed,
        family=backbone.family,
        base={
            "id": backbone.name,
            "component": "unet",
            "fingerprint": fingerprint({n: layers[n] for n in sorted(factors)}),
        },
        concepts=[{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(c).items()} for c in wanted],
        preserve=[c.name for c in kept],
        targets=sorted(factors),
        versions=library_versions(),
    )
    return Eraser(recipe, factors)
