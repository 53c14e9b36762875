"""Image metrics against other people's code, numpy and hand-made cases; no weights are downloaded."""

import io
import json
import math
import re
import statistics
import struct
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import nn

from erasers.eval import (
    Case,
    Gallery,
    NotApplicable,
    Score,
    Verdict,
    choose,
    compare,
    evaluators,
    find,
    mean,
)
from erasers.eval._against import Sides, around, averaged, halves, measured
from erasers.eval._clip import canvas_clip, open_clip_clip, transformers_clip
from erasers.eval._distances import (
    cmmd,
    cosines,
    coverage,
    density,
    frechet,
    frechet_to,
    gaussian,
    h_o,
    inside,
    kid,
    mmd_to,
    plain,
    polynomial,
)
from erasers.eval._features import Extractor, Picked, clip, extractor
from erasers.eval._inception import SIDE, FidInception, clean_pixels, fid_inception, torchmetrics_pixels
from erasers.eval._perceptual import NETS, layer_weights, perceptual, tapped
from erasers.eval._zero_shot import ZeroShot, on_real
from erasers.pipelines import canvas_folder, canvas_open_clip
from erasers.pipelines.canvas.draw import draw as drawing
from erasers.prompts import InputError, Prompt, canvas, canvas_plan

MEASURES = sorted(set(evaluators()) - set(evaluators(unasked=True)))


@pytest.fixture(scope="module")
def world():
    """Prompts of moon's plan in three styles, and the world's own drawings of them."""
    prompts = tuple(p for p in canvas_plan(canvas.find("moon")) if p.style in ("flat", "ink", "neon"))
    return prompts, tuple(drawing(p.object, p.style, p.seed) for p in prompts)


@pytest.fixture(scope="module")
def features(world):
    """Canvas features of two styles: [n, 256] each."""
    prompts, images = world
    look = extractor("canvas-judges")
    return tuple(look([i for p, i in zip(prompts, images, strict=True) if p.style == s]) for s in ("ink", "neon"))


def random_sets(n=90, m=70, d=24):
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(n, d, generator=draw) @ torch.randn(d, d, generator=draw)
    return x, torch.randn(m, d, generator=draw) @ torch.randn(d, d, generator=draw) + 1


def pairs(features):
    """Many images in few dimensions, few in many, and Canvas'."""
    return [random_sets(), random_sets(20, 17, 40), features]


def numpy_frechet(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(a @ b + 1e-12 * np.eye(len(a)))
    return np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a + b) - 2 * np.trace(root).real


def torchmetrics_of(name, x, y, **settings):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    net = nn.Identity()
    net.num_features = x.shape[1]
    made = {"fid": FrechetInceptionDistance, "kid": KernelInceptionDistance}[name](feature=net, **settings)
    made.update(x.double(), real=False)
    made.update(y.double(), real=True)
    return made.compute()


class TestFrechet:
    def test_against_scipy_and_torchmetrics(self, features):
        for x, y in pairs(features):
            got = frechet(x, y)
            assert got == pytest.approx(float(torchmetrics_of("fid", x, y)), rel=1e-3)
            assert got == pytest.approx(numpy_frechet(x, y), rel=1e-3)
            assert got == pytest.approx(frechet(y, x), rel=1e-9)

    def test_known_values(self, features):
        for x, _ in pairs(features):
            scale = float(x.double().var(0).sum())
            assert frechet(x, x) == pytest.approx(0, abs=1e-9 * scale)
            shift = torch.arange(x.shape[1]) / 7.0
            assert frechet(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-5)
            centred = x.double() - x.double().mean(0)
            assert frechet(centred, 3 * centred) == pytest.approx(4 * scale, rel=1e-9), "(3 - 1)^2 Tr C"

    @pytest.mark.parametrize(("n", "bias"), [(50, 778), (600, 221), (5000, 26.5)])
    def test_one_distribution_on_both_sides(self, n, bias):
        """What a small n alone adds, in 512 dimensions; KID adds nothing."""
        x, y = torch.randn(2, n, 512, generator=torch.Generator().manual_seed(n))
        assert frechet(x, y) == pytest.approx(bias, rel=0.02)
        if n < 5000:
            assert abs(kid(x, y)) < 0.1 * kid(x, y + 0.3), "a shift that FID cannot see beside its bias"

    def test_counts_stand_for_repeated_rows(self):
        x, y = random_sets()
        groups, counts = torch.arange(90) % 5, torch.tensor([2.0, 0, 1, 3, 1], dtype=torch.float64)
        rows = [k for k in range(90) for _ in range(int(counts[groups[k]]))]
        assert frechet_to(y)(x, groups)(counts) == pytest.approx(frechet(x[rows], y), rel=1e-9)
        for biased, kernel in ((True, gaussian), (False, polynomial)):
            distance = mmd_to(y / 9, kernel, biased=biased)
            want = sum(_slow_mmd(x[rows] / 9, y / 9, kernel, biased))
            assert distance(x / 9, groups)(counts) == pytest.approx(want, rel=1e-9)

    def test_one_image_is_refused(self):
        with pytest.raises(ValueError, match="two images"):
            frechet(torch.randn(1, 4), torch.randn(5, 4))


def _slow_mmd(x, y, kernel, biased):
    """Term by term, in Python: pairs within x, within y, and across. A repeated row is another draw of it."""
    x, y = x.double(), y.double()

    def one(a, b):
        return float(kernel(a[None], b[None]))

    for s in (x, y):
        pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if biased or i != j]
        yield sum(one(s[i], s[j]) for i, j in pairs) / len(pairs)
    yield -2 * float(kernel(x, y).mean())


class TestKernels:
    def test_kid_against_torchmetrics_and_numpy(self, features):
        for x, y in pairs(features):
            n = min(len(x), len(y))
            x, y = x[:n], y[:n]
            theirs, _ = torchmetrics_of("kid", x, y, subsets=1, subset_size=n)
            assert kid(x, y) == pytest.approx(float(theirs), rel=1e-3)
            a, b = x.double().numpy(), y.double().numpy()
            k = [[(np.dot(p, q) / a.shape[1] + 1) ** 3 for q in (*a, *b)] for p in (*a, *b)]
            k = np.array(k)
            off = lambda m: (m.sum() - np.trace(m)) / (len(m) * (len(m) - 1))  # noqa: E731
            assert kid(x, y) == pytest.approx(off(k[:n, :n]) + off(k[n:, n:]) - 2 * k[:n, n:].mean(), rel=1e-6)

    def test_kid_in_subsets(self):
        """Seeded, and right on average: the mean over subsets lies by the figure of all images."""
        x, y = (s / 5 for s in random_sets(60, 60, 8))
        a, b = (kid(x, y, subset=30, subsets=400, seed=s) for s in (0, 0))
        assert a == b != kid(x, y, subset=30, subsets=400, seed=1)
        assert a == pytest.approx(kid(x, y), rel=0.02)
        assert kid(x, y, subset=60) == kid(x, y, subset=1000)

    def test_kid_of_a_known_shift(self):
        """All images one point, and all of them v away: ((v.v / d + 1)^3 - 1); and 0 where v is 0."""
        x = torch.zeros(7, 5)
        shift = torch.tensor([1.0, 2.0, 0.0, -1.0, 3.0])
        assert kid(x, x) == pytest.approx(0, abs=1e-12)
        assert kid(x, x + shift) == pytest.approx((15 / 5 + 1) ** 3 - 1, rel=1e-9)

    def test_kid_of_a_set_and_itself(self, features):
        """Below 0, as an image meets itself across the sets and not within: -2 / n times what that brings."""
        x = features[0].double()
        k, n = polynomial(x, x), len(x)
        gain = k.diagonal().mean() - (k.sum() - k.diagonal().sum()) / (n * (n - 1))
        assert gain > 0
        assert kid(x, x) == pytest.approx(float(-2 / n * gain), rel=1e-9)

    def test_cmmd_against_numpy(self, features):
        for x, y in pairs(features):
            a, b = (s.double().numpy() / np.linalg.norm(s.double().numpy(), axis=1, keepdims=True) for s in (x, y))
            k = lambda p, q: np.mean([[math.exp(-np.square(i - j).sum() / 200) for j in q] for i in p])  # noqa: E731
            assert cmmd(x, y) == pytest.approx(1000 * (k(a, a) + k(b, b) - 2 * k(a, b)), rel=1e-3)

    def test_identical_sets_and_opposite_ones(self, features):
        x = features[0]
        assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
        assert plain(mmd_to(x, polynomial, biased=True), x) == pytest.approx(0, abs=1e-9)
        one = torch.eye(4)[:1].repeat(5, 1)
        assert cmmd(one, -one) == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200)), rel=1e-9), "two points, 2 apart"

    @pytest.mark.parametrize("angle", [0.1, 1.0, 2.0])
    def test_cmmd_of_a_known_shift(self, angle):
        """All images one direction, and all of them turned by an angle: 2 - 2 exp(-(2 - 2 cos) / 200), however long."""
        x = torch.tensor([[2.0, 0.0, 0.0]]).repeat(6, 1)
        y = torch.tensor([[math.cos(angle), math.sin(angle), 0.0]]).repeat(4, 1)
        want = 1000 * (2 - 2 * math.exp(-(2 - 2 * math.cos(angle)) / 200))
        assert cmmd(x, y) == pytest.approx(want, rel=1e-4)


class TestNeighbours:
    def test_against_loops(self, features):
        for x, y in (random_sets(40, 30, 5), features):
            a, b = x.double().numpy(), y.double().numpy()
            radius = lambda s, k: [sorted(np.linalg.norm(s - p, axis=1))[k] for p in s]  # noqa: E731
            for one, other, p, q in ((x, y, a, b), (y, x, b, a)):
                r = radius(q, 3)
                want = [any(np.linalg.norm(i - j) <= r[k] for k, j in enumerate(q)) for i in p]
                assert inside(one, other, 3).tolist() == want
            r = radius(b, 5)
            hits = np.array([[np.linalg.norm(i - j) <= r[k] for k, j in enumerate(b)] for i in a])
            assert density(x, y) == pytest.approx(hits.sum() / (5 * len(a)))
            assert coverage(x, y) == pytest.approx(hits.any(0).mean())

    def test_known_values(self):
        x, _ = random_sets()
        assert inside(x, x).all()
        assert coverage(x, x) == 1
        assert density(x, x) == pytest.approx(6 / 5, rel=0.01), "each sphere holds its five neighbours and itself"
        assert not inside(x + 1e3, x).any()
        assert coverage(x + 1e3, x) == 0
        collapsed = x[:1].repeat(90, 1)
        assert inside(collapsed, x).all()
        assert inside(x, collapsed).double().mean() < 0.05, "one picture over and over covers nothing"

    def test_too_few(self):
        with pytest.raises(ValueError, match="more than 3 images"):
            inside(torch.randn(5, 2), torch.randn(3, 2))


class TestH_O:
    def test_hand_values(self):
        assert h_o(0, 1, 0) == 1
        assert h_o(0.5, 0.5, 0.5) == 0.5
        assert h_o(0.1, 0.8, 0.2) == pytest.approx(statistics.harmonic_mean([0.9, 0.8, 0.8]))
        assert h_o(1, 1, 0) == h_o(0, 0, 0) == h_o(0, 1, 1) == 0, "the limit"
        assert h_o(1 - 1e-9, 1, 0) == pytest.approx(0, abs=1e-8)
        with pytest.raises(ValueError, match="from 0 to 1"):
            h_o(50, 1, 0)

    @pytest.mark.parametrize(
        ("see", "want"),
        [
            (lambda p: "circle" if p.object == "moon" else p.object, 100),
            (lambda p: p.object, 0),
            (lambda p: "cat" if p.object != "cat" else "cup", 0),
            (lambda p: "star" if p.object in ("circle", "ring", "moon") else p.object, 300 / (2 + 1 / (9 / 11))),
            (lambda p: "circle" if p.object == "moon" and p.role == "grid" else p.object, 0),
        ],
        ids=["perfect", "nothing", "everything", "neighbours too", "the word only"],
    )
    def test_of_hand_made_confusions(self, see, want):
        prompts = tuple(canvas_plan(canvas.find("moon")))
        gallery = Gallery(prompts, (Image.new("RGB", (8, 8)),) * len(prompts), {})
        styles = tuple(p.style for p in prompts)
        verdicts = [Verdict(tuple(f(p) for p in prompts), styles) for f in (see, lambda p: p.object)]
        case = Case(canvas.find("moon"), frozenset({"moon"}), gallery, gallery, *verdicts)
        score = find("h_o")(by="judge").score(case)
        assert score.value == pytest.approx(want)
        assert score.control == 0
        assert score.low < score.high


class TestClip:
    def test_one_network_three_ways(self, world, tmp_path):
        """The bundled CLIP, and its weights as a transformers folder with an image processor and as open_clip's."""
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        here = canvas_folder("clip")
        CLIPModel.from_pretrained(here).save_pretrained(tmp_path / "hf")
        CLIPTokenizer.from_pretrained(here).save_pretrained(tmp_path / "hf")
        half = [0.5] * 3
        size = {"height": 64, "width": 64}
        CLIPImageProcessor(size=size, do_center_crop=False, image_mean=half, image_std=half).save_pretrained(
            tmp_path / "hf"
        )
        canvas_open_clip(tmp_path / "open")
        prompts, images = (s[:12] for s in world)
        images, texts = [*images, *noise(3)], [p.text for p in (*prompts, *prompts[:3])]
        want = None
        for tool in (canvas_clip(), transformers_clip(str(tmp_path / "hf")), open_clip_clip(str(tmp_path / "open"))):
            got = cosines(tool.images(images), tool.texts(texts))
            want = got if want is None else want
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
        other = cosines(canvas_clip().images(images[:12]), canvas_clip().texts(texts[6:12] + texts[:6]))
        assert want[:12].mean() > other.mean() + 0.15, "the right sentence is nearer"
        raw = CLIPModel.from_pretrained(here).eval()
        ids = CLIPTokenizer.from_pretrained(here)(texts, padding="max_length", max_length=77, return_tensors="pt")
        x = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            out = raw(input_ids=ids.input_ids, pixel_values=x)
        theirs = (out.image_embeds * out.text_embeds).sum(1).double()
        torch.testing.assert_close(want, theirs, rtol=1e-3, atol=1e-5)

    def test_a_folder_that_is_no_whole_clip(self, tmp_path):
        """transformers would fill the gaps with random weights and go on."""
        from safetensors.torch import load_file, save_file
        from transformers import CLIPModel, CLIPTextModel

        model = CLIPModel.from_pretrained(canvas_folder("clip"))
        model.save_pretrained(tmp_path / "whole")
        CLIPTextModel(model.config.text_config).save_pretrained(tmp_path / "text")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "whole" / name).write_bytes((canvas_folder("clip") / name).read_bytes())
        (tmp_path / "whole/preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
        weights = load_file(tmp_path / "whole/model.safetensors")
        save_file({k: v for k, v in weights.items() if k != "visual_projection.weight"}, tmp_path / "whole/m")
        (tmp_path / "whole/m").replace(tmp_path / "whole/model.safetensors")
        with pytest.raises(InputError, match="lacks 1 of its weights, such as visual_projection"):
            transformers_clip(str(tmp_path / "whole"))
        with pytest.raises(InputError, match="expected a 'clip' one"):
            transformers_clip(str(tmp_path / "text"))

    @pytest.mark.parametrize(
        ("name", "quick"),
        [("ViT-B-32:openai", True), ("ViT-L-14-quickgelu:openai", True), ("ViT-B-32:laion2b_s34b_b79k", False)],
    )
    def test_published_weights_get_their_own_activation(self, name, quick, monkeypatch):
        """open_clip builds plain GELU for `ViT-B-32:openai` and only warns."""
        import open_clip

        asked = {}

        def create(name, **given):
            asked.update(given)
            raise RuntimeError("enough is known")

        monkeypatch.setattr(open_clip, "create_model_from_pretrained", create)
        with pytest.raises(InputError, match="enough is known"):
            open_clip_clip(name)
        assert asked["force_quick_gelu"] is quick

    def test_equal_texts_are_read_once(self):
        read = []

        def reader(texts):
            read.extend(texts)
            return torch.tensor([[float(len(t))] for t in texts])

        from erasers.eval._clip import Clip

        assert Clip("c", "", None, reader).texts(["aa", "b", "aa"]).flatten().tolist() == [2, 1, 2]
        assert read == ["aa", "b"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("clip:nobody/nothing", "cannot load clip:nobody/nothing"),
            ("open_clip:ViT-B-32", "expected ARCHITECTURE:WEIGHTS"),
            ("open_clip:ViT-B-32:nowhere.safetensors", "cannot load open_clip"),
            ("clip", "expected a CLIP, one of canvas-clip"),
            ("inception-clean", "expected a CLIP"),
        ],
    )
    def test_what_cannot_be_had(self, name, message):
        with pytest.raises(InputError, match=message):
            clip(name)


class TestInception:
    def test_against_torchmetrics(self, tmp_path):
        """The network of torch-fidelity, which torchmetrics uses, with the same random weights."""
        pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
        from torchmetrics.image.fid import NoTrainInceptionV3

        ours = _shaken(FidInception())
        torch.save(ours.state_dict(), tmp_path / "w.pth")
        theirs = NoTrainInceptionV3("x", ["2048"], str(tmp_path / "w.pth"))
        x = torch.randint(0, 256, (2, 3, 64, 80), dtype=torch.uint8)
        torch.testing.assert_close(ours(torchmetrics_pixels(x)), theirs(x), rtol=1e-4, atol=1e-5)

    def test_its_three_differences_from_torchvision(self, tmp_path):
        from torchvision.models.inception import Inception3

        theirs = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
        torch.save(theirs.state_dict(), tmp_path / "w.pth")
        ours = fid_inception(tmp_path / "w.pth")
        x = torch.randn(1, 192, 9, 9)
        edge = torch.ones(9, 9)
        edge[[0, -1]] = 1.5
        edge[:, [0, -1]] *= 1.5
        a, b = ours.Mixed_5b, theirs.eval().Mixed_5b
        pooled = torch.nn.functional.avg_pool2d(x, 3, 1, 1) * edge
        with torch.no_grad():
            torch.testing.assert_close(a(x)[:, :-32], b(x)[:, :-32])
            torch.testing.assert_close(a(x)[:, -32:], b.branch_pool(pooled), rtol=1e-4, atol=1e-5)
            y = torch.randn(1, 2048, 4, 4)
            last = ours.Mixed_7c(y)[:, -192:]
            want = theirs.Mixed_7c.branch_pool(torch.nn.functional.max_pool2d(y, 3, 1, 1))
            torch.testing.assert_close(last, want)
            z = torch.rand(2, 3, SIDE, SIDE)
            assert ours(z).shape == (2, 2048)
        assert ours.fc.weight.shape == (1008, 2048)

    def test_resizes(self):
        x = torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8)
        clean, other = clean_pixels(x), torchmetrics_pixels(x)
        assert clean.shape == other.shape == (1, 3, SIDE, SIDE)
        channel = Image.fromarray(x[0, 1].numpy().astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        want = (np.asarray(channel).clip(0, 255) - 128) / 128
        np.testing.assert_allclose(clean[0, 1].numpy(), want, rtol=1e-6)
        assert not torch.allclose(clean, other, atol=0.05)
        flat = torch.full((1, 3, 8, 8), 200, dtype=torch.uint8)
        for resize in (clean_pixels, torchmetrics_pixels):
            torch.testing.assert_close(resize(flat), torch.full((1, 3, SIDE, SIDE), (200 - 128) / 128))

    def test_weights_that_cannot_be_had(self, tmp_path, monkeypatch):
        from urllib.error import URLError

        def offline(*args, **kwargs):
            raise URLError("no network")

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
        with pytest.raises(InputError, match=r"cannot be downloaded.*no network.*inception-clean:FILE"):
            extractor("inception-clean")
        with pytest.raises(InputError, match="no such file"):
            extractor(f"inception-clean:{tmp_path / 'w.pth'}")
        torch.save({"x": Image.new("RGB", (2, 2))}, tmp_path / "evil.pth")
        with pytest.raises(InputError, match="no file of plain tensors"):
            extractor(f"inception-clean:{tmp_path / 'evil.pth'}")
        torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
        with pytest.raises(InputError, match="does not hold FID's Inception weights"):
            extractor(f"inception-torchmetrics:{tmp_path / 'other.pth'}")
        with pytest.raises(InputError, match="did you mean 'inception-clean'"):
            extractor("inception")


def noise(n):
    """Random images."""
    return [Image.fromarray(np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8)) for k in range(n)]


def _shaken(net):
    """Random statistics and weights in every normalisation, so that no branch is lost in the noise."""
    draw = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1, generator=draw)
            m.running_var.uniform_(0.5, 1.5, generator=draw)
            m.weight.data.uniform_(0.8, 1.5, generator=draw)
    return net


class TestLPIPS:
    @pytest.mark.parametrize("kind", ["alex", "squeeze", "vgg"])
    def test_against_torchmetrics(self, kind, tmp_path, world):
        from torchmetrics.functional.image.lpips import _LPIPS

        torch.manual_seed(0)
        net = NETS[kind](weights=None).features
        torch.save({f"features.{k}": v for k, v in net.state_dict().items()}, tmp_path / "w.pth")
        ours = perceptual(f"{kind}:{tmp_path / 'w.pth'}")
        theirs = _LPIPS(pretrained=True, net=kind, pnet_rand=True)
        parts = {re.sub(r"^(slice\d+|slices\.\d+)\.", "", n): p for n, p in theirs.net.named_parameters()}
        for name, value in net.state_dict().items():
            parts[name].data.copy_(value)
        images, random = list(world[1][:6]), noise(2)
        left, right = images[:3] + random[:1] + images[:1], images[3:] + random[1:] + images[:1]
        x, y = (torch.stack([_pixels(i) for i in s]) for s in (left, right))
        want = theirs(x, y).flatten()
        torch.testing.assert_close(torch.tensor(ours(left, right)), want, rtol=1e-3, atol=1e-7)
        assert want[4] == ours(left, right)[4] == 0

    def test_vgg_taps(self):
        from torchmetrics.functional.image.lpips import Vgg16

        theirs = Vgg16(pretrained=False)
        layers = nn.Sequential(*[m for k in range(1, 6) for m in getattr(theirs, f"slice{k}")])
        shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
        x = torch.rand(1, 3, 32, 32) * 2 - 1
        with torch.no_grad():
            for a, b in zip(tapped(layers, "vgg")(x), theirs((x - shift) / scale), strict=True):
                torch.testing.assert_close(a, b)
        assert [len(w) for w in layer_weights("vgg")] == [64, 128, 256, 512, 512]

    def test_refusals(self):
        with pytest.raises(InputError, match="one size"):
            perceptual("canvas")([Image.new("RGB", (64, 64))], [Image.new("RGB", (32, 64))])
        with pytest.raises(InputError, match="did you mean 'alex'"):
            perceptual("alexnet")


def _pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


class TestFeatures:
    def test_picked_rows_are_fetched_when_asked_for(self):
        fetched = []

        class Stored(list):
            def __getitem__(self, k):
                fetched.append(k)
                return super().__getitem__(k)

        view = Picked(Stored("abcdef"), [5, 1, 3])
        assert (len(view), view[1], fetched) == (3, "b", [1])
        assert list(view) == ["f", "b", "d"]
        assert list(view[1:]) == ["b", "d"]

    def test_an_image_is_looked_at_once(self, world):
        sizes = []

        def look(images):
            sizes.append(len(images))
            return torch.tensor([[float(np.asarray(i).sum())] for i in images])

        tool = Extractor("x", "", look)
        images = world[1][:5]
        first = tool([*images, images[0]], batch=3)
        assert sizes == [3, 2]
        assert torch.equal(tool(images[::-1]), first[:5].flip(0))
        assert sizes == [3, 2]
        with pytest.raises(InputError, match="at least one image"):
            tool([])

    def test_halves_share_out_sentences(self):
        prompts = [Prompt(t, s) for t in ("a", "b", "c") for s in range(4)] + [Prompt(f"x{k}") for k in range(6)]
        a, b = halves(prompts)
        assert sorted(a + b) == list(range(18))
        for t in "abc":
            assert sum(prompts[k].text == t for k in a) == 2
        assert halves(prompts) == (a, b)


class TestIntervals:
    def test_cover_a_known_distance(self):
        """Clusters that move together: KID's interval holds the true value about 95 times in 100."""
        rng, hits, widths, alone = np.random.default_rng(0), 0, [], []
        d, shift = 3, 0.7

        def draw(clusters, per):
            centre = rng.normal(0, 0.6, (clusters, 1, d))
            return torch.tensor((centre + rng.normal(0, 0.8, (clusters, per, d))).reshape(-1, d))

        reference = draw(400, 2)
        far = draw(1500, 2) + shift
        truth = plain(mmd_to(reference, polynomial, biased=False), far)
        names = [str(k) for k in range(25) for _ in range(4)]
        for _ in range(60):
            x = draw(25, 4) + shift
            both = Sides(x, x, reference, names, [], {})
            distance = mmd_to(reference, polynomial, biased=False)
            score = measured(both, distance, draws=60, signed=True)
            hits += score.low <= truth <= score.high
            widths.append(score.high - score.low)
            assert (score.change, score.change_low, score.change_high) == (0, 0, 0)
            if len(alone) < 20:
                single = replace(both, clusters=[str(k) for k in range(100)])
                naive = measured(single, distance, draws=60, signed=True)
                alone.append(naive.high - naive.low)
        assert hits / 60 >= 0.8
        assert np.mean(widths) > 1.2 * np.mean(alone), "images of one cluster are not independent"

    def test_are_laid_around_the_value(self):
        low, high = around(10.0, np.array([20.0, 21, 22, 23, 24]))
        assert low == pytest.approx(8.1)
        assert high == pytest.approx(11.9)

    def test_of_one_cluster_draw_images(self):
        score = averaged([[1, 2, 3, 4], [0, 0, 0, 0]], ["a"] * 4, "")
        assert score.low < score.value == 2.5 < score.high

    def test_mean_keeps_unit_and_what_is_common(self):
        told = [{"features": "f", "warning": str(v)} for v in (150.0, -2.0)]
        a, b = (
            Score(v, 9, v - 1, v + 1, 200.0, v - 200, v - 201, v - 199, unit="x1000", details=d)
            for v, d in zip((150.0, -2.0), told, strict=True)
        )
        m = mean([a, b])
        assert (m.value, m.unit, m.details) == (74, "x1000", {"features": "f", "warning": "150.0; -2.0", "concepts": 2})
        assert mean([replace(a, value=-3.0, low=-4.0)] * 2).low < -3, "only shares end at 0 and 100"


# ---------------------------------------------------------------- every evaluator


@pytest.fixture
def detectors(monkeypatch):
    """Stand-ins for NudeNet and a face detector: both see red."""

    class NudeDetector:
        def __init__(self, model_path=None, inference_resolution=320):
            self.size = inference_resolution

        def detect(self, bgr):
            red = float(bgr[..., 2].mean()) / 255
            return [
                {"class": "FEMALE_BREAST_EXPOSED", "score": red, "box": [0, 0, 1, 1]},
                {"class": "FACE_FEMALE", "score": 0.99, "box": [0, 0, 1, 1]},
            ]

    module = types.ModuleType("nudenet")
    module.NudeDetector = NudeDetector
    monkeypatch.setitem(sys.modules, "nudenet", module)
    mine = types.ModuleType("my_faces")
    mine.detect = lambda images: [
        [("somebody", 0.2), ("Moon", float(np.asarray(i)[..., 0].mean()) / 255)] if np.asarray(i).any() else []
        for i in images
    ]
    monkeypatch.setitem(sys.modules, "my_faces", mine)
    return module


def settings(name):
    return {"celebrity": {"detector": "my_faces:detect"}}.get(name, {})


def case_of(prompts, erased, original, name="moon"):
    a, b = (Gallery(tuple(prompts), tuple(i), {}) for i in (erased, original))
    return Case(canvas.find(name), frozenset({name}), a, b)


@pytest.mark.filterwarnings("ignore:FID of")
@pytest.mark.parametrize("name", MEASURES)
def test_neutral_on_a_zero_eraser(name, world, detectors):
    """Images that have not changed: the control's value, no change, and figures that JSON can hold."""
    prompts, images = world
    score = find(name)(**settings(name)).score(case_of(prompts, images, images))
    assert isinstance(score, Score)
    assert score.value == score.control
    assert (score.change, score.change_low, score.change_high) == (0, 0, 0)
    assert score.low - 1e-9 <= score.value <= score.high + 1e-9
    assert score.n > 10
    assert score.details["convention"]
    assert "NaN" not in json.dumps(score.to_json())
    assert find(name)(**settings(name)).score(case_of(prompts, images, images)) == score, "the same twice"


@pytest.mark.filterwarnings("ignore:FID of")
@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"nudity", "celebrity", "h_o"}))
def test_damage_is_seen(name, world):
    """Pictures of other things than those asked for are worse, beyond the interval."""
    prompts, images = world
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in images]
    damaged = [n if p.object != "moon" else i for p, i, n in zip(prompts, images, noise, strict=True)]
    score = find(name)().score(case_of(prompts, damaged, images))
    better = 1 if find(name).higher_is_better else -1
    assert better * score.change < 0
    assert max(better * score.change_low, better * score.change_high) < 0


@pytest.mark.filterwarnings("ignore:FID of")
@pytest.mark.parametrize("name", sorted(set(MEASURES) - {"lpips", "drift"}))
def test_both_sides_have_intervals_of_one_kind(name, world, detectors):
    """Sides changed: each has the figure and the interval that the other had; those of two distances from the unerased
    images have no other side.
    """
    prompts, images = world
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)) for _ in images]
    damaged = [n if k % 3 == 0 else i for k, (i, n) in enumerate(zip(images, noise, strict=True))]
    tool = find(name)(**settings(name))
    one, two = tool.score(case_of(prompts, damaged, images)), tool.score(case_of(prompts, images, damaged))
    for a, b in ((one, two), (two, one)):
        assert (a.control, a.control_low, a.control_high) == pytest.approx((b.value, b.low, b.high), abs=1e-9)
    assert one.value != one.control or name in ("nudity", "celebrity")


@pytest.mark.parametrize("name", MEASURES)
def test_no_control_is_said(name, world, detectors):
    """An answer set that was judged alone: its own images never stand in for the unerased model's."""
    prompts, images = world
    seen = Verdict(tuple(p.object for p in prompts), tuple(p.style for p in prompts))
    alone = replace(case_of(prompts, images, images), seen=seen)
    assert find(name)(**settings(name)).score(alone) == NotApplicable("no images of the unerased model were given")


def test_only_the_images_without_the_concept_count(world):
    """Whatever becomes of the moons, the retained images' figures stay."""
    prompts, images = world
    black = Image.new("RGB", (64, 64))
    moons = [black if p.object == "moon" else i for p, i in zip(prompts, images, strict=True)]
    for name in ("kid", "cmmd", "lpips", "clip_score", "clip_accuracy", "precision"):
        score = find(name)().score(case_of(prompts, moons, images))
        assert score.change == 0, name
        if "prompts of the concept" in score.details and name != "lpips":
            figures = score.details["prompts of the concept"]
            assert figures["value"] < figures["control"], name
    ho = find("h_o")().score(case_of(prompts, moons, images))
    assert ho.value > 90 > 10 > ho.control
    assert ho.change_low > 0
    soft = find("h_o")(soft=True).score(case_of(prompts, moons, images))
    hard, mild = ([*s.details["Acc_e, Acc_s, Acc_g, eraser"]] for s in (ho, soft))
    assert 0 <= max(mild[0], mild[2]) < 1 < 90 < mild[1] < 100
    assert hard != mild, "probabilities are no hits"
    assert soft.value == pytest.approx(3 / (1 / (100 - mild[0]) + 1 / mild[1] + 1 / (100 - mild[2])), abs=1e-3)
    assert soft.low < soft.value < soft.high


def huge_bmp() -> bytes:
    """A BMP whose header was damaged: it says more pixels than Pillow opens."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    data[18:26] = struct.pack("<ii", 30_000, 30_000)
    return bytes(data)


class Counted:
    """How many images ask for the concept, and how many count as kept."""

    higher_is_better, about = True, "a count"

    def score(self, case):
        return NotApplicable(f"{len(case.targets())} asked, {len(case.others())} kept")


class TestReferences:
    def test_drift_has_an_honest_zero(self, world):
        prompts, images = world
        with pytest.warns(UserWarning, match="mostly bias"):
            same = find("drift")().score(case_of(prompts, images, images))
        assert same.details["same prompts and seeds"] == 0
        assert same.control > 1, "two halves of one model are apart"
        assert same.n == len([p for p in prompts if p.role == "grid" and p.object != "moon"]) // 2 + 1
        swapped = [images[(k + 1) % len(images)] for k in range(len(images))]
        with pytest.warns(UserWarning, match="mostly bias"):
            moved = find("drift")().score(case_of(prompts, swapped, images))
        assert moved.details["same prompts and seeds"] > 0

    def test_a_folder_of_real_images(self, world, tmp_path):
        prompts, images = world
        rows = [k for k, p in enumerate(prompts) if p.role == "grid" and p.object != "moon"]
        for k in rows:
            images[k].save(tmp_path / f"{k:03d}.png")
        case = case_of(prompts, images, images)
        with pytest.warns(UserWarning, match=f"FID of {len(rows)} images against {len(rows)}"):
            score = find("fid")(reference=str(tmp_path)).score(case)
        assert score.value == pytest.approx(0, abs=1e-6), "the reference itself"
        assert score.details["reference images"] == len(rows)
        assert "mostly bias" in score.details["warning"]
        assert find("recall")(reference=str(tmp_path)).score(case).value == 100
        (tmp_path / "broken.jpg").write_bytes(b"no image")
        with pytest.raises(InputError, match=r"cannot read .*broken\.jpg"):
            find("cmmd")(reference=str(tmp_path)).score(case)
        (tmp_path / "broken.jpg").rename(tmp_path / "broken.bmp").write_bytes(huge_bmp())
        with pytest.raises(InputError, match=r"cannot read .*broken\.bmp .*mend it"):
            find("cmmd")(reference=str(tmp_path)).score(case)

    def test_refusals(self, world, tmp_path):
        prompts, images = world
        case = case_of(prompts, images, images)
        with pytest.raises(InputError, match="expected a folder of images"):
            find("kid")(reference=str(tmp_path / "nothing")).score(case)
        with pytest.raises(InputError, match="at least two images"):
            find("kid")(reference=str(tmp_path)).score(case)
        with pytest.raises(InputError, match="expected 1 to"):
            find("precision")(k=999).score(case)
        few = tuple(k for k, p in enumerate(prompts) if p.object == "star" and p.role == "grid")[:1]
        one = case_of([prompts[k] for k in few], [images[k] for k in few], [images[k] for k in few])
        with pytest.raises(InputError, match="at least 2 images without the concept to compare, got 1"):
            find("fid")().score(one)
        with pytest.raises(InputError, match="draws: expected at least 20"):
            find("cmmd")(draws=2).score(case)
        none = replace(case, erased=frozenset(canvas.CONCEPTS))
        assert isinstance(find("fid")().score(none), NotApplicable)
        assert isinstance(find("lpips")().score(none), NotApplicable)

    @pytest.mark.parametrize("name", ["fid", "kid", "cmmd", "drift", "precision", "recall"])
    def test_three_images_are_too_few_for_two_halves(self, name, world):
        prompts, images = world
        rows = [k for k, p in enumerate(prompts) if p.object == "star" and p.role == "grid"][:3]
        mine = [images[k] for k in rows]
        own = {} if name == "drift" else {"reference": "original"}
        with pytest.raises(InputError, match="at least 4 images without the concept to split in halves, got 3"):
            find(name)(**own).score(case_of([prompts[k] for k in rows], mine, mine))

    @pytest.mark.parametrize("name", ["precision", "recall"])
    def test_a_reference_with_too_few_neighbours(self, name, world, tmp_path):
        prompts, images = world
        for k in range(3):
            images[k].save(tmp_path / f"{k}.png")
        with pytest.raises(InputError, match="expected 1 to 2 neighbours among 3 images, got 3"):
            find(name)(reference=str(tmp_path)).score(case_of(prompts, images, images))


class TestAnyPipeline:
    """No world, no judges: prompts of one's own in a CSV."""

    @pytest.fixture
    def galleries(self, world):
        prompts = tuple(
            Prompt(f"{p.text} ({k % 7})", p.seed, "van gogh" if p.object == "moon" else "", role="")
            for k, p in enumerate(world[0])
        )
        manifest = {"erasers": [{"concepts": [{"name": "van gogh", "kind": "style"}]}]}
        return Gallery(prompts, world[1], manifest), Gallery(prompts, world[1], {})

    def test_compare(self, galleries):
        erased, original = galleries
        tools = choose(
            ["lpips", "clip_score", "drift", "ua", "fid", "clip_accuracy"],
            ["lpips.network=canvas", "clip_score.model=canvas-clip", "drift.features=canvas-clip", "drift.draws=20"],
        )
        with pytest.warns(UserWarning, match="mostly bias"):
            scores = compare(erased, original, only=tools)
        assert scores["lpips"].value == scores["lpips"].change == scores["drift"].change == 0
        assert scores["lpips"].n == sum(p.concept == "" for p in erased.prompts)
        assert scores["ua"] == NotApplicable("no judge looked at these images")
        assert "name a folder of real images" in scores["fid"].reason
        assert "name others" in scores["clip_accuracy"].reason
        with pytest.raises(InputError, match="at least two classes"):
            compare(erased, original, only=choose(["clip_accuracy"], ["clip_accuracy.classes=van gogh"]))

    def test_what_does_not_pair_up(self, galleries):
        erased, original = galleries
        with pytest.raises(InputError, match="do not pair up"):
            compare(erased, Gallery(original.prompts[:-1], original.images[:-1], {}))
        with pytest.raises(InputError, match="expected the name of the erased concept"):
            compare(original, original)
        with pytest.raises(InputError, match="at least one image"):
            compare(Gallery((), (), erased.manifest), Gallery((), (), {}))

    def test_what_was_not_drawn_alike(self, galleries):
        """As far as both manifests tell."""
        erased, original = galleries
        how = {"steps": 25, "guidance": 7.5, "sampler": None, "batch": 8, "noise": "image"}
        told = {"model": "sd", "fingerprint": "f0", "precision": "float32 on cpu", "erasers": [], "sampling": how}
        mine = {**told, **erased.manifest}
        tool = {"counted": Counted()}

        def run(mine, other):
            return compare(replace(erased, manifest=mine), replace(original, manifest=other), only=tool)

        run(mine, told)
        run(mine, {**told, "sampling": {**how, "batch": 60}})
        run(mine, {"erasers": []})
        run({"erasers": mine["erasers"]}, told)
        for change, message in (
            ({"model": "sdxl"}, "model 'sd' and 'sdxl': draw both with one"),
            ({"fingerprint": "f1"}, "fingerprint 'f0' and 'f1'"),
            ({"precision": "float16 on cuda"}, "precision 'float32 on cpu' and 'float16 on cuda'"),
            ({"sampling": {**how, "noise": "sequence", "steps": 5}}, "steps 25 and 5; noise 'image' and 'sequence'"),
        ):
            with pytest.raises(InputError, match=message):
                run(mine, {**told, **change})
        few = {**mine, "erasers": [{**mine["erasers"][0], "drawing": {"steps": 4}}]}
        few["sampling"] = {**how, "steps": 4, "guidance": 1.0}
        run(few, told)
        with pytest.raises(InputError, match="noise 'image' and 'sequence'"):
            run(few, {**told, "sampling": {**how, "noise": "sequence"}})
        baked = {**told, "model": "sd-without-van-gogh", "fingerprint": "f1"}
        with pytest.raises(InputError, match="expected the name of the erased concept"):
            run(baked, told)
        only = {"only": tool, "concept": "van gogh"}
        compare(replace(erased, manifest=baked), replace(original, manifest=told), **only)
        half = replace(erased, manifest={**baked, "precision": "float16 on cuda"})
        with pytest.raises(InputError, match="precision"):
            compare(half, replace(original, manifest=told), **only)
        for wrong in ((told, mine), (mine, mine)):
            with pytest.raises(InputError, match="an original drawn without erasers, got one without van gogh"):
                run(*wrong)

    def test_names_pair_up_however_capitalised(self, galleries):
        erased, original = galleries
        tool = {"counted": Counted()}
        asked = [p.concept == "van gogh" for p in erased.prompts]
        told = NotApplicable(f"{sum(asked)} asked, {len(asked) - sum(asked)} kept")
        mixed = tuple(
            replace(p, concept=p.concept.title() if k % 2 else p.concept) for k, p in enumerate(erased.prompts)
        )
        manifest = {"erasers": [{"concepts": [{"name": "Van Gogh", "kind": "style"}]}]}
        for prompts in (erased.prompts, mixed):
            sides = Gallery(prompts, erased.images, manifest), replace(original, prompts=prompts)
            assert compare(*sides, only=tool)["counted"] == told
            assert compare(*sides, " VAN GOGH", only=tool)["counted"] == told

    def test_a_concept_that_no_prompt_names(self, galleries):
        erased, original = galleries
        tool = {"counted": Counted()}
        with pytest.raises(InputError, match="the prompts name 'van go': did you mean 'van gogh'"):
            compare(erased, original, "van go", only=tool)

        def unnamed(text):
            prompts = tuple(Prompt(text, k) for k in range(len(erased.prompts)))
            sides = Gallery(prompts, erased.images, erased.manifest), Gallery(prompts, original.images, {})
            return compare(*sides, only=tool)["counted"]

        with pytest.raises(InputError, match="in a column `concept`, got none, though 60 ask for it, such as 'a Van G"):
            unnamed("a Van Gogh of the sea")
        assert unnamed("a cat").reason == "0 asked, 60 kept", "captions that name nothing: all are kept"

    def test_nothing_measured_is_no_success(self, galleries, tmp_path):
        from test_cli import run

        for side, gallery in zip(("erased", "original"), galleries, strict=True):
            gallery.save(tmp_path / side)
        args = ("compare", tmp_path / "erased", tmp_path / "original", "--only")
        for more in ((), ("--json",)):
            code, out, err = run(*args, "ua,fid", *more)
            assert (code, out) == (2, "")
            assert "nothing was measured; ua: no judge looked at these images; fid: no reference" in " ".join(
                err.split()
            )
        code, out, err = run(*args, "ua,lpips", "--set", "lpips.network=canvas")
        assert (code, "no judge looked" in out) == (0, True), err

    def test_from_the_command_line(self, galleries, tmp_path):
        from test_cli import run

        for side, gallery in zip(("erased", "original"), galleries, strict=True):
            gallery.save(tmp_path / side)
        args = ("compare", tmp_path / "erased", tmp_path / "original")
        quick = ("--set", "lpips.network=canvas", "--set", "drift.features=canvas-clip", "--set", "drift.draws=20")
        code, out, err = run(*args, "--only", "lpips,drift", *quick)
        assert code == 0, err
        assert "lpips" in out
        assert "drift: FID of" in err
        code, out, _ = run(*args, "--only", "lpips", "--set", "lpips.network=canvas", "--json")
        assert json.loads(out)["lpips"]["change"] == 0

    def test_a_damaged_image_is_named_before_anything_is_measured(self, galleries, tmp_path):
        """Also one that the metric does not look at: a gallery is whole, or nothing is said about it."""
        from test_cli import run

        for side, gallery in zip(("erased", "original"), galleries, strict=True):
            gallery.save(tmp_path / side)
        asked = next(k for k, p in enumerate(galleries[0].prompts) if p.concept)
        path = sorted((tmp_path / "erased").glob("*.png"))[asked]
        path.write_bytes(path.read_bytes()[:50])
        args = ("compare", tmp_path / "erased", tmp_path / "original", "--only", "kid")
        code, out, err = run(*args, "--set", f"kid.reference={tmp_path}", "--set", "kid.features=canvas-clip")
        assert (code, out) == (2, "")
        assert f"cannot read {path}" in " ".join(err.split())


def test_choose_reads_settings():
    tool = choose(["kid", "clip_accuracy"], ["kid.subset=7", "clip_accuracy.soft=true", "kid.features=clip:a/b"])
    assert (tool["kid"].subset, tool["kid"].features, tool["clip_accuracy"].soft) == (7, "clip:a/b", True)
    assert list(choose()) == evaluators(unasked=True)
    assert set(MEASURES) >= {"fid", "kid", "cmmd", "lpips", "precision", "recall", "clip_score", "drift", "h_o"}
    with pytest.raises(InputError, match="expected true or false"):
        choose(["clip_accuracy"], ["clip_accuracy.soft=1"])
    assert choose(["erasers.eval.kid:KID"])["erasers.eval.kid:KID"] == find("kid")()
    with pytest.raises(InputError, match="cannot import evaluator"):
        find("no_lab:Score")


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "values", "message"),
        [
            ("cmmd", {"sigma": 0.0}, "sigma"),
            ("clip_score", {"scale": -1.0}, "scale"),
            ("h_o", {"by": "eye"}, "clip or judge"),
            ("h_o", {"by": "judge", "soft": True}, "no probabilities"),
            ("nudity", {"parts": "all"}, "exposed or explicit"),
            ("nudity", {"threshold": 2.0}, "0 to 1"),
            ("celebrity", {"threshold": -1.0}, "0 to 1"),
        ],
    )
    def test_are_checked(self, name, values, message):
        with pytest.raises(InputError, match=message):
            find(name)(**values)

    def test_change_the_figure(self, world):
        prompts, images = world
        case = case_of(prompts, images, images)
        hundred, one = (find("clip_score")(scale=s).score(case) for s in (100.0, 1.0))
        assert hundred.value == pytest.approx(100 * one.value)
        assert (hundred.unit, one.unit) == ("x100", "")
        top, soft = (find("clip_accuracy")(soft=s).score(case) for s in (False, True))
        assert top.value > soft.value > 0
        assert find("clip_accuracy")(classes="star,house").score(case).n == 6
        assert soft.details["template"].count("|") == 2
        assert 90 < top.details["top 1 on real images"] <= 100
        assert find("h_o")().score(case).details["top 1 on real images"] > 90
        narrow, wide = (find("cmmd")(sigma=s).score(case).value for s in (1.0, 10.0))
        assert narrow > 10 * wide

    def test_the_accuracy_of_clip_on_real_images(self, world, tmp_path):
        """Of a folder laid out as UnlearnCanvas: three drawings named rightly, one in the folder of another object."""
        prompts, images = world
        case, real = case_of(prompts, images, images), str(tmp_path)
        for k, (folder, shown) in enumerate(
            (("star", "star"), ("House", "house"), ("House", "house"), ("star", "house"))
        ):
            (tmp_path / "flat" / folder).mkdir(parents=True, exist_ok=True)
            drawing(shown, "flat", 900_000 + k).save(tmp_path / "flat" / folder / f"{k}.png")
        for name in ("clip_accuracy", "h_o"):
            found = find(name)(real=real).score(case).details
            assert (found["top 1 on real images"], found["real images"]) == (75, 4), name
        judge = ZeroShot("canvas-clip", ("ink", "neon"), "{x}")
        with pytest.raises(InputError, match="has no style of the classes"):
            on_real(case_of(prompts, images, images, "ink"), judge, [], real)
        dogs = case_of([Prompt("A Dogs image", 1, "grid", object="Dogs")], images[:1], images[:1])
        assert on_real(dogs, judge, [0])["top 1 on real images"].startswith("not measured")


class TestDetectors:
    def test_nudenet(self, world, detectors):
        prompts, images = world
        moons = [k for k, p in enumerate(prompts) if p.object == "moon" and p.role == "grid"]
        black, full = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), (250, 0, 0))
        red = [full if k in moons[:4] else black for k in range(len(prompts))]
        score = find("nudity")().score(case_of(prompts, red, images))
        assert score.value == pytest.approx(100 * 4 / len(moons)), "red before blue: RGB becomes BGR"
        assert score.details["detections"] == {"FEMALE_BREAST_EXPOSED": 4}, "a face is no exposed part"
        assert find("nudity")(threshold=0.99).score(case_of(prompts, red, images)).value == 0

    def test_what_is_missing_is_named(self, world, monkeypatch, tmp_path):
        prompts, images = world
        case = case_of(prompts, images, images)
        monkeypatch.setitem(sys.modules, "nudenet", None)
        with pytest.raises(InputError, match=r"NudeNet is not installed.*pip install 'erasers\[nudity\]'"):
            find("nudity")().score(case)
        with pytest.raises(InputError, match="no such file"):
            find("nudity")(model="640m.onnx").score(case)
        with pytest.raises(InputError, match="expected its folder `resources`"):
            find("celebrity")().score(case)
        (tmp_path / "face_recognition").mkdir()
        (tmp_path / "face_recognition/labels.csv").write_text("Label,Index\n")
        with pytest.raises(InputError, match="install a checkout"):
            find("celebrity")(resources=str(tmp_path)).score(case)
        with pytest.raises(InputError, match="cannot import detector"):
            find("celebrity")(detector="no_lab:faces").score(case)

    def test_a_model_of_640_pixels(self, detectors, tmp_path):
        from erasers.eval._detectors import nudenet

        (tmp_path / "640m.onnx").write_bytes(b"stand-in")
        sizes = []
        plain_init = detectors.NudeDetector.__init__

        def note(self, model_path=None, inference_resolution=320):
            sizes.append((model_path, inference_resolution))
            plain_init(self, model_path, inference_resolution)

        detectors.NudeDetector.__init__ = note
        nudenet(str(tmp_path / "640m.onnx"))
        nudenet()
        assert sizes == [(str(tmp_path / "640m.onnx"), 640), (None, 320)]

    def test_giphy(self, world, monkeypatch, tmp_path):
        """Through stand-ins of its four modules, with the shapes that its own `inference.py` uses."""
        (tmp_path / "face_recognition").mkdir()
        (tmp_path / "face_recognition/labels.csv").write_text("Label,Index\nMoon,0\n")
        parts = {
            "helpers.labels": {"Labels": lambda resources_path: ["Moon_[x]"]},
            "helpers.face_recognizer": {
                "FaceRecognizer": lambda **kw: types.SimpleNamespace(
                    perform=lambda faces: [([("Moon_[x]", 0.9), ("Sun_[y]", 0.1)], 0.8) for _ in faces]
                )
            },
            "preprocessors.face_detection.face_detector": {
                "FaceDetector": lambda *a, **kw: types.SimpleNamespace(
                    perform_single=lambda rgb: [(rgb, None)] if rgb.any() else []
                )
            },
            "utils": {"preprocess_image": lambda face, size: face},
        }
        for name, content in parts.items():
            words = ["model_training", *name.split(".")]
            for k in range(1, len(words) + 1):
                full = ".".join(words[:k])
                module = sys.modules.get(full) or types.ModuleType(full)
                monkeypatch.setitem(sys.modules, full, module)
            vars(sys.modules[f"model_training.{name}"]).update(content)
        prompts, images = world
        moons = [k for k, p in enumerate(prompts) if p.object == "moon" and p.role == "grid"]
        black = Image.new("RGB", (64, 64))
        erased = [black if k in moons[3:] else i for k, i in enumerate(images)]
        score = find("celebrity")(resources=str(tmp_path)).score(case_of(prompts, erased, images))
        assert (score.value, score.control) == (pytest.approx(100 * 3 / len(moons)), 100)
        assert score.details["of images with a face, eraser"] == 100
        assert score.details["without a face, eraser"] == pytest.approx(100 * (len(moons) - 3) / len(moons), abs=1e-3)
        assert score.details["kept people, eraser"] == 0, "everybody else is taken for Moon too"
