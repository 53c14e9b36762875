"""The contract that every method in the folder keeps, on every family."""

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import test_cli
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusionImg2ImgPipeline
from families import EVERY, build

from erasers.erase import CHECKS, _contract, configure, erase, find, methods, to_preserve
from erasers.pipelines import load, wrap
from erasers.prompts import Concept, InputError

CANVAS = ("canvas-sd", "canvas-flow")
FEW = ("sd", "sdxl", "sd3", "flux", "z_image", *CANVAS)
"""A closed form and a trained method meet every family; the others those that differ most."""
OWN = {
    "sfd": ("sd", "sdxl", "sd3", "flux", "z_image", "canvas-sd"),
    "sfd_many_step": ("sd",),
    "unhype": ("sd", "sd3", "flux_cfg", "z_image", "canvas-sd"),
}
"""Methods that meet other families: their trainer is another's, or more would add time only."""
CASES = [(m, f) for m in methods() for f in [*EVERY, *CANVAS] if m in ("uce", "esd") or f in OWN.get(m, FEW)]
CASES.remove(("uce", "hidream"))  # refused in one line


PROJECT = '''"""Our lab's method: the concept's prompt learns to predict what the empty prompt predicts."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from erasers.erase import Finetune, Finetuner, pick


@dataclass(frozen=True)
class Project(Finetune):
    """Projection onto the empty prompt."""

    strength: float = field(default=1.0, metadata={"help": "how far to go (a factor)"})

    paper: ClassVar[str] = "our lab, to appear"
    presets: ClassVar[dict] = {"paper": {}, "sd": {"lr": 0.01}, "canvas": {"lr": 0.001}}

    def run(self, backbone, task):
        return Training(self, backbone, task)


class Training(Finetuner):
    def encode(self):
        self.concept = self.backbone.encode([c.name for c in self.task.concepts])

    def draw(self, rng):
        n = self.settings.batch
        return {
            "prompt": pick(n, len(self.concept), rng),
            "noise": torch.randn(n, *self.backbone.latent_shape, generator=rng),
            "time": self.backbone.times(n, rng),
        }

    def loss(self, draws):
        x, t, concept = draws["noise"], draws["time"], self.concept[draws["prompt"]]
        with torch.no_grad(), self.student.teacher():
            asked = self.backbone.denoise(x, t, concept)
            empty = self.backbone.denoise(x, t, self.null[[0] * len(t)])
        target = asked + self.settings.strength * (empty - asked)
        with self.student.on():
            return (self.backbone.denoise(x, t, concept) - target).square().mean()
'''


class Made:
    """The erasers that one method made of one family, built anew each time, in earlier checks, for those that come
    after: making them is most of the time. Each check takes one of a name once; what it asks for again is made anew, as
    all is that the check of the untouched base asks for.
    """

    def __init__(self):
        self.pair, self.erasers = None, {}

    def maker(self, pair, check, make):
        if pair != self.pair:
            self.pair, self.erasers = pair, {}
        taken = {_contract.CONCEPTS[0]} if check is _contract.base_untouched else set()

        def made(*given, name=_contract.CONCEPTS[0]):
            if name in taken or name not in self.erasers:
                self.erasers[name] = make(*given, name=name)
            taken.add(name)
            return self.erasers[name]

        return made


MADE = Made()


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize(("method", "family"), CASES, ids=["-".join(c) for c in CASES])
def test_contract(method, family, check, tmp_path, monkeypatch):
    backbone = load(family) if family in CANVAS else build(family)
    monkeypatch.setattr(_contract, "_make", MADE.maker((method, family), check, _contract._make))
    check(method, backbone, folder=tmp_path)


@pytest.mark.parametrize("check", CHECKS[1:], ids=lambda c: c.__name__)
@pytest.mark.parametrize("method", ["esd", "concept_ablation", "gradient_ascent", "anchor_finetune"])
def test_contract_of_dense_training(method, check, sd, tmp_path):
    few = {"esd": {"pool": 0, "keep": 0.5}}.get(method, {"images": 2})
    check(method, sd, folder=tmp_path, given={"dense": True, "steps": 2, "batch": 2, "sampler_steps": 2, **few})


@pytest.mark.parametrize("name", methods())
def test_every_method_of_the_folder_has_three_presets(name):
    assert {"paper", "sd", "canvas"} <= set(find(name).presets)


UNETS = ("sd", "sd2", "sdxl")
ONCE = [(m, f) for m, f in CASES if m != "sfd_many_step"]  # its arithmetic is sfd's
HALVES = [(m, f, torch.bfloat16) for m, f in ONCE if f not in CANVAS and (m in ("esd", "uce") or f in ("sd", "sd3"))]
HALVES += [(m, f, torch.float16) for m, f in ONCE if f in UNETS and (m == "esd" or f == "sd")]
"""Two methods on every family, every method on a UNet and a transformer: arithmetic in half precision is slow here."""


@pytest.mark.parametrize(("method", "family", "dtype"), HALVES, ids=lambda x: str(x).removeprefix("torch."))
def test_half_precision_bases(method, family, dtype, tmp_path):
    """Erase, save and verify, attach, detach and bake on a base in half precision: bfloat16, and for UNets float16."""
    backbone = build(family, dtype)
    # random weights are small: a strong edit stands out against the rounding of half precision
    strong = {"uce": {"ridge": 0.001, "preserve_scale": 0.0}, "random": {"strength": 20.0}}
    short = {"steps": 4, "batch": 2, "sampler_steps": 2, "lr": 0.1}
    short |= {"images": 2} if method not in ("esd", "unhype") else {"pool": 2}
    short |= {"retained": 2, "lr": 0.01, "ends": 1.0, "architecture": "per-layer"} if method == "unhype" else {}
    short |= {"dense": False} if method == "salun" else {}
    short |= {"steps": 2, "lr": 0.05, "lr_fake": 0.05} if method.startswith("sfd") else {}
    eraser = erase("moon", backbone, method=(method, strong.get(method, short)))
    eraser.save_pretrained(tmp_path / "e", verify=backbone)
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    t, cond = torch.tensor([500]), backbone.encode(["moon"])
    with torch.no_grad():
        before = backbone.denoise(x, t, cond)
        handle = eraser.attach(backbone)
        after = backbone.denoise(x, t, cond)
        handle.detach()
        assert torch.equal(backbone.denoise(x, t, cond), before)
        fixed = eraser.materialize(backbone, "moon") if eraser.recipe.kind == "hyper" else eraser
        fixed.bake(backbone)
        baked = backbone.denoise(x, t, cond)
    assert not torch.equal(before, after)
    assert (baked - after).float().norm() < 0.5 * (after - before).float().norm()


class TestFinding:
    """Names, and what is wrong with them."""

    def test_unknown_method(self):
        with pytest.raises(InputError, match="unknown method 'ucee': did you mean 'uce'"):
            find("ucee")

    def test_outside_method(self, tmp_path, monkeypatch, sd):
        (tmp_path / "other_lab.py").write_text(
            "from dataclasses import dataclass\n"
            "from typing import ClassVar\n"
            "from erasers.erase import configure\n"
            "@dataclass(frozen=True)\n"
            "class Half:\n"
            "    share: float = 0.5\n"
            "    paper: ClassVar[str] = 'my lab'\n"
            "    presets: ClassVar[dict] = {'sd': {}}\n"
            "    def run(self, backbone, task):\n"
            "        whole = configure('uce', 'sd', {}).run(backbone, task)\n"
            "        return {n: (a, self.share * b) for n, (a, b) in whole.items()}\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        eraser = erase("moon", sd, method=("other_lab:Half", {"share": 0.25}))
        assert eraser.recipe.method == "other_lab:Half"
        assert eraser.recipe.settings == {"share": 0.25}

    @pytest.fixture
    def project(self, tmp_path, monkeypatch):
        """A method of somebody else's, in a package of its own, trained by the loop."""
        (tmp_path / "my_lab").mkdir()
        (tmp_path / "my_lab/__init__.py").write_text("")
        (tmp_path / "my_lab/my_method.py").write_text(PROJECT)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return "my_lab.my_method:Project"

    @pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
    def test_outside_method_passes_the_public_contract(self, project, check, sd, tmp_path):
        (tmp_path / "out").mkdir()
        check(project, sd, folder=tmp_path / "out")

    def test_outside_method_runs_from_the_command_line(self, project, tmp_path):
        words = ["erase", "moon", "--method", project]
        words += shlex.split("--steps 2 --batch 2 --strength 0.5 --checkpoint-every 1 --out e")
        command = [sys.executable, "-m", "erasers.app.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / "e/eraser_config.json").read_text())
        assert (record["method"], record["settings"]["strength"]) == (project, 0.5)
        assert "--strength" in test_cli.run(*words, "--help")[1]

    def test_the_contract_can_fail(self, sd, tmp_path):
        """A method that changes the base, or is never the same, does not pass."""

        class Careless(type(configure("uce", "sd", {}))):
            def run(self, backbone, task):
                next(iter(backbone.modules("text-kv").values())).weight.data.mul_(1.1)
                return super().run(backbone, task)

        class Moody(type(configure("random", "sd", {}))):
            def run(self, backbone, task):
                return super().run(backbone, replace(task, seed=int(torch.randint(10**6, (1,)))))

        for cls, check in ((Careless, _contract.base_untouched), (Moody, _contract.same_seed_same_bytes)):
            cls.__module__, cls.__qualname__ = __name__, cls.__name__
            globals()[cls.__name__] = cls
            with pytest.raises(AssertionError, match=r"changed the base|differs from run to run"):
                check(f"{__name__}:{cls.__name__}", sd, folder=tmp_path)

    @pytest.mark.parametrize("name", ["nowhere:Thing", "json:nothing", "json:JSONDecoder"])
    def test_outside_nonsense(self, name):
        with pytest.raises(InputError, match=r"cannot import method|is no method"):
            find(name)

    def test_preset(self):
        with pytest.raises(InputError, match="unknown preset of uce 'canva': did you mean 'canvas'"):
            configure("uce", "canva", {})


def test_random_has_the_norm_of_what_it_imitates_and_nothing_else(sd):
    model = erase("moon", sd, method="uce")
    for rank in (None, 1, 5):
        noise = erase("moon", sd, method=("random", {"rank": rank}))
        for name, (a, b) in model.payload.factors.items():
            x, y = noise.payload.factors[name]
            assert x.shape[0] == (rank or a.shape[0])
            torch.testing.assert_close((y @ x).norm(), (b @ a).norm(), rtol=1e-4, atol=0)
            cosine = ((y @ x) * (b @ a)).sum() / (y @ x).norm() / (b @ a).norm()
            assert abs(cosine) < 0.2
    with pytest.raises(InputError, match="rank: expected at least 1, got 0"):
        configure("random", "sd", {"rank": 0})


SHORT = {"steps": 3, "batch": 4, "sampler_steps": 1, "lr": 1e-2}
ON_IMAGES = {**SHORT, "images": 2}


@pytest.mark.parametrize(
    ("method", "settings", "reads"),
    [
        ("uce", {}, True),
        ("uce", {"preserve_scale": 0.0}, False),
        ("esd", SHORT, False),
        ("esd", {**SHORT, "keep": 1.0}, True),
        ("concept_ablation", ON_IMAGES, False),
        ("gradient_ascent", ON_IMAGES, False),
        ("anchor_finetune", ON_IMAGES, False),
        ("salun", {**ON_IMAGES, "dense": False, "alpha": 0.0}, False),
        ("salun", {**ON_IMAGES, "dense": False, "alpha": 1.0}, True),
    ],
)
def test_a_method_says_whether_preserved_names_count(sd, method, settings, reads):
    """What comes out with them and without differs, or does not; and an eraser records none that did not count."""
    tool = configure(method, "sd", settings)
    made = [erase("a cat", sd, method=tool, preserve=names) for names in ([], ["dog", "tree"])]
    assert (to_preserve(tool) == "") == reads
    assert made[1].recipe.preserve == (["dog", "tree"] if reads else [])
    one, two = (e.payload.factors for e in made)
    far = max(float((b @ a - two[n][1] @ two[n][0]).norm() / (b @ a).norm()) for n, (a, b) in one.items())
    assert (far > 1e-3) == reads, far


class TestErase:
    def test_what_is_no_result_is_named(self, sd):
        class Half:
            steps, drawing = 1, None

        @dataclass(frozen=True)
        class Broken:
            paper: ClassVar[str] = "none"
            presets: ClassVar[dict] = {}

            def run(self, backbone, task):
                return Half()

        with pytest.raises(InputError, match=r"gave a Half: expected .* lacks start, setup, step, state"):
            erase("moon", sd, method=Broken())

    """What the verb refuses."""

    def test_no_concept(self, sd):
        with pytest.raises(InputError, match="at least one concept"):
            erase([], sd)

    @pytest.mark.parametrize("name", ["", "  "])
    def test_empty_concept(self, sd, name):
        with pytest.raises(InputError, match="expected a concept name"):
            erase(name, sd)

    def test_anchor_that_is_erased_too(self, sd, canvas):
        eraser = erase(["house", "barn", "moon", "circle"], canvas)
        gone = set(eraser.recipe.names)
        assert not gone & {c["anchor"] for c in eraser.recipe.concepts}
        assert erase("house", canvas).recipe.concepts[0]["anchor"] == "barn"
        with pytest.raises(InputError, match="'star' of 'moon' is being erased too"):
            erase([Concept("moon", "star"), Concept("star")], sd)

    @pytest.mark.parametrize(
        ("method", "settings"), [("uce", {"ridge": 1e-300, "preserve_scale": 0.0}), ("random", {"strength": 1e39})]
    )
    def test_numbers_that_overflow(self, sd, method, settings):
        with pytest.raises(InputError, match=r"too small to solve|not finite"):
            erase("moon", sd, method=(method, settings))

    def test_blank_anchor_is_no_anchor(self, sd):
        assert erase(Concept(" moon ", "  "), sd).recipe.concepts[0]["anchor"] == ""

    def test_image_to_image_pipelines_take_erasers_but_are_not_erased_from(self, sd):
        other = StableDiffusionImg2ImgPipeline(**sd.pipe.components, requires_safety_checker=False)
        with pytest.raises(InputError, match="is a StableDiffusionImg2ImgPipeline: erasing needs a text-to-image"):
            erase("moon", wrap(other, "i2i"))
        erase("moon", sd).attach(other).detach()
        sd3 = build("sd3")
        other = StableDiffusion3Img2ImgPipeline(**sd3.pipe.components)
        with pytest.raises(InputError, match="is a StableDiffusion3Img2ImgPipeline: erasing needs a text-to-image"):
            erase("moon", wrap(other, "i2i"))
        erase("moon", sd3).attach(other).detach()

    def test_an_eraser_of_one_family_is_refused_by_another(self):
        eraser = erase("moon", build("sd3"))
        for family in ("sd", "flux", "aura_flow"):
            with pytest.raises(InputError, match=r"made for 'sd3' \(family sd3\), got"):
                eraser.attach(build(family))

    def test_erased_and_preserved(self, sd):
        with pytest.raises(InputError, match="moon cannot be erased and preserved at once"):
            erase("moon", sd, preserve=["moon"])
