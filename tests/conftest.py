import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

import tiny
from erasers.pipelines import Backbone, load, wrap

torch.set_num_threads(2)


@pytest.fixture(params=[*tiny.FAMILIES, "canvas-sd"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """Every family, freshly built."""
    if request.param == "canvas-sd":
        return load("canvas-sd")
    return wrap(tiny.FAMILIES[request.param](), request.param)


@pytest.fixture(params=list(tiny.FAMILIES))
def small(request: pytest.FixtureRequest) -> Backbone:
    """Every family but Canvas, freshly built: for formulas, where a trained pipeline adds nothing."""
    return wrap(tiny.FAMILIES[request.param](), request.param)


@pytest.fixture
def sd() -> Backbone:
    return wrap(tiny.sd(), "tiny-sd")


@pytest.fixture(scope="session")
def canvas() -> Backbone:
    """The bundled pipeline; tests leave it as they find it."""
    return load("canvas-sd")
