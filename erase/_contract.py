"""What every method keeps, ours and yours: run these checks on your own class.

    import pytest
    from erasers.erase import CHECKS
    from erasers.pipelines import load

    @pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
    def test_contract(check, tmp_path):
        check("my_lab.my_method:Project", load("canvas-sd"), folder=tmp_path)

Each check takes a method's name, a backbone and an empty folder, and raises `AssertionError` with what went wrong.
`given` are settings of the method; without them a trained method runs shortly: its `steps`, `batch`, `pool`, `images`,
`sampler_steps`, `retained` and `compose`, as far as it has them, are lowered to 2.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pipelines import Backbone
from ..prompts import Concept, InputError
from ._delta import Delta
from ._erase import erase
from ._eraser import Eraser
from ._files import LORA_FILE, one_rank
from ._hyper import Hyper
from ._lora import Lora
from ._method import Method, configure, find, options, settings_of

CONCEPTS = ("moon", "star")
PROMPT = "a moon and a star"


def _settings(method: str, backbone: Backbone, given: Mapping[str, Any] | None) -> dict[str, Any]:
    if given is not None:
        return dict(given)
    usual = settings_of(configure(method, backbone.preset, {}))
    names = ("steps", "batch", "pool", "images", "sampler_steps", "retained", "compose") if "steps" in usual else ()
    return {n: min(2, usual[n]) for n in names if n in usual}


def _make(method: str, backbone: Backbone, given: Mapping[str, Any] | None, *, name: str = CONCEPTS[0]) -> Eraser:
    return erase(name, backbone, method=(method, _settings(method, backbone, given)), seed=3)


def _output(backbone: Backbone, text: str = PROMPT) -> Tensor:
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.denoise(x, torch.tensor([500]), backbone.encode([text]))


def settings_are_frozen_and_documented(
    method: str, backbone: Backbone, *, folder: Path, given: Mapping[str, Any] | None = None
) -> None:
    """Every setting has a default of its type and a help text; every preset is valid; the class cites its source."""
    cls = find(method)
    assert cls.paper, f"{method}: `paper` is empty: cite the source"
    assert cls.__doc__, f"{method} has no docstring"
    assert importlib.import_module(cls.__module__).__doc__, f"{cls.__module__} has no docstring"
    for preset in cls.presets:
        configure(method, preset, {})
    tool = configure(method, backbone.preset, {})
    assert isinstance(tool, Method)
    for one in options(cls):
        assert one.help, f"{method}.{one.name} has no help: field(metadata={{'help': ...}})"
        fits = one.default is None or isinstance(one.default, one.type)
        assert fits, f"{method}.{one.name}: the default {one.default!r} is no {one.type.__name__}"
        try:
            setattr(tool, one.name, one.default)
        except FrozenInstanceError:
            continue
        raise AssertionError(f"{method} is not frozen: {one.name} can be set")


def base_untouched(method: str, backbone: Backbone, *, folder: Path, given: Mapping[str, Any] | None = None) -> None:
    """Erasing leaves weights, modules, hooks, `requires_grad` and training mode as they were."""
    network = backbone.denoiser
    before = copy.deepcopy(network.state_dict())

    def shape() -> list[Any]:
        parts = [(n, type(m).__name__, m.training, len(m._forward_pre_hooks)) for n, m in network.named_modules()]
        return [*parts, *((n, p.requires_grad, p.grad is None) for n, p in network.named_parameters())]

    was = shape()
    _make(method, backbone, given)
    changed = [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])]
    assert not changed, f"{method} changed the base: {changed[:3]}"
    assert shape() == was, f"{method} left something behind in the network"


def same_seed_same_bytes(
    method: str, backbone: Backbone, *, folder: Path, given: Mapping[str, Any] | None = None
) -> None:
    """Two runs with one seed write the same files, and the record says with what settings."""
    one, two = (_make(method, backbone, given) for _ in range(2))
    a, b = (e.save_pretrained(folder / n) for e, n in ((one, "a"), (two, "b")))
    for file in sorted(p for p in a.rglob("*") if p.is_file()):
        again = b / file.relative_to(a)
        assert file.read_bytes() == again.read_bytes(), f"{method}: {file.name} differs from run to run"
    want = settings_of(configure(method, backbone.preset, _settings(method, backbone, given)))
    assert one.recipe.settings == want, f"{method}: the record's settings are {one.recipe.settings}, used {want}"


def file_round_trip_is_exact(
    method: str, backbone: Backbone, *, folder: Path, given: Mapping[str, Any] | None = None
) -> None:
    """What is loaded is what was saved, from the folder and from the file alone; diffusers' own loader finds every
    module (`verify`). A hypernetwork, which that loader cannot read, comes with a `pipeline.py` and without anything
    that the loader would take for a LoRA.
    """
    eraser = _make(method, backbone, given)
    place = eraser.save_pretrained(folder / "e", verify=backbone)
    for source in (place, place / eraser.payload.file):
        again = Eraser.from_pretrained(source)
        assert again.recipe == eraser.recipe, f"{method}: the record changed on its way through {source.name}"
        have, want = _tensors(again), _tensors(eraser)
        assert have.keys() == want.keys(), f"{method}: tensors got lost on their way through {source.name}"
        assert all(torch.equal(have[k], want[k]) for k in want), f"{method}: {source.name} does not round-trip"
    if isinstance(eraser.payload, Hyper):
        held = {p.name for p in place.rglob("*")}
        assert "pipeline.py" in held, f"{method}: nothing runs its hypernetwork without this package"
        assert LORA_FILE not in held, f"{method}: apps would load {LORA_FILE} in place of the hypernetwork"


def _tensors(eraser: Eraser) -> dict[str, Tensor]:
    if isinstance(eraser.payload, Lora):
        return {
            f"{n}.{s}": t for n, p in one_rank(eraser.payload.factors).items() for s, t in zip("AB", p, strict=True)
        }
    if isinstance(eraser.payload, Hyper):
        return eraser.payload.network.state_dict()
    assert isinstance(eraser.payload, Delta)
    changes = eraser.payload.changes.items()
    return {f"{n}.{k}": t for n, c in changes for k, t in (("values", c.values), ("bitmap", c.bitmap))}


def attach_changes_detach_restores(
    method: str, backbone: Backbone, *, folder: Path, given: Mapping[str, Any] | None = None
) -> None:
    """Attaching changes the output, `using` switches it, detaching restores it bit for bit, scale 0 is the identity."""
    eraser = _make(method, backbone, given)
    names = [n for n, _ in backbone.denoiser.named_modules()]
    flags = [p.requires_grad for p in backbone.denoiser.parameters()]
    before = _output(backbone)
    handle = eraser.attach(backbone.pipe)
    assert handle.is_active(), f"{method}: attached, but not active"
    after = _output(backbone)
    assert not torch.equal(before, after), f"{method}: attaching changes nothing"
    with backbone.using(None):
        assert torch.equal(before, _output(backbone)), f"{method}: using(None) is not the base"
    with backbone.using(handle.name):
        assert torch.equal(after, _output(backbone)), f"{method}: using(name) is not the eraser"
    handle.detach()
    assert not handle.is_active(), f"{method}: detached, but active"
    assert torch.equal(before, _output(backbone)), f"{method}: detaching does not restore the base"
    assert flags == [p.requires_grad for p in backbone.denoiser.parameters()], f"{method}: requires_grad has changed"
    with eraser.attached(backbone, 0.0) as off:
        assert not off.is_active(), f"{method}: at scale 0, but active"
        assert torch.equal(before, _output(backbone)), f"{method}: scale 0 is not the identity"
    assert names == [n for n, _ in backbone.denoiser.named_modules()], f"{method}: modules are left behind"


def two_erasers_coexist(
    method: str, backbone: Backbone, *, folder: Path, given: Mapping[str, Any] | None = None
) -> None:
    """Two erasers act together, and taking one out leaves the other as it was alone."""
    one, two = (_make(method, backbone, given, name=name) for name in CONCEPTS)
    base = _output(backbone)
    first = one.attach(backbone)
    alone = _output(backbone)
    second = two.attach(backbone)
    assert first.is_active(), f"{method}: the second eraser switched the first off"
    assert second.is_active(), f"{method}: the second eraser does not act"
    assert not torch.equal(alone, _output(backbone)), f"{method}: the second eraser changes nothing"
    second.detach()
    assert first.is_active(), f"{method}: taking the second out switched the first off"
    assert torch.equal(_output(backbone), alone), f"{method}: taking the second out changed the first"
    first.detach()
    assert torch.equal(_output(backbone), base), f"{method}: taking both out does not restore the base"


def baking_is_attaching_for_good(
    method: str, backbone: Backbone, *, folder: Path, given: Mapping[str, Any] | None = None
) -> None:
    """Baked weights give the output of the attached eraser, up to rounding. A hypernetwork is not baked, and says so;
    the LoRA that it writes for a prompt gives its output there, and is baked. Changes the backbone it is given.
    """
    eraser = _make(method, backbone, given)
    base = _output(backbone).float()
    with eraser.attached(backbone):
        want = _output(backbone).float()
    if isinstance(eraser.payload, Hyper):
        said = ""
        try:
            eraser.bake(backbone)
        except InputError as error:
            said = str(error)
        assert "materialize" in said, f"{method}: baked, or not told what to do instead: {said!r}"
        eraser = eraser.materialize(backbone, PROMPT)
    eraser.bake(backbone)
    away, size = (_output(backbone).float() - want).norm(), (base - want).norm()
    # rounding counts against the output, not only against an update that may be tiny after two steps
    assert away < 1e-3 * size + 1e-5 * want.norm(), f"{method}: baking is off by {away:.2g}, the update is {size:.2g}"


def several_concepts_at_once(
    method: str, backbone: Backbone, *, folder: Path, given: Mapping[str, Any] | None = None
) -> None:
    """One run erases several concepts, with and without anchors."""
    concepts = [Concept(CONCEPTS[0], "circle"), Concept(CONCEPTS[1])]
    eraser = erase(concepts, backbone, method=(method, _settings(method, backbone, given)), preserve=[])
    assert eraser.recipe.names == list(CONCEPTS), f"{method}: the record names {eraser.recipe.names}"
    assert eraser.payload.finite(), f"{method}: not every number is finite"


Check = Callable[..., None]
CHECKS: tuple[Check, ...] = (
    settings_are_frozen_and_documented,
    base_untouched,
    same_seed_same_bytes,
    file_round_trip_is_exact,
    attach_changes_detach_restores,
    two_erasers_coexist,
    baking_is_attaching_for_good,
    several_concepts_at_once,
)
