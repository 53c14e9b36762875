"""Concepts, prompt sets and the sentences they are made of."""

import random
import re

import pytest

from erasers.prompts import (
    CONTEXTS,
    SEEDS,
    SETS,
    Concept,
    InputError,
    Prompt,
    canvas,
    canvas_grid,
    canvas_plan,
    fill,
    load,
    paraphrase,
    save,
)
from erasers.prompts.templates import BOTH, FILLERS, HELD_OUT, OBJECT_ONLY, REQUESTS, STYLE_ONLY


def test_concept():
    moon = Concept("moon", "circle", synonyms=("crescent",))
    assert moon.names == ("moon", "crescent")
    with pytest.raises(InputError, match="expected a concept name"):
        Concept(" ")
    with pytest.raises(InputError, match="is the concept itself"):
        Concept("moon", "Moon")
    with pytest.raises(InputError, match="expected a kind"):
        Concept("moon", kind="planet")


def test_world_is_as_big_as_promised_and_closed():
    assert len(canvas.OBJECTS) >= 12
    assert len(canvas.STYLES) >= 10
    assert {"moon", "star"} <= {c.name for c in canvas.OBJECTS}
    names = [n for c in canvas.CONCEPTS.values() for n in c.names]
    assert len(names) == len(set(names)), "a word stands for two concepts"
    for domain in (canvas.OBJECTS, canvas.STYLES):
        own = {c.name for c in domain}
        for c in domain:
            assert c.synonyms
            assert c.neighbours
            assert {c.anchor, *c.neighbours} <= own - {c.name}


def test_find_by_name_or_synonym():
    assert canvas.find("crescent").name == canvas.find("Moon").name == "moon"
    with pytest.raises(InputError, match="did you mean 'moon'"):
        canvas.find("mooon")


def test_grid_has_the_benchmarks_layout():
    grid = canvas_grid()
    assert len(grid) == 12 * 10 * 5
    assert grid[0].text == "A moon image in flat style."
    assert canvas.caption("oak", "ink") == "An oak image in ink style."
    assert [p.seed for p in grid[:5]] == list(SEEDS) == [188, 288, 588, 688, 888]


@pytest.mark.parametrize("name", list(canvas.CONCEPTS))
def test_plan_of_every_concept(name):
    plan = canvas_plan(canvas.find(name))
    cells = {}
    for p in plan:
        if p.role == "grid":
            cells.setdefault((p.object, p.style), []).append(p.seed)
    assert len(cells) == 120
    assert all(len(s) == (5 if name in cell else 1) for cell, s in cells.items())
    assert len(set(plan)) == len(plan)
    for p in plan:
        if p.role == "synonym":
            assert name in (p.object, p.style)
            assert name not in re.findall(r"\w+", p.text)
            assert set(canvas.find(name).synonyms) & set(re.findall(r"\w+", p.text))


def test_training_never_sees_held_out_sentences():
    rng = random.Random(0)
    starts = tuple(t.split("{")[0] for t in HELD_OUT[:2])
    for _ in range(3000):
        text = canvas.training_caption(rng.choice(canvas.OBJECTS), rng.choice(canvas.STYLES), rng)
        assert not text.startswith(starts)
        assert "as if by" not in text
        assert "{" not in text
    assert not set(HELD_OUT) & {*BOTH, *OBJECT_ONLY, *STYLE_ONLY}
    words = {n for c in canvas.CONCEPTS.values() for n in c.names}
    assert not words & {w for f in FILLERS for w in f.split()}


def test_templates_have_only_known_holes():
    for kind, templates in (*REQUESTS.items(), *CONTEXTS.items()):
        for t in templates:
            assert "moon" in fill(t, x="moon"), (kind, t)
    assert fill("{a_x} {x}", x="oak") == "an oak"
    with pytest.raises(KeyError):
        fill("{y}", x="oak")


@pytest.mark.parametrize("kind", ["object", "style", "person", "other"])
def test_paraphrases_are_many_and_all_name_the_concept(kind):
    rows = paraphrase(Concept("Ada Lovelace", kind=kind))
    assert len(rows) >= 12
    assert len({p.text for p in rows}) == len(rows)
    assert all("Ada Lovelace" in p.text for p in rows)


@pytest.mark.parametrize("name", list(SETS))
def test_named_sets(name):
    assert load(name)


def test_csv_round_trip(tmp_path):
    rows = [Prompt('a "moon", bright', 3, "moon"), Prompt("", 1), Prompt("ein Mönd\nzwei", 0, role="mine")]
    save(rows, tmp_path / "p.csv")
    assert load(tmp_path / "p.csv") == rows
    (tmp_path / "q.csv").write_bytes(b"\xef\xbb\xbftext\r\na moon\r\n")
    assert load(tmp_path / "q.csv") == [Prompt("a moon")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no 'text' column"),
        (b"text\n", "has a header and no prompts"),
        (b"prompt\na moon\n", "no 'text' column"),
        (b"text,sed\na moon,1\n", "did you mean 'seed'"),
        (b"text,seed\na moon,one\n", "line 2: expected a whole number"),
        (b"text,seed\na moon,-1\n", "line 2: expected a seed from 0"),
        (b"text,seed\na moon\n", "line 2 has fewer fields"),
        (b"text\na moon, and more\n", "line 2 has more fields"),
        (b"\xff\xfe\x00", "cannot read"),
    ],
)
def test_bad_csv(tmp_path, content, message):
    (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "p.csv")


def test_no_such_set():
    with pytest.raises(InputError, match="did you mean 'canvas-1'"):
        load("canvas-11")
