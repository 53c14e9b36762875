"""What an evaluator is, how it is found, and what it is given."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from ..prompts import CANVAS, Concept, InputError, Prompt, World, unknown
from ._gallery import Gallery
from ._judge import Verdict
from ._score import NotApplicable, Score, share

GRID = ("grid", "")
"""Roles of ordinary prompts; those in a CSV without a column `role` have none."""

NO_JUDGE = "no judge looked at these images"
NO_CONTROL = "no images of the unerased model were given"


@dataclass(frozen=True)
class Case:
    """One erased concept, drawn and judged, with its unerased control: same prompts, same seeds.

    Attributes:
        concept: what was erased and is being scored.
        erased: names of all concepts the eraser removes; prompts with another erased one count for nobody.
        gallery, control: images with and without the eraser.
        seen, seen_control: what the judges saw in them; None where no judge knows this world, the second also where no
            control was given.
        world: whose grid the prompts are of.
    """

    concept: Concept
    erased: frozenset[str]
    gallery: Gallery
    control: Gallery
    seen: Verdict | None = None
    seen_control: Verdict | None = None
    world: World = CANVAS

    @property
    def paired(self) -> bool:
        """Whether there is an unerased side. Where judges looked at one gallery only, there is none."""
        return self.seen is None or self.seen_control is not None

    @property
    def domain(self) -> str:
        """Either "object" or "style"."""
        return self.world.domain(self.concept.name)

    @property
    def other_domain(self) -> str:
        """The other of the two."""
        return "style" if self.domain == "object" else "object"

    def targets(self, role: str = "grid") -> list[int]:
        """Images whose prompt asks for the concept, in one role ("grid", "synonym", "held-out")."""
        roles = GRID if role == "grid" else (role,)
        return [k for k, p in enumerate(self.gallery.prompts) if p.role in roles and self._asks(p)]

    def others(self) -> list[int]:
        """Grid images whose prompt asks for no erased concept."""
        return [k for k, p in enumerate(self.gallery.prompts) if p.role in GRID and not _named(p) & self.erased]

    def _asks(self, p: Prompt) -> bool:
        return _named(p) & self.erased == {self.concept.name}

    def kept(self, domain: str, *, targets: bool, photo: bool) -> list[int]:
        """Grid images on which accuracy for a domain is retained.

        Args:
            domain: "object" or "style".
            targets: whether images count that ask for the concept, if the domain is the other one; of each of their
                cells as many as of the other cells.
            photo: whether the unstylised photographs count as a style; the objects in them count either way.
        """
        mine = domain == self.domain
        rows = self.others() if mine or not targets else sorted([*self.others(), *self._thinned(self.targets())])
        if domain == "style" and not photo:
            rows = [k for k in rows if self.gallery.prompts[k].style != self.world.photo]
        return rows

    def _thinned(self, rows: list[int]) -> list[int]:
        """At most as many images of a cell as the other cells have, so that a plan's extra seeds do not weigh more."""
        cells = [(p.object, p.style) for p in self.gallery.prompts]
        most = max(Counter(cells[k] for k in self.others()).values(), default=0)
        seen: Counter[tuple[str, str]] = Counter()
        out = []
        for k in rows:
            seen[cells[k]] += 1
            if seen[cells[k]] <= most:
                out.append(k)
        return out

    def retained(self, domain: str, *, targets: bool = False, photo: bool = True) -> Score | NotApplicable:
        """Judge accuracy of a domain by one convention, clustered by its concepts; by the others in the details."""
        why_not = "no grid prompt leaves the concept out"
        chosen = self.accuracy(domain, self.kept(domain, targets=targets, photo=photo), domain, why_not)
        if isinstance(chosen, NotApplicable):
            return chosen
        others: dict[str, float] = {}
        for t, p in product((False, True), (True, False)):
            rows = self.kept(domain, targets=t, photo=p)
            name = self._convention(domain, rows, t, p)
            if name != self._convention(domain, rows, targets, photo) and rows:
                hits, _ = self.correct(domain, rows)
                others[name] = round(100 * sum(hits) / len(hits), 4)
        rows = self.kept(domain, targets=targets, photo=photo)
        named = {"convention": self._convention(domain, rows, targets, photo)}
        return replace(chosen, details={**chosen.details, **named, **({"other conventions": others} if others else {})})

    def _convention(self, domain: str, rows: list[int], targets: bool, photo: bool) -> str:
        """The convention in words; those that come to the same have the same words."""
        count = len({getattr(self.gallery.prompts[k], domain) for k in rows})
        words = f"{count} {domain}s retained"
        if domain == "style" and self.world.photo:
            words += ", photographs " + ("among them" if photo else "left out")
        if domain != self.domain:
            words = f"target images {'included, as in the published script' if targets else 'excluded'}; {words}"
        return words

    def correct(self, domain: str, rows: list[int]) -> tuple[list[bool], list[bool] | None]:
        """Whether the judge of a domain sees what each prompt asked for: with the eraser, and without."""

        def hits(seen: Verdict | None) -> list[bool]:
            if seen is None:
                raise ValueError("no judge looked at these images")
            names = seen.objects if domain == "object" else seen.styles
            return [names[k] == getattr(self.gallery.prompts[k], domain) for k in rows]

        return hits(self.seen), None if self.seen_control is None else hits(self.seen_control)

    def accuracy(self, domain: str, rows: list[int], cluster: str, why_not: str) -> Score | NotApplicable:
        """Judge accuracy on some images, clustered by what their prompts ask for in `cluster`."""
        if not rows or self.seen is None:
            return NotApplicable(why_not if self.seen else NO_JUDGE)
        names = [getattr(self.gallery.prompts[k], cluster) for k in rows]
        return share(*self.correct(domain, rows), names, convention=f"named rightly by the {domain} judge")

    def forgotten(self, role: str, why_not: str) -> Score | NotApplicable:
        """1 - judge accuracy for the concept on prompts that ask for it, clustered by the other domain. Images that
        show another erased concept count as forgotten, by the definition of UA; how many they are is warned of.
        """
        rows = self.targets(role)
        if not rows or self.seen is None:
            return NotApplicable(why_not if self.seen else NO_JUDGE)
        hits, control = self.correct(self.domain, rows)
        clusters = [getattr(self.gallery.prompts[k], self.other_domain) for k in rows]
        names = self.seen.objects if self.domain == "object" else self.seen.styles
        instead = [names[k] for k in rows if names[k] != self.concept.name]
        most = {n: instead.count(n) for n in sorted(set(instead), key=lambda n: (-instead.count(n), n))}
        base = None if control is None else [not h for h in control]
        told: dict[str, Any] = {"drawn_instead": most, "convention": f"not named by the {self.domain} judge"}
        if back := {n: count for n, count in most.items() if n in self.erased}:
            which = ", ".join(f"{n} {count}" for n, count in back.items())
            asked = f"{sum(back.values())} of {len(rows)} images that ask for {self.concept.name}"
            told["warning"] = f"{asked} show another erased concept: {which}"
        return share([not h for h in hits], base, clusters, **told)


def _named(p: Prompt) -> set[str]:
    """Every concept that a prompt asks for; sets of one's own name it in the column `concept`."""
    return {p.concept, p.object, p.style} - {""}


@runtime_checkable
class Evaluator(Protocol):
    """A frozen dataclass of its own settings that turns a case into a score.

    A class with `default: ClassVar[bool] = False` runs only when it is asked for by name: it is slow, or needs weights.
    One with `pictures: ClassVar[bool] = False` goes by the judges' verdicts alone: for it no images are kept.
    """

    higher_is_better: ClassVar[bool]
    about: ClassVar[str]

    def score(self, case: Case) -> Score | NotApplicable:
        """Measure; raise on failure; `NotApplicable` where there is nothing to measure."""
        ...


def evaluators(*, unasked: bool = False) -> list[str]:
    """The names of the evaluators in this folder: every file without a leading underscore.

    Args:
        unasked: only those that run where nobody names any.
    """
    names = sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_"))
    return [n for n in names if getattr(find(n), "default", True)] if unasked else names


def find(name: str) -> Callable[..., Evaluator]:
    """The evaluator class of that name, or of "my_lab.my_score:Score" for one of your own.

    Raises:
        InputError: no such evaluator.
    """
    if ":" in name:
        try:
            module_name, _, class_name = name.partition(":")
            own = [getattr(importlib.import_module(module_name), class_name)]
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"cannot import evaluator {name!r}: {error}; expected 'package.module:Class'") from error
    else:
        if name not in evaluators():
            raise unknown("evaluator", name, evaluators())
        module = importlib.import_module(f"{__package__}.{name}")
        own = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
    found = next((c for c in own if hasattr(c, "score")), None)
    if found is None:
        raise InputError(f"{name} is no evaluator: expected a class with score(case)")
    return found  # type: ignore[no-any-return]


def choose(names: Sequence[str] | None = None, settings: Sequence[str] = ()) -> dict[str, Evaluator]:
    """Evaluators by name, ready to score.

    Args:
        names: which; by default those that run unasked.
        settings: "EVALUATOR.SETTING=VALUE", such as "fid.reference=photos".

    Raises:
        InputError: an unknown evaluator or setting, a setting of an evaluator that does not run, or a bad value.
    """
    chosen = list(dict.fromkeys(names or evaluators(unasked=True)))
    given: dict[str, dict[str, Any]] = {n: {} for n in chosen}
    for text in settings:
        key, equals, value = text.partition("=")
        name, dot, setting = key.strip().rpartition(".")
        if not equals or not dot:
            raise InputError(f"expected EVALUATOR.SETTING=VALUE, such as fid.reference=photos; got {text!r}")
        if name not in given:
            raise unknown("evaluator among those that run", name, chosen)
        kinds = {f.name: type(f.default) for f in fields(find(name))}  # type: ignore[arg-type]
        if setting not in kinds:
            raise unknown(f"setting of {name}", setting, kinds)
        given[name][setting] = _read(value.strip(), kinds[setting], key)
    return {n: find(n)(**given[n]) for n in chosen}


def _read(value: str, kind: type, key: str) -> Any:  # noqa: ANN401
    if kind is bool:
        if value.lower() not in ("true", "false"):
            raise InputError(f"{key}: expected true or false, got {value!r}")
        return value.lower() == "true"
    try:
        return kind(value)
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{key}: expected {what}, got {value!r}") from error
