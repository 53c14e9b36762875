"""Finished cells of hand-made erasers, as a benchmark would leave them: no pipeline is loaded, no image drawn."""

from collections.abc import Callable, Iterable

from PIL import Image

from erasers.eval import Case, Gallery, Report, Verdict, evaluators, find, mean, plan_of
from erasers.eval._cells import SCHEMA, digest
from erasers.eval._paired import hits
from erasers.prompts import Prompt, canvas

SCORES = ("cra", "held_out_ua", "in_prompt", "ira", "neighbours", "synonym_ua", "ua")
"""The judges' own; others need images."""
See = Callable[[Prompt], tuple[str, str]]


def right(p):
    """Draws what it is asked for."""
    return p.object, p.style


def swaps(*gone: str, every: int = 1) -> See:
    """Draws the anchor instead of what is gone, in all or one of `every` images by their seed and words."""

    def see(p):
        if (p.seed + len(p.text)) % every:
            return right(p)
        return tuple(canvas.find(w).anchor if w in gone else w for w in right(p))

    return see


def verdict(see: See, prompts: Iterable[Prompt]) -> Verdict:
    return Verdict(*zip(*(see(p) for p in prompts), strict=True))


def cell(concept: str, see: See, *, method="uce", settings=None, seed=0, before: See = right) -> dict:
    """The row of one cell in which `see` and `before` play the judges, with and without the eraser."""
    prompts = plan_of(concept)
    seen, seen_before = verdict(see, prompts), verdict(before, prompts)
    blank = Gallery(prompts, (Image.new("RGB", (8, 8)),) * len(prompts), {})
    gone = frozenset(concept.split("+"))
    names = [n for n in SCORES if n in evaluators()]
    by = {
        c: {n: find(n)().score(Case(canvas.find(c), gone, blank, blank, seen, seen_before)) for n in names}
        for c in gone
    }
    scores = {n: mean([by[c][n] for c in concept.split("+")]) for n in names}
    report = Report(scores, by, {}, prompts, seen, seen_before)
    settings = settings or {}
    return {
        "schema": SCHEMA,
        "model": "canvas-sd",
        "method": method,
        "digest": digest(settings),
        "concept": concept,
        "seed": seed,
        "settings": settings,
        "effective": settings,
        "derived": {},
        "seconds": 1.5,
        "extra_mb": 30.0,
        "bytes": 377000,
        "images": len(prompts),
        "sampling": {"steps": 12},
        "judge": {"object": 100.0, "style": 100.0},
        "versions": {"erasers": "0"},
        "scores": {n: s.to_json() for n, s in scores.items()},
        "by_concept": {},
        "hits": hits(report),
        "hits_control": hits(report, control=True),
        "pictures": [],
        "source": "run",
    }
