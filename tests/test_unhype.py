"""Hypernetworks: their mathematics against independent references, and how they sit in a pipeline."""

import copy
import math
import re
import subprocess
import sys

import accelerate
import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionImg2ImgPipeline
from families import EVERY, build
from peft import LoraConfig
from PIL import Image
from torch import nn

from erasers.erase import Eraser, Hyper, Loop, Task, configure, describe, erase, overlap, solve, written_norms
from erasers.erase import _hypernet as hypernet
from erasers.erase._detect import MARGIN, apart, codes, detector, start_detecting, switched
from erasers.erase._hypernet import Hypernetwork, Plan, fourier, norms, size
from erasers.erase._portable import pipeline_file
from erasers.erase._train import Session
from erasers.erase._unhype import Training, forgotten, silent, turns
from erasers.erase._virtual import direct, flat, leaves, retained, rowed, virtual_step
from erasers.pipelines import _prompted as prompted
from erasers.pipelines import disguised, load, prompt_signals, signals, step_generator, write_by_prompt, writers
from erasers.pipelines._families import FAMILIES
from erasers.prompts import Concept, InputError, canvas

SHORT = {"steps": 2, "batch": 2, "pool": 0, "sampler_steps": 2, "retained": 2, "lr": 0.01}
ARCHITECTURES = ("per-layer", "compact")


def plan(architecture="compact", **more):
    return Plan(
        (("unet.a", 6, 5), ("unet.b", 6, 4)), 8, "last", architecture, rank=2, hidden=7, code=3, times=10, **more
    )


def loud(network, by=0.5):
    """A hypernetwork that writes something for every prompt, the same for the same one."""
    g = torch.Generator().manual_seed(5)
    for name, p in network.state_dict().items():
        if ".right." in name or (".left." in name and not p.any()):
            p.copy_(by * torch.randn(p.shape, generator=g))
    return network


def hyper(backbone, architecture="per-layer", by=0.5, **more):
    """An untrained eraser of kind hyper that writes much."""
    made = erase("moon", backbone, method=("unhype", SHORT))
    like = made.payload.plan
    shape = Plan(like.layers, like.text, like.read, architecture, rank=2, hidden=16, code=8, **more)
    tensors = loud(Hypernetwork.fresh(shape, 0), by).state_dict()
    return Eraser(made.recipe, Hyper(Hypernetwork.stored(shape, tensors), backbone.family))


def output(backbone, *texts, seed=0):
    x = torch.randn(len(texts), *backbone.latent_shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return backbone.denoise(x, torch.tensor([500] * len(texts)), backbone.encode(list(texts)))


# ---------------------------------------------------------------- shapes and formulas


def layers_of(widths, inputs, kinds=2):
    return tuple((f"unet.{k}.{j}", inputs, w) for k, w in enumerate(widths) for j in range(kinds))


SD15 = layers_of([320] * 5 + [640] * 5 + [1280] * 6, 768)
FLUX = layers_of([3072] * 95, 3072, 1)
"""Its value projections and outputs: three a double block of 19, one a single block of 38."""


@pytest.mark.parametrize(
    ("layers", "rank", "hidden", "megabytes"), [(SD15, 1, 100, 41), (SD15, 6, 512, 716), (FLUX, 4, 100, 1000)]
)
def test_the_published_architecture_is_as_large_as_published(layers, rank, hidden, megabytes):
    published = Plan(layers, 768, "pooled", rank=rank, hidden=hidden)
    assert 4 * size(published) / 1e6 == pytest.approx(megabytes, rel=0.012)
    smaller = Plan(layers, 768, "pooled", "compact", rank=rank, hidden=hidden)
    assert size(smaller) < size(published) / 5


def test_the_compact_one_is_under_a_tenth_of_it():
    compact, published = (Plan(SD15, 768, "pooled", a) for a in ("compact", "per-layer"))
    assert len(SD15) == 32
    assert 4 * size(compact) / 1e6 == pytest.approx(3.6, abs=0.05)
    assert size(compact) < 0.1 * size(published)
    # nothing but what the file holds is counted
    net = Hypernetwork.fresh(plan(), 0)
    assert size(plan()) == sum(t.numel() for t in net.state_dict().values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("s", "waves"), [(0, 16), (1, 16), (7, 16), (10, 16), (7, 3), (7, 0)])
def test_forward_is_the_formula(architecture, s, waves):
    """In float64 numpy, from the stored tensors alone."""
    net = loud(Hypernetwork.fresh(plan(architecture, waves=waves), 1))
    with torch.no_grad():
        net.base.copy_(torch.tensor([0.7, 1.3]))
        net.slope.copy_(torch.tensor([-0.4, 0.2]))
        net.centre.normal_()
        net.spread.uniform_(0.5, 2.0)
    u = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    have = net(u, s)
    w = {n: t.double().numpy() for n, t in net.state_dict().items()}
    angles = np.pi * np.arange(1, waves + 1) * s / 10
    x = np.concatenate(
        [(u.double().numpy() - w["centre"]) / w["spread"], np.tile([*np.sin(angles), *np.cos(angles)], (3, 1))], 1
    )

    def mlp(prefix, x, last):
        h = np.maximum(x @ w[f"{prefix}.0.weight"].T + w[f"{prefix}.0.bias"], 0)
        out = h @ w[f"{prefix}.2.weight"].T + w[f"{prefix}.2.bias"]
        return out if last else np.maximum(out, 0)

    for k, (name, n, m) in enumerate(plan().layers):
        if architecture == "compact":
            code = mlp("trunk", x, last=False)
            left = code @ w[f"parts.{k}.left.weight"].T
            right = code @ w[f"parts.{k}.right.weight"].T
        else:
            left, right = mlp(f"parts.{k}.left", x, last=True), mlp(f"parts.{k}.right", x, last=True)
        alpha = w["base"][k] + s / 10 * w["slope"][k]
        x_l = alpha * (w[f"constant_{k}"] + s / 10 * left.reshape(3, n, 2))
        np.testing.assert_allclose(have[name][0].detach().numpy(), x_l, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            have[name][1].detach().numpy(), s / 10 * right.reshape(3, 2, m), rtol=1e-4, atol=1e-5
        )
        if s == 0:
            assert not have[name][1].any()
    dense = [np.concatenate([(a[b] @ r[b]).detach().numpy().ravel() for a, r in have.values()]) for b in range(3)]
    np.testing.assert_allclose(norms(have).detach().numpy(), [np.linalg.norm(d) for d in dense], rtol=1e-4)


def test_virtual_time_tells_its_ends_apart_and_starts_are_stored():
    ends = fourier(torch.tensor([0.0, 1.0]), 16)
    assert (ends[0] - ends[1]).abs().max() > 1
    one, two, three = (Hypernetwork.fresh(plan("per-layer"), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert not torch.equal(one["constant_0"], three["constant_0"])
    many = Hypernetwork.fresh(Plan((("a", 4000, 4),), 8, "last", rank=4), 0).state_dict()
    assert many["constant_0"].std().item() == pytest.approx(0.5, rel=0.05)  # N(0, 1) / sqrt(r)
    assert not many["parts.0.right.2.weight"].any()
    state = torch.get_rng_state()
    Hypernetwork.fresh(plan(), 3)
    assert torch.equal(state, torch.get_rng_state()), "a draw of the user's was used up"


def test_a_silent_code_can_come_back():
    z = torch.tensor([-2.0, -0.0, 3.0], requires_grad=True)
    out = hypernet.Revived()(z)
    assert out.tolist() == [0.0, 0.0, 3.0]
    (out * torch.tensor([5.0, 0.0, 7.0])).sum().backward()
    torch.testing.assert_close(z.grad, torch.tensor([0.5, 0.0, 7.0]))


def random_pairs(seed, rows=3):
    g = torch.Generator().manual_seed(seed)
    return {
        n: (torch.randn(rows, i, 2, generator=g), torch.randn(rows, 2, o, generator=g)) for n, i, o in plan().layers
    }


def test_losses_are_the_formulas():
    now, later, slope = random_pairs(0), random_pairs(1), random_pairs(2)
    a, b, g = (np.concatenate([t.double().numpy().ravel() for p in x.values() for t in p]) for x in (now, later, slope))
    have = virtual_step(now, later, flat(slope), 0.3)
    assert have.item() == pytest.approx(((b - a) - (-0.3 * g)) @ ((b - a) - (-0.3 * g)) / len(a), rel=1e-5)
    want = sum(((x - y).double() ** 2).sum() for x, y in zip(flat(now), flat(later), strict=True)) / 3
    assert retained(now, later).item() == pytest.approx(want.item(), rel=1e-5)
    out, target = torch.randn(2, 3, 4, 5, 5)
    want = ((out - target).double() ** 2).mean((1, 2, 3))
    torch.testing.assert_close(direct(out, target).double(), want)
    copies = leaves(now)
    assert all(t.is_leaf and t.requires_grad for t in flat(copies))


@pytest.mark.parametrize("objective", ["trajectory", "direct", "both"])
def test_one_step(sd, objective, monkeypatch):
    """The whole of a removal step: the factors put into a second network's weights by hand, their gradient by the chain
    rule from the gradient of those weights, the losses written out, and Adam's first step.
    """
    monkeypatch.setattr(hypernet.Pair, "silence", lambda self: None)
    settings = {"steps": 1, "batch": 1, "objective": objective, "retain_times": 0, "sampler_steps": 3, "rank": 2}
    settings |= {
        "architecture": "per-layer",
        "hidden": 8,
        "times": 5,
        "eta": 3.0,
        "gamma": 1.5,
        "remove": 4.0,
        "contexts": 1,
    }
    settings |= {"standardise": False, "retained": 4, "lr": 1e-3, "guidance": 1.0}
    tool = configure("unhype", "paper", settings)
    have = solve(tool, sd, task=Task((Concept("moon", "circle"),), (), 7)).network

    rng = step_generator(7, 0)
    torch.rand((), generator=rng)
    s = int(torch.randint(5, (1,), generator=rng))
    assert torch.randint(1, (1,), generator=rng).tolist() == [0]
    stop = torch.randint(3, (1,), generator=rng)
    x0 = torch.randn(1, *sd.latent_shape, generator=rng)
    asked, mapped = sd.encode(["moon"]), sd.encode(["circle"])
    x, t = sd.partial(asked, stop, x0, steps=3, guidance=1.0)
    with torch.no_grad():
        e_p, e_m = sd.denoise(x, t, asked), sd.denoise(x, t, mapped)
    target = e_m - 1.5 * (e_p - e_m)

    net = Hypernetwork.fresh(have.plan, 7)
    u = asked.kwargs["encoder_hidden_states"][:, -1]
    now, later = net(u, s), net(u, s + 1)
    other = copy.deepcopy(sd)
    linears = other.modules("text-kv")
    for n, (left, right) in now.items():
        linears[n].weight.data += (left[0] @ right[0]).T.detach()
    loss = F.mse_loss(other.denoise(x, t, asked), target)
    names = list(now)
    dense = dict(zip(names, torch.autograd.grad(loss, [linears[n].weight for n in names]), strict=True))
    total = 0.0
    if objective != "direct":
        parts = []
        for n, (left, right) in now.items():
            m = dense[n].T  # of the product x_L x_R, [in, out]
            slope = (m @ right[0].T, left[0].T @ m)
            parts += [(b - a + 3.0 * g.detach()).flatten() for a, b, g in zip(now[n], later[n], slope, strict=True)]
        total = total + 4.0 * torch.cat(parts).square().mean()
    if objective != "trajectory":  # a linear function with the same gradient as the erasing loss
        total = total + sum((dense[n] * (left[0] @ right[0]).T).sum() for n, (left, right) in now.items())
    learn = dict(net.named_parameters())
    grads = torch.autograd.grad(total, list(learn.values()), allow_unused=True)
    moved = 0
    for (name, p), g in zip(learn.items(), grads, strict=True):
        step = torch.zeros_like(p) if g is None else 1e-3 * g / (g.abs() + 1e-8)
        far = torch.ones_like(p, dtype=torch.bool) if g is None else g.abs() > 1e-6  # rounding decides the sign below
        torch.testing.assert_close(dict(have.named_parameters())[name][far], (p - step)[far], atol=2e-5, rtol=0)
        moved += int(far.sum()) if g is not None else 0
    assert moved > 300


@pytest.mark.parametrize(("waves", "close"), [(2, True), (16, False)])
def test_an_imitated_descent_leads_where_descent_leads(waves, close):
    """Sixty steps of gradient descent on the factors of one prompt, and a hypernetwork that only ever imitates single
    ones. With many frequencies of virtual time its own swings from step to step drown them.
    """
    layers, times, eta = (("unet.a", 6, 5), ("unet.b", 6, 4)), 60, 0.05
    net = Hypernetwork.fresh(Plan(layers, 8, "last", "compact", rank=2, hidden=32, code=8, times=times, waves=waves), 0)
    rng = torch.Generator().manual_seed(3)
    u = torch.randn(1, 8, generator=rng)
    wanted = {name: 0.5 * torch.randn(1, n, m, generator=rng) for name, n, m in layers}

    def gradient(pairs):
        given = leaves(pairs)
        off = sum((left @ right - wanted[name]).square().sum() for name, (left, right) in given.items())
        return torch.autograd.grad(off, flat(given))

    with torch.no_grad():
        start = flat(net(u, 0.0))
    end = start
    for _ in range(times):
        slope = gradient({name: (end[2 * k], end[2 * k + 1]) for k, (name, _, _) in enumerate(layers)})
        end = [t - eta * g for t, g in zip(end, slope, strict=True)]
    learner = torch.optim.Adam(net.parameters(), lr=3e-3)
    for s in torch.randint(times, (400,), generator=rng).tolist():
        now = net(u, float(s))
        learner.zero_grad()
        (1e3 * virtual_step(now, net(u, s + 1.0), list(gradient(now)), eta)).backward()
        learner.step()
    with torch.no_grad():
        gap = rowed(flat(net(u, float(times)))) - rowed(end)
    assert bool(gap.norm() < 0.25 * (rowed(end) - rowed(start)).norm()) is close


def test_the_retain_loss_has_an_optimiser_of_its_own(sd, monkeypatch):
    seen = []
    step = Training.step

    def look(self, k, rng):
        done = step(self, k, rng)
        seen.append(
            [
                int(o.optimizer.state[next(iter(self.network.parameters()))]["step"])
                for o in (self.removing, self.keeping)
            ]
        )
        return done

    monkeypatch.setattr(Training, "step", look)
    tool = configure("unhype", "sd", {**SHORT, "retain_times": 3})
    solve(tool, sd, task=Task((Concept("moon", "circle"),), (), 0))
    assert seen == [[1, 3], [2, 6]]


class TestDetectors:
    """How the code of a compact hypernetwork starts."""

    def test_a_detector_is_a_weighted_ridge_regression(self):
        g = torch.Generator().manual_seed(0)
        features, hit = torch.randn(60, 7, generator=g), torch.arange(60) < 9
        weights, bias = detector(features, hit)
        root = np.sqrt(np.where(hit, 1 / 9, 1 / 51))
        x = np.concatenate([features.double().numpy(), np.ones((60, 1))], 1) * root[:, None]
        x = np.concatenate([x, np.sqrt(1e-3) * np.eye(8)])
        y = np.concatenate([np.where(hit, 1.0, -1.0) * root, np.zeros(8)])
        want = np.linalg.lstsq(x, y, rcond=None)[0]
        np.testing.assert_allclose([*weights, bias], want, rtol=1e-9)

    @pytest.mark.parametrize(("concepts", "code"), [(1, 4), (3, 4), (5, 3)])
    def test_every_number_detects_its_concepts(self, concepts, code):
        g = torch.Generator().manual_seed(1)
        centres = 3 * torch.randn(concepts + 1, 24, generator=g)  # the last one: what is kept
        owner = torch.arange(concepts).repeat_interleave(20)
        asked = centres[owner] + 0.3 * torch.randn(len(owner), 24, generator=g)
        kept = centres[-1] + 0.3 * torch.randn(50, 24, generator=g)
        shape = Plan((("unet.a", 6, 5),), 24, "last", "compact", rank=2, hidden=100, code=code, times=10)
        net = Hypernetwork.fresh(shape, 0)
        start_detecting(net, asked, owner[:, None] == torch.arange(concepts), kept)

        def codes(u, share):
            times = fourier(torch.full((len(u),), share), shape.waves)
            return net.trunk(torch.cat([u, times], 1))

        with torch.no_grad():
            for share in (1.0, 0.53, 0.1):  # the last two are at no time that is fitted
                assert not codes(kept, share).any(), "exactly nothing is written for what is kept"
                for j in range(code):
                    its = owner == j % concepts if concepts <= code else owner % code == j
                    assert (codes(asked, share)[its, j] > 0.3).all()
                    assert not codes(asked, share)[~its, j].any()
        for j in range(concepts, code):
            one, other = net.trunk[2].weight[j], net.trunk[2].weight[j - concepts]
            assert (one - other).norm() > 0.04 * one.norm(), "numbers of one concept differ"

    def test_which_numbers_are_to_be_on(self):
        about = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]]).bool()
        assert switched(about, 7).int().tolist() == [[1, 0, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1, 0], [0] * 7]
        assert switched(about, 2).int().tolist() == [[1, 0], [1, 1], [0, 0]]
        assert switched(about, 3).equal(about)

    def test_the_hinge_is_the_formula(self):
        """And zero where every number is on its side by the margin."""
        g = torch.Generator().manual_seed(0)
        z, on = torch.randn(30, 4, generator=g), torch.rand(30, 4, generator=g) < 0.3
        on[:, 3] = False  # a number that no prompt is to switch on
        want = 0.0
        for j in range(4):
            y = np.where(on[:, j], 1.0, -1.0)
            loss = np.maximum(0, MARGIN - y * z[:, j].double().numpy())
            want += sum(loss[y == side].mean() for side in (1, -1) if (y == side).any()) / 4
        assert apart(z, on).item() == pytest.approx(want, rel=1e-6)
        assert apart(torch.where(on, 0.21, -0.21), on) == 0

    def test_the_hinge_holds_each_number_to_its_concept(self, canvas, monkeypatch):
        """Steps push the numbers about: with the hinge all end on their side of zero, without it some do not."""
        wrong = []

        def look(self):
            with torch.no_grad():
                z = codes(self.network, self.asked, 1.0)
            wrong.append(int(((z > 0) != switched(self.about, self.settings.code)).sum()))
            return payload(self)

        payload = Training.payload
        monkeypatch.setattr(Training, "payload", look)
        settings = {**SHORT, "architecture": "compact", "objective": "direct", "ends": 1.0, "standardise": True}
        settings |= {"steps": 30, "lr": 1e-3, "trunk_lr": 0.3, "retained": 64, "compose": 2}
        gone = (Concept("moon", kind="object"), Concept("ink", kind="style"))
        for hold in (0.0, 1.0):
            tool = configure("unhype", "canvas", {**settings, "hold": hold})
            solve(tool, canvas, task=Task(gone, (Concept("cat", kind="object"),), 0))
        assert wrong[0] > 0
        assert wrong[1] == 0

    def test_a_checkpoint_of_other_sentences_is_refused(self, sd):
        made = [
            configure("unhype", "sd", {**SHORT, "contexts": n}).run(sd, Task((Concept("moon"),), (), 0)) for n in (1, 2)
        ]
        for one in made:
            one.start(Session(sd, Loop()))
            one.setup(torch.Generator().manual_seed(0))
            one.close()
        with pytest.raises(InputError, match="learnt from other sentences"):
            made[0].restore(made[1].state())

    @pytest.mark.parametrize(("detect", "decay"), [(True, True), (True, False), (False, True)])
    def test_no_concept_is_silent_when_training_begins(self, detect, decay, monkeypatch):
        """Half of Canvas, whose moon and house got nothing written by a code that was drawn; and learning rates."""
        seen = {}

        def look(self, k, rng):
            if k == 0:
                times = fourier(torch.ones(len(self.asked)), 16)
                given = (self.asked - self.network.centre) / self.network.spread
                with torch.no_grad():
                    code = self.network.trunk(torch.cat([given, times], 1))
                seen["about"], seen["own"] = self.about, code[:, : len(gone)][self.about]
            done = step(self, k, rng)
            optimisers = (self.removing, self.keeping)
            seen.setdefault("rates", []).append([[g["lr"] for g in o.param_groups] for o in optimisers])
            return done

        step = Training.step
        monkeypatch.setattr(Training, "step", look)
        gone = tuple(canvas.CONCEPTS.values())[::2]
        others = tuple(c for c in canvas.CONCEPTS.values() if c not in gone)
        settings = {"steps": 3, "batch": 2, "pool": 0, "sampler_steps": 2, "retained": 2, "trunk_lr": 0.25}
        settings |= {"lr": 3e-4, "retain_lr": 9e-4, "decay": decay, "detect": detect}
        tool = configure("unhype", "canvas", settings)
        solve(tool, load("canvas-sd"), task=Task(gone, others, 0))
        assert len(seen["own"]) > len(seen["about"]) > 400, "some sentences name two"
        if detect:
            assert (seen["own"] > 0.2).all()
        share = 0.25 if detect else 1.0
        for rates, left in zip(seen["rates"], (1, 2 / 3, 1 / 3) if decay else (1, 1, 1), strict=True):
            want = [share * 3e-4 * left, 3e-4 * left], [share * 9e-4 * left, 9e-4 * left]
            assert rates == [pytest.approx(w) for w in want]


@pytest.mark.usefixtures("larger")
def test_retaining_silences_what_is_retained(sd):
    """With and without the retain loss, the same draws of the removal: the prompts of either kind."""
    found = {}
    for weight in (0.0, 1.0):
        settings = {**SHORT, "steps": 25, "retained": 16, "retain": weight, "ends": 1.0, "objective": "direct"}
        settings |= {"architecture": "per-layer", "lr": 1e-3}
        done = solve(configure("unhype", "sd", settings), sd, task=Task((Concept("moon", "circle"),), (), 0))
        found[weight] = {k: v["median"] for k, v in done.about.items()}
    assert found[0.0]["kept"] > 0.2 * found[0.0]["erased"]
    assert found[1.0]["kept"] < 0.4 * found[0.0]["kept"]
    assert found[1.0]["kept"] / found[1.0]["erased"] < 0.6 * found[0.0]["kept"] / found[0.0]["erased"]


class TestPrompts:
    """What is trained away, and what is kept silent for."""

    def test_sentences_and_mappings(self):
        moon, ink = canvas.find("moon"), canvas.find("ink")
        plain = forgotten((moon,), (ink,), contexts=2, synonyms=True, compose=0)
        assert plain == [("moon", "circle"), ("a moon", "a circle"), ("crescent", "circle"), ("a crescent", "a circle")]
        both = forgotten((moon,), (ink,), contexts=1, synonyms=False, compose=2)
        assert both[1:] == [
            ("a moon in ink style", "a circle in ink style"),
            ("an ink picture of a moon", "an ink picture of a circle"),
        ]
        assert forgotten((Concept("Van Gogh", kind="person"),), (), contexts=1, synonyms=True, compose=3) == [
            ("Van Gogh", "")
        ]
        bare = forgotten((Concept("moon", kind="object"),), (ink,), contexts=1, synonyms=True, compose=1)
        assert bare == [("moon", ""), ("a moon in ink style", "in ink style")]

    def test_a_sentence_that_names_two_erased_concepts(self):
        """Both anchors, the one that is there, or nothing; half as many as beside a preserved concept."""
        moon, star = Concept("moon", kind="object"), Concept("moon", "star", kind="object")
        ink, flat = Concept("ink", kind="style"), Concept("ink", "flat", kind="style")
        how = {"contexts": 1, "synonyms": True, "compose": 2}
        asked = "a moon in ink style"
        assert forgotten((moon,), (), **how, beside=(moon, ink))[1:] == [(asked, "")]
        assert forgotten((moon,), (), **how, beside=(moon, flat))[1:] == [(asked, "in flat style")]
        assert forgotten((star,), (), **how, beside=(star, ink))[1:] == [(asked, "a star")]
        assert forgotten((star,), (), **how, beside=(star, flat))[1:] == [(asked, "a star in flat style")]
        assert forgotten((ink,), (), **how, beside=(moon, ink))[1:] == [(asked, "")]
        assert len(forgotten((ink,), (), **{**how, "compose": 3}, beside=(moon, ink))) == 3
        assert forgotten((ink,), (), **{**how, "compose": 0}, beside=(moon, ink)) == [("ink", "")]

    def test_every_concept_has_as_many_turns(self, sd):
        """However many sentences name it: here eight, four and two."""
        assert turns([3]).tolist() == [0, 1, 2]
        assert turns([4, 2, 1]).tolist() == [0, 1, 2, 3, 4, 5, 4, 5, 6, 6, 6, 6]
        gone = (
            Concept("moon", "circle", ("crescent", "luna", "orb")),
            Concept("cat", "", ("kitten",)),
            Concept("star"),
        )
        made = configure("unhype", "sd", {**SHORT, "contexts": 2, "batch": 600}).run(sd, Task(gone, (), 0))
        made.start(Session(sd, Loop()))
        try:
            rows = made._fresh(600, torch.Generator().manual_seed(0))["prompt"]
        finally:
            made.close()
        names = [next(k for k, c in enumerate(gone) for n in c.names if n in p) for p in made.prompts]
        assert [names.count(k) for k in range(3)] == [8, 4, 2]
        shares = torch.tensor([names[r] for r in rows]).bincount() / 600
        assert shares.sub(1 / 3).abs().max() < 0.07  # 0.57, 0.29 and 0.14 if sentences were drawn alike

    def test_kept_prompts_are_hundreds_and_name_nothing_erased(self):
        gone = (canvas.find("cat"), Concept("lighthouse"))
        others = tuple(c for c in canvas.CONCEPTS.values() if c.name != "cat")
        for task in ((gone, ()), (gone, others)):
            texts = silent(*task, contexts=4, synonyms=True, compose=2)
            assert len(texts) > 400
            assert "" in texts
            words = {w.strip(",.:") for t in texts for w in t.lower().split()}
            assert not words & {"cat", "cats", "kitten", "lighthouse"}
        assert any("circle" in t and "ink" in t for t in texts)
        ring = silent((canvas.find("ring"),), (), contexts=1, synonyms=True, compose=0)
        assert "a children's drawing" in " ".join(ring), "a name within a word is no mention"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"objective": "directly"}, "unknown objective 'directly': did you mean 'direct'"),
        ({"architecture": "small"}, "unknown architecture"),
        ({"retained": 0}, "retained: expected a number of at least 1, got 0"),
        ({"lr": 0.0}, "lr: expected a number above 0"),
        ({"hold": -1.0}, "hold: expected a number of at least 0, got -1.0"),
        ({"signal": "pooled"}, "signal: tiny-sd gives its denoiser nothing 'pooled' of a prompt: use last or mean"),
        ({"trunk_lr": 0.0}, "trunk-lr: expected a number above 0, got 0.0"),
        ({"waves": -1}, "waves: expected a number of at least 0, got -1"),
        ({"ends": 1.5}, "ends: expected a number from 0 to 1"),
        ({"objective": "trajectory", "ends": 0.5}, "no step is left to imitate"),
        ({"contexts": 99}, "contexts: expected at most"),
    ],
)
def test_wrong_settings(sd, setting, message):
    with pytest.raises(InputError, match=message):
        erase("moon", sd, method=("unhype", {**SHORT, **setting}))


def test_a_run_killed_and_resumed_gives_the_same_bytes(sd, tmp_path, monkeypatch):
    settings = {**SHORT, "steps": 5, "pool": 4, "refresh": 2, "walk": "student", "objective": "both", "relative": 0.5}
    settings |= {"decay": True, "gamma": 1.0}

    def run(loop=None):
        return erase("moon", sd, method=("unhype", settings), loop=loop).payload.network.state_dict()

    whole, step = run(), Training.step

    def cut(self, k, rng):
        if k == 3:
            raise KeyboardInterrupt
        return step(self, k, rng)

    monkeypatch.setattr(Training, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        run(Loop(tmp_path / "w", checkpoint_every=1))
    monkeypatch.setattr(Training, "step", step)
    again = run(Loop(tmp_path / "w", checkpoint_every=1, resume=True))
    assert all(torch.equal(whole[n], again[n]) for n in whole)
    assert not writers(sd.denoiser)
    parts = run(Loop(accumulate=2))
    assert all(torch.allclose(whole[n], parts[n], atol=1e-3) for n in whole)


# ---------------------------------------------------------------- in a pipeline


def test_every_row_gets_its_own_update():
    """Against a loop over rows in float64, for inputs of two and of three dimensions."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 5), nn.Linear(6, 4)

        def forward(self, encoder_hidden_states):
            return self.one(encoder_hidden_states), self.two(encoder_hidden_states[:, 0])

    g = torch.Generator().manual_seed(0)
    net, pairs = Net(), random_pairs(4)
    x = torch.randn(3, 7, 6, generator=g)
    base = net(x)
    writer = prompted.Writer(net, {"unet.a": net.one, "unet.b": net.two}, lambda u: pairs, read="last", label="w")
    writer.scale = 0.5
    with torch.no_grad():
        have = net(x)
    for k, (linear, z) in enumerate(((net.one, x), (net.two, x[:, 0]))):
        left, right = list(pairs.values())[k]
        for b in range(3):
            w = linear.weight.double() + 0.5 * (left[b].double() @ right[b].double()).T
            torch.testing.assert_close(
                have[k][b].double(), z[b].double() @ w.T + linear.bias.double(), atol=1e-4, rtol=1e-4
            )
    with pytest.raises(RuntimeError, match="is given 2 rows for 3 prompts"):
        net.one(x[:2])
    writer.remove()
    assert all(torch.equal(a, b) for a, b in zip(base, net(x), strict=True))
    assert not net._forward_pre_hooks
    assert not net.one._forward_hooks
    assert not prompted.writers(net)


def test_signals_of_masked_padded_and_listed_texts():
    text = torch.randn(2, 5, 3)
    text[1, 3:] = 0
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    call = {"encoder_hidden_states": text, "encoder_attention_mask": torch.cat([mask, torch.ones(2, 4)], 1)}
    want = torch.stack([text[0, :2].mean(0), text[1, :3].mean(0)])
    torch.testing.assert_close(prompted.signal(call, "mean"), want)
    assert torch.equal(prompted.signal(call, "last"), text[:, -1])
    listed = {"cap_feats": [text[0, :2], text[1, :3]]}
    torch.testing.assert_close(prompted.signal(listed, "mean"), want)
    pooled = {"encoder_hidden_states": text, "text_embeds": text[:, 0]}
    assert torch.equal(prompted.signal(pooled, "pooled"), text[:, 0])
    with pytest.raises(KeyError, match="nothing to read as 'pooled'"):
        prompted.signal(call, "pooled")
    # a disguise changes the signal and leaves what it can
    rows, other = torch.tensor([True, False]), torch.ones(3)
    for read, there in (("mean", call), ("last", call), ("mean", listed), ("last", listed)):
        new = {**there, **prompted.disguise(there, read, other, rows)}
        torch.testing.assert_close(prompted.signal(new, read)[0], other)
        assert torch.equal(prompted.signal(new, read)[1], prompted.signal(there, read)[1])
    pooled = {"added_cond_kwargs": {"text_embeds": text[:, 0]}, "text_embeds": text[:, 0]}
    swapped = prompted.disguise(pooled, "pooled", other, rows)["added_cond_kwargs"]["text_embeds"]
    assert torch.equal(swapped, torch.stack([other, text[1, 0]]))


def calls(backbone, prompts, guidance, **more):
    """Every call of the denoiser in a stock two-step drawing: what it was given of the text, and what it answered."""
    rows = []

    def keep(module, args, kwargs, out):
        value = prompted.source(prompted.by_name(module, args, kwargs), backbone.reads)[1]
        answer = out[0]
        split = answer if isinstance(answer, list) else list(answer)
        rows.append([(v, a) for v, a in zip(value, split, strict=True)])

    handle = backbone.denoiser.register_forward_hook(keep, with_kwargs=True)
    backbone.pipe(
        prompt=list(prompts),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **backbone.guidance_call(guidance, len(prompts)),
        **backbone.call,
        **more,
    )
    handle.remove()
    return rows


@pytest.mark.parametrize("family", EVERY)
def test_every_family_trains_and_only_the_conditional_branch_is_updated(family):
    """Two steps, then the stock pipeline's first calls, with and without the eraser: exactly the rows that carry the
    prompt answer otherwise; with guidance off all do.
    """
    backbone = build(family)
    made = erase("moon", backbone, method=("unhype", {**SHORT, "architecture": "per-layer"}))
    assert backbone.pooled is None or backbone.pooled in made.payload.shapes
    with made.attached(backbone) as handle:
        assert handle.is_active()
        assert not torch.equal(output(backbone, "moon"), plain := output_without(backbone, handle))
    assert torch.equal(output(backbone, "moon"), plain)
    eraser = hyper(backbone)
    row = getattr(backbone, "row", None)
    for guidance in (4.0, 1.0):
        before = calls(backbone, ["a moon", "a cat"], guidance)
        with eraser.attached(backbone):
            after = calls(backbone, ["a moon", "a cat"], guidance)
        one = getattr(row, "embedded", False) or not getattr(row, "guided", True) or guidance == 1.0
        apart = row is not None and not one and (row.negative == "next" or family == "flux_cfg")
        changed = [
            [not torch.equal(a, b) for (_, a), (_, b) in zip(x, y, strict=True)]
            for x, y in zip(before, after, strict=True)
        ]
        if one:
            assert changed[0] == [True, True]
        elif apart:
            assert changed[:2] == [[True, True], [False, False]]
        elif row is not None and row.negative == "second":
            assert changed[0] == [True, True, False, False]
        else:
            assert changed[0] == [False, False, True, True]


def output_without(backbone, handle):
    with backbone.using(None):
        return output(backbone, "moon")


def test_a_prompt_changes_nobody_elses_image(sd):
    eraser = hyper(sd)
    with eraser.attached(sd):
        one, two = (sd.draw(["a moon", other], [1, 2], steps=3) for other in ("a cat", "a star and a house"))
        free = sd.draw(["a moon"], [1], steps=3)[0]
    base = sd.draw(["a moon", "a cat"], [1, 2], steps=3)
    assert np.array_equal(one[0], two[0])
    assert not np.array_equal(one[1], two[1])
    assert not np.array_equal(one[0], base[0])
    assert np.abs(np.asarray(free, int) - np.asarray(one[0], int)).max() <= 1


def test_nothing_at_the_start_of_virtual_time(sd):
    eraser = hyper(sd)
    payload, layers = eraser.payload, list(sd.modules("text-kv"))
    want, loud_one = sd.draw(["a moon"], [1], steps=3), None
    for time in (0.0, 300.0):
        writer = write_by_prompt(sd, layers, lambda u, t=time: payload.pairs(u, t), read="last", label="w")
        have = sd.draw(["a moon"], [1], steps=3)
        writer.remove()
        if time:
            loud_one = have
        else:
            assert np.array_equal(have[0], want[0])
    assert not np.array_equal(loud_one[0], want[0])
    still = eraser.materialize(sd, "a moon", time=0.0)
    assert still.payload.zero()
    with still.attached(sd):
        assert torch.equal(output(sd, "a moon"), output_without_all(sd))


def output_without_all(backbone):
    with backbone.using(None):
        return output(backbone, "a moon")


def test_one_call_of_the_hypernetwork_for_each_prompt(sd):
    eraser = hyper(sd)
    with eraser.attached(sd) as handle:
        writer = writers(sd.denoiser)[handle.name]
        sd.draw(["a moon", "a cat"], [1, 2], steps=5)
        assert writer.calls == 1
        sd.draw(["a star"], [1], steps=5)
        assert writer.calls == 2
        cond = sd.encode(["a moon"])
        x, t = torch.randn(1, *sd.latent_shape), torch.tensor([500])
        with torch.no_grad():
            first = sd.denoise(x, t, cond)
            again = sd.denoise(x, t, cond[[0]])  # a new tensor of the same values, as offloading hands over
            assert torch.equal(first, again)
            assert writer.calls == 3
            cond.kwargs["encoder_hidden_states"][:, -1] *= -1  # the same tensor, changed in place
            assert not torch.equal(first, sd.denoise(x, t, cond))
            assert writer.calls == 4
            with torch.inference_mode():
                frozen = sd.encode(["a star"])
                one = sd.denoise(x, t, frozen).clone()
                frozen.kwargs["encoder_hidden_states"][:, -1] *= -1  # does not count its changes
                assert not torch.equal(one, sd.denoise(x, t, frozen))


def test_the_hypernetwork_runs_once_whoever_calls():
    """Guidance in calls of its own, and skip-layer guidance, which asks for the prompt a third time in each step."""
    chroma, sd3 = build("chroma"), build("sd3")
    eraser = hyper(chroma)
    with eraser.attached(chroma) as handle:
        writer = writers(chroma.denoiser)[handle.name]
        chroma.draw(["a moon"], [1], steps=4, guidance=4.0)
        assert writer.calls == 1
        writer.scale = 0.5  # is in the factors
        chroma.draw(["a moon"], [1], steps=2, guidance=4.0)
        assert writer.calls == 2
    eraser = hyper(sd3)
    more = {"skip_guidance_layers": [0], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 2.0}
    before = calls(sd3, ["a moon", "a cat"], 4.0, **more)
    with eraser.attached(sd3) as handle:
        after = calls(sd3, ["a moon", "a cat"], 4.0, **more)
        assert writers(sd3.denoiser)[handle.name].calls == 2
    assert [len(rows) for rows in after] == [4, 2, 4, 2]
    for k, want in ((0, [False, False, True, True]), (1, [True, True])):
        changed = [not torch.equal(a, b) for (_, a), (_, b) in zip(before[k], after[k], strict=True)]
        assert changed == want


def test_image_to_image(sd):
    """Another stock pipeline over the same network: its conditional rows, and no others."""
    eraser, other = hyper(sd), StableDiffusionImg2ImgPipeline.from_pipe(sd.pipe)
    other.set_progress_bar_config(disable=True)

    def answers():
        rows = []
        handle = other.unet.register_forward_hook(lambda _m, _a, out: rows.append(list(out[0])))
        start = Image.new("RGB", sd.image_size, "grey")
        how = {"num_inference_steps": 2, "strength": 1.0, "guidance_scale": 4.0, "output_type": "latent"}
        other(prompt=["a moon", "a cat"], image=[start, start], generator=torch.Generator().manual_seed(0), **how)
        handle.remove()
        return rows[0]

    before = answers()
    with eraser.attached(sd):
        after = answers()
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, True, True]


def test_fused_projections_are_told(sd):
    """They leave the layers out that are written for: never silently."""
    eraser, base = hyper(sd), output(sd, "a moon")
    handle = eraser.attach(sd)
    want = output(sd, "a moon")
    sd.pipe.unet.fuse_qkv_projections()
    assert not handle.is_active()
    torch.testing.assert_close(output(sd, "a moon"), base, atol=1e-4, rtol=1e-4)
    handle.detach()
    with pytest.raises(InputError, match=r"call pipe\.unfuse_qkv_projections\(\) first"):
        eraser.attach(sd)
    sd.pipe.unet.unfuse_qkv_projections()
    with eraser.attached(sd) as handle:
        assert handle.is_active()
        assert torch.equal(output(sd, "a moon"), want)


def test_in_half_precision(sd):
    """Factors are made in float32 and cast once; the output is the network's own precision, near float32's."""
    eraser = hyper(sd, by=0.2)
    base = output(sd, "a moon", "a cat")
    with eraser.attached(sd):
        want = output(sd, "a moon", "a cat")
    sd.pipe.to(torch.bfloat16)
    x = torch.randn(2, *sd.latent_shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    text = sd.encode(["a moon", "a cat"]).kwargs["encoder_hidden_states"].bfloat16()
    layers = list(eraser.payload.shapes)
    writer = write_by_prompt(sd, layers, eraser.payload.pairs, read="last", label="w")
    with torch.no_grad():
        have, again = (sd.pipe.unet(x, torch.tensor([500, 500]), text).sample for _ in range(2))
    assert torch.equal(have, again)
    assert have.dtype == torch.bfloat16
    assert writer.calls == 1
    cast = writer._memory[0].cast
    assert {left.dtype for left, _ in cast.values()} == {torch.bfloat16}
    assert len(cast) == len(layers)
    assert (have - want).abs().mean() < 0.5 * (want - base).abs().mean()


def test_every_familys_own_pipeline_file_is_python():
    for family in ("sd", "sdxl", *FAMILIES):
        text = pipeline_file(family)
        compile(text, "pipeline.py", "exec")
        (kind,) = re.findall(r"^class Erased(\w+)\(\1\):", text, re.M)
        assert hasattr(diffusers, kind)
        assert not re.search(r"^\s*(?:from|import) (?:erasers|\.)", text, re.M)


def test_on_the_bundled_flow():
    """Trained for two steps by its own preset, cut short: the pooled vector's layer is written for as well."""
    flow = load("canvas-flow")
    made = erase(["moon", "ink"], flow, method=("unhype", {**SHORT, "walk": "base", "compose": 1, "retain": 0.0}))
    assert flow.pooled in made.payload.shapes
    tensors = loud(Hypernetwork.fresh(made.payload.plan, 0), by=0.1).state_dict()
    eraser = Eraser(made.recipe, Hyper(Hypernetwork.stored(made.payload.plan, tensors), flow.family))
    base = flow.draw(["a moon", "a cat"], [1, 2], steps=2, guidance=4.0)
    before = calls(flow, ["a moon", "a cat"], 4.0)
    with eraser.attached(flow) as handle:
        one, two = (flow.draw(["a moon", other], [1, 2], steps=2, guidance=4.0) for other in ("a cat", "a star"))
        after = calls(flow, ["a moon", "a cat"], 4.0)
        assert writers(flow.denoiser)[handle.name].calls == 2  # the third drawing asks for what the first did
    changed = [not torch.equal(a, b) for (_, a), (_, b) in zip(before[0], after[0], strict=True)]
    assert changed == [False, False, True, True]
    assert np.array_equal(one[0], two[0])
    assert not np.array_equal(one[0], base[0])
    again = flow.draw(["a moon", "a cat"], [1, 2], steps=2, guidance=4.0)
    assert all(np.array_equal(a, b) for a, b in zip(again, base, strict=True))
    still = write_by_prompt(
        flow, list(eraser.payload.shapes), lambda u: eraser.payload.pairs(u, 0.0), read="pooled", label="w"
    )
    silent_one = flow.draw(["a moon", "a cat"], [1, 2], steps=2, guidance=4.0)
    still.remove()
    assert all(np.array_equal(a, b) for a, b in zip(silent_one, base, strict=True))


def test_gradients_by_the_prompt_go_through_what_is_written(sd):
    """For attacks on embeddings: the same as with the factors made of the text by hand and given to the layers."""
    eraser, cond = hyper(sd), sd.encode(["a moon"])
    text = cond.kwargs["encoder_hidden_states"].clone().requires_grad_()
    x, t = torch.randn(1, *sd.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500])

    def slope():
        out = sd.denoise(x, t, type(cond)({"encoder_hidden_states": text}, 1))
        return torch.autograd.grad(out.square().sum(), text)[0]

    with eraser.attached(sd):
        have = [slope(), slope()]  # the second time with a graph of its own
    payload, found = eraser.payload, []
    writer = write_by_prompt(sd, list(payload.shapes), payload.pairs, read="last", label="w")
    for by_hand in (text[:, -1], text[:, -1].detach()):
        with writer.giving(payload.network(by_hand, float(payload.plan.times))):
            found.append(slope())
    writer.remove()
    torch.testing.assert_close(have[0], found[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(have[1], have[0])
    assert not torch.allclose(found[0], found[1], atol=1e-2), "the control: without what is written"


def test_partial_denoising_updates_the_prompts_side_only(sd):
    """One guided step of ours, against the base's answer to the empty prompt and the updated one to the prompt."""
    eraser, cond, null = hyper(sd), sd.encode(["a moon", "a cat"]), sd.unconditional(2)
    noise = torch.randn(2, *sd.latent_shape, generator=torch.Generator().manual_seed(0))
    scheduler = sd.trajectory(3)
    t = scheduler.timesteps[:1].expand(2)
    with torch.no_grad():
        free = sd.denoise(noise, t, null)
        with eraser.attached(sd):
            led = sd.denoise(noise, t, cond)
            assert not torch.equal(sd.denoise(noise, t, null), free), "called alone, a row is a prompt's"
            have, _ = sd.partial(cond, torch.tensor([1, 1]), noise, steps=3, guidance=4.0)
    want = scheduler.step(free + 4.0 * (led - free), t[0], noise).prev_sample
    torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)


def test_silence_costs_nothing_and_is_exact(sd):
    """A compact one whose code is zero writes exactly nothing: the hooks pass, and the output is the base's bits."""
    eraser = hyper(sd, "compact")
    tensors = eraser.payload.network.state_dict()
    tensors["trunk.2.bias"] = tensors["trunk.2.bias"] - 100.0
    mute = Eraser(eraser.recipe, Hyper(Hypernetwork.stored(eraser.payload.plan, tensors), "sd"))
    base = output(sd, "a moon")
    with mute.attached(sd) as handle:
        assert torch.equal(output(sd, "a moon"), base)
        assert writers(sd.denoiser)[handle.name]._pairs is None
    assert written_norms(mute, sd, ["a moon", "a cat"]) == [0.0, 0.0]
    assert min(written_norms(eraser, sd, ["a moon", "a cat"])) > 0


def test_beside_other_adapters(sd):
    """LoRAs loaded before and after, unloaded before and after; a delta; a second hypernetwork."""
    eraser, config = hyper(sd), LoraConfig(r=2, lora_alpha=2, target_modules=["attn2.to_k", "attn2.to_v", "attn1.to_q"])
    config.init_lora_weights = "gaussian"

    def lora(name):
        torch.manual_seed(3)
        sd.pipe.unet.add_adapter(config, adapter_name=name)
        for n, p in sd.pipe.unet.named_parameters():
            if f"lora_B.{name}" in n:
                nn.init.normal_(p, std=0.3)

    base = output(sd, "a moon")
    lora("x")
    with_lora = output(sd, "a moon")
    handle = eraser.attach(sd)
    both = output(sd, "a moon")
    assert not torch.equal(both, with_lora)
    sd.pipe.unload_lora_weights()
    alone = output(sd, "a moon")
    assert handle.is_active()
    assert not torch.equal(alone, base)
    assert not torch.equal(alone, both)
    lora("x")
    assert handle.is_active(), "a LoRA loaded afterwards does not switch it off"
    assert torch.equal(output(sd, "a moon"), both)
    second = hyper(sd, "compact", by=0.2).attach(sd)
    assert second.name != handle.name
    assert not torch.equal(output(sd, "a moon"), both)
    with sd.using(handle.name):
        assert torch.equal(output(sd, "a moon"), alone)
    second.detach()
    assert torch.equal(output(sd, "a moon"), both)
    dense = {"steps": 1, "dense": True, "lr": 1e-2, "train": "text-kv", "sampler_steps": 2}
    sd.pipe.unload_lora_weights()
    delta = erase("cat", sd, method=("esd", dense)).attach(sd)
    assert handle.is_active()
    assert delta.is_active()
    assert not torch.equal(output(sd, "a moon"), alone)
    delta.detach()
    assert torch.equal(output(sd, "a moon"), alone)
    lora("x")
    assert torch.equal(output(sd, "a moon"), both)
    handle.detach()
    assert torch.equal(output(sd, "a moon"), with_lora)
    sd.pipe.unload_lora_weights()
    assert torch.equal(output(sd, "a moon"), base)
    with pytest.raises(InputError, match="no longer in the pipeline"):
        handle.activate()


@pytest.mark.parametrize(
    "order",
    [
        "compiled, then attached",
        pytest.param("attached, then compiled", marks=pytest.mark.slow),
        pytest.param("compiled in place", marks=pytest.mark.slow),
    ],
)
def test_compiled(sd, order):
    eraser = hyper(sd)
    x, t = torch.randn(2, *sd.latent_shape), torch.tensor([500, 500])
    cond = sd.encode(["a moon", "a cat"])
    with torch.no_grad():
        base = sd.denoise(x, t, cond)
        with eraser.attached(sd):
            want = sd.denoise(x, t, cond)
        net = sd.pipe.unet
        torch._dynamo.reset()
        if order == "compiled, then attached":
            sd.pipe.unet = torch.compile(net, backend="eager", fullgraph=True)
        handle = eraser.attach(sd)
        if order == "attached, then compiled":
            sd.pipe.unet = torch.compile(net, backend="eager", fullgraph=True)
        elif order == "compiled in place":
            net.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(sd.denoise(x, t, cond), want, atol=1e-5, rtol=1e-4)
        other = sd.denoise(x, t, cond[[1, 0]])
        assert not torch.allclose(other, want, atol=1e-4)
        handle.detach()
        torch.testing.assert_close(sd.denoise(x, t, cond), base, atol=1e-5, rtol=1e-4)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "flux", "chroma"])
def test_guidance_inside_a_compiled_graph(family):
    """Where both sides share a call, the prompts' rows; where guidance is a number, all, for all are prompts; where the
    other side comes in a call of its own, which no graph can tell, all too: rather a negative prompt than none.
    """
    backbone = build(family)
    eraser = hyper(backbone)
    how = {"steps": 2, "guidance": 4.0}

    def drawn():
        return np.stack([np.asarray(i, np.int16) for i in backbone.draw(["a moon", "a cat"], [1, 2], **how)])

    base = drawn()
    with eraser.attached(backbone):
        want = drawn()
        torch._dynamo.reset()
        backbone.denoiser.compile(backend="eager")
        have = drawn()
    torch._dynamo.reset()
    if family == "chroma":
        assert all((have[k] != base[k]).any() for k in (0, 1)), "every prompt is erased"
    else:
        assert all((want[k] != base[k]).any() for k in (0, 1))
        assert abs(have - want).max() <= 1


@pytest.mark.parametrize("first", ["attached", "offloaded"])
def test_offloaded(sd, first):
    """accelerate's hooks, which bring weights in layer by layer."""
    eraser = hyper(sd)
    with eraser.attached(sd):
        want = sd.draw(["a moon"], [1], steps=3)[0]
    if first == "attached":
        handle = eraser.attach(sd)
    accelerate.cpu_offload(sd.pipe.unet, execution_device=torch.device("cpu"))
    if first == "offloaded":
        handle = eraser.attach(sd)
    assert next(sd.pipe.unet.parameters()).is_meta
    x, cond = torch.randn(1, *sd.latent_shape), sd.encode(["a moon"])
    with torch.no_grad():
        have = sd.pipe.unet(x, torch.tensor(500), **cond.kwargs).sample
        handle.detach()
        base = sd.pipe.unet(x, torch.tensor(500), **cond.kwargs).sample
    accelerate.hooks.remove_hook_from_submodules(sd.pipe.unet)
    with torch.no_grad():
        assert torch.equal(base, sd.pipe.unet(x, torch.tensor(500), **cond.kwargs).sample)
        with eraser.attached(sd):
            assert torch.equal(have, sd.pipe.unet(x, torch.tensor(500), **cond.kwargs).sample)
            assert np.array_equal(sd.draw(["a moon"], [1], steps=3)[0], want)


def test_materialized(sd, tmp_path):
    """One prompt's LoRA: the hypernetwork's output for that prompt, in an ordinary file; static, and it says so."""
    eraser = hyper(sd)
    lora = eraser.materialize(sd, "a moon")
    base = output(sd, "a cat")
    with eraser.attached(sd):
        want, cat = output(sd, "a moon"), output(sd, "a cat")
    with lora.attached(sd):
        torch.testing.assert_close(output(sd, "a moon"), want, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(output(sd, "a cat"), cat, atol=1e-4)
        assert not torch.equal(output(sd, "a cat"), base), "it acts on every prompt"
    folder = lora.save_pretrained(tmp_path / "e", verify=sd)
    again = Eraser.from_pretrained(folder)
    assert again.recipe.derived == {"from": "hyper", "prompt": "a moon", "acts on": "every prompt alike (static)"}
    assert "scores are not its own" in (folder / "README.md").read_text()
    dense = sum(((b @ a) ** 2).sum().item() for a, b in lora.payload.factors.values()) ** 0.5
    assert written_norms(eraser, sd, ["a moon"])[0] == pytest.approx(dense, rel=1e-4)
    for wrong, message in (("  ", "expected a prompt"), ("a moon", "virtual time from 0 to 300")):
        with pytest.raises(InputError, match=message):
            eraser.materialize(sd, wrong, time=301.0)
    with pytest.raises(InputError, match="only a hypernetwork is materialized"):
        lora.materialize(sd, "a moon")


def test_what_a_hypernetwork_cannot_do_says_what_to_do(sd, tmp_path):
    eraser = hyper(sd)
    for to in ("peft", "kohya", "lycoris", "component"):
        with pytest.raises(InputError, match=r"materialize it for one prompt"):
            eraser.export(tmp_path / ("x" if to == "component" else "x.safetensors"), to, base=sd)
    with pytest.raises(InputError, match="materialize it for one prompt"):
        eraser.bake(sd)
    with pytest.raises(InputError, match="materialize it for one prompt"):
        eraser.to_lora(sd, rank=4)
    with pytest.raises(InputError, match="materialize both for one prompt"):
        overlap(eraser, eraser)
    with pytest.raises(InputError, match="only a hypernetwork writes"):
        written_norms(erase("moon", sd), sd, ["moon"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="expected a method that gives a LoRA, 'unhype' gives a hyper"):
        erase("moon", sd, method=("random", {"like": "unhype"}))


def test_inspected(sd, tmp_path):
    made = erase("moon", sd, method=("unhype", {**SHORT, "architecture": "compact"}))
    folder = made.save_pretrained(tmp_path / "e", verify=sd)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "README.md",
        "eraser_config.json",
        "pipeline.py",
        "hypernet/config.json",
        "hypernet/model.safetensors",
    }
    said = describe(folder)
    assert (said["kind"], said["architecture"], said["layers"], said["concepts"]) == ("hyper", "compact", 8, ["moon"])
    assert said["bytes"] == (folder / "hypernet/model.safetensors").stat().st_size
    assert said["norm of what it writes"]["erased"]["median"] > 0
    assert "pipe.load_eraser" in (folder / "README.md").read_text()
    (folder / "hypernet/config.json").write_text('{"layers": [], "text": 3}')
    with pytest.raises(InputError, match=r"config\.json do not belong together"):
        Eraser.from_pretrained(folder)


PLAIN = """
import sys
sys.modules["erasers"] = None  # whoever imports it now fails
import torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({base!r}, custom_pipeline={eraser!r}, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
def draw(name):
    call = {call}
    g = [torch.Generator().manual_seed(s) for s in (1, 2)]
    for k, image in enumerate(pipe(["a moon", "a cat"], num_inference_steps=3, generator=g, **call).images):
        image.save({out!r} + f"/{{name}}-{{k}}.png")
pipe.load_eraser({eraser!r})
draw("on")
pipe.unload_eraser()
draw("off")
"""


@pytest.mark.parametrize("family", ["sd", pytest.param("chroma", marks=pytest.mark.slow)])
def test_plain_diffusers_draws_the_same_pixels_by_the_folders_own_pipeline(family, tmp_path, monkeypatch):
    """In a process where our package cannot be imported: guidance in one call, and in calls of its own."""
    backbone = build(family)
    backbone.pipe.save_pretrained(tmp_path / "base")
    eraser = hyper(backbone)
    folder = eraser.save_pretrained(tmp_path / "eraser")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    call = {**backbone.guidance_call(4.0, 2), **backbone.call}
    code = PLAIN.format(base=str(tmp_path / "base"), eraser=str(folder), out=str(tmp_path), call=call)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bare = backbone.draw(["a moon", "a cat"], [1, 2], steps=3, guidance=4.0)
    with eraser.attached(backbone):
        ours = backbone.draw(["a moon", "a cat"], [1, 2], steps=3, guidance=4.0)
    for k in range(2):
        assert np.array_equal(Image.open(tmp_path / f"on-{k}.png"), ours[k])
        assert np.array_equal(Image.open(tmp_path / f"off-{k}.png"), bare[k])
        assert not np.array_equal(ours[k], bare[k])


@pytest.mark.parametrize("family", ["sd", "sd3", "z_image", "chroma"])
def test_a_disguise_is_what_the_hypernetwork_reads(family):
    """The adaptive check: text states of the moon, the signal of another prompt. What is written is the other's."""
    backbone = build(family)
    eraser = hyper(backbone)
    harmless = prompt_signals(backbone, ["a dog"], backbone.reads)
    moon = signals(backbone, backbone.encode(["a moon"]), backbone.reads)
    with eraser.attached(backbone) as handle:
        writer = writers(backbone.denoiser)[handle.name]
        backbone.draw(["a moon"], [1], steps=1, guidance=4.0)
        assert torch.equal(writer._memory[0].signal[-1 if backbone.free_first else 0], moon[0])
        bare = backbone.draw(["a moon"], [1], steps=2, guidance=4.0)[0]
        with disguised(backbone, "a dog", backbone.reads):
            hidden = backbone.draw(["a moon"], [1], steps=2, guidance=4.0)[0]
            rows = writer._memory[0].signal
    assert min((r - harmless[0]).abs().max().item() for r in rows) < 1e-4
    assert not np.array_equal(hidden, bare)
    assert not backbone.denoiser._forward_pre_hooks


def test_several_concepts_in_one(sd):
    made = erase([Concept("moon", "circle"), Concept("cat"), Concept("star", "circle")], sd, method=("unhype", SHORT))
    assert made.recipe.names == ["moon", "cat", "star"]
    assert math.isfinite(written_norms(made, sd, ["a star"])[0])
    assert torch.isfinite(output(sd, "a star")).all()
