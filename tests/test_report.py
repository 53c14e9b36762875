"""The report and its charts: parsed without a browser, and opened in one where there is one."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from browser import chromium
from cells import cell, right, swaps
from PIL import Image
from test_cli import run
from test_metrics import huge_bmp

from erasers.eval import Cells, Point, frontier, grid, heat_map, leaderboard, plan_of, report, rows_of, table
from erasers.eval._benchmark import shown
from erasers.eval._charts import front, shade
from erasers.eval._report import changes, erased_by_asked, object_by_style
from erasers.eval._table import markdown
from erasers.prompts import InputError, canvas

ROOT = Path(__file__).parent.parent
COLOURS = {"original": (10, 120, 200), "uce": (200, 40, 40), "random": (40, 160, 60)}


def pictures(row, see, folder):
    """What a benchmark keeps of a cell, in one colour per method."""
    gone = set(row["concept"].split("+"))
    prompts = plan_of(row["concept"])
    out = []
    for k in shown(prompts, frozenset(gone)):
        p = prompts[k]
        files = {"file": f"pictures/{row['method']}-{row['concept']}-{k}.png", "original": f"pictures/o-{k}.png"}
        for method, name in ((row["method"], files["file"]), ("original", files["original"])):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), COLOURS[method]).save(folder / name)
        words = {"text": p.text, "seed": p.seed, "object": p.object, "style": p.style}
        asks = bool({p.object, p.style} & gone)
        out.append({**words, **files, "asks": asks, "saw": list(see(p)), "saw_original": [p.object, p.style]})
    return out


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A benchmark's folder: two concepts, a method and a control, with pictures."""
    folder = tmp_path_factory.mktemp("report") / "bench"
    for concept in ("star", "ink"):
        for method, see in (("uce", swaps(concept)), ("random", right)):
            row = cell(concept, see, method=method, settings={"note": "<b>bold</b> & 'quoted'"})
            Cells(folder).write({**row, "pictures": pictures(row, see, folder)})
    return folder


@pytest.fixture(scope="module")
def page(filled):
    return report(filled, filled / "report.html")


class Page(HTMLParser):
    """What a browser would load, show and link."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.images, self.rows, self.titles = [], [], [], [], []
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append((tag, values))
        self.loads += [(tag, k, v) for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        if tag == "img":
            self.images.append(values)
        if tag == "table":
            self.table = values
        if tag == "tr" and self.table.get("id") == "rows":
            self.rows.append([])
        self._cell = tag if tag == "td" and self.table.get("id") == "rows" else None
        if self._cell:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        if tag == "td":
            self._cell = None


# ---------------------------------------------------------------- without a browser


def test_it_loads_nothing(page):
    text = page.read_text()
    found = Page(text)
    assert all(v.startswith(("data:image/", "#")) for _, _, v in found.loads), found.loads[:5]
    assert not [t for t, _ in found.tags if t in ("link", "iframe", "object", "embed", "base", "audio", "video")]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|https?:", text)
    policy = next(a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_every_row_of_the_table_is_there(page, filled):
    frame = table(rows_of(filled))
    rows = [r for r in Page(page.read_text()).rows if r]
    assert len(rows) == len(frame)
    columns = list(frame.columns)
    for row, (_, want) in zip(rows, frame.iterrows(), strict=True):
        assert row[columns.index("evaluator")] == want["evaluator"]
        assert float(row[columns.index("value")]) == pytest.approx(want["value"], rel=1e-5)


def test_pictures_decode_and_are_the_right_ones(page, filled):
    images = Page(page.read_text()).images
    kept = [p for r in rows_of(filled) for p in r["pictures"]]
    assert len(images) == len(kept) * 3 // 2, "of each prompt the original once, and each method's"
    seen = set()
    for image in images:
        kind, _, data = image["src"].partition(";base64,")
        assert kind == "data:image/webp"
        with Image.open(io.BytesIO(base64.b64decode(data))) as f:
            assert f.size == (64, 64)
            middle = f.convert("RGB").getpixel((32, 32))
        method = min(COLOURS, key=lambda m: sum(abs(a - b) for a, b in zip(COLOURS[m], middle, strict=True)))
        assert sum(abs(a - b) for a, b in zip(COLOURS[method], middle, strict=True)) < 12
        seen.add((method, image.get("class")))
    assert seen == {("original", ""), ("uce", "good"), ("random", "bad"), ("random", "good")}, (
        "the eraser erases and keeps; the control keeps and does not erase"
    )


def test_what_users_wrote_is_text_not_markup(page):
    text = page.read_text()
    assert "<b>bold</b>" not in text
    assert "&lt;b&gt;bold" in text


def test_it_says_how_it_was_made(page):
    text = page.read_text()
    for words in ("Read first", "one seed", "rest on 2 concept(s)", "How it was made", "torch", "harmonic", "held-out"):
        assert words in text
    assert page.stat().st_size < 2e6


def test_the_command(filled, tmp_path):
    code, out, err = run("report", filled, "--out", tmp_path / "r.html", "--figures", tmp_path / "f")
    assert code == 0, err
    assert "MB" in out
    names = sorted(p.name for p in (tmp_path / "f").iterdir())
    assert sum(n.endswith(".png") for n in names) == 2
    for file in (tmp_path / "f").glob("*.svg"):
        assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert [n.partition("-")[0] for n in names].count("frontier") == 1
    assert run("report", filled, "--out", tmp_path / "r.html")[0] == 2, "exists already"


def results(folder, filled, name="rows"):
    """The cells of a benchmark as a file of rows, with its pictures beside."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(filled / "pictures", folder / "pictures", dirs_exist_ok=True)
    rows = rows_of(filled)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return rows


def test_results_files_are_reported_with_the_pictures_beside_them(filled, tmp_path):
    rows = results(tmp_path / "docs", filled)
    code, _, err = run("report", tmp_path / "docs/rows.jsonl", "--out", tmp_path / "r.html")
    assert code == 0, err
    text = (tmp_path / "r.html").read_text()
    assert "<h1>rows</h1>" in text
    assert len(Page(text).images) == sum(len(r["pictures"]) for r in rows) * 3 // 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["docs", "r.html"], "nothing else is written"
    code, _, err = run("report", tmp_path / "docs/rows.jsonl", filled, "--out", tmp_path / "r2.html")
    assert code == 2
    assert "expected a benchmark's folder, or files of rows (.jsonl)" in err


def test_rows_without_their_pictures_have_none(filled, tmp_path):
    """A results file is often published without them; pictures of another place are not read either."""
    rows = results(tmp_path / "docs", filled)
    (tmp_path / "docs" / rows[0]["pictures"][3]["file"]).unlink()
    outside = tmp_path / "secret.png"
    Image.new("RGB", (64, 64), (1, 2, 3)).save(outside)
    rows[1]["pictures"][0]["file"] = "../secret.png"
    rows[2]["pictures"][0]["file"] = str(outside)
    (tmp_path / "docs/rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    code, _, err = run("benchmark", "--import", tmp_path / "docs/rows.jsonl", "--out", tmp_path / "b")
    assert code == 0, err
    kept = {(r["method"], r["concept"]): len(r["pictures"]) for r in rows_of(tmp_path / "b")}
    assert kept == {(r["method"], r["concept"]): 8 * (k == 3) for k, r in enumerate(rows)}
    page = report(tmp_path / "b", tmp_path / "b.html").read_text()
    assert len(Page(page).images) == 2 * 8
    files = {p.name for p in (tmp_path / "b/pictures").rglob("*.png")}
    assert len(files) == 2, "each picture once, by its pixels: here one colour a method"


def test_committed_results_are_reported(tmp_path):
    """All of `docs/results` as one page, whatever their rows hold."""
    files = sorted((ROOT / "docs/results").glob("canvas-*.jsonl"))
    text = report(files, tmp_path / "r.html", figures=tmp_path / "f").read_text()
    assert text.count('class="sortable board"') > 3
    assert list((tmp_path / "f").glob("changes-*.svg"))
    assert list((tmp_path / "f").glob("frontier-*.svg"))


def test_pictures_are_put_beside_each_other_by_prompt_and_seed(tmp_path):
    """Rows of two releases may show other images, or the same in another order."""
    for method, turn in (("uce", 0), ("esd", 1)):
        row = cell("star", swaps("star"), method=method)
        kept = pictures({**row, "method": "uce"}, swaps("star"), tmp_path)
        row["pictures"] = [*kept[turn:], *kept[:turn]][: 8 - turn]
        Cells(tmp_path).write(row)
    text = report(tmp_path, tmp_path / "r.html", figures=tmp_path / "f").read_text()
    found = re.findall(r"<tr><td class=\"word[^>]*>.*?</tr>", text[text.index('id="pictures"') :])
    assert len(found) == 7, "as many as the first row of cells has"
    assert all(line.count("<img") == 3 for line in found)
    assert len(list((tmp_path / "f").glob("grid-*.png"))) == 1
    first = cell("star", swaps("star"), method="concept_ablation")
    Cells(tmp_path).write({**first, "pictures": pictures({**first, "method": "uce"}, swaps("star"), tmp_path)})
    text = report(tmp_path, tmp_path / "r2.html").read_text()
    found = re.findall(r"<tr><td class=\"word[^>]*>.*?</tr>", text[text.index('id="pictures"') :])
    assert sorted(line.count("<img") for line in found) == [3, *[4] * 7], "one of them esd did not keep"


def test_gap_to_the_retrained_model(tmp_path):
    """In both leaderboards, by hand: UA 100 beside the retrained model's, over the concepts that have one."""
    for concept in ("star", "cat"):
        Cells(tmp_path).write(cell(concept, swaps(concept)))
        Cells(tmp_path).write(cell(concept, right, method="random"))
    gold = cell("star", swaps("star", every=2), method="retrained")
    Cells(tmp_path).write(gold)
    ua = gold["scores"]["ua"]["value"]
    assert 0 < ua < 100
    (board,) = leaderboard(rows_of(tmp_path))
    page = markdown([board], [])
    names = next(line for line in page.splitlines() if line.startswith("| method")).split(" | ")
    assert "| *retrained* (1 of 2 concepts) |" in page
    cells = {c[0].strip("| *"): c for line in page.splitlines() if (c := line.split(" | ")) and line.startswith("| ")}
    at = names.index("gap to retrained")
    assert cells["uce"][at] == f"{100 - ua:+.1f}, +0.0, +0.0 (1)"
    assert cells["random"][at] == cells["original"][at] == f"{-ua:+.1f}, +0.0, +0.0 (1)"
    text = report(tmp_path, tmp_path / "r.html").read_text()
    assert f'<td data-key="{(100 - ua) / 3}">{100 - ua:+.1f}, +0.0, +0.0 (1)</td>' in text
    bare = markdown(leaderboard([cell("cat", swaps("cat"))]), [])
    assert " | - | " in next(line for line in bare.splitlines() if line.startswith("| uce"))


def test_mistakes(filled, tmp_path):
    for args, words in (
        ((tmp_path,), "holds no finished cells"),
        ((filled, "--out", tmp_path / "r.pdf"), "ending in .html"),
    ):
        code, out, err = run("report", *args)
        assert (code, out) == (2, "")
        assert words in err
    row = rows_of(filled)[0]
    picture = filled / row["pictures"][0]["file"]
    kept = picture.read_bytes()
    try:
        for damaged in (b"no picture", huge_bmp()):
            picture.write_bytes(damaged)
            with pytest.raises(InputError, match="cannot read the picture"):
                report(filled, tmp_path / "r.html")
    finally:
        picture.write_bytes(kept)
    assert not (tmp_path / "r.html").exists()


def test_template_is_part_of_the_package():
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "*.html" in data.get("erasers.eval", []), 'pyproject.toml: "erasers.eval" = ["*.html"]'


# ---------------------------------------------------------------- charts


def test_changes_of_a_hand_made_eraser():
    """Moons in ink become something else, everything else stays: one cell of the grid, and 1 in 10 of the moons."""

    def see(p):
        return ("cup", p.style) if (p.object, p.style) == ("moon", "ink") else right(p)

    row = cell("moon", see)
    assert {k: v for k, v in object_by_style(row).items() if v} == {("ink", "moon"): -50}, "the style judge is content"
    found = erased_by_asked([row])
    plan = [p for p in plan_of("moon") if p.role == "grid"]
    asked = sum(p.object == "moon" for p in plan)
    assert found["moon", "moon"] == pytest.approx(-100 * 5 / asked)
    assert all(v == 0 for k, v in found.items() if k != ("moon", "moon"))
    assert len(changes(row)) == len(plan)


def test_changes_without_the_controls_verdicts():
    """Rows that keep no control verdicts count where every control figure is perfect, and nowhere else."""
    row = {**cell("moon", swaps("moon")), "hits_control": {}}
    assert object_by_style(row)["ink", "moon"] == -50
    weak = {**cell("moon", swaps("moon"), before=swaps("star")), "hits_control": {}}
    assert changes(weak) == []


def test_heat_map():
    svg = heat_map([[-100.0, 0.0], [None, 50.0]], ["a<b", "c"], ["x", "y"], loose=True)
    root = ElementTree.fromstring(svg)
    cells = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if r.get("fill")]
    words = [r[0].text for r in cells]
    assert words == ["a<b, x: -100.0", "c, x: nothing measured", "c, y: +50.0"], "no change is drawn by no cell"
    assert cells[0].get("fill") == shade(-100) == "#c0392b"
    key = [p.get("fill") for p in root.iter("{http://www.w3.org/2000/svg}path") if p.get("fill")]
    assert key == [shade(v) for v in (-100, -20, 0, 20, 100)], "a file of its own says what its colours mean"
    assert "percent points" not in heat_map([[1.0]], ["a"], ["x"])
    assert shade(0) == "#ffffff"
    assert int(shade(-5)[3:5], 16) > int(shade(-50)[3:5], 16)
    with pytest.raises(InputError, match="expected 1 x 2"):
        heat_map([[1.0]], ["a"], ["x", "y"])


def test_frontier():
    points = [
        Point("a", 90, 80, (85, 95), (70, 90)),
        Point("b", 80, 90),
        Point("c", 70, 70),
        Point("random", 99, 99, hollow=True),
    ]
    best = [p.label for p in front(points)]
    assert best == ["a", "b"], "c is beaten in both, a control counts for nothing"
    root = ElementTree.fromstring(frontier(points, x="gone", y="kept", loose=True))
    circles = [c for c in root.iter("{http://www.w3.org/2000/svg}circle") if len(c)]
    at = {c[0].text.partition(":")[0]: (float(c.get("cx")), float(c.get("cy"))) for c in circles}
    assert at["a"][0] > at["b"][0] > at["c"][0]
    assert at["c"][1] > at["a"][1] > at["b"][1] > at["random"][1]
    with pytest.raises(InputError, match="at least one point"):
        frontier([], x="x", y="y")


def test_grid_marks():
    blank = Image.new("RGB", (64, 64), "white")
    plain = grid({"original": [blank] * 3, "uce": [blank] * 3}, ["a", "b", "c"], cell=64)
    marked = grid(
        {"original": [blank] * 3, "uce": [blank] * 3}, ["a", "b", "c"], cell=64, marks={"uce": [True, False, None]}
    )
    colours = {c for _, c in marked.getcolors(10000)} - {c for _, c in plain.getcolors(10000)}
    assert colours == {(46, 139, 87), (192, 57, 43)}
    with pytest.raises(InputError, match="marks of 'esd'"):
        grid({"uce": [blank]}, ["a"], marks={"esd": [True]})


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def tab(page):
    """The report in headless Chromium, with everything it complains of or asks the network for."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium here: `.ci/browser` installs one; the report was not opened in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program)
        tab = browser.new_page(viewport={"width": 1300, "height": 900})
        tab.complaints = []
        tab.on("console", lambda m: tab.complaints.append(m.text))
        tab.on("pageerror", lambda e: tab.complaints.append(str(e)))
        tab.on("request", lambda r: tab.complaints.append(r.url) if not r.url.startswith(("data:", "file:")) else None)
        tab.goto(page.as_uri())
        yield tab
        browser.close()


def test_browser_shows_it_without_complaint(tab, page):
    assert tab.complaints == []
    assert tab.locator("h2").count() >= 7
    broken = "[...document.images].filter(i => !(i.complete && i.naturalWidth === 64)).length"
    assert tab.evaluate(broken) == 0
    for chart in tab.locator(".chart svg").all()[:3]:
        box = chart.bounding_box()
        assert box["width"] > 100
        assert box["height"] > 40
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out sideways"


def test_browser_refuses_outside_resources(tab):
    """The page's own policy: what somebody put into it later could load nothing either."""
    tab.evaluate("document.body.append(Object.assign(new Image(), {src: 'https://example.invalid/x.png'}))")
    tab.wait_for_timeout(200)
    assert any("Content Security Policy" in c for c in tab.complaints)
    tab.complaints.clear()


def test_browser_sorts_and_filters(tab):
    column = "n => [...document.querySelectorAll('#rows tbody tr')].map(r => r.cells[n].textContent)"
    heads = tab.locator("#rows th")
    names = heads.all_text_contents()
    at = names.index("value")
    before = [float(v) for v in tab.evaluate(column, at)]
    heads.nth(at).click()
    assert [float(v) for v in tab.evaluate(column, at)] == sorted(before) != before
    heads.nth(at).click()
    assert [float(v) for v in tab.evaluate(column, at)] == sorted(before, reverse=True)
    heads.nth(names.index("seconds")).click()
    costs = tab.evaluate(column, names.index("seconds"))
    assert costs[-1] == "", "what has no value comes last"
    assert costs[0] != ""
    tab.fill("#filter", "UCE ink")
    visible = tab.locator("#rows tbody tr:visible")
    assert visible.count() == 7
    assert tab.locator("#shown").text_content().startswith("7 of")
    tab.fill("#filter", "")
    board = tab.locator("table.board").first
    ua = board.locator("th").all_text_contents().index("ua")
    board.locator("th").nth(ua).click()
    keys = board.locator("tbody tr").evaluate_all("(rows, k) => rows.map(r => Number(r.cells[k].dataset.key))", ua)
    assert keys == sorted(keys)
    assert tab.complaints == []


def test_record_is_shown(filled, tmp_path):
    """How the cells were scored, when the folder says so; the models' fingerprints in short."""
    record = {
        "evaluators": ["ua"],
        "models": {"canvas-sd": {"fingerprint": {"structure": "abc", "weights": [1.25] * 9}}},
    }
    (filled / "benchmark.json").write_text(json.dumps(record))
    text = report(filled, tmp_path / "r.html").read_text()
    assert "abc" in text
    assert "1.25, 1.25" not in text
    assert canvas.CONCEPTS
