"""Backbones over diffusers pipelines, and the Canvas reference pipelines. The only room that imports diffusers."""

from ._adapters import acting, activate, components, low_rank, plug, unplug, watch
from ._backbone import Backbone, Condition, Group, TextStates
from ._blueprint import blueprint
from ._bundled import BUNDLED
from ._few import Drawing, draw_in
from ._fingerprint import ROUNDED, SAME, distance, fingerprint
from ._held import Values, as_offloaded, check_trainable, check_writable
from ._hub import asking_hub
from ._ledger import ATTENTION_BACKWARD, Ledger, attention_flops
from ._load import Model, backbone_of, canvas_folder, canvas_open_clip, distilled, load, models, wrap
from ._loading import Loading, Offload, Quantize
from ._memory import Embeddings, some
from ._overlay import check_unfused, overlay
from ._place import DTYPES, check_offload, chosen_device, half_precision
from ._prompted import Pairs, Read, Write, Writer, writers
from ._quiet import quiet
from ._seeds import step_generator
from ._shrunk import Few, held_bytes, tensor_bytes, unpacked, values_in
from ._signals import bypassed, disguised, pipeline_class, portable, prompt_signals, signals, write_by_prompt
from ._single import PICKLES
from ._weigh import LATENTS, Learns, Pass, Scale

__all__ = [
    "ATTENTION_BACKWARD",
    "BUNDLED",
    "DTYPES",
    "LATENTS",
    "PICKLES",
    "ROUNDED",
    "SAME",
    "Backbone",
    "Condition",
    "Drawing",
    "Embeddings",
    "Few",
    "Group",
    "Learns",
    "Ledger",
    "Loading",
    "Model",
    "Offload",
    "Pairs",
    "Pass",
    "Quantize",
    "Read",
    "Scale",
    "TextStates",
    "Values",
    "Write",
    "Writer",
    "acting",
    "activate",
    "as_offloaded",
    "asking_hub",
    "attention_flops",
    "backbone_of",
    "blueprint",
    "bypassed",
    "canvas_folder",
    "canvas_open_clip",
    "check_offload",
    "check_trainable",
    "check_unfused",
    "check_writable",
    "chosen_device",
    "components",
    "disguised",
    "distance",
    "distilled",
    "draw_in",
    "fingerprint",
    "half_precision",
    "held_bytes",
    "load",
    "low_rank",
    "models",
    "overlay",
    "pipeline_class",
    "plug",
    "portable",
    "prompt_signals",
    "quiet",
    "signals",
    "some",
    "step_generator",
    "tensor_bytes",
    "unpacked",
    "unplug",
    "values_in",
    "watch",
    "wrap",
    "write_by_prompt",
    "writers",
]
