"""The model card that every eraser folder carries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

if TYPE_CHECKING:
    from ._recipe import Recipe

CARD = """---
{front}
---

# Eraser of {names}

Removes **{names}** from `{base}`. Made by [erasers] with the method `{method}`, seed {seed}.

| concept | drawn instead | synonyms erased or tested |
|---|---|---|
{rows}

## Use

{plain}

With `erasers`:

```python
import erasers

handle = erasers.Eraser.from_pretrained("this-folder").attach(pipe)
handle.detach()  # the base again, bit for bit
```

## What it is not

An adapter suppresses; whoever holds the base model can take it out again. For a release, bake it in and publish the
baked weights. It is no safety guarantee: other words, other languages and trained attacks may still reach the concept.

## Settings

{settings}

Preserved explicitly: {preserve}. Made with {versions}.

[erasers]: https://pypi.org/project/erasers/
"""


PLAIN = {
    "lora": """In any diffusers app, without `erasers`:

```python
pipe.load_lora_weights("this-folder", adapter_name="eraser")
```

Loading a second LoRA switches this one off until `pipe.set_adapters(["eraser", "the-other"])`.
`eraser_kohya.safetensors` holds the same update for ComfyUI and A1111.""",
    "delta": """`delta.safetensors` holds new values for some of the weights, which diffusers has no loader for. Make a
component of it once, for any diffusers app without `erasers`:

```sh
erasers export this-folder --to component --model {base} --out erased-unet
```

```python
unet = UNet2DConditionModel.from_pretrained("erased-unet")
pipe = DiffusionPipeline.from_pretrained("{base}", unet=unet)
```""",
}
TAGS = {"lora": ["lora", "template:sd-lora"], "delta": []}


def card(recipe: Recipe) -> str:
    """The card of one eraser, Markdown with the Hub's front matter."""
    base = recipe.base["id"]
    on_hub = base.count("/") == 1 and not Path(base).exists()
    data = ModelCardData(
        base_model=base if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*TAGS[recipe.kind], "diffusers", "text-to-image", "concept-erasure"],
    )
    rows = [
        f"| {c['name']} | {c['anchor'] or 'nothing in particular'} | {', '.join(c['synonyms']) or '-'} |"
        for c in recipe.concepts
    ]
    return CARD.format(
        front=data.to_yaml(),
        names=", ".join(recipe.names),
        base=base,
        method=recipe.method,
        seed=recipe.seed,
        rows="\n".join(rows),
        plain=PLAIN[recipe.kind].replace("{base}", base),
        settings="\n".join(f"- `{k}`: {v}" for k, v in recipe.settings.items()),
        preserve=", ".join(recipe.preserve) or "nothing",
        versions=", ".join(f"{k} {v}" for k, v in recipe.versions.items()),
    )
