"""The benchmark: cells made once whatever kills it, one tidy table, a leaderboard whose means are means."""

import json
import re
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cells import SCORES, cell, right, swaps
from test_cli import run

from erasers.erase import Loop
from erasers.eval import (
    Cells,
    Plan,
    benchmark,
    best,
    import_rows,
    leaderboard,
    paired,
    read_table,
    rows_of,
    table,
    write_all,
)
from erasers.eval import _benchmark as machinery
from erasers.eval._cells import PLANNED, digest, key_of, measured, slug
from erasers.eval._table import COLUMNS, TIMES, harmonic, markdown, warnings_of, write_table
from erasers.prompts import InputError, canvas, canvas_plan

ROOT = Path(__file__).parent.parent
HELD = [c for c in canvas.CONCEPTS if c not in canvas.DEV]


# ---------------------------------------------------------------- the split


def test_split_covers_the_world_and_no_preset_was_chosen_on_held_out_concepts():
    assert set(canvas.DEV) < set(canvas.CONCEPTS)
    for domain in (canvas.OBJECTS, canvas.STYLES):
        names = {c.name for c in domain}
        assert min(len(names & set(canvas.DEV)), len(names & set(HELD))) >= 4
    page = (ROOT / "docs/results/canvas-baselines.md").read_text()
    assert "chosen by the scores of circle, mosaic, pencil and cup (before: flat, moon and watercolor)" in page
    assert {"circle", "mosaic", "pencil", "cup", "flat", "moon", "watercolor", "ring", "flower"} <= set(canvas.DEV)
    assert [canvas.split(n) for n in ("moon", "star", "star+ink", "star+moon", "van gogh", "star+x")] == [
        "dev",
        "held-out",
        "held-out",
        "dev",
        "",
        "",
    ]


# ---------------------------------------------------------------- the table


def test_table_is_tidy(tmp_path):
    """One row per entry, concept, seed and evaluator; the unerased model's own; the gap to the retrained model."""
    rows = [cell("moon", swaps("moon"), seed=s) for s in (0, 1)]
    rows += [cell("moon", right, method="random"), cell("moon", swaps("moon", every=2), method="retrained")]
    odd = cell("star", swaps("star"))
    odd["scores"]["neighbours"] = {"value": None, "reason": "nothing to measure"}
    frame = table([*rows, odd])
    assert list(frame.columns) == list(COLUMNS)
    keys = ["model", "method", "settings", "concept", "seed", "evaluator"]
    assert not frame.duplicated(keys).any()
    assert len(frame) == 5 * 7 + 7 + 6, "five cells, and the original once a concept where it is known"
    original = frame[(frame.method == "original") & (frame.evaluator == "ira") & (frame.concept == "moon")].iloc[0]
    assert (original.value, original.control, original.change, original.n) == (100, 100, 0, 110)
    assert original.low == pytest.approx(100 / (1 + 1.959963984540054**2 / 110), abs=1e-3), "Wilson's bound at 1"
    missing = frame[(frame.concept == "star") & (frame.evaluator == "neighbours")].iloc[0]
    assert pd.isna(missing.value)
    assert missing.not_applicable == "nothing to measure"
    ua = frame[(frame.evaluator == "ua") & (frame.concept == "moon")].set_index(["method", "seed"])
    gold = rows[-1]["scores"]["ua"]["value"]
    assert 0 < gold < 100
    assert ua.loc[("uce", 1), "gap"] == pytest.approx(100 - gold)
    assert ua.loc[("random", 0), "gap"] == pytest.approx(0 - gold)
    assert frame[frame.concept == "star"]["gap"].isna().all()
    assert list(frame["method"].drop_duplicates()) == ["original", "random", "retrained", "uce"], "controls first"
    assert frame["judge_unerased"].eq(100).all()
    assert frame["judge_real"].isna().all(), "these rows do not say it"
    write_table(frame, tmp_path)
    for name in ("table.parquet", "table.csv"):
        pd.testing.assert_frame_equal(read_table(tmp_path / name), frame)
    frame["settings"] = pd.Series("1234e567", frame.index, "string")  # a digest can look like a number
    write_table(frame, tmp_path)
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), frame)
    write_table(frame.drop(columns=["convention", "judge_real"]), tmp_path)
    assert read_table(tmp_path / "table.csv")["convention"].isna().all(), "an older release's table"
    plain = pd.read_csv(tmp_path / "table.csv")
    assert plain["value"].dropna().between(0, 100).all()


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("canvas-uce", "canvas-uce"),
        ("canvas-baselines", "canvas-baselines"),
        ("canvas-flow", "canvas-flow"),
        ("canvas-salun", "canvas-salun"),
        ("canvas-salun", "canvas-salun-flow"),
    ],
)
def test_the_pages_tables_are_those_of_their_rows(page, file, monkeypatch):
    """Every line of every table of single concepts, the gaps to the retrained models among them."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    import canvas_table

    folder = ROOT / "docs/results"
    text = set((folder / f"{page}.md").read_text().splitlines())
    gold = canvas_table.rows_in(folder / "canvas-gold.jsonl")
    by_entry = {}
    for row in canvas_table.rows_in(folder / f"{file}.jsonl"):
        if "+" not in row["concept"]:
            by_entry.setdefault(key_of(row).entry, []).append(row)
    printed = [canvas_table.markdown(rows, gold).splitlines() for rows in by_entry.values() if len(rows) > 1]
    assert printed
    for lines in printed:
        assert [line for line in lines if line not in text] == []


def test_the_page_of_sequences_is_that_of_its_rows(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    import canvas_sequence

    rows = json.loads((ROOT / "docs/results/canvas-sequence.json").read_text())
    assert [(r["method"], r["way"]) for r in rows] == list(product(("esd", "uce"), ("on top", "alone")))
    assert all(r["on top"] == [True, *[r["way"] == "on top"] * 4] for r in rows)
    page = (ROOT / "docs/results/canvas-sequence.md").read_text()
    assert [r["way"] for r in rows if canvas_sequence.markdown(r) not in page] == []


def test_committed_results_become_a_table(tmp_path):
    """Every row of docs/results, those without settings or hits too, through the command line."""
    files = sorted((ROOT / "docs/results").glob("*.jsonl"))
    lines = [json.loads(line) for f in files for line in f.read_text().splitlines()]
    # pages may share a row, each with what it sorts its rows by and what its release said beside the figures
    known = {"model": "canvas-sd", "seed": 0}
    runs = [
        json.dumps(
            [
                *(r.get(k, known.get(k)) for k in ("model", "method", "concept", "seed")),
                r.get("digest") or digest(r.get("effective"), r.get("rank")),
                measured(r),
            ],
            sort_keys=True,
        )
        for r in lines
    ]
    wanted = list(dict(zip(runs, lines, strict=True)).values())
    code, out, err = run("benchmark", "--out", tmp_path / "b", *(w for f in files for w in ("--import", f)))
    assert code == 0, err
    frame = read_table(tmp_path / "b")
    made = frame[frame.method != "original"].drop_duplicates(["model", "method", "settings", "concept", "seed"])
    assert len(made) == len(wanted)
    for r in wanted:
        part = frame[(frame.model == r.get("model", "canvas-sd")) & (frame.method == r["method"])]
        part = part[(part.concept == r["concept"]) & (part.evaluator == "ua")]
        assert r["scores"]["ua"]["value"] in list(part["value"])
    assert "## Canvas-sd, held-out concepts" in out
    assert run("benchmark", "--out", tmp_path / "b", "--import", files[0])[1].count("0 new rows") == 1
    mute = {k: v for k, v in lines[0].items() if k not in ("effective", "digest")}
    (tmp_path / "mute.jsonl").write_text(json.dumps(mute))
    import_rows(tmp_path / "mute.jsonl", Cells(tmp_path / "mute"))
    (row,) = Cells(tmp_path / "mute").rows()
    assert row["digest"] == PLANNED, "a row that does not say what its settings came to"
    damaged = dict(lines[0], scores={**lines[0]["scores"], "ua": {**lines[0]["scores"]["ua"], "value": 1.0}})
    (tmp_path / "other.jsonl").write_text(json.dumps(damaged))
    with pytest.raises(InputError, match="is there already with other scores"):
        import_rows(tmp_path / "other.jsonl", Cells(tmp_path / "b"))


def test_the_published_table_is_that_of_the_published_rows(tmp_path):
    """`docs/results/all`, by the command that its page names: made anew whenever a row changes."""
    page = (ROOT / "docs/results/README.md").read_text()
    for name in re.findall(r"--import (docs/results/[\w-]+\.jsonl)", page):
        import_rows(ROOT / name, Cells(tmp_path))
    write_all(rows_of(tmp_path), tmp_path)
    for name in ("table.csv", "leaderboard.md"):
        assert (tmp_path / name).read_text() == (ROOT / "docs/results/all" / name).read_text(), name
    pd.testing.assert_frame_equal(read_table(tmp_path), read_table(ROOT / "docs/results/all"))
    shown = re.findall(r"\]\((all/[^)]+\.svg)\)", page)
    assert len(shown) >= 2
    assert all((ROOT / "docs/results" / name).exists() for name in shown)


# ---------------------------------------------------------------- the leaderboard


def test_leaderboard_means_are_means_over_common_concepts():
    """Against plain arithmetic; of two concepts the bootstrap's 95 % interval is their range."""
    good = [cell(c, swaps(c)) for c in ("star", "ink", "cat")]
    half = [cell(c, swaps(c, every=2), method="esd", seed=s) for c in ("star", "ink") for s in (0, 1)]
    none = [cell(c, right, method="random") for c in ("star", "ink")]
    (board,) = [b for b in leaderboard([*good, *half, *none]) if not b["complete"]]
    assert board["concepts"] == ["star", "ink"]
    assert [e["method"] for e in board["entries"]] == ["original", "random", "uce", "esd"]
    assert [e["has"] for e in board["entries"]] == [3, 2, 3, 2]
    esd = board["entries"][-1]
    values = [half[0]["scores"]["ua"]["value"], half[2]["scores"]["ua"]["value"]]
    assert values[0] != values[1]
    assert esd["scores"]["ua"]["mean"] == pytest.approx(np.mean(values), abs=1e-3)
    assert [esd["scores"]["ua"][k] for k in ("low", "high")] == pytest.approx(sorted(values))
    assert esd["scores"]["ua"]["worst"] == min(values)
    assert (esd["seeds"], esd["scores"]["ua"]["concepts"]) == (2, 2)
    assert esd["harmonic"] == pytest.approx(3 / (1 / np.mean(values) + 2 / 100), abs=1e-2)
    whole = next(b for b in leaderboard([*good, *half, *none]) if b["complete"])
    assert [e["method"] for e in whole["entries"]] == ["original", "uce"]
    assert len(whole["concepts"]) == 3
    page = markdown([board], ["take care"])
    assert "- take care" in page
    assert "| *original* |" in page
    assert page.index("*random*") < page.index("| uce |") < page.index("| esd |")


def test_the_judges_own_accuracy_stands_beside_the_figures():
    """Of the weaker judge in the table, of both on the boards; nothing for what no judge gave; nothing made up."""
    row = cell("star", swaps("star")) | {"judge": {"object": 91.0, "style": 97.0}, "judge_real": {"object": 99.5}}
    row["scores"] = {**row["scores"], "fid": {**row["scores"]["ua"], "unit": ""}}
    known = row | {"judge_real": {"object": 99.5, "style": 98.5}, "method": "esd"}
    frame = table([row, known]).set_index(["method", "evaluator"])
    for name in ("ua", "ira", "cra", "neighbours"):
        assert frame.loc[("uce", name), "judge_unerased"] == frame.loc[("original", name), "judge_unerased"] == 91
        assert frame.loc[("esd", name), "judge_real"] == 98.5
        assert pd.isna(frame.loc[("uce", name), "judge_real"]), "one of two judges is not known"
    assert frame.loc[("uce", "fid"), ["judge_real", "judge_unerased"]].isna().all()
    row["scores"]["clip_accuracy"] = {**row["scores"]["ua"], "details": {"top 1 on real images": 93.0}}
    row["scores"]["h_o"] = {**row["scores"]["ua"], "details": {"by": "judge"}}
    frame = table([row]).set_index(["method", "evaluator"])
    assert frame.loc[("uce", "clip_accuracy"), "judge_real"] == 93, "CLIP's own"
    assert frame.loc[("uce", "h_o"), "judge_unerased"] == 91
    page = markdown(leaderboard([row, known]), [])
    assert (
        "on real images in 99.5 / 98.5 % (known of 1 of 2 cells); on the unerased model's images in 91.0 / 97.0 %."
        in page
    )
    silent = {k: v for k, v in row.items() if not k.startswith("judge")} | {"judge": {}}
    assert "on real images: not recorded; on the unerased model's images: not recorded." in markdown(
        leaderboard([silent]), []
    )


def test_nothing_in_common_is_said():
    rows = [cell("star", swaps("star")), cell("ink", swaps("ink"), method="esd")]
    boards = leaderboard(rows)
    assert boards[-1]["concepts"] == []
    assert "No concept that all entries have" in markdown(boards, [])
    assert any("nothing is compared" in n for n in warnings_of(rows, table(rows), boards))


def test_small_numbers_are_warned_of():
    rows = [cell("star", swaps("star"), before=swaps("star", every=3))]
    rows[0]["judge"] = {"object": 70.0, "style": 100.0}
    notes = " | ".join(warnings_of(rows, table(rows), leaderboard(rows)))
    for words in ("rest on 1 concept", "synonym_ua: 10 images", "one seed", "object judge is right on 70.0 %"):
        assert words in notes
    many = [cell(c, swaps(c), seed=s) for c in HELD[:6] for s in (0, 1)]
    notes = " | ".join(warnings_of(many, table(many), leaderboard(many)))
    assert "concept(s)" not in notes
    assert "one seed" not in notes


def test_how_a_figure_is_counted_is_said(tmp_path):
    """n, conventions, settings and the scores' own warnings stand on the page and in the table."""
    rows = [cell(c, swaps(c), settings=s) for c in ("star", "ink") for s in ({}, {"ridge": 2})]
    told = {"convention": "net, resized; against photos", "warning": "FID of 110 images against 50 is mostly bias"}
    for row in rows:
        row["scores"]["fid"] = {**row["scores"]["ira"], "unit": "", "details": told}
    write_all(rows, tmp_path)
    page = (tmp_path / "leaderboard.md").read_text()
    assert "- fid: FID of 110 images against 50 is mostly bias (so in 4 cells)" in page
    assert "- `fid`: net, resized; against photos" in page
    assert "Images a concept, at least: " in page
    assert "ua 50" in page
    assert ": the preset" in page
    assert ': `{"ridge": 2}`' in page
    frame = read_table(tmp_path)
    assert set(frame[frame.evaluator == "fid"]["convention"]) == {told["convention"]}
    assert set(frame[frame.evaluator == "ira"]["convention"]) == {"11 objects retained", "9 styles retained"}
    assert json.loads((tmp_path / "leaderboard.json").read_text())["conventions"]["fid"] == [told["convention"]]


def test_an_evaluator_counts_where_all_entries_have_it():
    """Scores that some cells lack (made before the evaluator was there) are compared on what all have."""
    rows = [cell(c, swaps(c)) for c in ("star", "ink")] + [cell(c, right, method="esd") for c in ("star", "ink")]
    del rows[0]["scores"]["cra"]
    for r in rows:
        r["scores"]["neighbours"] = {"value": None, "reason": "nothing to measure"}
    (board,) = leaderboard(rows)
    assert len(board["concepts"]) == 2
    for entry in board["entries"]:
        assert (entry["scores"]["cra"]["concepts"], entry["scores"]["ua"]["concepts"]) == (1, 2), entry["method"]
        assert "neighbours" not in entry["scores"], "what nobody measured is no figure"


def test_a_control_has_the_interval_that_its_row_says():
    row = cell("star", swaps("star", every=2))
    row["scores"]["ira"] |= {"control_low": 98.0, "control_high": 99.0}
    frame = table([row])
    own, mine = (frame[frame.method == m].set_index("evaluator") for m in ("original", "uce"))
    assert tuple(own.loc["ira", ["low", "high"]]) == (98, 99)
    for side in ("low", "high"):
        assert (own[side] == mine[f"control_{side}"]).all()


def test_a_control_of_an_older_row_has_an_interval_only_where_the_figure_is_a_share():
    row = cell("star", swaps("star", every=2))
    for score in row["scores"].values():
        del score["control_low"], score["control_high"]
    row["scores"]["ira"] |= {"low": 60.0, "high": 61.0}  # no Wilson interval of its value
    frame = table([row])
    own = frame[frame.method == "original"].set_index("evaluator")
    assert pd.isna(own.loc["ira", "low"])
    assert own.loc["ua", "high"] == pytest.approx(100 * 1.959963984540054**2 / (50 + 1.959963984540054**2), abs=1e-3)


def test_harmonic():
    assert harmonic([50.0, 100.0]) == pytest.approx(200 / 3, abs=1e-3)
    assert harmonic([0.0, 100.0]) == 0
    assert harmonic([None, 100.0]) is None


def test_settings_are_chosen_on_dev_concepts_alone():
    """One setting is better on dev, the other on held-out concepts: the first is taken."""
    rows = [cell(c, swaps(c), settings={"ridge": 1}) for c in ("moon", "flat")]
    rows += [cell(c, swaps(c, every=2), settings={"ridge": 9}) for c in ("moon", "flat")]
    rows += [cell(c, right, settings={"ridge": 1}) for c in ("star", "ink")]
    rows += [cell(c, swaps(c), settings={"ridge": 9}) for c in ("star", "ink")]
    assert best(rows) == {"uce": [{"ridge": 1}]}
    with pytest.raises(InputError, match="no dev concepts"):
        best(rows[4:])


# ---------------------------------------------------------------- paired


def reference(a, b, concept, name):
    """The difference image by image, from the definitions: UA on cells that ask for the concept, IRA on the others."""
    domain, other = ("object", "style") if canvas.find(concept).kind == "object" else ("style", "object")
    plan = canvas_plan(canvas.find(concept))
    asked = [concept in (p.object, p.style) for p in plan]
    rows = [k for k, p in enumerate(plan) if p.role == "grid" and asked[k] == (name == "ua")]
    judge = other if name == "cra" else domain
    sign = -1.0 if name == "ua" else 1.0
    return np.mean([sign * (int(a["hits"][judge][k]) - int(b["hits"][judge][k])) for k in rows]) * 100, len(rows)


def test_settings_are_for_the_model_they_were_chosen_on():
    rows = [cell(c, swaps(c), settings={"ridge": 1}) for c in ("moon", "flat")]
    assert best(rows, ["canvas-sd"]) == best(rows) == {"uce": [{"ridge": 1}]}
    for models in (["canvas-flow"], ["canvas-sd", "canvas-flow"]):
        with pytest.raises(InputError, match=r"expected dev cells of canvas-flow .* got cells of canvas-sd: run"):
            best(rows, models)
    with pytest.raises(InputError, match="cells of one model to choose settings by, got canvas-flow, canvas-sd"):
        best([*rows, {**rows[0], "model": "canvas-flow"}])


def test_every_model_has_boards_of_its_own():
    """The same settings, other figures: no mean, gap, rank or comparison is of both."""
    sd = [cell(c, swaps(c)) for c in HELD[:5]] + [cell(c, right, method="esd") for c in HELD[:5]]
    flow = [cell(c, right) for c in HELD[:5]] + [cell(c, swaps(c, every=2), method="esd") for c in HELD[:5]]
    flow.append(cell(HELD[0], swaps(HELD[0], every=3), method="retrained"))
    flow = [{**r, "model": "canvas-flow"} for r in flow]
    both = leaderboard([*sd, *flow])
    assert [b["model"] for b in both] == ["canvas-flow", "canvas-sd"]
    assert both == [*leaderboard(flow), *leaderboard(sd)]
    ranked = [[e["method"] for e in b["entries"] if e["role"] == "method"] for b in both]
    assert ranked == [["esd", "uce"], ["uce", "esd"]]
    gaps = [{e["scores"]["ua"]["gap_concepts"] for e in b["entries"]} for b in both]
    assert gaps == [{1}, {0}]


def test_rows_that_were_not_loaded_alike_are_warned_of():
    on = {"cpu": {"precision": "float32 on cpu"}, "gpu": {"precision": "float16 on cuda", "commit": "abc"}}
    silent = cell("star", swaps("star"))
    here = cell("star", right, method="esd") | {"loaded": on["cpu"]}
    there = cell("cat", right) | {"loaded": on["gpu"]}
    gold = cell("star", swaps("star"), method="retrained") | {"loaded": on["cpu"]}

    def notes(*rows):
        return [n for n in warnings_of(rows, table(rows), leaderboard(rows)) if "loaded" in n]

    assert notes(silent, here, gold) == [], "what is not said is not known"
    words = "canvas-sd was not loaded alike for all rows, which may be part of their differences: "
    assert notes(here, there, gold) == [f"{words}float32 on cpu: esd, retrained; abc, float16 on cuda: uce"]
    assert notes(here, {**there, "model": "canvas-flow"}) == [], "two models are never compared"


def test_what_was_retrained_is_no_method_to_choose_settings_of():
    rows = [cell("moon", swaps("moon"), settings={"ridge": 1}), cell("moon", swaps("moon"), method="retrained")]
    rows.append(cell("moon", lambda p: ("cup", "ink"), method="untrained"))
    assert best(rows) == {"uce": [{"ridge": 1}]}
    (board,) = leaderboard(rows)
    assert [e["role"] for e in board["entries"]] == ["control", "control", "gold", "method"]
    assert [e["method"] for e in board["entries"]][:2] == ["original", "untrained"]


def test_paired_is_the_mean_difference_image_by_image():
    concepts = ("star", "ink", "moon")
    a = [cell(c, swaps(c, "flat", every=2)) for c in concepts]
    b = [cell(c, swaps(c, "cup", every=3), method="esd") for c in concepts]
    found = paired(a, b)
    for name in ("ua", "ira", "cra"):
        parts = [reference(x, y, c, name) for x, y, c in zip(a, b, concepts, strict=True)]
        assert found[name].value == pytest.approx(np.mean([v for v, _ in parts])), name
        assert found[name].n == sum(n for _, n in parts)
        assert found[name].low <= found[name].value <= found[name].high
        each = [v for v, _ in parts]
        means = sorted(np.mean(t) for t in product(each, repeat=3))
        assert found[name].low == pytest.approx(means[0], abs=1e-9), "the lowest of 27 draws is 3.7 % of them"
        assert found[name].high == pytest.approx(means[-1], abs=1e-9)
    assert found["ua"].value != 0
    back = paired(b, a)
    assert back["ua"].value == pytest.approx(-found["ua"].value)
    same = paired(a, a)
    assert all((d.value, d.low, d.high) == (0, 0, 0) for d in same.values())


def test_paired_of_one_concept_has_an_interval_clustered_inside():
    """One concept: clusters of the other domain are drawn. Against a bootstrap of its own."""
    a, b = cell("star", swaps("star", every=2)), cell("star", swaps("star", every=3))
    found = paired([a], [b], only=["ua"])["ua"]
    plan = canvas_plan(canvas.find("star"))
    rows = [k for k, p in enumerate(plan) if p.role == "grid" and p.object == "star"]
    by = {}
    for k in rows:
        difference = int(b["hits"]["object"][k]) - int(a["hits"]["object"][k])
        by.setdefault(plan[k].style, []).append(100.0 * difference)
    blocks = np.array(list(by.values()))
    rng = np.random.default_rng(7)
    means = [blocks[rng.integers(len(blocks), size=len(blocks))].mean() for _ in range(20000)]
    assert found.value == pytest.approx(blocks.mean())
    assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=2.5)
    assert found.low < found.high


def test_paired_of_a_stack_counts_each_image_once():
    """Star and ink: 99 images ask for neither, of which both concepts' IRA is; 45 and 55 ask for one of them."""
    a, b = cell("star+ink", swaps("star", "ink", "flat")), cell("star+ink", swaps("star", every=2), method="esd")
    found = paired([a], [b])
    assert {k: d.n for k, d in found.items()} == {"ua": 45 + 55, "ira": 99, "cra": 99}
    one = paired([a], [cell("star+ink", right, method="esd")])["ira"]
    assert one.value == pytest.approx(-100 * 11 / 99 / 2), "the style judge misses every flat one, of one concept"
    assert one.low <= one.value <= one.high


def test_paired_refuses_what_is_no_pair():
    a, b = cell("star", swaps("star")), cell("ink", swaps("ink"))
    with pytest.raises(InputError, match="no concept and seed in common"):
        paired([a], [b])
    short = {**a, "hits": {d: bits[:-1] for d, bits in a["hits"].items()}}
    with pytest.raises(InputError, match="no concept and seed in common"):
        paired([short], [a])


def test_leaderboard_compares_image_by_image():
    rows = [cell(c, swaps(c)) for c in HELD[:5]] + [cell(c, swaps(c, every=2), method="esd") for c in HELD[:5]]
    (board,) = leaderboard(rows)
    (pair,) = board["paired"]
    assert (pair["a"][0], pair["b"][0]) == ("esd", "uce")
    assert pair["difference"]["ua"]["value"] == pytest.approx(
        board["entries"][-1]["scores"]["ua"]["mean"] - 100, abs=1e-2
    )


# ---------------------------------------------------------------- cells


def test_identity():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
    assert digest({"a": 1}) != digest({"a": 1}, 4)
    assert slug("moon+star") == "moon+star"
    assert slug("a/b") != slug("a-b") != slug("a b")
    assert "/" not in slug("../../etc")


def test_two_processes_do_not_make_the_same_cell(tmp_path):
    cells, key = Cells(tmp_path), key_of(cell("moon", right))
    with cells.claimed(key) as mine, Cells(tmp_path).claimed(key) as theirs:
        assert (mine, theirs) == (True, False)
    with cells.claimed(key) as again:
        assert again
    order = []

    def other():
        with Cells(tmp_path).alone("an eraser"):
            order.append("other")

    thread = threading.Thread(target=other)
    with cells.alone("an eraser"):
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_damaged_cell_is_named(tmp_path):
    cells = Cells(tmp_path)
    row = cell("moon", right)
    cells.write(row)
    path = cells.path(key_of(row))
    path.write_text(path.read_text()[:100])
    with pytest.raises(InputError, match=r"moon-seed0\.json is no finished cell"):
        cells.rows()


# ---------------------------------------------------------------- runs

CHEAP = dict(only=("ua", "ira"), steps=1)


@pytest.fixture
def few(monkeypatch):
    """Six images a concept."""
    from kill_benchmark import few

    from erasers.eval import _evaluate

    monkeypatch.setattr(_evaluate, "canvas_plan", few, raising=False)
    monkeypatch.setattr(_evaluate.Control, "plan", lambda self, concept: few(concept), raising=False)


def test_what_is_done_is_not_done_again(few, canvas, tmp_path, monkeypatch):
    """Stacks take the erasers of their parts; a second run loads nothing; more concepts add only their own cells."""
    made, real = [], machinery.make
    monkeypatch.setattr(machinery, "make", lambda c, *a, **k: made.append((c, k["seed"])) or real(c, *a, **k))
    plan = Plan(methods=("random", "original"), concepts=("star", "star+ink"), **CHEAP)
    rows = benchmark(plan, tmp_path, load=lambda _: canvas)
    assert made == [("star", 0), ("ink", 0)]
    assert {r["concept"] for r in rows} == {"star", "star+ink"}
    one, stack = (next(r for r in rows if r["concept"] == c) for c in ("star", "star+ink"))
    sizes = [json.loads(p.read_text())["bytes"] for p in (tmp_path / "erasers").rglob("made.json")]
    assert (stack["bytes"], len(sizes)) == (sum(sizes), 2)
    assert one["seconds"] > 0
    assert one["loaded"]["precision"].startswith("float32 on ")
    assert len(one["pictures"]) == 6
    assert all((tmp_path / p[f]).exists() for p in one["pictures"] for f in ("file", "original"))
    assert not list(tmp_path.rglob("*.part"))
    assert not [p for p in (tmp_path / ".galleries").rglob("*") if p.is_file()]
    drawn = []
    monkeypatch.setattr(machinery.Control, "_drawn", lambda *a: drawn.append(a))
    assert benchmark(plan, tmp_path, load=pytest.fail) == rows
    (tmp_path / "cells/canvas-sd" / f"random-{one['digest']}" / "star+ink-seed0.json").unlink()
    again = benchmark(plan, tmp_path, load=lambda _: canvas)
    assert made == [("star", 0), ("ink", 0)]
    assert drawn == [], "the unerased images are read back"
    assert next(r for r in again if r["concept"] == "star+ink")["hits"] == stack["hits"]
    Cells(tmp_path).path(key_of(stack)).unlink()
    said = []
    with Cells(tmp_path).claimed(key_of(stack)):  # by another process
        assert len(benchmark(plan, tmp_path, load=lambda _: canvas, say=said.append)) == 1
    assert len(said) == 1
    assert said[0].startswith("1 cells, such as random on star+ink, are being made by another process and are not in")


def test_figures_that_were_not_made_alike_are_refused(few, canvas, tmp_path, monkeypatch):
    plan = Plan(methods=("random",), concepts=("star",), **CHEAP)
    benchmark(plan, tmp_path, load=lambda _: canvas)
    for other, words in (
        (dict(only=("ua",), steps=1), "holds the scores ira,ua"),
        (dict(only=("ua", "ira"), steps=2), "drawn with"),
    ):
        with pytest.raises(InputError, match=words):
            benchmark(Plan(methods=("random",), concepts=("star",), **other), tmp_path, load=lambda _: canvas)
    opened, reworded = [], replace(plan, loading={"dtype": "float32"})
    benchmark(reworded, tmp_path, load=lambda name: opened.append(name) or canvas)
    assert opened == ["canvas-sd"], "asked for in other words it is looked at, and is the same"
    with monkeypatch.context() as patch:
        patch.setattr(canvas, "provenance", {"revision": "v2", "commit": "b" * 40})
        with pytest.raises(InputError, match=f"loaded as .*now it is .*{'b' * 40}"):
            benchmark(reworded, tmp_path, load=lambda _: canvas)
    record = tmp_path / "benchmark.json"
    text = json.loads(record.read_text())
    weights = text["models"]["canvas-sd"]["fingerprint"]["weights"]
    text["models"]["canvas-sd"]["fingerprint"]["weights"] = [1.1 * w for w in weights]
    record.write_text(json.dumps(text))
    with pytest.raises(InputError, match="another model of the name"):
        benchmark(Plan(methods=("random",), concepts=("ink",), **CHEAP), tmp_path, load=lambda _: canvas)


def test_evaluators_take_settings_in_a_benchmark_too(few, canvas, tmp_path):
    """As `evaluate --set` does; a folder holds figures of one setting."""
    options = ("precision.k=1", "clip_score.scale=2.5")
    plan = Plan(
        methods=("random",), concepts=("star",), only=("ua", "precision", "clip_score"), options=options, steps=1
    )
    (row,) = benchmark(plan, tmp_path, load=lambda _: canvas)
    assert row["scores"]["precision"]["details"]["k"] == 1
    assert benchmark(plan, tmp_path, load=pytest.fail) == [row]
    with pytest.raises(InputError, match=r"clip_score\.scale=2\.5,precision\.k=1, .*the same --only and --set"):
        benchmark(replace(plan, options=options[1:]), tmp_path, load=lambda _: canvas)
    for wrong, words in (
        ("precision.k", "expected EVALUATOR.SETTING=VALUE"),
        ("fid.draws=5", "evaluator among those that run"),
        ("precision.speed=5", "setting of precision"),
    ):
        with pytest.raises(InputError, match=words):
            replace(plan, options=(wrong,))


def test_a_failed_cell_costs_only_itself(few, canvas, tmp_path, monkeypatch):
    real = machinery.make

    def fails(concept, *a, **k):
        if concept == "star":
            raise InputError("diverged at step 3")
        return real(concept, *a, **k)

    plan = Plan(methods=("random",), concepts=("star", "ink"), **CHEAP)
    monkeypatch.setattr(machinery, "make", fails)
    with pytest.raises(InputError, match=r"1 cells failed .* random on star: diverged at step 3"):
        benchmark(plan, tmp_path, load=lambda _: canvas)
    assert [r["concept"] for r in rows_of(tmp_path)] == ["ink"]
    monkeypatch.setattr(machinery, "make", real)
    assert len(benchmark(plan, tmp_path, load=lambda _: canvas)) == 2


def test_a_killed_training_goes_on(few, canvas, tmp_path, monkeypatch):
    """The same bytes as one never killed, and the time of both parts."""
    from erasers.erase.esd import ESD

    monkeypatch.setattr(machinery, "Loop", lambda **k: Loop(checkpoint_every=1, **k))
    short = {"steps": 3, "batch": 2, "sampler_steps": 2, "pool": 2, "refresh": 0}
    plan = Plan(methods=("esd",), concepts=("star",), settings={"esd": [short]}, **CHEAP)
    benchmark(plan, tmp_path / "whole", load=lambda _: canvas)
    trainer = type(ESD().run(canvas, _task()))
    step = trainer.step

    def killed(self, k, rng):
        if k == 2:
            raise SystemExit("killed")
        return step(self, k, rng)

    monkeypatch.setattr(trainer, "step", killed)
    with pytest.raises(SystemExit):
        benchmark(plan, tmp_path / "killed", load=lambda _: canvas)
    assert len(list((tmp_path / "killed").rglob("checkpoint-*"))) >= 1
    monkeypatch.setattr(trainer, "step", step)
    benchmark(plan, tmp_path / "killed", load=lambda _: canvas)
    files = [next((tmp_path / side).rglob("pytorch_lora_weights.safetensors")) for side in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    made = json.loads(next((tmp_path / "killed").rglob("made.json")).read_text())
    assert made["resumed"]
    assert made["seconds"] > 0
    assert not list((tmp_path / "killed").rglob("checkpoint-*"))
    before, after = (table(rows_of(tmp_path / s)).drop(columns=list(TIMES)) for s in ("whole", "killed"))
    pd.testing.assert_frame_equal(before, after)


def _task():
    from erasers.erase import Task

    return Task((canvas.find("star"),))


@pytest.mark.slow
def test_killed_ten_times_at_random(tmp_path):
    """SIGKILL, ten times, wherever it happens to be: the table of a run never killed, and nothing made twice."""
    script = Path(__file__).with_name("kill_benchmark.py")
    done = subprocess.run([sys.executable, script, tmp_path, "10", "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["killed"] == 10
    assert said["made again"] == []
    whole, killed = (tmp_path / side for side in ("whole", "killed"))
    one, two = (read_table(side).drop(columns=list(TIMES)) for side in (whole, killed))
    pd.testing.assert_frame_equal(one, two)
    assert len(two[two.method != "original"]) == 4 * 2
    left, right_ = (
        {r["concept"] + r["method"]: (r["hits"], r["pictures"]) for r in rows_of(s)} for s in (whole, killed)
    )
    assert left == right_
    for name in sorted(p.relative_to(whole) for p in whole.rglob("*.png")):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    assert not [p for p in (killed / "erasers").rglob(".*") if p.is_dir()], "nothing half made is left behind"


# ---------------------------------------------------------------- the command


def test_the_command_chooses_on_dev_and_reports_on_held_out(few, tmp_path):
    sweep = json.dumps({"uce": [{"ridge": 0.5}, {"ridge": 500.0}]})
    common = ("--only", "ua,ira,cra", "--steps", "4")
    code, out, err = run(
        "benchmark", "--methods", "uce", "--concepts", "moon,star", "--split", "dev", "--settings", sweep, *common,
        "--out", tmp_path / "dev",
    )  # fmt: skip
    assert code == 0, err
    assert {r["concept"] for r in rows_of(tmp_path / "dev")} == {"moon"}, "star is held out"
    assert "## Canvas-sd, dev concepts" in out
    code, out, err = run(
        "benchmark", "--methods", "uce,random", "--concepts", "pentagram,moon", "--split", "held-out", "--json",
        *common, "--chosen", tmp_path / "dev", "--out", tmp_path / "held",
    )  # fmt: skip
    assert code == 0, err
    boards = json.loads(out)
    assert [b["split"] for b in boards] == ["held-out"]
    assert boards[0]["concepts"] == ["star"], "a synonym is its concept"
    assert [e["method"] for e in boards[0]["entries"]] == ["original", "random", "uce"]
    assert boards[0]["entries"][-1]["given"] == {"ridge": 0.5}
    frame = read_table(tmp_path / "held")
    assert set(frame["split"]) == {"held-out"}
    code, _, err = run(
        "benchmark", "--methods", "uce,esd", "--concepts", "star", "--chosen", tmp_path / "dev", "--out", tmp_path / "x"
    )
    assert (code, "holds no settings of esd: run it there with --split dev too" in err) == (2, True), err
    assert (tmp_path / "held/leaderboard.md").read_text().startswith("# Leaderboard")
    again = ("--methods", "uce,random", "--concepts", "pentagram,moon", "--split", "held-out", *common)
    code, _, err = run(
        "benchmark", *again, "--chosen", tmp_path / "dev", "--out", tmp_path / "held", "--dtype", "bfloat16"
    )
    assert code == 2, "a finished table is not handed out for another precision"
    assert "'float32 on cpu'}, now it is {'precision': 'bfloat16 on cpu'}" in " ".join(err.split())


BAD = {
    "unknown method": (["--methods", "uec"], "did you mean 'uce'"),
    "unknown concept": (["--concepts", "mooon"], "did you mean 'moon'"),
    "concept twice": (["--concepts", "moon+crescent"], "names a concept twice"),
    "unknown evaluator": (["--only", "uaa"], "did you mean 'ua'"),
    "unknown split": (["--split", "held"], "did you mean 'held-out'"),
    "empty split": (["--concepts", "star", "--split", "dev"], "none of star is of the split 'dev'"),
    "no method": (["--methods", "original"], "at least one of the methods"),
    "seeds": (["--seeds", "a"], "whole numbers with commas"),
    "broken settings": (["--settings", "{"], "expected a JSON object"),
    "settings of a stranger": (["--settings", '{"esd": {}}'], "method in the settings"),
    "unknown setting": (["--settings", '{"uce": {"rigde": 1}}'], "did you mean 'ridge'"),
    "bad import": (["--import", "rows.jsonl"], "rows.jsonl line 1 is no result"),
    "no import": (["--import", "nothing.jsonl"], "cannot read nothing.jsonl"),
    "nothing to choose by": (["--chosen", "nowhere"], "holds no finished cells"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_mistakes(name, tmp_path):
    args, message = BAD[name]
    (tmp_path / "rows.jsonl").write_text('{"method": "uce"}\n')
    code, out, err = run("benchmark", "--out", "b", "--methods", "uce", *args, cwd=tmp_path)
    assert code == 2
    assert message in " ".join(err.split())
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert not (tmp_path / "b").exists()


def test_scores_here_are_the_judges_own():
    assert set(SCORES) == {"ua", "ira", "cra", "in_prompt", "neighbours", "synonym_ua", "held_out_ua"}
    assert torch.get_num_threads() >= 1
