"""UnlearnCanvas' protocol: its lists, its conventions, its judges, and answer sets made elsewhere."""

import io
import json
import os
import pickle
import random
import re
import shutil
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from test_cli import run
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

import tiny
from erasers.app import answers as answers_commands
from erasers.app import cli, compare
from erasers.erase import Eraser, concept, erase, filed
from erasers.eval import (
    Case,
    Control,
    Cost,
    Gallery,
    Judges,
    Lesson,
    NotApplicable,
    Sampling,
    Verdict,
    answers,
    captioned,
    collect,
    combination,
    convert_judge,
    evaluate,
    find,
    in_sequence,
    lacking,
    measure,
    plan_of,
    protocol_sampling,
    read_table,
    rows_of,
    sampling,
    score_answers,
    train_judge,
    unpack,
)
from erasers.eval import judges as judges_of
from erasers.eval._gallery import pixels_digest
from erasers.eval._train_judge import split
from erasers.prompts import (
    CANVAS,
    UNLEARN_CANVAS,
    WORLDS,
    Concept,
    InputError,
    World,
    canvas_grid,
    canvas_plan,
    unlearncanvas,
)
from erasers.prompts import load as load_prompts

SMALL = World(
    "small",
    tuple(Concept(n, "", kind="object") for n in ("Dogs", "Cats", "Sea")),
    tuple(Concept(n, "", kind="style") for n in ("Van Gogh", "Monet", "Ink Art", "Seed Images")),
    unlearncanvas.sentence,
    seeds=(188, 288),
    photo="Seed Images",
)


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    """A world that is drawn and judged in no time, for the command line too."""
    monkeypatch.setitem(WORLDS, "small", SMALL)


def noise(rng: random.Random, side: int = 16) -> Image.Image:
    return Image.frombytes("RGB", (side, side), rng.randbytes(3 * side * side))


def judge(folder, names, seed: int, side: int = 16):
    """A small random ViT with labels as folders write them."""
    torch.manual_seed(seed)
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, patch_size=8)
    labels = dict(enumerate(n.replace(" ", "_") for n in names))
    config = ViTConfig(**shape, image_size=side, id2label=labels, label2id={v: k for k, v in labels.items()})
    model = ViTForImageClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight.normal_(0, 3)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def judges(tmp_path):
    for kind, seed in (("object", 0), ("style", 1)):
        judge(tmp_path / "judges" / kind, SMALL.names(kind), seed)
    return tmp_path / "judges"


@pytest.fixture
def answer_set(tmp_path):
    """Random answers of the small world."""
    rng = random.Random(0)
    (tmp_path / "answers").mkdir()
    for p in SMALL.answers():
        noise(rng).save(tmp_path / "answers" / SMALL.file(p))
    return tmp_path / "answers"


class TestLists:
    """The real protocol, against what is published."""

    def test_themes_and_objects(self):
        assert (len(unlearncanvas.THEME_NAMES), len(unlearncanvas.OBJECT_NAMES)) == (51, 20)
        folders = [n.replace(" ", "_") for n in unlearncanvas.THEME_NAMES]
        assert folders == sorted(set(folders)), "the judges' labels are in the order of the folders"
        assert list(unlearncanvas.OBJECT_NAMES) == sorted(set(unlearncanvas.OBJECT_NAMES))
        assert len({*unlearncanvas.THEME_NAMES, *unlearncanvas.LEFT_OUT}) == 61, "60 styles and the photographs"
        for name in ("Van Gogh", "Seed Images", "Cold Warm", "Ukiyoe", "Watercolor", "Winter", "Abstractionism"):
            assert name in unlearncanvas.THEME_NAMES
        for words in (unlearncanvas.NEIGHBOURS, unlearncanvas.SYNONYMS):
            assert set(words) <= set(UNLEARN_CANVAS.concepts)
        for near in unlearncanvas.NEIGHBOURS.values():
            assert set(near) <= set(UNLEARN_CANVAS.concepts)

    def test_the_answer_set(self):
        prompts = UNLEARN_CANVAS.answers()
        names = [UNLEARN_CANVAS.file(p) for p in prompts]
        assert len(names) == len(set(names)) == 5100
        assert names[:2] == ["Abstractionism_Architectures_seed188.jpg", "Abstractionism_Bears_seed188.jpg"]
        assert (names[20], names[1020]) == (
            "Artist_Sketch_Architectures_seed188.jpg",
            "Abstractionism_Architectures_seed288.jpg",
        )
        assert prompts[0].text == "A Architectures image in Abstractionism style."
        assert prompts[20].text == "A Architectures image in Artist Sketch style."
        assert sorted({p.seed for p in prompts}) == [188, 288, 588, 688, 888]
        assert load_prompts("unlearncanvas") == prompts
        w = UNLEARN_CANVAS
        assert (w.steps, w.guidance, w.sampler, w.side) == (100, 9.0, "ddim", 512)

    def test_miniature_behind_the_same_face(self):
        assert set(CANVAS.answers()) == set(canvas_grid())
        for name in ("moon", "ink"):
            assert CANVAS.plan(CANVAS.find(name)) == canvas_plan(CANVAS.find(name))
            assert load_prompts(f"plan:canvas:{name}") == canvas_plan(CANVAS.find(name))

    def test_plan(self):
        plan = UNLEARN_CANVAS.plan(UNLEARN_CANVAS.find("Van Gogh"))
        grid = [p for p in plan if p.role == "grid"]
        assert len(grid) == 20 * 5 + 50 * 20
        assert len(set(plan)) == len(plan)
        assert next(p.text for p in plan if p.role == "synonym") == "A Architectures image in Vincent van Gogh style."

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("A Dogs image in Van Gogh style", ("Dogs", "Van Gogh")),
            ("An Architectures image in photo style", ("Architectures", "Seed Images")),
            ("A Sea image in Photo style.", ("Sea", "Seed Images")),
            ("A Human image in Seed Images style.", ("Human", "Seed Images")),
            ("A Bears image in Blue Blooming style", ("Bears", "Blue Blooming")),
            ("A Bears image in Red_Blue_Ink style", ("Bears", "Red Blue Ink")),
        ],
    )
    def test_captions(self, text, words):
        assert unlearncanvas.parse(text) == words

    def test_every_caption_comes_back(self):
        for o in unlearncanvas.OBJECT_NAMES:
            for s in (*unlearncanvas.THEME_NAMES, *unlearncanvas.LEFT_OUT):
                assert unlearncanvas.parse(unlearncanvas.caption(o, s)) == (o, s)
                assert unlearncanvas.parse(unlearncanvas.sentence(o, s)) == (o, s)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a dog", "expected a caption like"),
            ("A Dogs image in Rembrandt style", "'rembrandt' in the caption .* is no style"),
            ("A Tigers image in Monet style", "'tigers' in the caption .* is no object"),
        ],
    )
    def test_other_captions(self, text, message):
        with pytest.raises(InputError, match=message):
            unlearncanvas.parse(text)

    def test_find(self):
        assert UNLEARN_CANVAS.find("van_gogh").name == "Van Gogh"
        assert UNLEARN_CANVAS.find("kittens").name == "Cats"
        with pytest.raises(InputError, match="no target to erase"):
            UNLEARN_CANVAS.find("Seed_Images")
        with pytest.raises(InputError, match="did you mean 'Van Gogh'"):
            UNLEARN_CANVAS.find("Van Gog")
        assert UNLEARN_CANVAS.requests(UNLEARN_CANVAS.find("Van Gogh"))[4] == "A Cats image in Van Gogh style."
        assert len(UNLEARN_CANVAS.requests(UNLEARN_CANVAS.find("Cats"))) == 51

    def test_a_concept_of_the_list_is_erased(self, sd, canvas):
        known = concept("unlearncanvas:Van_Gogh", sd)
        assert (known.name, known.kind, known.synonyms) == ("Van Gogh", "style", ("Vincent van Gogh",))
        made = erase("unlearncanvas:Van Gogh", sd)
        assert made.recipe.names == ["Van Gogh"]
        assert len(made.recipe.preserve) == 69, "49 other styles and 20 objects; the photographs are no concept"
        with pytest.raises(InputError, match="draws the world 'canvas', not 'unlearncanvas'"):
            concept("unlearncanvas:Van Gogh", canvas)
        assert concept("a: b", sd).name == "a: b"

    def test_the_protocols_sampling(self, sd, canvas):
        assert protocol_sampling(CANVAS, canvas).steps == 12
        with pytest.raises(InputError, match="is drawn at 512 x 512, tiny-sd draws 16 x 16"):
            protocol_sampling(UNLEARN_CANVAS, sd)
        how = protocol_sampling(replace(UNLEARN_CANVAS, side=16), sd)
        assert (how.steps, how.guidance, how.sampler, how.noise) == (100, 9.0, "ddim", "image")


def hand_made(name: str, see, prompts=None) -> Case:
    """A case of the real world in which `see(prompt) -> (object, style)` plays both judges."""
    prompts = tuple(prompts or UNLEARN_CANVAS.answers())
    gallery = Gallery(prompts, (Image.new("RGB", (8, 8)),) * len(prompts), {})
    seen = Verdict(*zip(*(see(p) for p in prompts), strict=True))
    true = Verdict(tuple(p.object for p in prompts), tuple(p.style for p in prompts))
    return Case(UNLEARN_CANVAS.find(name), frozenset({name}), gallery, gallery, seen, true, UNLEARN_CANVAS)


class TestConventions:
    """What counts as retained: every convention exactly, on confusions whose answer is plain."""

    @staticmethod
    def see(p):
        """Van Gogh comes out as Monet and loses its objects; Winter and the photographs come out as Rust."""
        if p.style == "Van Gogh":
            return "Sea" if p.object != "Sea" else "Dogs", "Monet"
        return p.object, "Rust" if p.style in ("Winter", "Seed Images") else p.style

    @pytest.mark.parametrize("full", [True, False])
    def test_style(self, full):
        plan = None if full else UNLEARN_CANVAS.plan(UNLEARN_CANVAS.find("Van Gogh"))
        case = hand_made("Van Gogh", self.see, plan)
        ua, ira, cra = (find(n)().score(case) for n in ("ua", "ira", "cra"))
        assert (ua.value, ua.n, ua.control) == (100, 100, 0)
        assert ira.value == pytest.approx(100 * 48 / 50)
        assert ira.details["convention"] == "50 styles retained, photographs among them"
        assert ira.details["other conventions"] == {
            "49 styles retained, photographs left out": pytest.approx(100 * 48 / 49, abs=1e-4)
        }
        assert cra.value == 100
        assert cra.details["convention"] == "target images excluded; 20 objects retained"
        included = "target images included, as in the published script; 20 objects retained"
        assert cra.details["other conventions"] == {included: pytest.approx(100 * 50 / 51, abs=1e-4)}
        assert cra.n == (5000 if full else 1000)
        chosen = find("cra")(targets=True).score(case)
        assert (chosen.value, chosen.details["convention"]) == (pytest.approx(100 * 50 / 51), included)
        assert find("ira")(photo=False).score(case).value == pytest.approx(100 * 48 / 49)
        assert find("cra")(photo=False).score(case) == cra, "objects in photographs count either way"

    def test_object(self):
        def see(p):
            return ("Cats", "Rust") if p.object == "Dogs" else self.see(p)

        case = hand_made("Dogs", see)
        ua, ira, cra = (find(n)().score(case) for n in ("ua", "ira", "cra"))
        assert ua.value == 100
        assert ira.value == pytest.approx(100 * 50 / 51)
        assert "other conventions" not in ira.details, "no convention changes it"
        assert cra.value == pytest.approx(100 * 48 / 51)
        script = "target images included, as in the published script; "
        rust = 2 / 51 / 20  # Rust is right in the images of dogs too, where everything is Rust
        assert cra.details["other conventions"] == {
            "target images excluded; 50 styles retained, photographs left out": pytest.approx(96, abs=1e-4),
            script + "51 styles retained, photographs among them": pytest.approx(
                100 * (48 / 51 * 19 / 20 + rust / 2), abs=1e-4
            ),
            script + "50 styles retained, photographs left out": pytest.approx(
                100 * (48 / 50 * 19 / 20 + 1 / 50 / 20), abs=1e-4
            ),
        }

    def test_without_a_control(self):
        case = replace(hand_made("Dogs", self.see), seen_control=None)
        told = find("ua")().score(case).to_json()
        assert told["value"] is not None
        assert [told[k] for k in ("control", "change", "change_low", "change_high")] == [None] * 4
        json.dumps(told, allow_nan=False)

    def test_combination(self):
        """Dogs by Van Gogh become dogs by Monet; all dogs by Rust become cats; a tenth of the rest is off."""

        def see(p):
            if (p.object, p.style) == ("Dogs", "Van Gogh"):
                return "Dogs", "Monet"
            return ("Cats" if (p.object, p.style) == ("Dogs", "Rust") else p.object), p.style

        case = hand_made("Dogs", see)
        pair = [UNLEARN_CANVAS.find("Van Gogh"), UNLEARN_CANVAS.find("Dogs")]
        got = {k: (s.value, s.n) for k, s in combination(case, pair).items()}
        assert got == {
            "combination_ua": (100, 5),
            "style_consistency": (100, 95),
            "object_consistency": (pytest.approx(100 * 49 / 50), 250),
            "unrelated": (100, 50 * 19 * 5),
        }


class TestAnswerSets:
    """Images made elsewhere."""

    def test_scores_are_what_the_judges_see(self, answer_set, judges):
        """The reference: both networks called by hand, image by image."""
        report = score_answers(answer_set, Judges.from_folder(judges, SMALL), concepts=["Van Gogh"])
        right, style = [], []
        nets = {k: AutoModelForImageClassification.from_pretrained(judges / k).eval() for k in ("object", "style")}
        for p in SMALL.answers():
            x = np.asarray(Image.open(answer_set / SMALL.file(p)).convert("RGB"), np.float32).transpose(2, 0, 1)
            x = torch.tensor(x)[None] / 127.5 - 1
            said = {k: m.config.id2label[m(pixel_values=x).logits.argmax().item()] for k, m in nets.items()}
            right.append(said["object"] == p.object)
            style.append(said["style"].replace("_", " ") == p.style)
        rows = list(enumerate(SMALL.answers()))
        gone, kept = ([k for k, p in rows if (p.style == "Van Gogh") == want] for want in (True, False))
        scores = report.scores
        assert scores["ua"].value == pytest.approx(100 - 100 * np.mean([style[k] for k in gone]))
        assert scores["ira"].value == pytest.approx(100 * np.mean([style[k] for k in kept]))
        assert scores["cra"].value == pytest.approx(100 * np.mean([right[k] for k in kept]))
        assert scores["in_prompt"].value == pytest.approx(100 * np.mean([right[k] for k in gone]))
        assert (scores["ua"].n, scores["ira"].n) == (6, 18)
        assert report.settings["protocol"] == {
            "world": "small",
            "seeds": [188, 288],
            "whole": True,
            "pixels": [16, 16],
        }
        assert report.settings["judge accuracy on real images"] == dict.fromkeys(("object", "style"), "not measured")
        assert report.settings["judge accuracy on the unerased model"] == "not measured"

    def test_control_batches_and_combinations(self, answer_set, judges, tmp_path):
        tools = Judges.from_folder(judges, SMALL)
        report = score_answers(
            answer_set, tools, concepts=["Monet", "Dogs", "van_gogh x cats"], control=answer_set, only=["ua", "cra"]
        )
        assert list(report.by_concept) == ["Monet", "Dogs", "van_gogh x cats"]
        assert set(report.by_concept["Monet"]) == {"ua", "cra"}
        assert report.by_concept["Monet"]["ua"].n == 4, "Monet's dogs ask for two erased concepts: nobody's images"
        assert report.by_concept["van_gogh x cats"]["combination_ua"].n == 2
        assert all(s.change == 0 for s in report.scores.values())
        accuracy = report.settings["judge accuracy on the unerased model"]
        seen = report.seen_control
        assert accuracy["object"] == round(
            100 * sum(s == p.object for s, p in zip(seen.objects, report.prompts, strict=True)) / 24, 2
        )
        gallery = answers(answer_set, SMALL)
        assert tools.look(gallery.images, 5) == tools.look(gallery.images, 64) == report.seen

    def test_fewer_seeds_are_said(self, answer_set, judges):
        for p in SMALL.answers([288]):
            (answer_set / SMALL.file(p)).unlink()
        report = score_answers(answer_set, Judges.from_folder(judges, SMALL), concepts=["Monet"], seeds=[188])
        assert report.settings["protocol"]["whole"] is False
        assert report.settings["images"] == 12

    def test_mistakes(self, answer_set, judges, tmp_path):
        """One line and exit code 2; no score."""

        def fails(message, *extra, folder=answer_set, concepts=("--concept", "Monet"), tools=judges):
            code, out, err = run("score", folder, "--protocol", "small", "--judges", tools, *concepts, *extra)
            assert code == 2, err
            assert message in err, err
            assert len(err.strip().splitlines()) == 1
            assert out == ""

        first = answer_set / "Van_Gogh_Dogs_seed188.jpg"
        kept = first.read_bytes()
        fails("name what was erased with --concept", concepts=())
        fails("did you mean 'Monet'", concepts=("--concept", "Monnet"))
        fails("expected a concept, or a style and an object", concepts=("--concept", "Monet x Van Gogh"))
        fails(
            "a combination has scores of its own (combination_ua,",
            "--only",
            "cra",
            concepts=("--concept", "Monet x Dogs"),
        )
        fails("unknown evaluator 'uaa'", "--only", "uaa")
        fails("nothing was measured; fid: no images of the unerased model were given", "--only", "fid", "--json")
        fails("no such answer set", folder=tmp_path / "none")
        (tmp_path / "empty").mkdir()
        fails("is empty: expected 24 images such as Van_Gogh_Dogs_seed188.jpg", folder=tmp_path / "empty")
        fails("no object judge in", tools=tmp_path / "empty")
        first.unlink()
        fails("lacks 1 of 24 images, such as Van_Gogh_Dogs_seed188.jpg: nothing is scored")
        (answer_set / "VanGogh_Dogs_188.jpg").write_bytes(kept)
        fails("1 images have other names, such as VanGogh_Dogs_188.jpg")
        first.write_bytes(kept)
        fails("holds 1 images that are no answers, such as VanGogh_Dogs_188.jpg")
        (answer_set / "VanGogh_Dogs_188.jpg").unlink()
        first.write_bytes(kept[:60])
        fails("cannot read")
        noise(random.Random(1), 24).save(first)
        fails("images of several sizes")
        first.write_bytes(kept)
        (tmp_path / "large").mkdir()
        for p in SMALL.answers():
            Image.new("RGB", (24, 24)).save(tmp_path / "large" / SMALL.file(p))
        fails("the control's (24, 24)", "--control", tmp_path / "large")
        fails("--seed-list: expected different whole numbers", "--seed-list", "188,188")
        fails("lacks 12 of 24 images", "--seed-list", "188,999")
        judge(judges / "object", ["Dogs", "Cats"], 0)
        fails("has no label for 'Sea' (1 of 3 missing)")

    def test_manifests_are_believed(self, answer_set, judges, tmp_path):
        """What a set's own manifest says of its images, sampling and erasers goes before what the user says."""

        def manifest(folder, erased="", **sampling):
            """As `erasers draw --protocol` writes it."""
            rows = []
            for p in SMALL.answers():
                with Image.open(folder / SMALL.file(p)) as f:
                    rows.append({"file": SMALL.file(p), "sha256": pixels_digest(f.convert("RGB")), **asdict(p)})
            erasers = [{"concepts": [{"name": erased}]}] if erased else []
            told = {"model": "m", "sampling": {"steps": 9, **sampling}, "erasers": erasers, "images": rows}
            (folder / "manifest.json").write_text(json.dumps(told))

        def refused(message, folder, *extra, concept="Van Gogh"):
            code, out, err = run(
                "score", folder, "--protocol", "small", "--judges", judges, "--concept", concept, *extra
            )
            assert (code, out, len(err.strip().splitlines())) == (2, "", 1), out + err
            assert message in err

        base = shutil.copytree(answer_set, tmp_path / "base")
        manifest(answer_set, "van gogh")
        manifest(base)
        tools = Judges.from_folder(judges, SMALL)
        assert score_answers(answer_set, tools, concepts=["Van Gogh"], control=base).scores["ua"].change == 0
        assert score_answers(answer_set, tools, concepts=["Monet x Dogs"]).scores, "an eraser of both has any name"
        refused("says that van gogh was erased; name that", answer_set, concept="Dogs")
        refused("expected an original drawn without erasers", base, "--control", answer_set)
        manifest(base, steps=10)
        refused("got steps 9 and 10", answer_set, "--control", base)
        manifest(base)
        first = SMALL.file(SMALL.answers()[0])
        shutil.copy(base / SMALL.file(SMALL.answers()[1]), base / first)
        refused(f"{first} is not the image of the manifest", answer_set, "--control", base)
        (base / "manifest.json").write_text("{}")
        refused("is no gallery", base)

    def test_the_order_of_seeds_does_not_matter(self, answer_set, judges):
        report = score_answers(answer_set, Judges.from_folder(judges, SMALL), concepts=["Monet"], seeds=[288, 188])
        assert report.settings["protocol"]["whole"] is True

    def test_command(self, answer_set, judges, tmp_path):
        args = ("score", answer_set, "--protocol", "small", "--judges", judges, "--concept", "Monet")
        code, out, err = run(*args, "--json", "--out", tmp_path / "s.json")
        assert code == 0, err
        told = json.loads(out)
        assert told == json.loads((tmp_path / "s.json").read_text())
        assert told["scores"]["ua"]["control"] is None
        assert told["scores"]["ira"]["details"]["convention"] == "3 styles retained, photographs among them"
        code, out, err = run(*args, "--control", answer_set, "--only", "ua")
        assert code == 0, err
        assert "judges on real images" in out
        assert "not the whole protocol" not in out
        for p in SMALL.answers([288]):
            (answer_set / SMALL.file(p)).unlink()
        assert "not the whole protocol: seeds [188], 16 x 16 pixels" in run(*args, "--seed-list", "188")[1]
        assert run("score", answer_set, "--concept", "Monet")[0] == 2

    def test_our_own_answer_set(self, sd, judges, tmp_path):
        """Drawn into a folder by the protocol's names and scored from there: the same verdicts as in memory."""
        how = Sampling(steps=1, guidance=1.0, batch=8)
        prompts = SMALL.answers()
        names = [SMALL.file(p, ".png") for p in prompts]
        gallery = collect(tmp_path / "mine", sd, prompts=prompts, how=how, names=names)
        tools = Judges.from_folder(judges, SMALL)
        report = score_answers(tmp_path / "mine", tools, concepts=["Monet"])
        assert report.seen == tools.look(gallery.images)


class TestOnAPipeline:
    """The same protocol with our own erasers attached."""

    HOW = Sampling(steps=1, guidance=1.0, batch=24)

    def test_evaluate(self, sd, judges):
        tools = Judges.from_folder(judges, SMALL)
        eraser = erase(["Monet", "Dogs"], sd)  # said without the world: kinds come from it
        report = evaluate(eraser, sd, only=["ua", "ira", "cra"], control=Control(sd, self.HOW, judges=tools))
        assert list(report.by_concept) == ["Monet", "Dogs"]
        assert report.by_concept["Monet"]["ua"].n == 2 * 2, "Monet's dogs ask for both: nobody's images"
        assert report.settings["world"] == "small"
        assert report.settings["storage"] == sum(a.nbytes + b.nbytes for a, b in eraser.payload.factors.values())
        every = Control(sd, self.HOW, judges=tools, every_seed=True)
        full = evaluate(eraser, sd, only=["cra"], control=every)
        assert len([p for p in full.prompts if p.role == "grid"]) == 24
        with pytest.raises(InputError, match="'moon' is no small concept, so no judge knows it"):
            evaluate(erase("moon", sd), sd, control=every)
        with pytest.raises(InputError, match="needs the whole answer set"):
            Control(sd, replace(self.HOW, noise="sequence"), judges=tools)

    def test_sequence(self, sd, judges):
        """Each step is the stack of the erasers so far; rebound is the change since a concept's own step."""
        control = Control(sd, self.HOW, judges=Judges.from_folder(judges, SMALL))
        stack = [erase(n, sd, method=("random", {"strength": 3.0}), seed=k) for k, n in enumerate(("Monet", "Sea"))]
        done = in_sequence(stack, sd, only=["ua"], control=control)
        rows = done.table()
        assert [(r["step"], r["concept"], r["erased at"]) for r in rows] == [
            (1, "Monet", 1),
            (2, "Monet", 1),
            (2, "Sea", 2),
        ]
        both = evaluate(stack, sd, only=["ua"], control=control)
        assert rows[1]["value"] == both.by_concept["Monet"]["ua"].value
        assert rows[0]["rebound"] == rows[2]["rebound"] == 0
        assert rows[1]["rebound"] == rows[1]["value"] - rows[0]["value"]
        assert done.on_top == (True, False)
        stack = [stack[0], erase("Sea", sd, method=("random", {"strength": 3.0}), on=stack[:1])]
        again = in_sequence(stack, sd, only=["ua"], control=control)
        assert again.on_top == (True, True)
        assert again.table()[0] == rows[0]
        with pytest.raises(InputError, match="at least two erasers"):
            in_sequence(stack[:1], sd, control=control)
        with pytest.raises(InputError, match="'Monet' is erased twice"):
            in_sequence([stack[0], stack[0]], sd, control=control)

    def test_the_table_of_sequences(self, sd, judges, tmp_path, monkeypatch, capsys):
        """bench/canvas_sequence.py: both ways, nothing made twice, the figures of `in_sequence` in its lines."""
        monkeypatch.syspath_prepend(Path(__file__).parent.parent / "bench")
        import canvas_sequence as bench

        control = Control(sd, self.HOW, judges=Judges.from_folder(judges, SMALL))
        names, work = ("Dogs", "Sea"), tmp_path / "work"
        work.mkdir()
        rows = [bench.scored("uce", way, names, control, work) for way in bench.WAYS]
        assert [r["on top"] for r in rows] == [(True, True), (True, False)]
        there = sorted(p.name for p in work.iterdir() if p.is_dir())
        assert there == ["uce-Dogs", "uce-Dogs-then-Sea", "uce-Sea"]
        stack = [Eraser.from_pretrained(work / n) for n in ("uce-Dogs", "uce-Dogs-then-Sea")]
        done = in_sequence(stack, sd, only=["ua", *bench.KEPT], control=control)
        assert [r for s in rows[0]["steps"] for r in s["ua"]] == done.table("ua")
        last = done.reports[-1].scores
        lines = bench.markdown(rows[0]).splitlines()
        ua = [f"{r['value']:.1f}" for r in done.table("ua")]
        assert lines[4].startswith(f"| Dogs | {ua[0]} |  | 0.0 | ")
        saw = rows[0]["steps"][1]["instead"]
        for r in done.table("ua")[1:]:
            assert 100 * sum(saw[r["concept"]].values()) / r["n"] == pytest.approx(r["value"])
        other = 100 * (saw["Dogs"].get("Sea", 0) + saw["Sea"].get("Dogs", 0)) / sum(r["n"] for r in done.table()[1:])
        ira = f"{last['ira'].value:.1f} ({last['ira'].change:+.1f})"
        assert lines[5].startswith(f"| Sea | {ua[1]} | {ua[2]} | {other:.1f} | {ira} | ")
        assert lines[5].endswith(f" | {len(done.reports[-1].prompts)} |")
        monkeypatch.setattr(bench, "erase", None)
        again = bench.scored("uce", "alone", names, control, work)
        assert again["steps"] == json.loads(json.dumps(rows[1]["steps"]))
        (work / "uce-alone-Dogs-Sea.json").unlink()
        again = bench.scored("uce", "alone", names, control, work)  # of the erasers that lie there
        assert json.dumps(again) == json.dumps(rows[1])
        (tmp_path / "out.json").write_text(json.dumps(rows))
        bench.main(["--print", "--out", str(tmp_path / "out.json")])
        assert capsys.readouterr().out.strip() == "\n".join(map(bench.markdown, rows)).strip()

    def test_the_picture_of_sequences(self, canvas, tmp_path, monkeypatch):
        """A line for each erased concept and four that stay; a column for the original and after each step."""
        monkeypatch.syspath_prepend(Path(__file__).parent.parent / "bench")
        import canvas_sequence as bench

        seen = {}
        monkeypatch.setattr(bench, "grid", lambda columns, rows, **_: seen.update(columns=columns, rows=rows))
        monkeypatch.setattr(bench, "draw", partial(bench.draw, how=replace(sampling(canvas), steps=1)))
        bench.picture("uce", ("moon", "mosaic"), canvas, tmp_path)
        assert list(seen["columns"]) == ["original", "moon", "then mosaic"]
        assert len(seen["rows"]) == len(set(seen["rows"])) == 6
        asked = [[name in row.split(", ") for row in seen["rows"]] for name in ("moon", "mosaic")]
        assert asked == [[True] + [False] * 5, [False, True] + [False] * 4]
        plain, one, two = ([image.tobytes() for image in images] for images in seen["columns"].values())
        assert plain[0] != one[0]
        assert one[1] != two[1], "the second eraser is attached beside the first"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["uce-moon", "uce-moon-then-mosaic"]


def timm_state(width=128, depth=2, patch=8, side=32, classes=51, seed=0):
    """The weights of a small ViT by timm's names, random."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng) * 0.1

    state = {"cls_token": normal(1, 1, width), "pos_embed": normal(1, (side // patch) ** 2 + 1, width)}
    state |= {"patch_embed.proj.weight": normal(width, 3, patch, patch), "patch_embed.proj.bias": normal(width)}
    sizes = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    sizes |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for n in range(depth):
        for name in ("norm1", "norm2"):
            state[f"blocks.{n}.{name}.weight"], state[f"blocks.{n}.{name}.bias"] = 1 + normal(width), normal(width)
        for name, shape in sizes.items():
            state[f"blocks.{n}.{name}.weight"], state[f"blocks.{n}.{name}.bias"] = normal(*shape), normal(shape[0])
    state["norm.weight"], state["norm.bias"] = 1 + normal(width), normal(width)
    state["head.weight"], state["head.bias"] = normal(classes, width), normal(classes)
    return state


def plain_vit(state, x, heads):
    """A ViT's forward pass (Dosovitskiy et al., arXiv 2010.11929) written out, in float64."""
    w = {k: v.double() for k, v in state.items()}
    width, patch = w["patch_embed.proj.weight"].shape[0], w["patch_embed.proj.weight"].shape[-1]
    n, _, high, wide = x.shape
    cut = x.double().reshape(n, 3, high // patch, patch, wide // patch, patch).permute(0, 2, 4, 1, 3, 5)
    tokens = cut.reshape(n, -1, 3 * patch * patch) @ w["patch_embed.proj.weight"].reshape(width, -1).T
    h = torch.cat([w["cls_token"].expand(n, 1, width), tokens + w["patch_embed.proj.bias"]], 1) + w["pos_embed"]

    def norm(h, name):
        m, v = h.mean(-1, keepdim=True), h.var(-1, unbiased=False, keepdim=True)
        return (h - m) / (v + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    for b in range(1 + max(int(k.split(".")[1]) for k in w if k.startswith("blocks"))):
        p = f"blocks.{b}"
        qkv = norm(h, f"{p}.norm1") @ w[f"{p}.attn.qkv.weight"].T + w[f"{p}.attn.qkv.bias"]
        q, k, v = qkv.reshape(n, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        seen = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1) @ v
        seen = seen.transpose(1, 2).reshape(n, -1, width)
        h = h + seen @ w[f"{p}.attn.proj.weight"].T + w[f"{p}.attn.proj.bias"]
        a = norm(h, f"{p}.norm2") @ w[f"{p}.mlp.fc1.weight"].T + w[f"{p}.mlp.fc1.bias"]
        a = a * 0.5 * (1 + torch.erf(a / 2**0.5))
        h = h + a @ w[f"{p}.mlp.fc2.weight"].T + w[f"{p}.mlp.fc2.bias"]
    return norm(h, "norm")[:, 0] @ w["head.weight"].T + w["head.bias"]


class TestConvertJudge:
    """A timm checkpoint in a pickle becomes a transformers folder that computes the same."""

    @pytest.mark.parametrize("wrapped", [True, False])
    def test_against_a_plain_forward(self, tmp_path, wrapped):
        state = timm_state()
        torch.save({"model_state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "style50.pth")
        made = convert_judge(tmp_path / "style50.pth", tmp_path / "judges", kind="style")
        model = AutoModelForImageClassification.from_pretrained(made, use_safetensors=True).eval()
        x = torch.rand(4, 3, 32, 32) * 2 - 1
        with torch.no_grad():
            got = model(pixel_values=x).logits.double()
        want = plain_vit(state, x, heads=2)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
        assert want.std() > 0.1
        assert [model.config.id2label[k] for k in (0, 38, 50)] == ["Abstractionism", "Seed_Images", "Winter"]
        assert {p.suffix for p in made.iterdir()} == {".json", ".safetensors"}, "no pickle is left"

    def test_against_timm(self, tmp_path):
        timm = pytest.importorskip("timm")
        torch.manual_seed(0)
        net = timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=20
        ).eval()
        torch.save({"model_state_dict": net.state_dict()}, tmp_path / "style50_cls.pth")
        made = convert_judge(tmp_path / "style50_cls.pth", tmp_path / "judges", kind="object")
        model = AutoModelForImageClassification.from_pretrained(made).eval()
        x = torch.rand(3, 3, 32, 32) * 2 - 1
        with torch.no_grad():
            torch.testing.assert_close(model(pixel_values=x).logits, net(x), atol=1e-5, rtol=1e-4)

    def test_images_are_shown_as_published(self, tmp_path):
        """Resize, ToTensor and Normalize(.5) of torchvision."""
        transforms = pytest.importorskip("torchvision.transforms")
        torch.save(timm_state(), tmp_path / "s.pth")
        torch.save(timm_state(classes=20), tmp_path / "o.pth")
        for kind in ("style", "object"):
            convert_judge(tmp_path / f"{kind[0]}.pth", tmp_path / "judges", kind=kind)
        tools = Judges.from_folder(tmp_path / "judges", UNLEARN_CANVAS)
        shown = [transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
        image = noise(random.Random(0), 50).resize((64, 50))
        want = transforms.Compose(shown)(image)
        torch.testing.assert_close(tools._lenses["style"].see([image], "cpu")[0], want, atol=1e-6, rtol=0)
        logits = plain_vit(timm_state(), want[None], heads=2)
        assert tools.look([image]).styles[0] == unlearncanvas.THEME_NAMES[logits.argmax().item()]

    def test_mistakes(self, tmp_path):
        state, path = timm_state(), tmp_path / "j.pth"
        args = (path, tmp_path / "judges")

        class Bad:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "owned"),)

        def saved(value):
            torch.save(value, path)

        with pytest.raises(InputError, match="no such file"):
            convert_judge(*args, kind="style")
        path.write_bytes(pickle.dumps(Bad()))
        with pytest.raises(InputError, match="cannot be read as tensors alone"):
            convert_judge(*args, kind="style")
        saved({"model_state_dict": Bad()})
        with pytest.raises(InputError, match="cannot be read as tensors alone"):
            convert_judge(*args, kind="style")
        assert not (tmp_path / "owned").exists()
        saved(state)
        with pytest.raises(InputError, match=r"51 classes, unlearncanvas has 20 objects: is it the object judge"):
            convert_judge(*args, kind="object")
        with pytest.raises(InputError, match="unknown kind of judge 'styles'"):
            convert_judge(*args, kind="styles")
        saved({k: v for k, v in state.items() if k != "blocks.1.attn.qkv.bias"})
        with pytest.raises(InputError, match=r"has no 'blocks.1.attn.qkv.bias'"):
            convert_judge(*args, kind="style")
        saved({**state, "pre_logits.fc.weight": torch.zeros(2)})
        with pytest.raises(InputError, match=r"also has 'pre_logits.fc.weight'"):
            convert_judge(*args, kind="style")
        saved({**state, "norm.weight": torch.zeros(7)})
        with pytest.raises(InputError, match=r"vit.layernorm.weight is \(7,\), expected \(128,\)"):
            convert_judge(*args, kind="style")
        saved([1, 2])
        with pytest.raises(InputError, match="holds no state dict"):
            convert_judge(*args, kind="style")
        saved(timm_state(width=24))
        with pytest.raises(InputError, match="say how many heads"):
            convert_judge(*args, kind="style")
        assert not (tmp_path / "judges").exists()
        code, out, err = run("convert-judge", path, "--kind", "style", "--out", tmp_path / "judges", "--heads", 2)
        assert code == 0, err
        assert "its accuracy on real images is not known yet" in out
        assert run("convert-judge", path, "--kind", "style", "--out", tmp_path / "judges", "--heads", 2)[0] == 2


COLOURS = {"Van Gogh": (200, 30, 30), "Monet": (30, 200, 30), "Ink Art": (30, 30, 200), "Seed Images": (128, 128, 128)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of the real layout: a style is a colour, an object a place."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for style, colour in COLOURS.items():
        for k, thing in enumerate(SMALL.names("object")):
            for n in range(1, 21):
                pixels = rng.integers(0, 40, (16, 16, 3))
                pixels[:, :] += np.array(colour) // 2
                pixels[4 * k : 4 * k + 6] += 90
                path = root / style.replace(" ", "_") / thing / f"{n}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=95)
    return root


class TestTrainJudge:
    """The shipped recipe on a folder of the real layout."""

    LESSON = Lesson(epochs=6, lr=2e-3, batch=24, side=16)

    def test_layout_and_split(self, data, tmp_path):
        rows = filed(data)
        assert len(rows) == 4 * 3 * 20
        assert (rows[0].style, rows[0].object, [r.number for r in rows[:3]]) == ("ink art", "cats", [1, 2, 3])
        train, test = split(data, "style", SMALL)
        assert (len(train), len(test)) == (216, 24)
        assert {f.number for f, _ in test} == {19, 20}
        assert {SMALL.names("style")[k] for f, k in train if f.style == "van gogh"} == {"Van Gogh"}
        (tmp_path / "Monet/Dogs").mkdir(parents=True)
        noise(random.Random(0)).save(tmp_path / "Monet/Dogs/one.jpg")
        with pytest.raises(InputError, match=r"expected images as style/object/1\.jpg"):
            filed(tmp_path)
        (tmp_path / "Monet/Dogs/one.jpg").rename(tmp_path / "Monet/Dogs/1.jpg")
        message = r"no training images \(1 to 18\) of 'Van Gogh', 'Ink Art', 'Seed Images' \(3 of 4 styles"
        with pytest.raises(InputError, match=message):
            split(tmp_path, "style", SMALL)

    def test_it_learns_and_is_measured(self, data, tmp_path):
        made = {
            k: train_judge(data, tmp_path / "j", kind=k, lesson=self.LESSON, world=SMALL) for k in ("style", "object")
        }
        told = {k: json.loads((f / "judge.json").read_text())["accuracy on real images"] for k, f in made.items()}
        assert told["style"]["value"] >= 90
        assert told["style"]["n"] == 24
        assert told["object"]["value"] >= 60, "chance is 33"
        tools = Judges.from_folder(tmp_path / "j", SMALL)
        assert measure(tools, data) == told, "the judges read from files are those that were trained"
        assert tools.record()["style"]["accuracy on real images"] == told["style"]

    def test_judges_are_measured_on_every_concept_or_not_at_all(self, data, judges, tmp_path):
        """Test images alone are enough; a style less, and nothing is written."""
        for path in (p for n in (19, 20) for p in data.glob(f"*/*/{n}.jpg")):
            copy = tmp_path / "test" / path.relative_to(data)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        tools = Judges.from_folder(judges, SMALL)
        found = measure(tools, tmp_path / "test")
        assert found["style"]["n"] == found["object"]["n"] == 24
        written = (judges / "style/judge.json").read_bytes()
        for gone, message in (("Monet/*", "'Monet' .1 of 4 styles"), ("*/Dogs", "'Dogs' .1 of 3 objects")):
            for folder in (tmp_path / "test").glob(gone):
                folder.rename(tmp_path / f"{folder.parent.name}-{folder.name}")
            with pytest.raises(InputError, match=rf"no test images \(19 and 20\) of {message}"):
                measure(tools, tmp_path / "test")
            for folder in tmp_path.glob("*-*"):
                folder.rename(tmp_path / "test" / folder.name.replace("-", "/"))
        assert (judges / "style/judge.json").read_bytes() == written

    def test_the_same_seed_is_the_same_judge_and_a_start_is_used(self, data, tmp_path):
        short = replace(self.LESSON, epochs=1)
        one, two = (train_judge(data, tmp_path / n, kind="style", lesson=short, world=SMALL) for n in "ab")
        assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
        body = judge(tmp_path / "start", ["a", "b"], 3)
        slow = replace(short, start=str(tmp_path / "start"), lr=1e-7, side=0)
        made = train_judge(data, tmp_path / "c", kind="style", lesson=slow, world=SMALL)
        model = AutoModelForImageClassification.from_pretrained(made)
        assert model.config.num_labels == 4
        key = "vit.layers.0.mlp.fc1.weight"
        torch.testing.assert_close(model.state_dict()[key], body.state_dict()[key], atol=1e-4, rtol=0)
        with pytest.raises(InputError, match="cannot start from"):
            train_judge(data, tmp_path / "d", kind="style", lesson=replace(short, start=str(data)), world=SMALL)

    def test_command(self, data, judges, answer_set, tmp_path):
        args = ("--kind", "style", "--out", tmp_path / "j", "--protocol", "small", "--side", 16, "--epochs", 1)
        code, out, err = run("train-judge", data, *args)
        assert code == 0, err
        assert "of 24 test images" in out
        assert run("train-judge", data, *args)[0] == 2, "a judge that is there stays"
        extra = ("--judges", judges, "--real", data, "--only", "ua", "--json")
        code, out, err = run("score", answer_set, "--protocol", "small", "--concept", "Monet", *extra)
        assert code == 0, err
        assert json.loads(out)["settings"]["judge accuracy on real images"]["style"]["n"] == 24


class TestUnpack:
    """The Hub's parquet, laid out as folders."""

    @pytest.fixture
    def parquet(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        rng, rows = random.Random(0), []
        words = [("Dogs", "Van Gogh"), ("Architectures", "Seed Images"), ("Dogs", "Techno"), ("Dogs", "Van Gogh")]
        for kind, (thing, style) in zip(("JPEG", "PNG", "JPEG", "JPEG"), words, strict=True):
            data = io.BytesIO()
            noise(rng).save(data, kind)
            text = unlearncanvas.caption(thing, style)
            rows.append({"image": {"bytes": data.getvalue(), "path": None}, "text": text})
        import pyarrow.parquet as pq

        pq.write_table(arrow.Table.from_pylist(rows), tmp_path / "train.parquet")
        return tmp_path / "train.parquet", rows

    def test_folders(self, parquet, tmp_path):
        path, rows = parquet
        assert [(o, s) for _, o, s in captioned([path])] == [
            ("Dogs", "Van Gogh"),
            ("Architectures", "Seed Images"),
            ("Dogs", "Techno"),
            ("Dogs", "Van Gogh"),
        ]
        code, out, err = run("unpack", path, "--out", tmp_path / "data")
        assert code == 0, err
        assert "4 images, numbered in the order of the rows" in out
        told = " ".join(out.split())
        assert (
            "1020 of 1020 pairs of theme and object have fewer than 20 images, such as Architectures in Abstr" in told
        )
        assert "name all of its parquet files in one command" in told
        found = [(f.style, f.object, f.number) for f in filed(tmp_path / "data")]
        assert found == [
            ("seed images", "architectures", 1),
            ("techno", "dogs", 1),
            ("van gogh", "dogs", 1),
            ("van gogh", "dogs", 2),
        ]
        for style, thing in product(unlearncanvas.THEME_NAMES, unlearncanvas.OBJECT_NAMES):
            place = tmp_path / "data" / style.replace(" ", "_") / thing
            place.mkdir(parents=True, exist_ok=True)
            for k in range(3, 21) if (style, thing) == ("Van Gogh", "Dogs") else range(1, 21):
                (place / f"{k}.jpg").touch()
        assert lacking(tmp_path / "data") == "", "styles that are no part of the benchmark may lack images"
        (tmp_path / "data/Winter/Sea/7.jpg").unlink()
        assert "1 of 1020 pairs of theme and object have fewer than 20 images, such as Sea in Winter (19)" in lacking(
            tmp_path / "data"
        )
        assert (tmp_path / "data/Van_Gogh/Dogs/2.jpg").read_bytes() == rows[3]["image"]["bytes"]
        assert Image.open(tmp_path / "data/Seed_Images/Architectures/1.jpg").format == "JPEG"

    @pytest.mark.parametrize(
        ("paths", "numbered"),
        [
            (["a/19.jpg", "1.jpg", "Dogs_2.png", "20.jpg"], [(1,), (2,), (19, 20)]),
            (["a/19.jpg", "1.jpg", "Dogs_2.png", "19.jpg"], None),  # Van Gogh's dogs would both be 19
            (["1.jpg", "2.jpg", "3.jpg", "21.jpg"], None),
            (["1.jpg", "2.jpg", "3.jpg", "x.jpg"], None),
        ],
    )
    def test_images_keep_their_numbers(self, parquet, tmp_path, paths, numbered):
        """Judges are trained on 1 to 18 and tested on 19 and 20, and rows are often sorted as text."""
        import pyarrow
        import pyarrow.parquet as pq

        path, rows = parquet
        for row, name in zip(rows, paths, strict=True):
            row["image"]["path"] = name
        pq.write_table(pyarrow.Table.from_pylist(rows), path)
        code, out, err = run("unpack", path, "--out", tmp_path / "data")
        assert code == 0, err
        assert ("numbered as the rows name their files" in out) is bool(numbered), out
        found = {}
        for f in filed(tmp_path / "data"):
            found.setdefault((f.style, f.object), []).append(f.number)
        assert sorted(map(tuple, found.values())) == (numbered or [(1,), (1,), (1, 2)])
        kept = tmp_path / "data/Van_Gogh/Dogs" / ("20.jpg" if numbered else "2.jpg")
        assert kept.read_bytes() == rows[3]["image"]["bytes"]

    def test_mistakes(self, parquet, tmp_path, monkeypatch):
        (tmp_path / "not.parquet").write_bytes(b"PAR1 and no more")
        for name, message in (("not.parquet", "cannot read"), ("missing.parquet", "cannot read")):
            with pytest.raises(InputError, match=message):
                unpack([tmp_path / name], tmp_path / "out")
        assert not (tmp_path / "out").exists()

        def gone(name):
            raise ImportError(name)

        monkeypatch.setattr("erasers.eval._unpack.importlib.import_module", gone)
        with pytest.raises(InputError, match="pip install pyarrow"):
            unpack([parquet[0]], tmp_path / "out")


def test_cost():
    """Seconds and memory of a block that holds 64 MB for a moment."""
    start = time.perf_counter()
    with Cost() as cost:
        held = np.ones(64 * 2**20, np.uint8)
        time.sleep(0.05)
        del held
    told, whole = cost.to_json(), time.perf_counter() - start
    assert 0.05 <= told["seconds"] <= round(whole, 3) + 0.001
    if told["on"] == "cpu" and told["peak MB"] is not None:
        assert 60 <= told["peak MB"] < 200


def test_conventions_and_judges_are_printed_below_the_scores(monkeypatch):
    """Also the value by the other conventions: a table alone does not say by which it is counted."""
    streams = io.StringIO(), io.StringIO()
    monkeypatch.setattr(cli.out, "file", streams[0])
    monkeypatch.setattr(cli.err, "file", streams[1])
    case = hand_made("Van Gogh", TestConventions.see)
    compare.show("by hand", {n: find(n)().score(case) for n in ("ua", "ira")})
    real = {"object": {"value": 98.5, "n": 40}, "style": "not measured"}
    told = {"judge accuracy on real images": real, "judge accuracy on the unerased model": "not measured"}
    answers_commands.say_judges(told)
    text = streams[0].getvalue()
    assert "ira: 50 styles retained, photographs among them; 98.0 by: 49 styles retained, photographs left out" in text
    assert 'judges on real images: {"object": {"value": 98.5, "n": 40}, "style": "not measured"}' in text
    assert "judges on unerased images: not measured" in text
    assert "ua: not named by the style judge" in text
    few = replace(
        find("ira")().score(case),
        details={"convention": "net; against photos", "reference images": 9, "warning": "few"},
    )
    compare.say_how({"fid": few, "kid": NotApplicable("nothing")})
    assert "fid: net; against photos (9 images)" in streams[0].getvalue()
    assert streams[1].getvalue() == "fid: few\n"


def test_commands_on_a_model_of_another_world(judges, tmp_path):
    """Erase a concept of the list, evaluate with judges of one's own, one after the other."""
    tiny.sd().save_pretrained(tmp_path / "m")
    for k, name in enumerate(("small:Monet", "Sea")):
        made = run("erase", name, "--model", tmp_path / "m", "--out", tmp_path / f"e{k}")
        assert made[0] == 0, made[2]
    both = ("--model", tmp_path / "m", "--eraser", tmp_path / "e0", "--eraser", tmp_path / "e1")
    how = ("--protocol", "small", "--judges", judges, "--steps", 1, "--guidance", 1, "--only", "ua", "--json")
    code, out, err = run("evaluate", *both, *how)
    assert code == 0, err
    told = json.loads(out)
    assert "judges on unerased images: {" in run("evaluate", *both, *how[:-1])[1]
    assert set(told["by_concept"]) == {"Monet", "Sea"}
    assert [c["seconds"] > 0 for c in told["settings"]["cost"]] == [True, True]
    held = [load_file(tmp_path / f"e{k}/pytorch_lora_weights.safetensors") for k in (0, 1)]
    assert told["settings"]["storage"] == sum(t.nbytes for file in held for t in file.values())
    code, out, err = run("evaluate", *both, *how, "--sequential")
    assert code == 0, err
    steps = json.loads(out)
    assert [r["concept"] for r in steps["steps"]] == ["Monet", "Monet", "Sea"]
    assert steps["reports"][1]["by_concept"] == told["by_concept"]
    how = (*how[:6], "--steps", 1, "--only", "cra,ira", "--set", "cra.targets=true", "--sequential")
    code, out, err = run("evaluate", *both, *how, "--json")
    assert code == 0, err
    last = json.loads(out)["reports"][1]["by_concept"]["Sea"]["cra"]
    assert last["details"]["convention"].startswith("target images included"), "--set is used"
    code, out, err = run("evaluate", *both, *how)
    assert code == 0, err
    for head in ("cra, %", "ira, %"):
        assert re.search(rf"{head}.+interval\W+n\W+unerased\W+rebound", out), out
    row = f"{last['value']:.1f} .+ {last['n']} .+ {last['control']:.1f} "
    assert re.search(row, next(line for line in out.splitlines() if "Sea" in line)), out
    assert "judges on real images" in out
    assert run("evaluate", *both, "--steps", 1)[0] == 2, "its world is not known without --judges"


def test_benchmark_of_another_world(judges, tmp_path):
    """Cells, stacks, table, report and heat maps of a user's model with a user's judges, as of Canvas'."""
    tiny.sd().save_pretrained(tmp_path / "m")
    model = ("benchmark", "--models", tmp_path / "m", "--methods", "uce,random", "--concepts", "Monet,van_gogh+Sea")
    how = ("--protocol", "small", "--steps", 1, "--guidance", 1, "--only", "ua,ira,cra", "--out", tmp_path / "b")
    code, _, err = run(*model, *how, "--judges", judges)
    assert code == 0, err
    rows = rows_of(tmp_path / "b")
    assert {r["concept"] for r in rows} == {"Monet", "Van Gogh+Sea"}
    assert {r["world"] for r in rows} == {"small"}
    assert all(len(r["hits"][d]) == len(plan_of(r["concept"], SMALL)) for r in rows for d in ("object", "style"))
    assert all(r["pictures"] for r in rows)
    frame = read_table(tmp_path / "b")
    assert dict(zip(frame["concept"], frame["domain"], strict=True)) == {"Monet": "style", "Van Gogh+Sea": "both"}
    assert set(frame["split"]) == {""}, "only Canvas has dev concepts"
    code, _, err = run("report", tmp_path / "b", "--out", tmp_path / "r.html", "--figures", tmp_path / "f")
    assert code == 0, err
    maps = [p.read_text() for p in (tmp_path / "f").glob("changes-*.svg")]
    assert len(maps) == 2
    assert all(f">{name}</text>" in text for text in maps for name in (*SMALL.concepts, "Van Gogh+Sea"))
    assert "&gt;moon<" not in maps[0]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "b/cells").rglob("*.json")}
    assert run(*model, *how, "--judges", judges)[0] == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "b/cells").rglob("*.json")}
    judge(tmp_path / "others/object", SMALL.names("object"), 7)
    judge(tmp_path / "others/style", SMALL.names("style"), 8)
    for more, message in (
        (("--judges", tmp_path / "others"), "was scored by the judges {'world': 'small'"),
        ((), "no judges of small come with the package"),
        (("--judges", judges, "--split", "dev"), "only Canvas' concepts are parted"),
        (("--judges", judges, "--concepts", "Monnet"), "did you mean 'Monet'"),
    ):
        code, _, err = run(*model, *how, *more)
        assert code == 2
        assert message in " ".join(err.split()), err
    record = json.loads((tmp_path / "b/benchmark.json").read_text())
    record["models"][str(tmp_path / "m")] = {
        k: v for k, v in record["models"][str(tmp_path / "m")].items() if k != "judges"
    }
    (tmp_path / "b/benchmark.json").write_text(json.dumps(record))
    code, _, err = run(*model, *how, "--judges", judges, "--concepts", "Monet,Sea")
    assert code == 2
    assert "was scored by the judges of the pipeline's own world" in err, "as folders of earlier releases"


def test_canvas_judges_say_how_good_they_are(canvas):
    known = judges_of(canvas).record()
    assert known["object"]["accuracy on real images"] == known["style"]["accuracy on real images"]
    assert known["style"]["accuracy on real images"] == {"value": 100.0, "n": 1200}
    assert known["style"]["weights"] != known["object"]["weights"]


def test_draw_command(tmp_path):
    """The answer set of the miniature, and what it refuses."""
    args = ("draw", "--protocol", "canvas", "--seed-list", "188", "--steps", 1, "--guidance", 1, "--batch", 60)
    code, out, err = run(*args, "--out", tmp_path / "g")
    assert code == 0, err
    assert len(list((tmp_path / "g").glob("*_seed188.jpg"))) == 120
    assert run(*args, "--out", tmp_path / "g")[0] == 0, "nothing is left to draw"
    code, _, err = run(*args, "--noise", "sequence", "--out", tmp_path / "g")
    assert (code, "its noise is image, asked for sequence" in err) == (2, True)
    assert run(*args, "--prompts", "everyday", "--out", tmp_path / "x")[0] == 2
    assert run("draw", "--seed-list", "1", "--out", tmp_path / "x")[0] == 2
    assert run("draw", "--protocol", "unlearncanvas", "--out", tmp_path / "x")[0] == 2
    assert not (tmp_path / "x").exists()
    code, out, err = run("score", tmp_path / "g", "--protocol", "canvas", "--concept", "moon", "--seed-list", "188")
    assert code == 0, err
    assert "not the whole protocol: seeds [188]" in out


def test_logits_are_not_compared_with_themselves():
    """The reference forward above answers to torch's own attention and layer norm."""
    state, x = timm_state(depth=1), torch.rand(2, 3, 32, 32)
    w = {k: v.double() for k, v in state.items()}
    h = F.conv2d(x.double(), w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=8).flatten(2).mT
    h = torch.cat([w["cls_token"].expand(2, 1, 128), h], 1) + w["pos_embed"]
    n = F.layer_norm(h, (128,), w["blocks.0.norm1.weight"], w["blocks.0.norm1.bias"], 1e-6)
    q, k, v = (n @ w["blocks.0.attn.qkv.weight"].T + w["blocks.0.attn.qkv.bias"]).chunk(3, -1)
    split_heads = [t.unflatten(-1, (2, 64)).transpose(1, 2) for t in (q, k, v)]
    a = F.scaled_dot_product_attention(*split_heads).transpose(1, 2).flatten(2)
    h = h + a @ w["blocks.0.attn.proj.weight"].T + w["blocks.0.attn.proj.bias"]
    n = F.layer_norm(h, (128,), w["blocks.0.norm2.weight"], w["blocks.0.norm2.bias"], 1e-6)
    m = F.gelu(n @ w["blocks.0.mlp.fc1.weight"].T + w["blocks.0.mlp.fc1.bias"])
    h = h + m @ w["blocks.0.mlp.fc2.weight"].T + w["blocks.0.mlp.fc2.bias"]
    n = F.layer_norm(h, (128,), w["norm.weight"], w["norm.bias"], 1e-6)
    torch.testing.assert_close(plain_vit(state, x, 2), n[:, 0] @ w["head.weight"].T + w["head.bias"])
