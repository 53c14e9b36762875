"""Makes the golden erasers, once each: `PYTHONPATH=tests python -m golden.make NAME ...`. Those that are here stay as
they are, because later releases must read what this one wrote; a new kind, or a new schema, gets a new name.
"""

import json
import shutil
import sys
from dataclasses import replace

import tiny_transformers
import torch
from golden.plain import HERE, WORLD, answer, denoiser, frozen, pipeline
from safetensors.torch import save_file

import tiny
from erasers.erase import Hyper, erase
from erasers.erase._hypernet import Hypernetwork
from erasers.pipelines import load, wrap

SHORT = {"steps": 2, "batch": 2, "sampler_steps": 2}
METHODS = {
    "lora-canvas-sd": ("uce", {"synonyms": False}),
    "lora-sdxl": ("esd", {**SHORT, "train": "all", "rank": 1, "lr": 3e-2}),
    "lora-sd3": ("uce", {}),
    "lora-flux": ("esd", {**SHORT, "train": "text-kv", "rank": 2, "lr": 0.5}),
    "lora-one-step": ("sfd", {**SHORT, "train": "cross", "rank": 2, "lr": 3e-2, "lr_fake": 3e-2}),
    "delta-sd": ("salun", {**SHORT, "train": "cross", "rank_over": "cross", "contexts": 1, "images": 4, "lr": 3e-2}),
    "hyper-sd": ("unhype", {**SHORT, "pool": 0, "retained": 2, "hidden": 8, "code": 4, "rank": 2, "lr": 3e-2}),
}


def backbone(name):
    """The whole pipeline, with text encoders, around the golden network."""
    if name == "canvas-sd":
        return load(name)
    pipe = {**tiny.FAMILIES, **tiny_transformers.TRANSFORMERS}[name]()
    pipe.register_modules(**{WORLD["denoisers"][name]["component"]: denoiser(name)})
    call = {k: v for k, v in tiny_transformers.CALLS.get(name, {}).items() if k != "negative_prompt"}
    return wrap(pipe, f"golden-{name}", call=call)


def loud(eraser):
    """A hypernetwork of two steps writes next to nothing: let its last layer be as loud as after many."""
    if not isinstance(eraser.payload, Hyper):
        return eraser
    state = dict(eraser.payload.network.state_dict())
    for key, value in state.items():
        if "right." in key:
            state[key] = value + 0.05 * frozen(key, value.shape)
    network = Hypernetwork.stored(eraser.payload.plan, state)
    return replace(eraser, payload=Hyper(network, eraser.payload.family, eraser.payload.about))


def inputs(spec, base):
    """Of one call, by name."""
    if spec["base"] == "canvas-sd":
        cond, free = (base.encode([p]).kwargs["encoder_hidden_states"] for p in ("a moon", ""))
        return {"latents": frozen("latents", (1, 4, 8, 8)), "prompt_embeds": cond, "negative_prompt_embeds": free}
    if spec.get("draws"):
        return {"latents": frozen("latents", (1, 4, 16, 16)), "prompt_embeds": frozen("prompt", (1, 8, 32))}
    shapes = WORLD["denoisers"][spec["base"]]["inputs"]
    out = {k: frozen(k, v) for k, v in shapes.items()}
    if spec["kind"] == "hyper":  # is silent elsewhere
        out["encoder_hidden_states"] = base.encode(["a moon"]).kwargs["encoder_hidden_states"]
    for ids in ("img_ids", "txt_ids"):
        if ids in out:
            out[ids] = torch.zeros_like(out[ids])
    if "img_ids" in out:
        out["img_ids"][:, 1], out["img_ids"][:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    return {**out, "timestep": torch.tensor([0.5 if "guidance" in shapes else 500.0])}


def make(spec):
    folder, base = HERE / spec["name"], backbone(spec["base"])
    eraser = loud(erase("moon", base, method=METHODS[spec["name"]], preserve=["star"]))
    assert eraser.recipe.kind == spec["kind"]
    eraser.save_pretrained(folder, verify=base)
    if "kohya.safetensors" in spec["files"]:
        eraser.export(folder / "kohya.safetensors", "kohya")
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    tensors = {f"in.{k}": v.float().contiguous() for k, v in inputs(spec, base).items()}
    pipe = pipeline(spec["base"])
    with eraser.attached(pipe, 1.0):
        tensors["out.erased"] = answer(pipe, spec, tensors)
        if spec.get("draws") and eraser.drawing:  # the base with the eraser's scheduler
            kept = pipe.scheduler
    if spec.get("draws") and eraser.drawing:
        pipe.scheduler = kept
    tensors["out.base"] = answer(pipe, spec, tensors)
    moved = (tensors["out.erased"] - tensors["out.base"]).norm() / tensors["out.base"].norm()
    assert moved > 0.02, f"{spec['name']}: moves the answer by {moved:.4f} only"
    save_file({k: v.detach().clone() for k, v in tensors.items()}, folder / "expected.safetensors")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(json.dumps({"name": spec["name"], "moved": round(float(moved), 3), "bytes": size}), flush=True)


if __name__ == "__main__":
    for one in WORLD["erasers"]:
        if one["name"] in sys.argv[1:]:
            make(one)
