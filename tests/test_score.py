"""Scores of hand-made confusions are exactly what the definitions say."""

import math

import numpy as np
import pytest
from PIL import Image

from erasers.eval import Case, Gallery, NotApplicable, Score, Verdict, evaluators, find, grid, mean
from erasers.eval._score import clustered, share, wilson
from erasers.prompts import InputError, canvas, canvas_plan

BLANK = Image.new("RGB", (8, 8))


def case(name, see, see_control=lambda p: (p.object, p.style), erased=None):
    """A case in which `see(prompt) -> (object, style)` plays both judges."""
    concept = canvas.find(name)
    prompts = tuple(canvas_plan(concept))

    def verdict(f):
        return Verdict(*zip(*(f(p) for p in prompts), strict=True))

    gallery = Gallery(prompts, (BLANK,) * len(prompts), {})
    return Case(concept, frozenset(erased or {name}), gallery, gallery, verdict(see), verdict(see_control))


def scores(c):
    return {n: find(n)().score(c) for n in evaluators(unasked=True)}


def values(c):
    return {n: round(s.value, 6) for n, s in scores(c).items()}


@pytest.mark.parametrize("name", ["moon", "ink"])
def test_do_nothing(name):
    s = values(case(name, lambda p: (p.object, p.style)))
    assert s == dict(ua=0, synonym_ua=0, held_out_ua=0, ira=100, cra=100, in_prompt=100, neighbours=100)


@pytest.mark.parametrize(("name", "kind"), [("moon", "object"), ("ink", "style")])
def test_perfect_eraser(name, kind):
    def see(p):
        swap = canvas.find(name).anchor
        return tuple(swap if w == name else w for w in (p.object, p.style))

    c = case(name, see)
    assert values(c) == dict(ua=100, synonym_ua=100, held_out_ua=100, ira=100, cra=100, in_prompt=100, neighbours=100)
    ua = scores(c)["ua"]
    assert (ua.n, ua.control, ua.change) == (50 if kind == "object" else 60, 0, 100)
    assert ua.details["drawn_instead"] == {canvas.find(name).anchor: ua.n}


def test_erase_everything():
    s = values(case("moon", lambda p: ("cat" if p.object != "cat" else "cup", "ink" if p.style != "ink" else "flat")))
    assert s == dict(ua=100, synonym_ua=100, held_out_ua=100, ira=0, cra=0, in_prompt=0, neighbours=0)


def test_neighbour_eraser():
    """Circles and rings become stars, moons stay: nothing forgotten, both neighbours lost, 9 of 11 objects kept."""
    near = set(canvas.find("moon").neighbours)
    s = values(case("moon", lambda p: ("star" if p.object in near else p.object, p.style)))
    assert s["ua"] == 0
    assert s["neighbours"] == 0
    assert s["ira"] == pytest.approx(100 * 9 / 11)
    assert s["cra"] == 100


def test_other_erased_concepts_count_for_nobody():
    c = case("moon", lambda p: ("cat" if p.object == "star" else p.object, p.style), erased={"moon", "star"})
    assert values(c)["ira"] == 100
    assert scores(c)["ira"].n == 100
    c = case("moon", lambda p: (p.object, p.style), erased={"moon", "ring", "circle"})
    assert isinstance(scores(c)["neighbours"], NotApplicable)


def test_a_weak_base_shows_in_the_control():
    """Half of the unerased moons are not seen as moons: UA of doing nothing is 50, its change is 0."""
    even = lambda p: ("cat" if p.object == "moon" and p.seed in (188, 588) else p.object, p.style)  # noqa: E731
    ua = scores(case("moon", even, even))["ua"]
    assert ua.value == ua.control == pytest.approx(40)
    assert (ua.change, ua.change_low, ua.change_high) == (0, 0, 0)


def test_wilson_against_its_defining_equation():
    for hits, n in ((0, 10), (3, 10), (50, 50), (199, 200)):
        for bound in wilson(hits, n):
            z2 = 1.959963984540054**2
            assert (bound - hits / n) ** 2 == pytest.approx(z2 * bound * (1 - bound) / n, abs=1e-12)
    assert wilson(50, 50)[0] == pytest.approx(0.92865, abs=1e-5)
    with pytest.raises(ValueError, match="at least one image"):
        wilson(0, 0)


def test_clustered_interval_covers_and_is_wider_than_the_naive_one():
    rng = np.random.default_rng(1)
    covered, widths = 0, []
    for _ in range(200):
        effect = rng.normal(0, 1, 20)
        x = np.repeat(effect, 10) + rng.normal(0, 0.1, 200)
        low, high = clustered(x, np.repeat(np.arange(20), 10).tolist(), draws=400)
        covered += low <= 0 <= high
        widths.append(high - low)
    assert 0.86 <= covered / 200 <= 0.99
    naive = 2 * 1.96 / math.sqrt(200)
    assert np.mean(widths) > 2 * naive


def test_unpaired_lists_are_refused():
    with pytest.raises(ValueError, match="paired"):
        share([True], [True, False], ["a"])


def test_mean_of_concepts():
    a = Score(100, 50, 90, 100, 10, 90, 80, 95)
    b = Score(80, 50, 70, 88, 0, 80, 70, 85)
    m = mean([a, b, NotApplicable("none")])
    assert (m.value, m.n, m.control, m.change) == (90, 100, 5, 85)
    assert m.low == pytest.approx(90 - math.hypot(10, 10) / 2)
    assert mean([NotApplicable("none")]).to_json() == {"value": None, "reason": "none"}


def test_every_evaluator_is_documented():
    assert {"ua", "ira", "cra", "synonym_ua", "neighbours"} <= set(evaluators())
    for name in evaluators():
        tool = find(name)()
        assert tool.about
        assert tool.higher_is_better in (True, False)
    with pytest.raises(InputError, match="did you mean 'ira'"):
        find("irra")


def test_grid_layout():
    images = [Image.new("RGB", (64, 64), c) for c in ("red", "green")]
    sheet = grid({"original": images, "erased": images[::-1]}, ["one", "two"], cell=64, title="t")
    pixels = sheet.load()
    x, y = 210 + 6 + 32, 44 + 26 + 32
    assert [pixels[x, y], pixels[x + 70, y], pixels[x, y + 70]] == [(255, 0, 0), (0, 128, 0), (0, 128, 0)]
    with pytest.raises(InputError, match="expected 2 images, got 1"):
        grid({"original": images[:1]}, ["one", "two"])
    with pytest.raises(InputError, match="at least one column"):
        grid({}, [])
