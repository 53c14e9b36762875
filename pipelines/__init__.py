"""Backbones over diffusers pipelines, and the Canvas reference pipelines. The only room that imports diffusers."""

from ._adapters import acting, activate, components, low_rank, plug, unplug, watch
from ._backbone import Backbone, Condition, Group, TextStates
from ._bundled import BUNDLED
from ._few import Drawing, draw_in
from ._fingerprint import distance, fingerprint
from ._load import Model, canvas_folder, canvas_open_clip, distilled, load, models, wrap
from ._memory import Embeddings
from ._overlay import check_unfused, overlay
from ._quiet import quiet
from ._seeds import step_generator

__all__ = [
    "BUNDLED",
    "Backbone",
    "Condition",
    "Drawing",
    "Embeddings",
    "Group",
    "Model",
    "TextStates",
    "acting",
    "activate",
    "canvas_folder",
    "canvas_open_clip",
    "check_unfused",
    "components",
    "distance",
    "distilled",
    "draw_in",
    "fingerprint",
    "load",
    "low_rank",
    "models",
    "overlay",
    "plug",
    "quiet",
    "step_generator",
    "unplug",
    "watch",
    "wrap",
]
