"""Images are judged as they are drawn: the same scores as of all of them at once, and a batch of them in memory."""

import ctypes
import errno
import gc
import math
import os
import re
import shutil
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from erasers.erase import Hyper, erase, tensors
from erasers.erase._hypernet import Hypernetwork, Plan
from erasers.eval import Case, Control, Gallery, Sampling, Score, Verdict, choose, draw, evaluate, judges
from erasers.eval._detectors import detector
from erasers.eval._gallery import Stored, size
from erasers.eval._judge import Watch
from erasers.eval._spool import Gathered, Spool, Unkept
from erasers.prompts import CANVAS, InputError, canvas_grid
from erasers.prompts import canvas as words

HOW = Sampling(steps=1, guidance=1.0, sampler="dpm++", batch=20)
MANY, SIDE, WAITING = 320, 512, 64
WEIGHT = MANY * SIDE * SIDE * 3 / 2**20
"""MB of all images that the tests of memory draw."""


class Few(Control):
    """Seventy images of a concept, which are no whole number of batches for the pipeline or the judges."""

    def plan(self, concept):
        rows = [p for p in super().plan(concept) if p.role in ("grid", "synonym")]
        return rows[::2][:70]


def test_scores_are_those_of_all_images_at_once(canvas):
    eraser = erase("moon", canvas)
    names = ["ua", "ira", "cra", "neighbours", "in_prompt", "synonym_ua", "lpips", "clip_score", "kid"]
    report = evaluate(eraser, canvas, only=names, control=Few(canvas, HOW))
    prompts = Few(canvas, HOW).plan(words.find("moon"))
    sides = [draw(canvas, prompts, on, how=HOW) for on in ([eraser], [])]
    seen = [judges(canvas).look(g.images) for g in sides]
    assert len(prompts) == 70
    assert (report.seen, report.seen_control) == tuple(seen)
    case = Case(words.find("moon"), frozenset({"moon"}), *sides, *seen)
    for name, tool in choose(names).items():
        assert report.scores[name].to_json() == tool.score(case).to_json(), name
    assert report.scores["lpips"].value > 0, "the eraser changed something"


# ---------------------------------------------------------------- memory


class Blind:
    """Judges that look at nothing and remember how many images they were shown at once."""

    world = CANVAS

    def __init__(self):
        self.shown = []

    def look(self, images, batch=64):
        assert len(images) <= batch
        self.shown.append(len(images))
        return Verdict(("moon",) * len(images), ("ink",) * len(images))

    def watch(self, batch=64):
        return Watch(self, batch)

    def record(self):
        return {d: {"weights": "", "accuracy on real images": "not measured"} for d in ("object", "style")}


def test_judges_see_the_batches_that_they_would_see_of_all_at_once():
    """So that not even the last bit of a judge's figures depends on how the pipeline's batches are cut."""
    shown = []

    class Counts(Blind):
        def look(self, images, batch=64):
            shown.append(images)
            return Verdict(tuple(i[0] for i in images), tuple(i[1] for i in images))

    images = [f"{k % 10}{k // 10 % 10}" for k in range(150)]
    watch = Counts().watch()
    for k in range(0, 150, 20):
        watch.add(images[k : k + 20])
    seen = watch.verdict()
    assert shown == [images[:64], images[64:128], images[128:]]
    assert seen == Verdict(tuple(i[0] for i in images), tuple(i[1] for i in images))
    assert watch.verdict() == seen, "asked twice, it looks once"
    assert len(shown) == 3


class Many(Control):
    def plan(self, concept):
        return canvas_grid()[:MANY]


@dataclass(frozen=True)
class Reads:
    """Looks at every image of both sides, one after the other."""

    higher_is_better: ClassVar[bool] = True
    about: ClassVar[str] = "reads"

    def score(self, case):
        pairs = zip(case.gallery.images, case.control.images, strict=True)
        same = sum(a.tobytes() == b.tobytes() for a, b in pairs)
        return Score(same, len(case.gallery.images), 0, 0, 0, 0, 0, 0, unit="")


class Wrong(Reads):
    """Says that it looks at none, and does."""

    pictures: ClassVar[bool] = False


def anonymous():
    """MB of this process's own memory, without pages of files, which come and go; NaN where the system is silent."""
    status = Path("/proc/self/status")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else math.nan


class Seen(list):
    """How many images were alive when each batch was asked for; and MB of memory above the first time."""

    def __init__(self):
        super().__init__()
        self.memory = []

    @property
    def above(self):
        return max(self.memory) - self.memory[0]


@pytest.fixture
def alive(canvas, monkeypatch):
    """A pipeline that draws large images of noise at once, and what was in memory meanwhile."""
    born, counts = [], Seen()

    def noise(texts, seeds, **_):
        counts.append(sum(one() is not None for one in born))
        counts.memory.append(anonymous())
        out = []
        for text, seed in zip(texts, seeds, strict=True):
            rng = np.random.default_rng([seed, *text.encode()])
            out.append(Image.frombytes("RGB", (SIDE, SIDE), rng.bytes(3 * SIDE * SIDE)))
        born.extend(weakref.ref(image) for image in out)
        return out

    monkeypatch.setattr(canvas, "draw", noise)
    return counts


@pytest.mark.parametrize("only", [["ua", "ira"], {"reads": Reads()}], ids=["judges alone", "looks at pictures"])
def test_a_batch_is_all_that_is_in_memory(canvas, alive, only):
    """Both sides are drawn, each of them several times the limit."""
    eraser = erase("moon", canvas)
    control = Many(canvas, HOW, judges=Blind())
    report = evaluate(eraser, canvas, only=only, control=control)
    assert len(alive) == 2 * MANY / HOW.batch
    assert max(alive) < WAITING + HOW.batch
    assert not alive.above > WEIGHT / 2
    assert set(control.judges.shown) == {WAITING}
    if "reads" in report.scores:
        assert report.scores["reads"].value == report.scores["reads"].n == MANY, "and they come back as they were"


def test_the_measure_sees_what_is_kept(canvas, alive):
    """The control of the test above: a gallery in memory is seen by both of its measures."""
    gc.collect()
    if sys.platform == "linux":  # else images go where the process had freed memory, and it grows by less
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
    gallery = draw(canvas, canvas_grid()[:MANY], how=HOW)
    assert max(alive) == MANY - HOW.batch
    assert not alive.above < 0.8 * WEIGHT
    assert len(gallery.images) == MANY


def test_pictures_that_were_let_go(canvas, alive):
    """Drawn again where they are wanted after all; missed aloud by an evaluator that said it needs none."""
    eraser = erase("moon", canvas)
    control = Many(canvas, HOW, judges=Blind())
    evaluate(eraser, canvas, only=["ua"], control=control)
    with pytest.raises(InputError, match="judged and not kept: an evaluator that looks at them must not say"):
        evaluate(eraser, canvas, only={"wrong": Wrong()}, control=control)
    before = len(alive)
    prompts = control.plan(words.find("moon"))[:40]
    gallery, _ = control.side(prompts)
    assert len(alive) - before == 2
    assert [i.tobytes() for i in gallery.images] == [i.tobytes() for i in draw(canvas, prompts, how=HOW).images]
    control.side(prompts)
    assert len(alive) - before == 4, "those are kept now"


def test_kept_galleries_are_whole(canvas, alive, tmp_path, monkeypatch):
    monkeypatch.setattr(Many, "plan", lambda self, concept: canvas_grid()[:8])
    control = Many(canvas, HOW, judges=Blind())
    evaluate(erase("moon", canvas), canvas, only=["ua"], control=control, keep=tmp_path)
    want = draw(canvas, canvas_grid()[:8], how=HOW)
    for side in ("original", "erased"):
        found = Gallery.open(tmp_path / side)
        assert isinstance(found.images, Stored)
        assert [i.tobytes() for i in found.images] == [i.tobytes() for i in want.images]


def test_killed_and_called_again(canvas, alive, tmp_path, monkeypatch):
    """With a folder for its galleries the same call goes on; what is finished is not drawn again, nor replaced."""
    monkeypatch.setattr(Many, "plan", lambda self, concept: canvas_grid()[:8])
    how = replace(HOW, batch=2)
    moon, ink = erase("moon", canvas), erase("ink", canvas)

    def call(eraser=moon, **more):
        del alive[:]
        return evaluate(eraser, canvas, only=["ua"], control=Many(canvas, how, judges=Blind()), keep=tmp_path, **more)

    drawn = canvas.draw

    def killed(texts, seeds, **settings):
        if len(alive) == 3:
            raise SystemExit("killed")
        return drawn(texts, seeds, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(canvas, "draw", killed)
        with pytest.raises(SystemExit):
            call()
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "erased").glob("0*.png")}
    assert 4 <= len(stamps) <= 6, "two batches of two, or the third too"
    report = call()
    assert len(alive) == (8 - len(stamps)) / 2 + 4, "the rest of the erased side, and the unerased one"
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    again = call()
    assert len(alive) == 4, "the unerased side alone"
    assert again.seen == report.seen
    for eraser, more, message in (
        (ink, {}, "erased holds another gallery: its eraser is"),
        (moon, {"control": Many(canvas, replace(how, steps=2), judges=Blind())}, "its steps is 1, asked for 2"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate(
                eraser, canvas, only=["ua"], **{"control": Many(canvas, how, judges=Blind()), **more}, keep=tmp_path
            )
    for folder in (tmp_path / "original", tmp_path / "erased"):
        assert Gallery.open(folder).prompts == again.prompts, "a refusal takes nothing away"
    call(ink, force=True)
    assert len(alive) == 8
    manifest = Gallery.open(tmp_path / "erased").manifest
    assert [c["name"] for e in manifest["erasers"] for c in e["concepts"]] == ["ink"]
    (lost,) = (tmp_path / "original").glob("0003_*.png")
    lost.unlink()
    with pytest.raises(InputError, match=lost.name):
        call(ink)


# ---------------------------------------------------------------- the file


def test_spool(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = [Image.new("RGB", (3, 2), (k, 2, 3)) for k in range(5)] + [Image.new("L", (4, 4), 9)]
    spool = Spool()
    spool.add(images[:2])
    spool.add(images[2:])
    assert list(tmp_path.iterdir()) == [], "nothing is left behind, whenever the process ends"
    for got in (list(spool), spool[:], Gathered(tuple((spool, k) for k in range(6)))[:]):
        assert [(i.mode, i.size, i.tobytes()) for i in got] == [(i.mode, i.size, i.tobytes()) for i in images]
    assert spool[-1].tobytes() == images[-1].tobytes()
    with pytest.raises(IndexError):
        spool[6]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InputError, match=r"cannot keep pictures in .*No space left on device.*set TMPDIR"):
        spool.add(images[:1])


def test_unkept():
    assert len(Unkept(3)) == 3
    with pytest.raises(InputError, match="judged and not kept"):
        list(Unkept(3))
    with pytest.raises(IndexError):
        Unkept(3)[3]


def test_a_detector_is_shown_so_many_images_at_a_time(monkeypatch):
    """Of the 150 images of a folder or a spool no more than a batch is in memory."""
    shown = []
    module = ModuleType("streaming_faces")
    module.detect = lambda images: shown.append(len(images)) or [[(str(i.getpixel((0, 0))[0]), 0.9)] for i in images]
    monkeypatch.setitem(sys.modules, "streaming_faces", module)
    spool = Spool()
    spool.add([Image.new("RGB", (1, 1), (k, 0, 0)) for k in range(150)])
    seen = detector("streaming_faces:detect")(spool)
    assert [one[0].name for one in seen] == [str(k) for k in range(150)]
    assert shown == [64, 64, 22]
    module.detect = lambda images: [[]] * (len(images) - 1)
    with pytest.raises(InputError, match="an answer for each of 64 images, got 63"):
        detector("streaming_faces:detect")(spool)


def test_nothing_is_lost_or_drawn_when_a_call_is_refused(canvas, alive, tmp_path, monkeypatch):
    """With --force too: galleries go when the new ones can be drawn. A foreign or unfinished one is told at once."""
    monkeypatch.setattr(Many, "plan", lambda self, concept: canvas_grid()[:4])
    moon = erase("moon", canvas)

    def call(**more):
        del alive[:]
        control = Many(canvas, HOW, judges=Blind())
        return evaluate(moon, canvas, only=["ua"], control=control, keep=tmp_path / "kept", **more)

    call()
    files = {p: p.read_bytes() for p in sorted((tmp_path / "kept").rglob("*.*"))}
    with monkeypatch.context() as patch:
        patch.setattr(type(canvas), "unencodable", lambda self, texts: list(texts))
        with pytest.raises(InputError, match="not remembered"):
            call(force=True)
    assert {p: p.read_bytes() for p in sorted((tmp_path / "kept").rglob("*.*"))} == files
    monkeypatch.setattr(Many, "plan", lambda self, concept: canvas_grid()[4:8])
    shutil.rmtree(tmp_path / "kept/erased")
    with pytest.raises(InputError, match="original holds another gallery"):
        call()
    assert not alive, "before anything is drawn"
    (tmp_path / "kept/original/manifest.json").rename(tmp_path / "kept/original/plan.json")
    with pytest.raises(InputError, match=r"original"):
        call()
    assert not alive


def test_a_hypernetwork_is_told_by_its_weights():
    plan = Plan((("a", 4, 3),), 5, "pooled", "compact", 2, 6, 3, 10)
    one, other = (Hyper(Hypernetwork(plan), "sd", {}) for _ in range(2))
    other.network.load_state_dict(one.network.state_dict())

    def told(payload):
        return [(n, t.tolist()) for n, t in tensors(payload)]

    assert told(one) == told(other)
    next(iter(other.network.parameters())).data += 1
    assert told(one) != told(other)
    assert size(one) == sum(t.nbytes for t in one.network.state_dict().values())
