"""How long a plan says a run takes, against torch's own counter and arithmetic."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from erasers.erase import Loop, Machine, Planner, Speed, _speed, asked
from erasers.erase._speed import CALL, REACHED, Piece, measured, piece_flops
from erasers.pipelines import Scale, load
from erasers.prompts import InputError


@pytest.mark.parametrize(("rows", "width", "side"), [(1, 640, 32), (3, 128, 8)])
def test_operations_of_the_piece_are_those_that_torch_counts(rows, width, side):
    with torch.device("meta"):
        piece, x = Piece(width), torch.empty(rows, width, side, side)
    with FlopCounterMode(display=False) as counted:
        assert piece(x).shape == x.shape
    assert piece_flops(rows, width, side) == counted.get_total_flops()


def test_a_machine_is_measured():
    before = torch.get_rng_state()
    speed = measured("cpu", torch.float32)
    for rate in (speed.flops, speed.attention, speed.attention_backward):
        assert 1e8 < rate < 1e15
    assert 1e-8 < speed.call < 1e-2
    assert torch.equal(before, torch.get_rng_state()), "what is drawn next does not change"
    with pytest.raises(InputError, match=r"cannot measure 'cuda:77'.*--flops"):
        measured("cuda:77", torch.float32)


def test_rates_are_operations_over_seconds(monkeypatch):
    """Of what is timed, each with seconds of its own: two pieces forward and backward, small operations, attention."""
    took = iter((1.0, 2.0, 3.0, 4.0, 60.0, 5.0, 7.0))
    monkeypatch.setattr(_speed, "_best", lambda work: next(took))
    speed = measured("cpu", torch.float32)
    pieces = 2 * piece_flops(1, 640, 32) + 2 * piece_flops(1, 1280, 16)
    pairs = 10 * (32**2 + 77) ** 2 * 64
    assert speed.flops == pytest.approx(pieces / (1 + 2 + 3 + 4))
    assert speed.call == pytest.approx(1.0)
    assert speed.attention == pytest.approx(4 * pairs / 5)
    assert speed.attention_backward == pytest.approx(10 * pairs / 7)


def test_seconds_are_operations_and_calls():
    assert Speed(2e9, 1e-3, 1e9, 5e8).seconds(6e9, 500, 2e9, 1e9) == pytest.approx(3.5 + 2 + 2)
    assert Speed.rated(1e12).seconds(6e11) == pytest.approx(0.6 / REACHED)
    assert Speed.rated(1e12).call == CALL
    assert Speed.rated(1e12).seconds(0, 0, 3e11, 3e11) == pytest.approx(0.6 / REACHED)


def test_a_runs_time_follows_from_its_passes():
    """ESD of three steps, its stage of steps by hand: the passes that it names, forward and backward."""
    planner, esd = Planner("canvas-sd"), ("esd", {"steps": 3, "batch": 2, "rank": 4})
    never, slow = float("inf"), 1e9
    kinds = {"flops": (slow, 0.0, never, never), "steps": (never, 1.0, never, never)}
    kinds |= {"attention": (never, 0.0, slow, never), "attention_backward": (never, 0.0, never, slow)}
    found = {}
    for what, rates in {**kinds, "all": (slow, 1.0, slow, slow)}.items():
        machine = Machine("cpu", "float32", speed=Speed(*rates))
        ask = asked(planner, ["moon"], method=esd, preserve=["star"], loop=Loop(), machine=machine)
        found[what] = {p.name: p.seconds for p in planner.estimate(ask).parts}["step"]
    assert found["all"] == pytest.approx(sum(found[what] for what in kinds))
    # of two latents with the concept and two without, from a pool made before
    student = Scale(planner.blueprint(Machine("cpu", "float32"))).weigh(4, ask.tool.learns)
    for what in kinds:
        unit = 1 if what == "steps" else slow
        assert found[what] > 0
        assert found[what] == pytest.approx(3 * getattr(student, what) / unit), what


def test_operations_of_torch_are_counted():
    """As many as a real pass allocates memory for, what kernels take for a moment counted by the profiler too."""
    real = load("canvas-sd")
    scale = Scale(Planner("canvas-sd").blueprint(Machine("cpu", "float32")))
    x, t, cond = torch.randn(2, *real.latent_shape), torch.full((2,), 500.0), real.encode(["a", "a"])
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as seen:
        real.denoise(x, t, cond)
    made = sum(e.name() == "[memory]" and e.nbytes() > 0 for e in seen.profiler.kineto_results.events())
    assert 0.5 < scale.weigh(2).steps / made < 1.5, made
