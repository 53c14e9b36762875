"""What text encoders make of a text, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._backbone import TextStates
from ._held import execution_device


def speller(tok: Any) -> Callable[[str], list[list[int]]]:  # noqa: ANN401
    """From a name to its token numbers at the start of a text and within one, which differ for some tokenizers, and in
    lower case, which some pipelines make of every prompt.
    """
    return lambda name: [
        list(tok(t, add_special_tokens=False).input_ids)
        for word in dict.fromkeys((name, name.lower()))
        for t in (f" {word}", word)
    ]


def clip_states(
    towers: Sequence[tuple[Any, Any]], texts: Sequence[str], layer: int | None, *, padded: bool
) -> TextStates:
    """States of CLIP text towers side by side.

    Args:
        towers: tokenizers and text encoders; the numbers returned are the last tokenizer's.
        texts: what they read.
        layer: which hidden states, counted from the end; None is the last, normalised.
        padded: go on to the towers' full length instead of stopping at the end of each text.
    """
    parts: list[Tensor] = []
    lengths: list[int] = []
    ids = torch.empty(0)
    for tok, enc in towers:
        limit = min(tok.model_max_length, enc.config.max_position_embeddings)
        padding = "max_length" if padded else "longest"
        batch = tok(list(texts), padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        lengths = [limit] * len(texts) if padded else batch.attention_mask.sum(1).tolist()
        ids = batch.input_ids
        out = enc(ids.to(execution_device(enc)), output_hidden_states=layer is not None)
        parts.append(out[0] if layer is None else out.hidden_states[layer])
    return _cut(towers[-1][0], ids, torch.cat(parts, -1), lengths)


def known_states(tok: Any, texts: Sequence[str], states: Tensor, *, padded: bool) -> TextStates:  # noqa: ANN401
    """States [B, n, D] that are known already, padding included, as `clip_states` gives them."""
    limit = states.shape[1]
    batch = tok(list(texts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
    lengths = [limit] * len(texts) if padded else batch.attention_mask.sum(1).tolist()
    return _cut(tok, batch.input_ids, states, lengths)


def _cut(tok: Any, ids: Tensor, states: Tensor, lengths: Sequence[int]) -> TextStates:  # noqa: ANN401
    return TextStates(
        tuple(i[:n] for i, n in zip(ids, lengths, strict=True)),
        tuple(s[:n] for s, n in zip(states, lengths, strict=True)),
        speller(tok),
    )
