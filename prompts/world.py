"""A benchmark in words: what its judges can name, and how its images are asked for, drawn and filed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from . import canvas, unlearncanvas
from ._errors import InputError, unknown
from .concept import Concept
from .prompt import SEEDS, Prompt
from .templates import HELD_OUT, fill


@dataclass(frozen=True)
class World:
    """Two domains, every object in every style, and the protocol in which models are asked for them.

    Attributes:
        name: "canvas" or "unlearncanvas".
        objects, styles: the concepts of either domain, in the order of the answer set.
        sentence: the protocol's prompt for an object and a style.
        seeds: one image of each cell for each of them.
        steps, guidance, sampler: how the protocol draws; None leaves it to the pipeline.
        side: height and width of its images in pixels; 0: the pipeline's.
        photo: a style that is drawn and judged but never erased; "" if there is none.
    """

    name: str
    objects: tuple[Concept, ...]
    styles: tuple[Concept, ...]
    sentence: Callable[[str, str], str]
    seeds: tuple[int, ...] = SEEDS
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    side: int = 0
    photo: str = ""

    @property
    def concepts(self) -> dict[str, Concept]:
        """Everything its judges can name."""
        return {c.name: c for c in (*self.objects, *self.styles)}

    def names(self, domain: str) -> tuple[str, ...]:
        """Names of the domain "object" or "style", in the order of the answer set."""
        return tuple(c.name for c in (self.objects if domain == "object" else self.styles))

    def domain(self, name: str) -> str:
        """Either "object" or "style"."""
        return "object" if name in self.names("object") else "style"

    def find(self, name: str) -> Concept:
        """The concept of that name or synonym, however it is capitalised; "Van_Gogh" is "Van Gogh".

        Raises:
            InputError: there is none, or it is the photographs, which cannot be erased.
        """
        word = name.replace("_", " ").strip().lower()
        for field in ("name", "names"):  # a name goes before another concept's synonym
            for concept in self.concepts.values():
                if word in (n.lower() for n in ([concept.name] if field == "name" else concept.names)):
                    if concept.name == self.photo:
                        raise InputError(f"{self.photo!r} are the photographs of {self.name}: no target to erase")
                    return concept
        raise unknown(f"{'Canvas' if self.name == 'canvas' else self.name} concept", name, self.concepts)

    def known(self, name: str) -> bool:
        """Whether `find` finds it."""
        try:
            self.find(name)
        except InputError:
            return False
        return True

    def cell(self, object_name: str, style_name: str, seed: int) -> Prompt:
        """The prompt of one image of the grid."""
        text = self.sentence(object_name, style_name)
        return Prompt(text, seed, object_name, object_name, style_name, "grid")

    def answers(self, seeds: Sequence[int] | None = None) -> list[Prompt]:
        """The answer set in the published order: seed by seed, style by style, object by object."""
        cells = product(self.seeds if seeds is None else seeds, self.styles, self.objects)
        return [self.cell(o.name, s.name, seed) for seed, s, o in cells]

    def plan(self, concept: Concept, seeds: Sequence[int] | None = None) -> list[Prompt]:
        """Fewer images that score one erased concept: its own cells with every seed, all other cells with one seed each
        (seeds taken in turn, so that no seed weighs more), its cells once under each synonym and once in each sentence
        never used in training.

        Raises:
            InputError: the world has no such concept.
        """
        known, seeds = self.find(concept.name), self.seeds if seeds is None else seeds
        rows: list[Prompt] = []
        for n, (s, o) in enumerate(product(self.styles, self.objects)):
            hit = known in (o, s)
            rows += [self.cell(o.name, s.name, seed) for seed in (seeds if hit else [seeds[n % len(seeds)]])]
            if not hit:
                continue
            seed = seeds[n % len(seeds)]
            for synonym in known.synonyms:
                words = (synonym, s.name) if known == o else (o.name, synonym)
                rows.append(Prompt(self.sentence(*words), seed, known.name, o.name, s.name, "synonym"))
            for template in HELD_OUT:
                text = fill(template, object=o.name, style=s.name)
                rows.append(Prompt(text, seed, known.name, o.name, s.name, "held-out"))
        return rows

    def plan_name(self, name: str) -> str:
        """What `prompts.load` calls the plan of the concept of that name."""
        return f"plan:{self.name}:{name}"

    def requests(self, concept: Concept) -> list[str]:
        """The protocol's sentences that ask for a concept, one for each name of the other domain."""
        known = self.find(concept.name)
        if self.domain(known.name) == "object":
            return [self.sentence(known.name, s) for s in self.names("style")]
        return [self.sentence(o, known.name) for o in self.names("object")]

    def file(self, prompt: Prompt, suffix: str = ".jpg") -> str:
        """`{style}_{object}_seed{seed}.jpg`, the answer set's name of an image."""
        return f"{prompt.style}_{prompt.object}_seed{prompt.seed}{suffix}".replace(" ", "_")


CANVAS = World("canvas", canvas.OBJECTS, canvas.STYLES, canvas.caption)
"""UnlearnCanvas in miniature: the world of the bundled pipelines, drawn as suits each of them."""

UNLEARN_CANVAS = World(
    "unlearncanvas",
    unlearncanvas.OBJECTS,
    unlearncanvas.THEMES,
    unlearncanvas.sentence,
    steps=100,
    guidance=9.0,
    sampler="ddim",
    side=512,
    photo=unlearncanvas.PHOTO,
)
"""UnlearnCanvas itself (arXiv 2402.11846): 51 themes x 20 objects x 5 seeds."""

WORLDS: dict[str, World] = {w.name: w for w in (CANVAS, UNLEARN_CANVAS)}


def world(name: str) -> World:
    """The world of that name.

    Raises:
        InputError: there is none.
    """
    if name not in WORLDS:
        raise unknown("protocol", name, WORLDS)
    return WORLDS[name]
