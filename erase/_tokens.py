"""Which token states stand for a concept: what closed forms edit, and what they preserve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..pipelines import Backbone
from ..prompts import CONTEXTS, Concept, InputError, fill
from ._method import Task

Tokens = Literal["last", "subject", "all"]


def contexts(concept: Concept, n: int, name: str | None = None) -> list[str]:
    """The first n sentences for this kind of concept, naming it (or `name`; "" gives empty texts)."""
    word = concept.name if name is None else name
    templates = CONTEXTS[concept.kind]
    if n > len(templates):
        raise InputError(f"contexts: expected at most {len(templates)} for kind {concept.kind!r}, got {n}")
    return [fill(t, x=word) if word else "" for t in templates[:n]]


def span(ids: Tensor, spellings: Sequence[Sequence[int]]) -> range:
    """Where the tokens of a name stand in a text, its last occurrence; of several spellings the first that is found.

    Raises:
        InputError: they do not stand there.
    """
    text = ids.tolist()
    for part in map(list, spellings):
        for start in range(len(text) - len(part), -1, -1):
            if part and text[start : start + len(part)] == part:
                return range(start, start + len(part))
    raise InputError(f"the tokenizer does not find {spellings[-1]} in {text}: write the concept as a separate word")


def pair(concept: range, anchor: range, ends: tuple[int, int], tokens: Tokens) -> list[tuple[int, int]]:
    """Positions in the concept's text and the positions in the anchor's text that they should act like.

    Names of different lengths are aligned at their last token. `all` goes on, one to one, through the rest of the
    sentence and the padding; `ends` are the lengths of both texts.
    """
    if tokens == "last":
        return [(concept[-1], anchor[-1])]
    pairs = [(k, max(anchor[0], anchor[-1] - (concept[-1] - k))) for k in concept]
    if tokens == "all":
        rest = ends[0] - concept.stop
        pairs += [(concept.stop + k, min(anchor.stop + k, ends[1] - 1)) for k in range(rest)]
    return pairs


def edited(
    backbone: Backbone, concepts: Sequence[Concept], tokens: Tokens, n: int, synonyms: bool
) -> tuple[Tensor, Tensor]:
    """States to edit C and the states they should act like A*, both [d, k]; repeated pairs are kept once. Where several
    text encoders feed the same layer, those of each.

    A concept with an empty anchor is sent to the end-of-text state of the empty prompt.
    """
    jobs = [
        (name, concept.anchor, text, other)
        for concept in concepts
        for name in (concept.names if synonyms else concept.names[:1])
        for text, other in zip(contexts(concept, n, name), contexts(concept, n, concept.anchor), strict=True)
    ]
    texts = list(dict.fromkeys([t for job in jobs for t in job[2:]] + [w for job in jobs for w in job[:2] if w] + [""]))
    streams = backbone.text_states(texts)
    whole = backbone.text_states(texts, padded=True) if tokens == "all" else streams
    columns: list[tuple[Tensor, Tensor]] = []
    for stream, full in zip(streams, whole, strict=True):
        nothing = dict(zip(texts, stream.states, strict=True))[""][-1]
        ids, states = (dict(zip(texts, part, strict=True)) for part in (full.ids, full.states))
        for name, anchor, text, other in jobs:
            here = span(ids[text], stream.spell(name))
            if anchor:
                there = span(ids[other], stream.spell(anchor))
                ends = (len(ids[text]), len(ids[other]))
                columns += [(states[text][i], states[other][j]) for i, j in pair(here, there, ends, tokens)]
            else:
                where = pair(here, range(1), (len(ids[text]), 1), tokens)
                columns += [(states[text][i], nothing) for i, _ in where]
    both = torch.stack([torch.cat(c) for c in columns]).float()
    c, a = both.unique(dim=0).T.chunk(2)
    return c, a


def preserved(backbone: Backbone, task: Task, n: int) -> Tensor:
    """States to preserve [d, m]: every token of the preserved names' sentences, and the whole empty prompt."""
    texts = [s for concept in task.preserve for name in concept.names for s in contexts(concept, n, name)]
    streams = [*backbone.text_states([""], padded=True), *(backbone.text_states(texts) if texts else ())]
    return torch.cat([s.float() for stream in streams for s in stream.states]).unique(dim=0).T
