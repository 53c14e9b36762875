"""Answer sets made elsewhere: folders of images named as UnlearnCanvas names them, scored like our own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..erase import PICTURE_KINDS
from ..prompts import Concept, InputError, Prompt, World
from ._compare import check_alike, erased_in
from ._evaluate import Report, judged, mean, scored
from ._evaluator import NO_JUDGE, Case, find
from ._gallery import MANIFEST, Gallery, Stored
from ._judge import Judges, Verdict
from ._score import NotApplicable, Score, share

SUFFIXES = (".jpg", ".png")
JUDGED = ("ua", "ira", "cra", "in_prompt", "neighbours", "synonym_ua", "held_out_ua")
"""The evaluators that rest on the judges alone."""

COMBINED = ("combination_ua", "style_consistency", "object_consistency", "unrelated")
"""What an erased combination of a style and an object is scored by, see `combination`."""

NONE = Gallery((), (), {})
"""In the place of a control that was not given: nothing that compares images takes it for one."""


def answers(folder: str | os.PathLike[str], world: World, seeds: Sequence[int] | None = None) -> Gallery:
    """An answer set: `{style}_{object}_seed{seed}.jpg` (or .png) for every cell of the world's grid and every seed, and
    no other image. Images are read when they are asked for, and are those of the manifest where there is one.

    Raises:
        InputError: no folder, images missing, images under other names, both suffixes at once, or a manifest that is
            no gallery's; for an image, when it is read, that it is damaged or not the manifest's.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"no such answer set: {root}; expected a folder of {world.file(world.answers()[0])} ...")
    prompts = world.answers(seeds)
    found = {p.name for p in root.iterdir() if p.suffix.lower() in PICTURE_KINDS and not p.name.startswith(".")}
    if not found:
        raise InputError(f"{root} is empty: expected {len(prompts)} images such as {world.file(prompts[0])}")
    count = {s: sum(world.file(p, s) in found for p in prompts) for s in SUFFIXES}
    suffix = max(count, key=lambda s: count[s])
    names = [world.file(p, suffix) for p in prompts]
    missing = [n for n in names if n not in found]
    strangers = sorted(found - set(names))
    if missing:
        also = f"; {len(strangers)} images have other names, such as {strangers[0]}" if strangers else ""
        raise InputError(
            f"{root} lacks {len(missing)} of {len(names)} images, such as {missing[0]}{also}: nothing is scored until "
            "the answer set is whole"
        )
    if strangers:
        raise InputError(
            f"{root} holds {len(strangers)} images that are no answers, such as {strangers[0]}: take them away, or "
            "name the seeds that were drawn"
        )
    drawn = Gallery.open(root) if (root / MANIFEST).exists() else NONE
    digests = {path.name: digest for path, digest in drawn.images.files} if isinstance(drawn.images, Stored) else {}
    files = tuple((root / n, digests.get(n, "")) for n in names)
    return Gallery(tuple(prompts), Stored(files), drawn.manifest)


def look_through(gallery: Gallery, judges: Judges) -> tuple[Verdict, tuple[int, int]]:
    """What the judges see in an answer set, and the size of its images.

    Raises:
        InputError: an unreadable image, or images of several sizes.
    """
    sizes: Counter[tuple[int, int]] = Counter()

    class Watched(Stored):
        """Notes the size of each image on its way to the judges."""

        def __getitem__(self, index: Any) -> Any:  # noqa: ANN401
            found = super().__getitem__(index)
            if not isinstance(index, slice):
                sizes[found.size] += 1
            return found

    seen = judges.look(Watched(gallery.images.files) if isinstance(gallery.images, Stored) else gallery.images)
    if len(sizes) > 1:
        raise InputError(f"the answer set has images of several sizes, {dict(sizes)}: draw them alike")
    return seen, next(iter(sizes), gallery.images[0].size)


def score_answers(
    folder: str | os.PathLike[str],
    judges: Judges,
    *,
    concepts: Sequence[str],
    control: str | os.PathLike[str] | None = None,
    only: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Report:
    """Score an answer set made elsewhere for the concepts that its model was to forget.

    Args:
        folder: see `answers`.
        judges: of the world whose protocol was followed.
        concepts: names; "Van Gogh x Dogs" is the combination of a style and an object.
        control: the answer set of the unerased model.
        only: names of evaluators of single concepts; by default those that rest on the judges alone. Combinations
            have scores of their own.
        seeds: that were drawn; by default the protocol's. Fewer are said in the settings.

    Raises:
        InputError: no or unknown concepts, an unknown evaluator, evaluators named for combinations alone, an answer set
            that is not whole, sets of different sizes; as far as the sets have manifests, sets that were not drawn
            alike, a control drawn with erasers, or concepts that the answer set's erasers do not erase.
    """
    world = judges.world
    if not concepts:
        raise InputError("name what was erased with --concept, for example --concept 'Van Gogh'")
    tools = {n: find(n)() for n in (only or JUDGED)}
    pairs = [tuple(world.find(part) for part in name.split(" x ")) for name in concepts]
    for name, pair in zip(concepts, pairs, strict=True):
        if len(pair) > 2 or (len(pair) == 2 and len({world.domain(c.name) for c in pair}) != 2):
            raise InputError(f"expected a concept, or a style and an object like 'Van Gogh x Dogs', got {name!r}")
    if only and all(len(pair) == 2 for pair in pairs):
        raise InputError(
            f"--only {','.join(only)}: a combination has scores of its own ({', '.join(COMBINED)}); leave it out, or "
            "name a single concept too"
        )
    mine = answers(folder, world, seeds)
    other = None if control is None else answers(control, world, seeds)
    if other is not None:
        check_alike(mine.manifest, other.manifest)
    _check_erased([pair[0].name for pair in pairs if len(pair) == 1], mine.manifest, world)
    seen, side = look_through(mine, judges)
    seen_base = None
    if other is not None:
        seen_base, other_side = look_through(other, judges)
        if side != other_side:
            raise InputError(f"the answer set's images are {side}, the control's {other_side}: draw them alike")
    single = [pair[0] for pair in pairs if len(pair) == 1]
    erased = frozenset(c.name for c in single)
    base = NONE if other is None else other
    found: dict[str, dict[str, tuple[Score | NotApplicable, frozenset[int] | None]]] = {}
    for name, pair in zip(concepts, pairs, strict=True):
        if len(pair) == 1:
            case = Case(pair[0], erased, mine, base, seen, seen_base, world)
            found[pair[0].name] = {n: scored(t, case) for n, t in tools.items()}
        else:
            case = Case(pair[0], frozenset(), mine, base, seen, seen_base, world)
            found[name] = {n: (score, None) for n, score in combination(case, pair).items()}
    by_concept = {c: {n: score for n, (score, _) in scores.items()} for c, scores in found.items()}
    means = {}
    for n in dict.fromkeys(n for s in found.values() for n in s):
        rests = [s[n] for s in found.values() if n in s]
        means[n] = mean([score for score, _ in rests], [rows for _, rows in rests])
    drawn = tuple(dict.fromkeys(p.seed for p in mine.prompts))
    settings = {
        "answers": str(folder),
        "control": "none given" if control is None else str(control),
        "concepts": list(by_concept),
        "images": len(mine.prompts),
        "protocol": {
            "world": world.name,
            "seeds": list(drawn),
            "whole": set(drawn) == set(world.seeds) and (not world.side or side == (world.side, world.side)),
            "pixels": list(side),
        },
        **judged(judges, mine.prompts, seen_base),
    }
    return Report(means, by_concept, settings, mine.prompts, seen, seen_base)


def _check_erased(names: Sequence[str], manifest: Mapping[str, Any], world: World) -> None:
    """Make sure that an answer set's own erasers erase what is asked about, as far as the world knows what they do."""
    told = [n for n in erased_in(manifest) if world.known(n)]
    if told and (others := [n for n in names if n not in {world.find(t).name for t in told}]):
        raise InputError(
            f"--concept {others[0]}: the answer set's manifest says that {', '.join(told)} was erased; name that, or "
            "the folder that was drawn without it"
        )


def combination(case: Case, pair: Sequence[Concept]) -> dict[str, Score | NotApplicable]:
    """Scores of an erased combination of a style and an object (UnlearnCanvas' finer-scale unlearning): in percent,

    - `combination_ua`: images that ask for both in which the judges do not see both;
    - `style_consistency`: style accuracy on the style with other objects;
    - `object_consistency`: object accuracy on the object in other styles;
    - `unrelated`: both judges right on images that ask for neither.
    """
    names = {case.world.domain(c.name): c.name for c in pair}
    rows: dict[str, list[int]] = {"both": [], "style": [], "object": [], "neither": []}
    for k, p in enumerate(case.gallery.prompts):
        if p.role == "grid":
            hit = p.object == names["object"], p.style == names["style"]
            rows[{(True, True): "both", (True, False): "object", (False, True): "style"}.get(hit, "neither")].append(k)

    def both(seen: Verdict, prompts: Sequence[Prompt], k: int) -> bool:
        return (seen.objects[k], seen.styles[k]) == (prompts[k].object, prompts[k].style)

    def joint(which: str, want: bool) -> Score | NotApplicable:
        if not rows[which] or case.seen is None:
            return NotApplicable("no grid prompt asks for it" if case.seen else NO_JUDGE)
        prompts, seen = case.gallery.prompts, case.seen
        hits = [both(seen, prompts, k) == want for k in rows[which]]
        base = case.seen_control
        control = None if base is None else [both(base, prompts, k) == want for k in rows[which]]
        return share(hits, control, [(prompts[k].object, prompts[k].style) for k in rows[which]])

    def one(domain: str, cluster: str) -> Score | NotApplicable:
        return case.accuracy(domain, rows[domain], cluster, "no grid prompt asks for it")

    found = joint("both", False), one("style", "object"), one("object", "style"), joint("neither", True)
    out = dict(zip(COMBINED, found, strict=True))
    pairing = {"combination": f"{names['style']} x {names['object']}"}
    return {k: replace(v, details={**v.details, **pairing}) if isinstance(v, Score) else v for k, v in out.items()}
