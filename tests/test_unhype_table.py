"""bench/unhype_table.py: what a row says, on a row made in two steps whose images a hand-made judge has seen."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from cells import cell, right, verdict
from PIL import Image

from erasers.eval import Case, Control, Gallery, Report, Sampling, find, mean
from erasers.eval.h_o import HO
from erasers.prompts import canvas, canvas_plan
from erasers.prompts.templates import HELD_OUT

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))
import unhype_swing
import unhype_table

NAMES = ("moon", "ink")


def stubborn(p):
    """Both concepts are gone, but the moon stays as a crescent, and ink in one sentence."""
    if p.role == "synonym" and p.object == "moon":
        return right(p)
    if p.role == "held-out" and p.text.startswith("in ink style"):
        return right(p)
    return {"moon": "circle"}.get(p.object, p.object), {"ink": "pencil"}.get(p.style, p.style)


@pytest.fixture(scope="module")
def report():
    prompts = tuple(dict.fromkeys(p for n in NAMES for p in canvas_plan(canvas.find(n))))
    seen, before = verdict(stubborn, prompts), verdict(right, prompts)
    blank = Gallery(prompts, (Image.new("RGB", (8, 8)),) * len(prompts), {})
    tools = {n: find(n)() for n in unhype_table.SCORES} | {"by judge": HO(by="judge")}
    cases = {n: Case(canvas.find(n), frozenset(NAMES), blank, blank, seen, before) for n in NAMES}
    by = {n: {k: t.score(c) for k, t in tools.items()} for n, c in cases.items()}
    means = {k: mean([s[k] for s in by.values()]) for k in tools}
    return Report(means, by, {"images": len(prompts)}, prompts, seen, before)


def test_what_is_not_erased_is_said_by_name(report):
    said = unhype_table.by_name(report, NAMES)
    moon, ink = (said["by_concept"][n] for n in NAMES)
    assert moon["synonym"] == {"crescent": {"seen": 9, "n": 9}}  # in every style but ink, which is erased too
    assert ink["synonym"] == {"brush": {"seen": 0, "n": 11}}
    assert [v["seen"] for v in moon["held-out"].values()] == [0, 0, 0]
    assert {t: v["seen"] for t, v in ink["held-out"].items()} == dict(zip(HELD_OUT, (0, 11, 0), strict=True))
    assert len(said["not_erased"]) == 20
    assert all("crescent" in r["text"] or r["text"].startswith("in ink style") for r in said["not_erased"])
    both = {n: {"seen": 0, "n": 5} for n in NAMES}
    figures = {"n": 5, "object": 0, "style": 0, "object, unerased": 5, "style, unerased": 5, "by_concept": both}
    assert said["two_at_once"] == figures


def test_h_o_is_the_evaluators(report):
    for scores in report.by_concept.values():
        plain = {k: v.to_json() for k, v in scores.items()}
        assert unhype_table.ho(plain) == pytest.approx(plain["by judge"]["value"], abs=1e-3)
    assert unhype_table.ho({**plain, "ira": {"value": None}}) is None


def test_a_row_says_all_that_is_asked(report, canvas, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unhype_table, "ATTACKED", 2)
    monkeypatch.setattr(unhype_table, "RUNS", 1)
    monkeypatch.setattr(unhype_table, "evaluate", lambda *_, **__: report)
    control = Control(canvas, Sampling(steps=2, guidance=4.0))
    monkeypatch.setattr(unhype_table, "Control", lambda _: control)
    monkeypatch.setattr(unhype_table, "load", lambda _: canvas)
    short = {"steps": 2, "batch": 2, "pool": 0, "sampler_steps": 2, "retained": 2, "synonyms": False, "walk": "base"}
    command = ["unhype_table.py", "--sets", "+".join(NAMES)]
    command += ["--work", str(tmp_path / "w"), "--out", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", [*command, "--settings", json.dumps(short)])
    unhype_table.main()
    (row,) = (json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines())
    assert row["worst"]["ua"] == [100.0, "ink"]
    assert row["synonyms_trained"] is False
    assert {"erased", "kept", "kept, held-out", "kept, everyday", "kept, empty"} <= set(row["norms"])
    assert row["norms"]["kept"]["n"] == 11 * 9
    assert row["norms"]["kept, requests"]["n"] > 300
    assert 700 < row["norms"]["kept, another world"]["n"] < 51 * 20
    assert set(row["hits"]) == set(row["hits_control"])
    added = {"added, percent", "added processor time, percent"}
    assert set(row["latency"]["erased"]) == {"prompt", "without", "with", *added}
    prompts = [row["latency"][k]["prompt"] for k in ("erased", "kept")]
    assert prompts == ["A moon image in flat style.", "A star image in flat style."]
    assert row["attacked"]["hooks removed"] >= row["attacked"]["erased"]
    assert min(row["bytes"], row["emitted_bytes"], row["seconds"]) > 0
    out = capsys.readouterr().out
    assert "synonyms not trained: moon as 'crescent' (9 of 9); ink as" in out
    unhype_table.main()
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 1, "a finished row is not made again"

    stacked = cell("+".join(NAMES), stubborn, settings={"ridge": 1.0}) | {"seconds": 1.5, "bytes": 100, "images": 9}
    plain = unhype_table.settings_of(unhype_table.configure("uce", canvas.preset, {}))
    stacked |= {"digest": unhype_table.digest(plain)}
    stacked |= {"by_concept": {c: {k: v.to_json() for k, v in s.items()} for c, s in report.by_concept.items()}}
    monkeypatch.setattr(unhype_table, "benchmark", lambda *_, **__: [stacked])
    monkeypatch.setattr(sys, "argv", [*command, "--stacks", "uce"])
    unhype_table.main()
    row = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[-1])
    assert (row["method"], row["architecture"], row["bytes"]) == ("uce", "stack of 2", 100)
    assert row["h_o"] == pytest.approx(50.0)  # of the moon 0, because of its synonym; of ink 100
    assert row["latency"]["erased"]["with"] > 0
    assert not canvas.denoiser._forward_pre_hooks


def test_the_page_says_how_often_another_erased_concept_is_seen():
    folder = Path(__file__).parent.parent / "docs/results"
    said = " ".join((folder / "unhype.md").read_text().split())
    found = {}
    for line in (folder / "unhype.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["objective"] == "trajectory":  # told in a table of its own
            continue
        gone = [s["ua"] for s in row["by_concept"].values()]
        instead = [n for s in gone for c, n in s["details"]["drawn_instead"].items() if c in row["by_concept"]]
        key = (row.get("method", "unhype"), len(gone))
        found.setdefault(key, set()).add(f"{sum(instead)} of {sum(s['n'] for s in gone)}")
    five, eleven = ([found[m, k] for m in ("unhype", "uce", "esd")] for k in (5, 11))
    (a,), (b,), (c,), (d,), (e,), (f,) = *five, *eleven
    assert f"seen in {a} and {d} with the hypernetworks of five and eleven, {b} and {e} with UCE's stacks" in said
    assert f"UCE's stacks, {c} and {f} with ESD's" in said


def test_swing_of_a_code_that_turns():
    """A code of length 1 that turns by the same angle in every step of virtual time."""
    turned = 0.07 * torch.arange(301)
    found = unhype_swing.swing(torch.stack([turned.cos(), turned.sin()], 1)[:, None])
    want = {"change": 2 * math.sin(0.035), "S-th part": 1 / 300, "ratio": 600 * math.sin(0.035)}
    assert found == pytest.approx({**want, "cosine later": math.cos(20 * 0.07)}, abs=1e-3)
