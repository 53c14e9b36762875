"""The noun everything else turns on: what must leave the model, and what must stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ._errors import InputError

Kind = Literal["object", "style", "person", "other"]


@dataclass(frozen=True)
class Concept:
    """Something a text-to-image model can draw and a user may want gone.

    Attributes:
        name: the word users write in prompts ("moon", "Van Gogh").
        anchor: what a prompt naming the concept should draw afterwards; "" means "nothing in particular".
        synonyms: other words for the same thing; a real eraser removes these too.
        neighbours: look-alikes, the first to suffer collateral damage.
        keep: concepts to preserve explicitly while erasing this one.
        kind: "object", "style", "person" or "other"; picks the sentence templates.

    Raises:
        InputError: the name is empty or blank, the anchor is the name itself, or `kind` is unknown.
    """

    name: str
    anchor: str = ""
    synonyms: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    kind: Kind = "other"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.strip())
        object.__setattr__(self, "anchor", self.anchor.strip())
        if not self.name:
            raise InputError(f"expected a concept name, got {self.name!r}: name what to erase, for example moon")
        if self.anchor.lower() in {n.lower() for n in self.names}:
            raise InputError(f"the anchor of {self.name!r} is the concept itself: name something else, or nothing")
        if self.kind not in get_args(Kind):
            raise InputError(f"expected a kind among {', '.join(get_args(Kind))}, got {self.kind!r}")

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Concept:
        """From a JSON object, whose lists become tuples.

        Raises:
            TypeError: a field is missing or unknown.
            InputError: see the class.
        """
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then its synonyms."""
        return (self.name, *self.synonyms)
