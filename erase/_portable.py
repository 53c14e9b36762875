"""The `pipeline.py` of a hypernetwork's folder: the code of this package in one file that needs diffusers only."""

from __future__ import annotations

import inspect
import re

from ..pipelines import pipeline_class, portable
from . import _hypernet

HEAD = '''"""{kind} with a concept eraser that writes its update prompt by prompt. Needs no erasers.

    pipe = DiffusionPipeline.from_pretrained(BASE, custom_pipeline=THIS_FOLDER, trust_remote_code=True)
    pipe.load_eraser(THIS_FOLDER)
"""

from __future__ import annotations

{imports}
from diffusers import {kind}
from safetensors.torch import load_file

'''

TAIL = '''

class Erased{kind}({kind}):
    """The stock pipeline, and an eraser that can be put in and taken out."""

    def load_eraser(self, folder: str, scale: float = 1.0) -> None:
        """Switch the eraser of a folder on."""
        self.unload_eraser()
        place = Path(folder) / "hypernet"
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        known = Plan.__dataclass_fields__
        plan = Plan.from_json({{k: v for k, v in config.items() if k in known}})
        network = Hypernetwork.stored(plan, load_file(place / "model.safetensors"))
        root = getattr(self, "{component}")
        found = dict(unwrapped(root).named_modules())

        def layer(name: str) -> nn.Module:
            module = found[name.partition(".")[2]]
            return getattr(module, "base_layer", module)

        @torch.no_grad()
        def write(u: Tensor) -> Pairs:
            return network.on(u.device)(u, float(plan.times))

        layers = {{name: layer(name) for name, _, _ in plan.layers}}
        where = {{"read": plan.read, "free_first": {free_first}, "shared": {shared}}}
        self._eraser = Writer(root, layers, write, **where, label="eraser")
        self._eraser.scale, self._eraser.pipe = scale, self

    def unload_eraser(self) -> None:
        """Take it out again."""
        if getattr(self, "_eraser", None) is not None:
            self._eraser.remove()
            self._eraser = None
'''


def pipeline_file(family: str) -> str:
    """The text of the file for a family's pipelines."""
    kind, component, free_first, shared = pipeline_class(family)
    sources = [portable(), inspect.getsource(_hypernet)]
    lines = {"import json", "from pathlib import Path"}
    bodies = []
    for text in sources:
        text = re.sub(r'\A""".*?"""\n', "", text, flags=re.S)
        imports = re.findall(r"^(?:from|import) .*$", text, re.M)
        lines |= {i for i in imports if "__future__" not in i}
        bodies.append(re.sub(r"^(?:from|import) .*\n", "", text, flags=re.M).strip("\n"))
    ordered = sorted(lines, key=lambda line: (line.startswith("from"), line))
    head = HEAD.format(kind=kind, imports="\n".join(ordered))
    tail = TAIL.format(kind=kind, component=component, free_first=free_first, shared=shared)
    return head + "\n\n\n".join(bodies) + "\n" + tail
