"""Scores of hand-made confusions are exactly what the definitions say."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from erasers.eval import (
    Case,
    Gallery,
    NotApplicable,
    Sampling,
    Score,
    Verdict,
    _evaluate,
    evaluate,
    evaluators,
    find,
    grid,
    mean,
)
from erasers.eval._score import bounds, clustered, share, wilson
from erasers.prompts import CANVAS, InputError, canvas, canvas_plan

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


def test_one_erased_concept_for_another():
    """By definition a moon drawn as a cat is forgotten; where the cat is to be gone too, that is said."""

    def see(p):
        swap = {"moon": "cat" if p.style == "ink" else "house" if p.style == "neon" else "circle"}
        return swap.get(p.object, p.object), p.style

    alone = scores(case("moon", see))["ua"]
    assert alone.value == 100
    assert "warning" not in alone.details
    stack = {name: scores(case(name, see, erased={"moon", "cat", "house"}))["ua"] for name in ("moon", "cat")}
    assert stack["moon"].value == 100
    assert stack["moon"].details["drawn_instead"] == {"circle": 40, "cat": 5, "house": 5}
    said = "10 of 50 images that ask for moon show another erased concept: cat 5, house 5"
    assert stack["moon"].details["warning"] == said
    assert "warning" not in stack["cat"].details, "nothing is drawn in its place"
    other = replace(stack["cat"], details={"warning": "of its own"})
    assert mean([stack["moon"], other, stack["moon"]]).details["warning"] == f"{said}; of its own"


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
    assert (ua.control_low, ua.control_high) == (ua.low, ua.high)


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


def test_bounds_of_a_share_know_what_fails_together():
    """Eleven objects in ten styles: one object lost in all styles, or as many images lost one here, one there."""
    clusters = [k // 10 for k in range(110)]
    together, scattered = [c != 4 for c in clusters], [k % 11 != 4 for k in range(110)]
    assert sum(together) == sum(scattered) == 100
    low, high = bounds(together, clusters)
    lost = np.random.default_rng(5).binomial(11, 1 / 11, 200_000)  # how often a bootstrap draws the lost one
    want = np.quantile(1 - lost / 11, [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(want))
    assert low < wilson(100, 110)[0] < wilson(100, 110)[1] < high
    assert bounds(scattered, clusters) == pytest.approx(wilson(100, 110), abs=1e-12), "a style each: no object is worse"
    assert bounds([True] * 50, clusters[:50]) == wilson(50, 50), "never without a width"
    score = share(together, [True] * 110, clusters)
    assert (score.low, score.high) == (100 * low, 100 * high)
    assert (score.control_low, score.control_high) == pytest.approx([100 * b for b in wilson(110, 110)])
    turned = share([True] * 110, together, clusters)
    assert (turned.control_low, turned.control_high) == (100 * low, 100 * high)
    with pytest.raises(ValueError, match="at least one image"):
        bounds([], [])


def test_unpaired_lists_are_refused():
    with pytest.raises(ValueError, match="paired"):
        share([True], [True, False], ["a"])


def test_mean_of_concepts():
    a = Score(100, 50, 90, 100, 10, 90, 80, 95, 4, 22)
    b = Score(80, 50, 70, 88, 0, 80, 70, 85, 0, 5)
    m = mean([a, b, NotApplicable("none")])
    assert (m.value, m.n, m.control, m.change) == (90, 100, 5, 85)
    assert (m.control_low, m.control_high) == pytest.approx((5 - 6 / 2, 5 + math.hypot(12, 5) / 2))
    old = mean([a, replace(b, control_low=math.nan, control_high=math.nan)])
    assert all(map(math.isnan, (old.control_low, old.control_high))), "not known of one, not known of both"
    assert m.low == pytest.approx(90 - math.hypot(10, 10) / 2)
    none = NotApplicable("none")
    assert mean([a, none, b], [frozenset(range(50)), None, frozenset(range(50, 100))]) == mean([a, b]), "no image twice"
    for rows, n in (
        ([frozenset(range(50)), frozenset(range(50))], 50),
        ([frozenset(range(50)), frozenset(range(49, 99))], 99),
        ([frozenset(range(50)), None], 50),
    ):
        m = mean([a, b], rows)
        assert (m.value, m.n, m.change) == (90, n, 85)
        bounds = (m.low, m.high, m.change_low, m.change_high)
        assert bounds == pytest.approx((80, 94, 75, 90)), "what fails together is no surer than each of it"
    assert mean([NotApplicable("none")]).to_json() == {"value": None, "reason": "none"}


class Own:
    """An evaluator that looks at images itself: nobody knows at which."""

    higher_is_better, about = True, "of one's own"

    def score(self, case):
        return Score(50.0, 40, 40.0, 60.0, 50.0, 0.0, -5.0, 5.0)


def test_a_stack_counts_each_image_once(monkeypatch):
    """Moon and ink, both gone, and every flower with them: 99 images ask for neither, and IRA and CRA of both concepts
    rest on them; each concept's own images are nobody else's.
    """
    names = ("moon", "ink")
    swap = {"moon": "circle", "ink": "pencil", "flower": "cup"}

    def side(prompts, see):
        return Gallery(prompts, (), {"seconds": 1.0}), Verdict(*zip(*(see(p) for p in prompts), strict=True))

    def drawn(backbone, prompts, stack, **_):
        return side(prompts, lambda p: (swap.get(p.object, p.object), swap.get(p.style, p.style)))

    monkeypatch.setattr(_evaluate, "draw_and_judge", drawn)
    monkeypatch.setattr(_evaluate, "check_remembered", lambda *_: None)
    control = SimpleNamespace(
        world=CANVAS, plan=CANVAS.plan, how=Sampling(steps=1), judges=SimpleNamespace(world=CANVAS, record=dict)
    )
    control.side = lambda prompts, pictures: side(prompts, lambda p: (p.object, p.style))
    recipes = [SimpleNamespace(method="m", concepts=[asdict(canvas.find(n))], names=[n], settings={}) for n in names]
    erasers = [SimpleNamespace(recipe=r, payload={}, drawing=None) for r in recipes]
    tools = {n: find(n)() for n in evaluators(unasked=True)} | {"own": Own()}
    report = evaluate(erasers, SimpleNamespace(name="b"), only=tools, control=control)
    found, each = report.scores, [report.by_concept[n] for n in names]
    assert [(e["ira"].n, e["cra"].n) for e in each] == [(99, 99)] * 2
    objects = [k // 9 for k in range(99)]
    lost, kept = (tuple(100 * b for b in bounds([c != gone for c in objects], objects)) for gone in (5, None))
    for name in ("ira", "cra"):  # the object judge of one concept, the style judge of the other
        score = found[name]
        assert (score.n, score.value) == (99, pytest.approx(100 * (90 + 99) / 198))
        assert (score.low, score.high) == pytest.approx([(lost[k] + kept[k]) / 2 for k in (0, 1)])
        for bound in ("change_low", "change_high"):
            assert getattr(score, bound) == pytest.approx(sum(getattr(e[name], bound) for e in each) / 2)
    for name in ("ua", "synonym_ua", "held_out_ua", "in_prompt"):
        assert found[name].n == sum(e[name].n for e in each)
        apart = math.hypot(*(e[name].value - e[name].low for e in each)) / 2
        assert found[name].low == pytest.approx(found[name].value - apart), name
    near = [set(canvas.find(n).neighbours) for n in names]
    asked = {k for k, p in enumerate(report.prompts) if p.role == "grid" and not {p.object, p.style} & set(names)}
    union = {k for k in asked if report.prompts[k].object in near[0] or report.prompts[k].style in near[1]}
    assert found["neighbours"].n == len(union) < sum(e["neighbours"].n for e in each), "some are look-alikes of both"
    assert (found["own"].n, found["own"].low, found["own"].high) == (40, 40, 60), "not known: the least that it can be"


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
