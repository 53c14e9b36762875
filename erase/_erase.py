"""The verb: (concept, pipeline) -> eraser."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..pipelines import Backbone, Drawing, check_unfused, components, fingerprint
from ..prompts import WORLDS, Concept, InputError, World, canvas
from ._base import told
from ._below import check_adds_up, check_below, concepts_of, in_the_weights, record_of
from ._delta import Delta
from ._eraser import Eraser
from ._hyper import Hyper
from ._lora import Factors, Lora
from ._method import Method, Task, configure, name_of, settings_of, to_preserve
from ._payload import Payload
from ._recipe import Recipe, library_versions
from ._train import Loop, Trainer, train


def recorded(tool: Method) -> dict[str, Any]:
    """A method's settings as an eraser carries them to others: of folders on this machine, the last name only."""
    private = [f.name for f in fields(tool) if f.metadata.get("folder")]  # type: ignore[arg-type]
    return {k: Path(v).name if k in private and v else v for k, v in settings_of(tool).items()}


def concept(name: str, backbone: Backbone, anchor: str | None = None) -> Concept:
    """What a name means for a pipeline: on a Canvas pipeline its concept, with synonyms and anchor; elsewhere the bare
    word, or with a world before it ("unlearncanvas:Van Gogh") that world's concept, which keeps all its others. A given
    anchor replaces the known one.

    Raises:
        InputError: an empty name, or a name the world does not have.
    """
    place, colon, word = name.partition(":")
    if colon and place in WORLDS:
        known = _of_world(WORLDS[place], word, backbone)
        return known if anchor is None else replace(known, anchor=anchor)
    known = Concept(name) if backbone.world != "canvas" or not name.strip() else canvas.find(name)
    if anchor is None:
        return known
    return replace(known, anchor=anchor)


def _of_world(world: World, word: str, backbone: Backbone) -> Concept:
    if backbone.world not in ("", world.name):
        raise InputError(f"{backbone.name} draws the world {backbone.world!r}, not {world.name!r}: name one of its own")
    known = world.find(word)
    return replace(known, keep=tuple(n for n in world.concepts if n not in (known.name, world.photo)))


def _with_anchor_that_stays(one: Concept, gone: Sequence[Concept], backbone: Backbone) -> Concept:
    """A concept whose anchor is itself being erased gets another: on Canvas, when the anchor was the known one, a
    look-alike or else anything of its kind that stays.

    Raises:
        InputError: the user chose that anchor, or nothing of the kind stays.
    """
    names = {n.lower() for c in gone for n in c.names}
    if one.anchor.lower() not in names:
        return one
    if backbone.world == "canvas" and one.anchor == canvas.CONCEPTS[one.name].anchor:
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
    if backbone.world == "canvas":
        return tuple(c for c in canvas.CONCEPTS.values() if c.name not in gone)
    names = dict.fromkeys(n for c in concepts for n in (*c.keep, *c.neighbours))
    return tuple(Concept(n) for n in names if n not in gone)


def solve(tool: Method, backbone: Backbone, *, task: Task, loop: Loop | None = None) -> Factors | Delta | Hyper:
    """What a method comes to: its closed form, or what its trainer has learnt at the end of the loop."""
    return _solve(tool, backbone, task=task, loop=loop).result


@dataclass(frozen=True)
class _Solution:
    """What came out, in which precision it was trained (nothing for a closed form), and how a generator draws."""

    result: Factors | Delta | Hyper
    training: dict[str, str] = field(default_factory=dict)
    drawing: Drawing | None = None


def _solve(
    tool: Method, backbone: Backbone, *, task: Task, loop: Loop | None, below: Sequence[Eraser] = ()
) -> _Solution:
    for part in components(backbone.pipe):
        check_unfused(part, "cannot erase")  # PEFT would take it out of the weights when adapters are switched off
    with backbone.using(None):  # a closed form reads the weights, and the user's adapters are no part of them
        result = tool.run(backbone, task)
        base = fingerprint(backbone.values("all"))
    if not isinstance(result, Trainer):
        if not isinstance(result, (Mapping, Delta, Hyper)):
            verbs = [n for n in (*Trainer.__annotations__, *vars(Trainer)) if not n.startswith("_")]
            lacks = ", ".join(n for n in verbs if not hasattr(result, n))
            raise InputError(
                f"{name_of(tool)} gave a {type(result).__name__}: expected Factors, a Delta, a Hyper or a Trainer, for "
                f"which it lacks {lacks}"
            )
        if loop is not None:
            check_loop(tool, loop)
        return _Solution(result)
    loop = loop or Loop(checkpoint_every=0)
    if loop.validate_every and not loop.validate:
        loop = replace(loop, validate=tuple(c.name for c in (*task.concepts, *task.preserve[:2])))
    training = {"base": str(backbone.dtype).removeprefix("torch."), "mixed precision": loop.precision(backbone)}
    training |= {"optimizer": loop.optimizer} if loop.optimizer != "adam" else {}
    given = settings_of(tool)
    identity = {
        "method": name_of(tool),
        # another number of steps is the same run, unless something falls towards the last one
        "settings": {k: v for k, v in given.items() if k != "steps" or given.get("decay") or given.get("soft")},
        "concepts": [asdict(c) for c in task.concepts],
        "preserve": [asdict(c) for c in task.preserve],
        "seed": task.seed,
        "model": backbone.name,
        "base": hashlib.sha256(json.dumps(base).encode()).hexdigest()[:16],
        "precision": training,
        **({"on": [e.fingerprint for e in below]} if below else {}),
    }
    learnt = train(result, backbone, loop=loop, identity=identity, seed=task.seed)
    return _Solution(learnt, training, result.drawing)


def _made_from(backbone: Backbone) -> dict[str, str]:
    """What a record says of the base beside its name: revision, commit, variant ...; and how it is quantised, if it is,
    because its fingerprint is that of rounded weights then.
    """
    known = {k: told(v) if k == "config" else v for k, v in backbone.provenance.items()}
    return {**({"quantized": backbone.quantized} if backbone.quantized else {}), **known}


def check_loop(tool: Method, loop: Loop) -> None:
    """A closed form has no steps for a loop to run.

    Raises:
        InputError: one was asked for all the same.
    """
    harmless = ("work", "restart", "checkpoint_every", "divergence")
    asked = [f.name for f in fields(Loop) if f.name not in harmless and getattr(loop, f.name) != f.default]
    if asked:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise InputError(f"{name_of(tool)!r} is a closed form and has no checkpoints or steps: leave out {flags}")


def prepared(
    concepts: str | Concept | Sequence[str | Concept],
    backbone: Backbone,
    preserve: Sequence[str] | None,
    gone: Sequence[Concept] = (),
) -> tuple[tuple[Concept, ...], tuple[Concept, ...]]:
    """What is to be erased and what preserved, of the names that `erase` is given, where some are `gone` before.

    Raises:
        InputError: no concept, an unknown name, a concept both erased and preserved, one that is gone before, or an
            anchor that is being erased or gone.
    """
    several = [concepts] if isinstance(concepts, (str, Concept)) else list(concepts)
    if not several:
        raise InputError("expected at least one concept to erase, got none: name one, for example moon")
    wanted = tuple(c if isinstance(c, Concept) else concept(c, backbone) for c in several)
    below = {n.lower() for c in gone for n in c.names}
    if twice := [c.name for c in wanted if below & {n.lower() for n in c.names}]:
        raise InputError(f"{', '.join(twice)} is erased already by an eraser below: leave one of the two out")
    wanted = tuple(_with_anchor_that_stays(c, (*wanted, *gone), backbone) for c in wanted)
    if preserve is None:
        kept = default_preserve((*wanted, *gone), backbone)
    else:
        kept = tuple(concept(n, backbone) for n in preserve)
    if lost := [c.name for c in kept if c.name.lower() in below]:
        raise InputError(f"{', '.join(lost)} is erased by an eraser below and cannot be preserved: leave it out")
    clash = {n for c in wanted for n in c.names} & {c.name for c in kept}
    if clash:
        raise InputError(f"{', '.join(sorted(clash))} cannot be erased and preserved at once: drop one of the two")
    return wanted, kept


def chosen(method: str | tuple[str, Mapping[str, Any]] | Method, backbone: Backbone) -> Method:
    """The method that `erase` is given, with the settings that suit the pipeline where it is only named.

    Raises:
        InputError: no such method or setting.
    """
    if not isinstance(method, (str, tuple)):
        return method
    name, settings = (method, {}) if isinstance(method, str) else method
    return configure(name, backbone.preset, settings)


def erase(
    concepts: str | Concept | Sequence[str | Concept],
    backbone: Backbone,
    *,
    method: str | tuple[str, Mapping[str, Any]] | Method = "uce",
    preserve: Sequence[str] | None = None,
    seed: int = 0,
    loop: Loop | None = None,
    on: Eraser | Sequence[Eraser] = (),
) -> Eraser:
    """Remove concepts from a pipeline and hand back the eraser. The pipeline itself is left as it was.

    Args:
        concepts: names or `Concept`s, one or several.
        backbone: from `pipelines.load` or `pipelines.wrap`.
        method: a method's name, for the settings that suit the pipeline; (name, settings) to change some of them; or a
            method with all its settings, as `configure` makes it. "package.module:Class" names one of your own.
        preserve: names to protect; see `default_preserve`.
        seed: of every draw.
        loop: how a trained method runs: checkpoints, precision, trackers.
        on: one eraser or several, all LoRAs, on top of which this one is made: the pipeline that the method sees has
            them in its weights (sequential unlearning). The answer is meant for use beside them, all attached to the
            same base.

    Raises:
        InputError: no concept, an unknown name or setting, a concept both erased and preserved, an anchor that is being
            erased, settings that give no finite numbers, or erasers or a method that do not add up with `on`.
        Diverged: an `InputError` of a trained method; its last good checkpoint is kept.
    """
    below = (on,) if isinstance(on, Eraser) else tuple(on)
    check_below(below)
    wanted, kept = prepared(concepts, backbone, preserve, concepts_of(below))
    tool = chosen(method, backbone)
    if below:
        check_adds_up(tool)
    with in_the_weights(below, backbone):
        solved = _solve(tool, backbone, task=Task(wanted, kept, seed), loop=loop, below=below)
    result = solved.result
    if below and isinstance(result, Delta):
        raise InputError(f"{name_of(tool)} gave new values for weights, which do not add up with the erasers below")
    payload: Payload = (
        result if isinstance(result, (Delta, Hyper)) else Lora({n: (a.cpu(), b.cpu()) for n, (a, b) in result.items()})
    )
    if not payload.finite():
        made = f"{name_of(tool)} with {settings_of(tool)}"
        raise InputError(f"{made} gave numbers that are not finite: choose milder settings")
    with backbone.using(None):
        weights = payload.weights(backbone)
        edited = fingerprint(weights, payload.shapes)
    recipe = Recipe(
        method=name_of(tool),
        settings=recorded(tool),
        seed=seed,
        family=backbone.family,
        base={
            "id": told(backbone.name),
            "component": backbone.component,
            "fingerprint": edited,
            **_made_from(backbone),
            **({"on": record_of(below)} if below else {}),
        },
        concepts=[{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(c).items()} for c in wanted],
        preserve=[] if to_preserve(tool) else [c.name for c in kept],
        targets=sorted(payload.shapes),
        kind=payload.kind,
        training=solved.training,
        versions=library_versions(),
        drawing={} if solved.drawing is None else json.loads(json.dumps(asdict(solved.drawing))),
    )
    return Eraser(recipe, payload)
