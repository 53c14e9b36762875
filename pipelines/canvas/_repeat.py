"""Many equal text tokens for the price of one, while canvas-flow trains.

Without a third text encoder the stock Stable Diffusion 3 pipeline appends 256 tokens of zeros. They carry no position,
so all of them stay equal through every layer, and attention over n equal keys is attention over one key whose logit is
log n higher: exactly the same network, on 78 text tokens instead of 333.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class RepeatLast:
    """Attention processor of `SD3Transformer2DModel` in which the last text token stands for `n` equal ones."""

    def __init__(self) -> None:
        self.n = 1

    def __call__(
        self,
        attn: Any,  # noqa: ANN401
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *_args: object,
        **_kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend over image tokens [B, N, D] and text tokens [B, L, D] together; the outputs of each."""
        tokens = hidden_states.shape[1]

        def heads(x: Tensor, norm: Any) -> Tensor:  # noqa: ANN401
            x = x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            return x if norm is None else norm(x)

        image, text = hidden_states, encoder_hidden_states
        q = torch.cat([heads(attn.to_q(image), attn.norm_q), heads(attn.add_q_proj(text), attn.norm_added_q)], 2)
        k = torch.cat([heads(attn.to_k(image), attn.norm_k), heads(attn.add_k_proj(text), attn.norm_added_k)], 2)
        v = torch.cat([heads(attn.to_v(image), None), heads(attn.add_v_proj(text), None)], 2)
        weight = q.new_zeros(k.shape[2])
        weight[-1] = math.log(self.n)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=weight.expand(1, 1, q.shape[2], -1))
        out = out.transpose(1, 2).flatten(2)
        image = attn.to_out[1](attn.to_out[0](out[:, :tokens]))
        return image, None if attn.context_pre_only else attn.to_add_out(out[:, tokens:])
