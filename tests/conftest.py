import os

os.environ["HF_HUB_OFFLINE"] = "1"

import accelerate
import diffusers
import pytest
import torch
from families import EVERY, build

import tiny
from erasers.pipelines import Backbone, load, wrap

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(params=[*EVERY, "canvas-sd", "canvas-flow"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Every family, freshly built."""
    if request.param.startswith("canvas"):
        return load(request.param)
    return build(request.param)


@pytest.fixture
def larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small models with four times the pixels: where rounding shows on few, or tiles have to fit."""
    monkeypatch.setattr(tiny, "SIDE", 16)


@pytest.fixture(params=tiny.FAMILIES)
def small(request: pytest.FixtureRequest, larger: None) -> Backbone:
    """Every prediction there is, freshly built: for formulas, where a trained pipeline adds nothing."""
    return build(request.param)


@pytest.fixture
def sd() -> Backbone:
    return wrap(tiny.sd(), "tiny-sd")


@pytest.fixture(scope="session")
def canvas() -> Backbone:
    """The bundled pipeline; tests leave it as they find it."""
    return load("canvas-sd")


@pytest.fixture
def accelerator(monkeypatch):
    """The CPU in the place of a GPU that parts are brought to, so that hooks and bookkeeping run as they would."""
    own = accelerate.cpu_offload
    monkeypatch.setattr(diffusers.pipelines.pipeline_utils, "get_device", lambda: "cpu:0")
    # tensors on "cpu:0" say "cpu", so that moving them there again would make copies that are no parameters
    monkeypatch.setattr(accelerate, "cpu_offload", lambda net, _device, **more: own(net, torch.device("cpu"), **more))
