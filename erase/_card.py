"""The model card that every eraser folder carries."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from ._base import Opened, flags, on_hub, one_file, opened
from ._comfy import unread

if TYPE_CHECKING:
    from ._recipe import Recipe

CARD = """---
{front}
---

# Eraser of {names}

Removes **{names}** from `{base}`{version}. Made by [erasers] with the method `{method}`, seed {seed}.

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
```{scores}

## What it is not

An adapter suppresses; whoever holds the base model can take it out again. For a release, bake it in and publish the
baked weights. It is no safety guarantee: other words, other languages and trained attacks may still reach the concept.

## Settings

<details><summary>All {count} settings of {method}</summary>

{settings}

</details>

Preserved explicitly: {preserve}. Made with {versions}.{derived}

[erasers]: https://pypi.org/project/erasers/
"""


LOADER = """In any diffusers app, without `erasers`:

```python
{pipe}weights = "pytorch_lora_weights.safetensors"
pipe.load_lora_weights("this-folder", weight_name=weights, adapter_name="eraser")
```

Loading a second LoRA switches this one off until `pipe.set_adapters(["eraser", "the-other"])`."""

KOHYA = """
`eraser_kohya.safetensors` holds the same update for ComfyUI and A1111."""

COMFY = """
ComfyUI reads the same file."""

NO_LOADER = """This family's pipelines have no `load_lora_weights`. Without `erasers`, by PEFT itself:

```python
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file

folder = "this-folder"
state = load_file(f"{folder}/pytorch_lora_weights.safetensors")
state = {k.removeprefix("transformer."): v for k, v in state.items()}
names = sorted({k.rpartition(".lora_")[0] for k in state})
rank = len(state[names[0] + ".lora_A.weight"])
config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
inject_adapter_in_model(config, pipe.transformer, "eraser")
set_peft_model_state_dict(pipe.transformer, state, adapter_name="eraser")
```"""

DELTA = """`delta.safetensors` holds new values for some of the weights, which diffusers has no loader for. Make a
component of it once, for any diffusers app without `erasers`:

```sh
erasers export this-folder --to component --out erased-{component} \\
  {flags}
```

```python
{imports}

part = AutoModel.from_pretrained("erased-{component}")
{pipe}```"""

HYPER = """`hypernet/` holds a network that writes a LoRA of its own for each prompt: strong where one asks for an
erased concept, next to nothing elsewhere. No app loads that by itself. Without `erasers`, by the folder's own
`pipeline.py` (read it first: it is code):

```python
{imports}

folder = "this-folder"
{pipe}pipe.load_eraser(folder)
```

For apps that load LoRAs only, one prompt's LoRA can be written to a file. It acts on every prompt then, so what it
erases and keeps is to be scored anew:

```sh
erasers export this-folder --to peft --prompt {name} \\
  {flags} --out static.safetensors
```"""

FEW = """

**It draws in {steps} step{s}**, with the scheduler in this folder and without guidance:

```python
from diffusers import {scheduler}

pipe.scheduler = {scheduler}.from_pretrained("this-folder", subfolder="scheduler")
image = pipe(prompt, num_inference_steps={steps}, guidance_scale={guidance:g}).images[0]
```

With more steps, or another scheduler, it draws nothing of use. Attached with `erasers` it brings its scheduler."""


def _plain(recipe: Recipe) -> str:
    """How to load it without this package, and to draw with it where that is special."""
    how = recipe.drawing
    if not how:
        return _loading(recipe)
    kind, s = how["scheduler"]["_class_name"], "s" * (how["steps"] > 1)
    return _loading(recipe) + FEW.format(steps=how["steps"], guidance=how["guidance"], scheduler=kind, s=s)


def _loading(recipe: Recipe) -> str:
    component = recipe.base["component"]
    if recipe.kind == "delta":
        how = opened(recipe, part="part")
        imports = how.imports.replace("import ", "import AutoModel, ")
        return _filled(DELTA, how._replace(imports=imports), component=component, flags=_below(recipe))
    if recipe.kind == "hyper":
        name = shlex.quote(recipe.names[0])
        return _filled(HYPER, opened(recipe, custom="folder"), name=name, flags=_below(recipe))
    found = on_hub(recipe.base["id"]) or one_file(recipe.base["id"])
    made = _filled("{imports}\n\n{pipe}", opened(recipe)) if found else ""
    plain = NO_LOADER if recipe.family.startswith("pixart") else LOADER.replace("{pipe}", made)
    return plain + (KOHYA if component == "unet" else _comfy(recipe))


def _below(recipe: Recipe) -> str:
    """The flags that load the base, one a line."""
    return flags(recipe).replace(" --model-", " \\\n  --model-")


def _filled(text: str, how: Opened, **words: str) -> str:
    """A text with the lines that open the base, and other words, in their places."""
    for key, value in {"imports": how.imports, "pipe": how.lines, **words}.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def text(words: object) -> str:
    """Words as they are, in Markdown: nothing in them is a mark, and in a table they stay in their cell."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", str(words))


def _comfy(recipe: Recipe) -> str:
    """Whether ComfyUI reads the PEFT file, and all of it."""
    lost = unread(recipe.family, recipe.targets)
    if lost is None:
        return ""
    return COMFY if not lost else COMFY.replace(".", f", but for these layers, which it leaves out: {', '.join(lost)}.")


DOWNLOADED = """
from huggingface_hub import snapshot_download

folder = snapshot_download("this-folder")"""


TAGS = {"lora": ["lora", "template:sd-lora"], "delta": [], "hyper": ["hypernetwork"]}


def _derived(recipe: Recipe) -> str:
    """What an eraser made from another one holds of it."""
    if not recipe.derived:
        return ""
    held = ", ".join(f"{k}: {v}" for k, v in recipe.derived.items() if k != "from")
    return f"\n\nMade from a {recipe.derived['from']} ({held}), whose scores are not its own."


def _on(recipe: Recipe) -> str:
    """What must be attached beside it."""
    if not (below := recipe.base.get("on")):
        return ""
    names = "; ".join(f"{text(', '.join(b['concepts']))} ({b['method']}, `{b['fingerprint']}`)" for b in below)
    several = f"{len(below)} other eraser{'s' if len(below) > 1 else ''}"
    return (
        f"\n\n**Made on top of {several}**: {names}. It is meant for use beside them, all attached to the same "
        "base; what it does alone was not its aim."
    )


def _scores(recipe: Recipe) -> str:
    """What was measured of it, beside the unerased model."""
    rows = []
    for name, s in recipe.scores.items():
        if name == "settings":
            continue
        digits = 1 if s["unit"] == "%" else 3
        value, low, high, base = (f"{s[k]:.{digits}f}" for k in ("value", "low", "high", "control"))
        rows.append(f"| {name} | {value} {s['unit']} ({low} .. {high}) | {base} | {s['n']} |")
    if not rows:
        return ""
    how = ", ".join(f"{k} {v}" for k, v in recipe.scores.get("settings", {}).items())
    return "\n\n## Scores\n\n" + "\n".join(
        [f"Measured with {how}.\n", "| score | value (95 %) | unerased | images |", "|---|---:|---:|---:|", *rows]
    )


def _version(recipe: Recipe) -> str:
    """Which of the base's weights these were, where they were chosen or are known."""
    told = [f"{k} {recipe.base[k]}" for k in ("revision", "commit", "variant", "quantized") if recipe.base.get(k)]
    return f" ({', '.join(told)})" if told else ""


def card(recipe: Recipe, repo: str | None = None) -> str:
    """The card of one eraser, Markdown with the Hub's front matter.

    Args:
        recipe: its record.
        repo: the Hub id under which it will be found; without one, its folder.
    """
    base = recipe.base["id"]
    home = on_hub(base)
    data = ModelCardData(
        base_model=home,
        base_model_relation=home and "adapter",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*TAGS[recipe.kind], "diffusers", "text-to-image", "concept-erasure"],
    )
    cells = [
        (c["name"], c["anchor"] or "nothing in particular", ", ".join(c["synonyms"]) or "-") for c in recipe.concepts
    ]
    rows = [f"| {' | '.join(text(cell) for cell in row)} |" for row in cells]
    whole = CARD.format(
        front=data.to_yaml(),
        names=text(", ".join(recipe.names)),
        base=base,
        version=_version(recipe),
        method=recipe.method,
        seed=recipe.seed,
        rows="\n".join(rows),
        plain=_plain(recipe),
        count=len(recipe.settings),
        settings="\n".join(f"- `{k}`: {text(v)}" for k, v in recipe.settings.items()),
        preserve=text(", ".join(recipe.preserve)) or "nothing",
        versions=", ".join(f"{k} {v}" for k, v in recipe.versions.items()),
        derived=_derived(recipe) + _on(recipe),
        scores=_scores(recipe),
    )
    if repo is None:
        return whole
    return whole.replace('\n\nfolder = "this-folder"', DOWNLOADED).replace("this-folder", repo)
