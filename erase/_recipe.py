"""How an eraser was made: the record beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..pipelines import Drawing
from ..prompts import Concept, InputError
from . import _files as files

SCHEMA = 1


@dataclass(frozen=True)
class Recipe:
    """How an eraser was made: written beside its weights and into the weights' own header.

    Attributes:
        method: the method's public name.
        settings: every setting of the method.
        seed: of every draw it made.
        family: "sd", "sdxl", ...
        base: `id` of the base model and a `fingerprint` of the edited weights; `on`: the erasers below, if it was made
            on top of others.
        concepts: what was erased, each with name, anchor, synonyms, neighbours, kind.
        preserve: names that were protected.
        targets: full names of what is edited: Linears of a lora or a hypernetwork, parameters of a delta.
        scale: the strength it was made for.
        kind: "lora", "delta" or "hyper".
        training: precision of the base and of the training; empty for a closed form.
        versions: libraries used.
        drawing: of a generator of few steps, how it draws: scheduler, steps, times and guidance; else empty.
        derived: of an eraser made from another, how: its kind, and what of it is held; else empty.
        scores: what was measured of it: by evaluator, and under "settings" on what; empty before it was scored.
        schema: version of this record.
    """

    method: str
    settings: dict[str, Any]
    seed: int
    family: str
    base: dict[str, Any]
    concepts: list[dict[str, Any]]
    preserve: list[str]
    targets: list[str]
    scale: float = 1.0
    kind: str = "lora"
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    drawing: dict[str, Any] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @classmethod
    def read(cls, value: Mapping[str, Any], origin: str) -> Recipe:
        """From JSON.

        Raises:
            InputError: not an eraser's record, or one from a newer release.
        """
        schema = value.get("schema")
        if not isinstance(schema, int):
            raise InputError(f"{origin} is no eraser's record: expected a schema number, got {schema!r}")
        if schema > SCHEMA:
            raise InputError(f"{origin} has schema {schema}, this release reads up to {SCHEMA}: update erasers")
        try:
            recipe = cls(**{k: v for k, v in value.items() if k in cls.__dataclass_fields__})
            _ = recipe.base["id"], [float(w) for w in recipe.base["fingerprint"]["weights"]]
            _ = [Concept.from_json(c) for c in recipe.concepts]
            _ = Drawing.from_json(recipe.drawing) if recipe.drawing else None
            _ = [(*b["concepts"], b["method"], b["fingerprint"]) for b in recipe.base.get("on", [])]
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{origin} is no eraser's record ({type(error).__name__}: {error})") from error
        return recipe

    @classmethod
    def from_header(cls, header: Mapping[str, str], origin: str) -> Recipe:
        """From the header of a safetensors file.

        Raises:
            InputError: it has none, or a damaged one.
        """
        if files.HEADER not in header:
            raise InputError(f"{origin} is a safetensors file but no eraser: its header has no {files.HEADER!r} record")
        try:
            value = json.loads(header[files.HEADER])
        except json.JSONDecodeError as error:
            raise InputError(f"{origin}: the {files.HEADER!r} record in its header is damaged ({error})") from error
        if not isinstance(value, dict):
            raise InputError(f"{origin}: the {files.HEADER!r} record in its header is no JSON object")
        return cls.read(value, origin)

    def header(self) -> dict[str, str]:
        """The entry for a safetensors file's header."""
        return {files.HEADER: json.dumps(asdict(self), ensure_ascii=False)}

    @property
    def names(self) -> list[str]:
        """Names of the erased concepts."""
        return [c["name"] for c in self.concepts]


def library_versions() -> dict[str, str]:
    """Versions of what made an eraser."""
    out = {}
    for name in ("erasers", "torch", "diffusers", "transformers", "peft"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "unknown"
    return out
