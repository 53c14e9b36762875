"""CLIP as a scorer: the bundled Canvas one, any of transformers' and any of open_clip's, behind one face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ..pipelines import canvas_folder, quiet
from ..prompts import InputError, first_line

FAILURES = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)


class Clip:
    """A CLIP, ready to look and to read.

    Attributes:
        name: how it was asked for, "clip:openai/clip-vit-base-patch32".
        convention: what happens to an image before the network sees it.
    """

    def __init__(
        self,
        name: str,
        convention: str,
        look: Callable[[Sequence[Image.Image]], Tensor],
        read: Callable[[Sequence[str]], Tensor],
    ) -> None:
        self.name, self.convention, self._look, self._read = name, convention, look, read

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Projected image vectors [n, d], not normalised."""
        return self._look(images).float().cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """Projected text vectors [n, d], not normalised; equal texts are read once."""
        once = list(dict.fromkeys(texts))
        read = [self._read(once[k : k + batch]).float().cpu() for k in range(0, len(once), batch)]
        return torch.cat(read)[[once.index(t) for t in texts]]


def canvas_clip() -> Clip:
    """The bundled CLIP of the Canvas world."""
    from transformers import CLIPModel, CLIPTokenizer

    folder = canvas_folder("clip")
    with quiet():
        model, tok = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    side = model.config.vision_config.image_size
    look = _transformers_look(model.to(_device()), lambda images: squash(images, side) / 127.5 - 1)
    return Clip("canvas-clip", f"squashed to {side} x {side} (bicubic)", look, _transformers_read(model, tok))


def transformers_clip(source: str) -> Clip:
    """A `CLIPModel` of the Hub or of a folder, with its own image processor.

    Raises:
        InputError: it cannot be had or is no CLIP.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel

    try:
        with quiet():
            kind = AutoConfig.from_pretrained(source).model_type
            if kind != "clip":
                raise InputError(
                    f"clip:{source} is a {kind!r} model: expected a 'clip' one; open_clip knows more kinds"
                )
            model, report = CLIPModel.from_pretrained(
                source, weights_only=True, dtype=torch.float32, output_loading_info=True
            )
            tok = AutoTokenizer.from_pretrained(source)
            prepare = AutoImageProcessor.from_pretrained(source)
    except InputError:
        raise
    except FAILURES as error:
        raise _cannot(f"clip:{source}", error) from error
    if lacking := sorted(report["missing_keys"]):
        raise InputError(f"clip:{source} lacks {len(lacking)} of its weights, such as {lacking[0]}: fetch it again")
    model = model.eval().to(_device())

    def pixels(images: Sequence[Image.Image]) -> Tensor:
        return prepare(images=[i.convert("RGB") for i in images], return_tensors="pt")["pixel_values"]  # type: ignore[no-any-return]

    side = model.config.vision_config.image_size
    what = f"the checkpoint's own image processor ({type(prepare).__name__}, {side} px)"
    return Clip(f"clip:{source}", what, _transformers_look(model, pixels), _transformers_read(model, tok))


def open_clip_clip(source: str) -> Clip:
    """An open_clip model: "ViT-B-32:laion2b_s34b_b79k", "ViT-B-32:file.safetensors", "hf-hub:owner/name" or a folder.
    Published weights run with the activation that they were trained with, whatever the architecture's name says; for a
    file it is the architecture's ("ViT-B-32-quickgelu").

    Raises:
        InputError: it cannot be had, no weights are named, or an architecture with an activation that its weights were
            not trained with.
    """
    import open_clip

    name, colon, weights = source.partition(":")
    if Path(source).is_dir():
        name, weights = f"local-dir:{source}", ""
    elif name in ("hf-hub", "local-dir"):
        name, weights = source, ""
    elif not colon or not weights:
        raise InputError(
            f"open_clip:{source}: expected ARCHITECTURE:WEIGHTS such as ViT-B-32:laion2b_s34b_b79k, hf-hub:OWNER/NAME "
            "or a folder"
        )
    quick = _quick_gelu(name, weights)
    try:
        with quiet():
            model, prepare = open_clip.create_model_from_pretrained(
                name, pretrained=weights or None, force_quick_gelu=quick
            )
            tok = open_clip.get_tokenizer(name)
    except FAILURES as error:
        raise _cannot(f"open_clip:{source}", error) from error
    model = model.eval().to(_device())

    def look(images: Sequence[Image.Image]) -> Tensor:
        return model.encode_image(torch.stack([prepare(i.convert("RGB")) for i in images]).to(_device()))  # type: ignore[no-any-return]

    def read(texts: Sequence[str]) -> Tensor:
        return model.encode_text(tok(list(texts)).to(_device()))  # type: ignore[no-any-return]

    return Clip(f"open_clip:{source}", "the checkpoint's own preprocessing (open_clip)", look, read)


def _quick_gelu(name: str, weights: str) -> bool:
    """Whether published weights want QuickGELU, OpenAI's and some others': open_clip goes by the architecture's name,
    and only warns.
    """
    import open_clip

    known = open_clip.get_pretrained_cfg(name, weights)
    wanted = bool(known.get("quick_gelu"))
    if known and not wanted and (open_clip.get_model_config(name) or {}).get("quick_gelu"):
        raise InputError(f"open_clip:{name}:{weights} was trained with plain GELU: leave out -quickgelu")
    return wanted


def squash(images: Sequence[Image.Image], side: int) -> Tensor:
    """float32 [n, 3, side, side] in 0..255; images of another size are resized without keeping their shape."""
    import numpy as np

    rgb = [i.convert("RGB") for i in images]
    rgb = [i if i.size == (side, side) else i.resize((side, side), Image.Resampling.BICUBIC) for i in rgb]
    return torch.from_numpy(np.stack([np.asarray(i) for i in rgb])).permute(0, 3, 1, 2).float()


def _transformers_look(model: Any, pixels: Callable[[Sequence[Image.Image]], Tensor]) -> Callable[..., Tensor]:  # noqa: ANN401
    return lambda images: model.visual_projection(
        model.vision_model(pixel_values=pixels(images).to(model.device)).pooler_output
    )


def _transformers_read(model: Any, tok: Any) -> Callable[[Sequence[str]], Tensor]:  # noqa: ANN401
    limit = model.config.text_config.max_position_embeddings

    def read(texts: Sequence[str]) -> Tensor:
        ids = tok(list(texts), padding="max_length", truncation=True, max_length=limit, return_tensors="pt")
        out = model.text_model(input_ids=ids.input_ids.to(model.device), attention_mask=None)
        return model.text_projection(out.pooler_output)  # type: ignore[no-any-return]

    return read


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _cannot(name: str, error: BaseException) -> InputError:
    return InputError(
        f"cannot load {name} ({first_line(error)}): expected a Hub id that can be reached or is in the cache, or a "
        "local folder, as clip:FOLDER or open_clip:FOLDER"
    )
