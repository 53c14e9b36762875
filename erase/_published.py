"""What the methods' authors ran: the presets `paper`, and `paper-FAMILY` where a family's settings differ. Every value,
with its source and with what the papers and their code say differently, stands in docs/presets.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Presets = Mapping[str, Mapping[str, Any]]

ESD: Presets = {
    "paper": {
        "train": "cross",
        "dense": True,
        "steps": 1000,
        "batch": 1,
        "lr": 1e-5,
        "eta": 1.0,
        "guidance": 3.0,
        "sampler_steps": 50,
    },
    "paper-sdxl": {"train": "text-kv", "steps": 200, "lr": 2e-4, "eta": 0.0, "guidance": 2.0},
    "paper-flux": {"steps": 1400, "lr": 1e-4, "eta": 0.0, "guidance": 3.5, "sampler_steps": 28},
}
UCE: Presets = {
    "paper": {
        "tokens": "last",
        "erase_scale": 1.0,
        "preserve_scale": 1.0,
        "ridge": 0.5,
        "contexts": 1,
        "pooled": True,
    },
    "paper-sdxl": {"pooled": False},
}
CONCEPT_ABLATION: Presets = {
    "paper": {
        "train": "text-kv",
        "dense": True,
        "variant": "model",
        "steps": 100,
        "batch": 8,
        "lr": 1.6e-5,
        "images": 1000,
        "keep": 1.0,
    }
}
SALUN: Presets = {
    "paper": {
        "train": "all",
        "dense": True,
        "mask": "saliency",
        "density": 0.5,
        "rank_over": "all",
        "mask_guidance": 7.5,
        "combine": "extrapolate",
        "mask_passes": 1,
        "steps": 600,
        "batch": 8,
        "lr": 1e-5,
        "alpha": 0.5,
        "images": 800,
        "target": "moving",
        "retain": "images",
    }
}
SFD: Presets = {
    "paper": {
        "train": "all",
        "dense": True,
        "steps": 12500,
        "batch": 8,
        "lr": 1e-6,
        "lr_fake": 3e-6,
        "momentum": 0.0,
        "alpha": 1.0,
        "retain": 1.0,
        "forget": 1.0,
        "retain_fake": 1.0,
        "forget_fake": 1.0,
        "k1": 4.5,
        "k2": 4.5,
        "k4": 4.5,
        "drop": 0.1,
        "t_init": 625,
        "t_min": 20,
        "t_max": 980,
        "draw_steps": 1,
        "ema": 0.0,
    }
}
UNHYPE: Presets = {
    "paper": {
        "train": "text-kv",
        "architecture": "per-layer",
        "rank": 1,
        "hidden": 100,
        "times": 300,
        "objective": "both",
        "steps": 4000,
        "batch": 1,
        "lr": 1e-3,
        "gamma": 2.0,
        "eta": 1e-4,
        "remove": 10.0,
        "retain": 0.1,
        "retained": 300,
        "retain_times": 1,
        "walk": "base",
    },
    "paper-many": {
        "rank": 6,
        "hidden": 512,
        "lr": 1e-4,
        "retain_lr": 3e-4,
        "gamma": 1.0,
        "retain": 5.0,
        "retained": 1000,
        "guidance": 9.0,
    },
    "paper-flux": {
        "rank": 4,
        "steps": 5000,
        "lr": 1e-5,
        "retain_lr": 2e-5,
        "gamma": 1.0,
        "eta": 1e-3,
        "remove": 2.0,
        "retain": 1.0,
        "retain_times": 3,
        "walk": "student",
        "guidance": 3.5,
    },
}
