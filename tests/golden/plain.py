"""The golden erasers in diffusers alone: load each file, and compare what the network answers with what it answered
when the eraser was made. Run where `erasers` is not installed: `python -I tests/golden/plain.py`; it prints a line of
JSON for each file and ends with 1 if one does not do what it did.

The bases are small networks whose weights come from their own names by numpy's frozen generator, so that they are the
same under every release of torch and diffusers.
"""

import importlib.util
import inspect
import json
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import diffusers
import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
CANVAS = HERE.parent.parent / "pipelines/canvas/sd"
WORLD = json.loads((HERE / "golden.json").read_text())
TOLERANCE = 1e-3
"""Of the eraser's own effect: releases round differently, by some 1e-6 of the network's answer."""


def frozen(name, shape):
    """Normal numbers, the same for a name everywhere and always."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(drawn, dtype=np.float32)).reshape(tuple(shape))


@torch.no_grad()
def denoiser(name):
    """A small network of the real class."""
    spec = WORLD["denoisers"][name]
    model = getattr(diffusers, spec["class"]).from_config(spec["config"]).eval()
    for key, p in model.named_parameters():
        norm = "norm" in key and p.ndim == 1 and key.endswith("weight")
        spread = 0.1 if p.ndim == 1 else p[0].numel() ** -0.5
        p.copy_(spread * frozen(key, p.shape) + float(norm))
    return model


def pipeline(name, kind=None):
    """The stock pipeline around it, or another class of it, without text encoders: prompts come as embeddings."""
    if name == "canvas-sd":
        none = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "requires_safety_checker": False}
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(CANVAS, **none)
    else:
        spec = WORLD["denoisers"][name]
        stock, how = getattr(diffusers, spec["pipeline"]), spec["scheduler"]
        wants = inspect.signature(stock.__init__).parameters
        parts = {n: None for n, p in wants.items() if p.default is p.empty and n not in ("self", "kwargs")}
        parts |= {"requires_safety_checker": False} if "requires_safety_checker" in wants else {}
        parts[spec["component"]] = denoiser(name)
        parts["scheduler"] = getattr(diffusers, how["class"])(**how["config"])
        pipe = (kind or stock)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def own_class(folder):
    """The pipeline that a hypernetwork's folder brings along."""
    spec = importlib.util.spec_from_file_location("eraser_pipeline", folder / "pipeline.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return next(v for n, v in vars(module).items() if n.startswith("Erased"))


def given(tensors):
    """Inputs of a call: "in.a.b" is the entry b of the dictionary a."""
    out = {}
    for key, value in tensors.items():
        if key.startswith("in."):
            *path, last = key.split(".")[1:]
            place = out
            for part in path:
                place = place.setdefault(part, {})
            place[last] = value
    return out


@torch.no_grad()
def answer(pipe, eraser, tensors):
    """What the pipeline draws, or its network answers."""
    if draws := eraser.get("draws"):
        return pipe(**given(tensors), **draws, output_type="latent").images
    model = getattr(pipe, WORLD["denoisers"][eraser["base"]]["component"])
    return model(**given(tensors), return_dict=False)[0]


def away(have, want, base):
    """Distance from what it should be, relative to the eraser's effect."""
    return float((have - want).norm() / (want - base).norm())


def check(eraser, file):
    """Load a file into a fresh pipeline: how far the base, and the erased network, are from what they were."""
    folder = HERE / eraser["name"]
    tensors = load_file(folder / "expected.safetensors")
    base, want = tensors["out.base"], tensors["out.erased"]
    pipe = pipeline(eraser["base"], own_class(folder) if eraser["kind"] == "hyper" else None)
    if (folder / "scheduler").exists():
        kind = json.loads((folder / "scheduler/scheduler_config.json").read_text())["_class_name"]
        pipe.scheduler = getattr(diffusers, kind).from_pretrained(str(folder), subfolder="scheduler")
    bare = answer(pipe, eraser, tensors)
    if eraser["kind"] == "hyper":
        pipe.load_eraser(str(folder))
    else:
        pipe.load_lora_weights(str(folder), weight_name=file, adapter_name="eraser")
    return {"base": away(bare, base, want), "erased": away(answer(pipe, eraser, tensors), want, base)}


def numbers(release):
    """The first two numbers of a release."""
    return tuple(int(n) for n in (release + ".0").split(".")[:2])


def main():
    seen = {n: version(n) for n in ("diffusers", "transformers", "peft", "torch", "huggingface_hub", "safetensors")}
    print(json.dumps({"python": sys.version.split()[0], **seen}), flush=True)
    if importlib.util.find_spec("erasers") is not None:
        sys.exit("erasers is installed here: this looks at what an app without it sees")
    failed = False
    for eraser in WORLD["erasers"]:
        for file in eraser["files"] if eraser["kind"] != "delta" else []:
            try:
                found = check(eraser, file)
            except Exception as error:  # whatever another library makes of the file is what is asked for
                found = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
            ok = "error" not in found and max(found.values()) < TOLERANCE
            since = eraser.get("since", {}).get(file, "0")
            if numbers(seen["diffusers"]) < numbers(since):
                found["known"] = f"read in full since diffusers {since}"
            failed |= not ok and "known" not in found
            print(json.dumps({"eraser": eraser["name"], "file": file, "ok": ok, **found}), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
