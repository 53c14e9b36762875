"""Backbones over diffusers pipelines, and the Canvas reference pipelines. The only room that imports diffusers."""

from ._adapters import State, acting, components, plug, unplug
from ._backbone import Backbone, Condition, Group, TextStates
from ._bundled import BUNDLED
from ._fingerprint import distance, fingerprint
from ._load import Model, canvas_folder, load, models, wrap
from ._quiet import quiet

__all__ = [
    "BUNDLED",
    "Backbone",
    "Condition",
    "Group",
    "Model",
    "State",
    "TextStates",
    "acting",
    "canvas_folder",
    "components",
    "distance",
    "fingerprint",
    "load",
    "models",
    "plug",
    "quiet",
    "unplug",
    "wrap",
]
