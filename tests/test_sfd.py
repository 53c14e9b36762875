"""Score Forgetting Distillation: losses and gradients, who learns what, how often networks are asked, how it draws."""

import copy
import json
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from families import build
from PIL import Image
from torch import nn

from erasers.erase import Diverged, Eraser, Loop, Session, Task, configure, erase, solve
from erasers.erase import _distil as distil
from erasers.erase import _files as files
from erasers.erase._scores import View, fake_score_loss, onward, sid_loss, through
from erasers.eval import Sampling, draw, sampling
from erasers.pipelines import _bundled, distilled, load, models, step_generator
from erasers.prompts import Concept, InputError, Prompt

MOON = Concept("moon", "circle")
ONE = {"steps": 1, "batch": 2, "train": "cross", "dense": True, "lr": 1e-3, "lr_fake": 2e-3, "alpha": 1.2}
ONE |= {"k1": 1.5, "k2": 2.0, "k4": 3.0, "drop": 0.4, "forget": 0.7, "retain_fake": 0.5, "t_init": 625}
SHORT = {"steps": 3, "batch": 2, "rank": 2, "lr": 1e-2, "lr_fake": 1e-2, "train": "cross"}


# ---------------------------------------------------------------- formulas


class Tiny(nn.Module):
    """A network of two layers, in float64."""

    def __init__(self, seed):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.a, self.b = (nn.Parameter(0.5 * torch.randn(6, 6, generator=g, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        return torch.tanh(x @ self.a) @ self.b + x


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.2])
def test_the_generators_gradient_goes_through_all_three_networks(alpha):
    """Against one graph of three explicit networks and against finite differences, in float64."""
    make, phi, psi = Tiny(0), Tiny(1), Tiny(2)
    g = torch.Generator().manual_seed(3)
    z, eps = torch.randn(2, 4, 6, generator=g, dtype=torch.float64)
    a, s = torch.tensor([0.9, 0.6, 0.3, 0.1], dtype=torch.float64).view(-1, 1), 0.5
    weight = torch.tensor([1.0, 1.0, 0.01, 0.01], dtype=torch.float64) / 2

    def written(network, omega=None):
        x = network(z)
        x_t = a * x + s * eps
        f, p = phi(x_t), psi(x_t)
        omega = (x - f).abs().mean(1).detach() if omega is None else omega
        inner = ((f - p) * (f - x)).sum(1) - alpha * (f - p).pow(2).sum(1)
        return (weight * inner / omega).sum(), omega

    want, omega = written(make)
    grads = torch.autograd.grad(want, [make.a, make.b])
    x_g = make(z)
    value, gradient = through(
        x_g,
        lambda x: a * x + s * eps,
        phi=View(phi, torch.enable_grad),
        psi=View(psi, torch.enable_grad),
        loss=lambda x, f, p: (weight * sid_loss(x, f, p, alpha)).sum(),
    )
    torch.testing.assert_close(value, want.detach(), rtol=1e-12, atol=0)
    x_g.backward(gradient)
    for p, grad in zip((make.a, make.b), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for net in (phi, psi) for p in net.parameters())
    for step in ((0, 1), (3, 2)):  # central differences, omega held
        ends = []
        for h in (1e-6, -1e-6):
            moved = copy.deepcopy(make)
            moved.a.data[step] += h
            ends.append(written(moved, omega)[0].item())
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(make.a.grad[step].item(), rel=1e-6, abs=1e-9)


def test_sid_loss_is_the_other_form_of_the_paper():
    """(1 - alpha) |f_phi - f_psi|^2 + <f_phi - f_psi, f_psi - x_g>, over the mean absolute error of each latent."""
    rng = np.random.default_rng(0)
    x, f, p = rng.standard_normal((3, 5, 4, 3, 3))
    d = f - p
    want = ((1 - 1.2) * (d**2).sum((1, 2, 3)) + (d * (p - x)).sum((1, 2, 3))) / np.abs(x - f).mean((1, 2, 3))
    np.testing.assert_allclose(sid_loss(*map(torch.tensor, (x, f, p)), 1.2), want)
    floored = sid_loss(torch.tensor(f), torch.tensor(f), torch.tensor(p), 0.0)  # x_g = f_phi: omega is the floor
    np.testing.assert_allclose(floored, 0.0)
    np.testing.assert_allclose(
        sid_loss(torch.tensor(f), torch.tensor(f), torch.tensor(p), 1.0), -(d**2).sum((1, 2, 3)) / 1e-5
    )


def test_fake_score_loss_is_a_square_norm():
    rng = np.random.default_rng(0)
    out, eps = rng.standard_normal((2, 3, 4, 2, 2))
    np.testing.assert_allclose(fake_score_loss(*map(torch.tensor, (out, eps))), ((out - eps) ** 2).sum((1, 2, 3)))


def parts(backbone, t):
    """a and s of x_t = a x0 + s eps, by diffusers' own schedules."""
    config = backbone.pipe.scheduler.config
    if "prediction_type" not in config:
        s = (t.float() / 1000).view(-1, 1, 1, 1)
        return 1 - s, s, "flow"
    abar = DDIMScheduler.from_config(config).alphas_cumprod[t.long()].view(-1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt(), config.prediction_type


def clean(x, out, a, s, kind):
    return {"epsilon": lambda: (x - s * out) / a, "v_prediction": lambda: a * x - s * out, "flow": lambda: x - s * out}[
        kind
    ]()


def asked(net, x, t, cond, null, k):
    """Two calls of one network, guided."""
    free, led = net.denoise(x, t, null[[0] * len(t)]), net.denoise(x, t, cond)
    return free + k * (led - free)


@pytest.mark.parametrize("method", ["sfd", "sfd_many_step"])
def test_a_step_is_the_papers_on_three_separate_networks(small, method):
    """One step of psi, one of theta, written out: ONE graph over three copies of the network, Adam by hand."""
    backbone = small
    psi, theta = copy.deepcopy(backbone), copy.deepcopy(backbone)
    rng = step_generator(7, 0)
    torch.randint(2, (2,), generator=rng), torch.randint(1, (2,), generator=rng)
    shape = (4, *backbone.latent_shape)
    z = torch.randn(shape, generator=rng)
    t1 = torch.randint(20, 981, (4,), generator=rng)
    e1 = torch.randn(shape, generator=rng)
    t2 = torch.randint(20, 981, (4,), generator=rng)
    e2 = torch.randn(shape, generator=rng)
    dropped = torch.rand(4, generator=rng) < 0.4
    assert 0 < dropped.sum() < 4
    null = backbone.unconditional(1)
    rng = step_generator(7, 0)
    kept = torch.randint(2, (2,), generator=rng).tolist()
    words = [["star", "house"][k] for k in kept]
    c_psi, c_phi = backbone.encode([*words, "moon", "moon"]), backbone.encode([*words, "circle", "circle"])
    flow = "prediction_type" not in backbone.pipe.scheduler.config
    t0 = torch.full((4,), 1000.0 if flow else 625.0)
    a0, s0, kind = parts(backbone, t0) if not flow else (0.0, 1.0, "flow")
    x_g = clean(z, theta.denoise(z, t0, c_psi), a0, s0, kind)

    a, s, _ = parts(backbone, t1)
    x_t = a * x_g.detach() + s * e1
    truth = {"epsilon": e1, "v_prediction": a * e1 - s * x_g.detach(), "flow": e1 - x_g.detach()}[kind]
    table = null + c_psi
    learnt = table[[0 if d else k + 1 for k, d in enumerate(dropped.tolist())]]
    error = (asked(psi, x_t, t1, learnt, null, 1.5) - truth).square().sum((1, 2, 3))
    fake = moved(psi, 0.5 * error[:2].mean() + 1.0 * error[2:].mean(), 2e-3)

    a, s, _ = parts(backbone, t2)
    x_t = a * x_g + s * e2
    f_phi = clean(x_t, asked(backbone, x_t, t2, c_phi, null, 3.0), a, s, kind)
    f_psi = clean(x_t, asked(psi, x_t, t2, c_psi, null, 2.0), a, s, kind)
    omega = (x_g - f_phi).abs().mean((1, 2, 3)).detach()
    d = f_phi - f_psi
    sid = (d * ((f_phi - x_g) - 1.2 * d)).sum((1, 2, 3)) / omega
    made = moved(theta, sid[:2].mean() + 0.7 * sid[2:].mean(), 1e-3)

    task = Task((MOON,), (Concept("star"), Concept("house")), 7)
    delta = solve(configure(method, "sd", {**ONE, "rank": 1, "contexts": 1, "ema": 0.0}), backbone, task=task)
    want, rate = (made, 1e-3) if method == "sfd" else (fake, 2e-3)
    params = backbone.parameters("cross")
    assert set(delta.changes) == set(want)
    near = []
    for name, value in want.items():
        have = delta.changes[name].applied(params[name].data)
        near.append(((have - value).abs() < 0.05 * rate).float().mean().item())
        assert (have - params[name]).abs().max() <= 1.001 * rate
    # where a gradient is about rounding, the sign of Adam's first step is anybody's guess
    assert np.mean(near) > 0.99, near


def moved(net, loss, lr):
    """One first step of Adam on the cross-attention, beta1 = 0: by lr g / (|g| + eps). The network moves too."""
    params = net.parameters("cross")
    grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True)
    out = {n: (p - lr * g / (g.abs() + 1e-8)).detach() for (n, p), g in zip(params.items(), grads, strict=True)}
    for n, p in params.items():
        p.data = out[n]  # theta's loss sees the fake score after its step
    return out


def test_onward_is_diffusers_own_step(small):
    x, x0 = torch.randn(2, 3, *small.latent_shape, generator=torch.Generator().manual_seed(0))
    config = small.pipe.scheduler.config
    if "prediction_type" in config:
        scheduler = DDIMScheduler.from_config(config, timestep_spacing="leading", steps_offset=125, clip_sample=False)
    else:
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    scheduler.set_timesteps(2)
    first, second = scheduler.timesteps
    a, s, kind = parts(small, first.expand(3))
    out = {"epsilon": (x - a * x0) / s, "flow": (x - x0) / s}.get(kind, (a * x - x0) / s)
    want = scheduler.step(out, first, x).prev_sample
    have = onward(small, x, x0, t=first.expand(3), to=second.expand(3))
    torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- who learns, and at what cost


class Watched(distil.Distiller):
    """Keeps what the weights were around each update."""

    def _update(self, name, student):
        others = {"fake": self.generator, "generator": self.fake}[name]
        before = {n: p.clone() for n, p in others.state().items()}, student.state()
        base = {n: p.detach().clone() for n, p in self.bare().items()}
        norm = super()._update(name, student)
        assert all(torch.equal(v, before[0][n]) for n, v in others.state().items()), f"{name} moved the other"
        assert any(not torch.equal(v, before[1][n]) for n, v in student.state().items()), f"{name} did not move"
        assert all(torch.equal(v, base[n]) for n, v in self.bare().items()), f"{name} moved the base"
        for one in (self.fake, self.generator):
            assert all(p.requires_grad and p.grad is None for p in one.parameters.values())
        learners = {id(p) for one in (self.fake, self.generator) for p in one.parameters.values()}
        others_flags = [p.requires_grad for p in self.backbone.denoiser.parameters() if id(p) not in learners]
        assert not any(others_flags), "the base takes part in gradients"
        return norm

    def bare(self):
        with self.backbone.using(None):
            return {n: p.data for n, p in self.backbone.parameters("all").items()}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("dense", [False, True], ids=["lora", "dense"])
def test_each_step_moves_its_own_weights_only(sd, dense, checkpointed, monkeypatch):
    """Bit for bit; and computing layers anew happens in the right state: the result is that of keeping them."""
    results = []
    for wrapped in (False, checkpointed):
        task = Task((MOON,), (Concept("star"),), 1)
        tool = configure("sfd", "sd", {**SHORT, "dense": dense, "k4": 2.0, "ema": 0.0, "lr": 1e-3, "lr_fake": 1e-3})
        monkeypatch.setattr("erasers.erase.sfd.Distiller", Watched)
        loop = Loop(checkpoint_every=0, gradient_checkpointing=wrapped)
        results.append(solve(tool, sd, task=task, loop=loop))
    one, two = (
        [t for p in r.values() for t in p] if not dense else [c.values for c in r.changes.values()] for r in results
    )
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def calls(backbone, settings, concepts=(MOON,), loop=None):
    """How many rows each call of the network had, in the last of two steps."""
    rows = []
    hook = backbone.denoiser.register_forward_pre_hook(lambda _m, a, k: rows.append(len(a[0])), with_kwargs=True)
    steps = []
    tool = configure("sfd", "sd", {**SHORT, "steps": 2, "ema": 0.0, **settings})
    trainer = tool.run(backbone, Task(concepts, (Concept("star"),), 1))
    trainer.start(Session(backbone, loop or Loop()))
    for k in range(2):
        rows.clear()
        trainer.step(k, step_generator(1, k))
        steps.append(list(rows))
    trainer.close()
    hook.remove()
    assert steps[0] == steps[1]
    return steps[1]


def test_network_passes_of_one_step(sd):
    """Generator, fake score, teacher, fake score: once each, both sides of guidance in one call. The generator's pass
    serves both steps.
    """
    free = {"k1": 1.0, "k2": 1.0, "k4": 1.0}
    guided = {"k1": 4.0, "k2": 4.0, "k4": 4.0}
    assert calls(sd, free) == [4, 4, 4, 4]
    assert calls(sd, guided) == [4, 8, 8, 8]
    assert calls(sd, {**guided, "forget": 0.0}) == [2, 4, 4, 4]
    assert calls(sd, guided, concepts=()) == [2, 4, 4, 4]
    # dense weights change under the first pass, and parts are there to save memory: one pass more
    assert calls(sd, {**free, "dense": True}) == [4, 4, 4, 4, 4]
    assert calls(sd, free, loop=Loop(accumulate=2)) == [2, 2, 2, 2, *[2, 2, 2] * 2]


def test_parts_of_a_batch_come_to_the_same(sd):
    tool = ("sfd", {**SHORT, "k1": 2.0, "k2": 2.0, "k4": 2.0, "lr": 1e-3, "lr_fake": 1e-3, "momentum": 0.9})
    one, two = (
        erase(MOON, sd, method=tool, preserve=["star"], loop=Loop(checkpoint_every=0, accumulate=n)).payload.factors
        for n in (1, 2)
    )
    for name, pair in one.items():
        for a, b in zip(pair, two[name], strict=True):
            assert (a - b).abs().mean() < 2e-4


@pytest.mark.parametrize(("method", "share"), [("sfd_many_step", 0.85), ("sfd", 0.65)])
def test_bfloat16_autocast(sd, method, share):
    """The same step but for signs that rounding decides; the generator's gradient is a small difference at first."""
    settings = {**SHORT, "steps": 1, "k1": 2.0, "k2": 2.0, "k4": 2.0}
    moves = []
    for precision in ("no", "bf16"):
        loop = Loop(checkpoint_every=0, mixed_precision=precision)
        factors = erase(MOON, sd, method=(method, settings), preserve=["star"], loop=loop).payload.factors
        moves.append(torch.cat([b.flatten() for _, b in factors.values()]))
    assert (moves[0].sign() == moves[1].sign()).float().mean() > share


# ---------------------------------------------------------------- runs


KINDS = {
    "lora": {**SHORT, "k4": 2.0, "ema": 0.5},
    "warm-up, two steps": {**SHORT, "warmup": 2, "images": 4, "sampler_steps": 3, "draw_steps": 2, "decay": True},
    "dense": {**SHORT, "dense": True, "ema": 0.5},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_killed_at_any_step_and_resumed_gives_the_same_bytes(sd, kind, tmp_path, monkeypatch):
    def run(loop=None):
        payload = erase(MOON, sd, method=("sfd", KINDS[kind]), preserve=["star"], loop=loop).payload
        return [t for p in payload.factors.values() for t in p] if kind != "dense" else list(payload.changes.items())

    class Killed(BaseException):
        pass

    whole, step = run(), distil.Distiller.step
    for k in (1, 2 + KINDS[kind].get("warmup", 0)):

        def cut(self, n, rng, k=k):
            if n == k:
                raise Killed
            return step(self, n, rng)

        monkeypatch.setattr(distil.Distiller, "step", cut)
        with pytest.raises(Killed):
            run(Loop(tmp_path / str(k), checkpoint_every=1))
        monkeypatch.setattr(distil.Distiller, "step", step)
        again = run(Loop(tmp_path / str(k), checkpoint_every=1, resume=True))
        if kind == "dense":
            assert all(torch.equal(a.values, b.values) for (_, a), (_, b) in zip(whole, again, strict=True))
        else:
            assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_the_warm_up_comes_closer_to_the_teachers_drawings(sd, tmp_path):
    settings = {
        **SHORT,
        "warmup": 40,
        "warmup_lr": 2e-2,
        "steps": 1,
        "train": "all",
        "rank": 8,
        "images": 4,
        "batch": 4,
    }
    erase(MOON, sd, method=("sfd", settings), preserve=["star"], loop=Loop(tmp_path / "w", checkpoint_every=0))
    losses = [json.loads(r)["loss"] for r in (tmp_path / "w/log.jsonl").read_text().splitlines()][:40]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_the_average_is_what_is_kept(sd):
    """Decay 0.3, reached over the first steps: against the weights after each step, averaged by hand."""

    def after(steps, ema=0.0):
        factors = erase(MOON, sd, method=("sfd", {**SHORT, "steps": steps, "ema": ema}), preserve=["star"]).payload
        return torch.cat([b.flatten() for _, b in factors.factors.values()])

    want = torch.zeros_like(after(1))  # B starts at zero
    for k in range(3):
        decay = min(0.15, (1 + k) / (10 + k))
        want = decay * want + (1 - decay) * after(k + 1)
    torch.testing.assert_close(after(3, 0.15), want, atol=1e-6, rtol=1e-5)
    assert (want - after(3)).norm() > 1e-2 * want.norm()


class TestDivergence:
    """One clear line, the last good checkpoint kept."""

    def test_numbers_that_are_not_finite_are_left_out_for_a_while(self, sd, monkeypatch):
        original, count = distil.sid_loss, [0]

        def broken(x, *args, **kwargs):
            count[0] += 1
            return original(x, *args, **kwargs) * (float("nan") if count[0] == 2 else 1.0)

        monkeypatch.setattr(distil, "sid_loss", broken)
        eraser = erase(MOON, sd, method=("sfd", {**SHORT, "steps": 4}), preserve=["star"])
        assert eraser.payload.finite()
        assert not eraser.payload.zero()

    def test_and_then_end_the_run(self, sd, monkeypatch, tmp_path):
        monkeypatch.setattr(distil, "sid_loss", lambda x, f, p, _: ((x + f + p) * float("nan")).flatten(1).sum(1))
        with pytest.raises(Diverged, match=r"sfd diverged at step 6: the generator's gradient was not finite 6 times"):
            erase(MOON, sd, method=("sfd", {**SHORT, "steps": 9}), loop=Loop(tmp_path / "w", checkpoint_every=1))

    @pytest.mark.parametrize("wrong", [1e3, float("nan"), float("inf")])
    def test_drawings_that_leave_all_bounds(self, sd, wrong, monkeypatch, tmp_path):
        original, count = distil.Distiller._drawn, [0]

        def wild(self, *args):
            count[0] += 1
            return original(self, *args) * (wrong if count[0] == 3 else 1.0)

        monkeypatch.setattr(distil.Distiller, "_drawn", wild)
        with pytest.raises(
            Diverged, match=r"at step 3: the drawings' root mean square .* last good checkpoint is step 2"
        ):
            erase(MOON, sd, method=("sfd", SHORT), loop=Loop(tmp_path / "w", checkpoint_every=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t_init": 1000}, "t-init: expected 0 to 999"),
        ({"t_init": 625, "draw_steps": 4}, "t-init: for 4 steps expected 750 to 999, got 625"),
        ({"t_min": 9, "t_max": 8}, "t-min, t-max: expected"),
        ({"lr_fake": 0.0}, "lr-fake: expected a number above 0"),
        ({"ema": 1.0}, "ema: expected a number from 0 to below 1"),
        ({"drop": 1.5}, "drop: expected a share"),
        ({"k4": float("nan")}, "k4: expected a number"),
        ({"forget": -1.0}, "forget: expected a number of at least 0"),
        ({"retain": 0.0, "forget": 0.0}, "with both 0 nothing is learnt"),
        ({"start": "nowhere.safetensors"}, "no such file"),
        ({"start": "weights.ckpt"}, "is a pickle"),
        ({"retain_prompts": "everydayy"}, "did you mean 'everyday'"),
    ],
)
def test_settings_that_make_no_sense(sd, settings, message):
    with pytest.raises(InputError, match=message):
        erase(MOON, sd, method=("sfd", {**SHORT, **settings}))
    assert not hasattr(sd.denoiser, "peft_config"), "a refused run leaves nothing behind"


def test_prompts(sd):
    """Retained prompts name no concept; a named set serves; plain distillation retains the concepts as well."""
    seen = []
    encode = sd.encode
    sd.encode = lambda texts: (seen.append(list(texts)), encode(texts))[1]

    def run(**settings):
        seen.clear()
        trainer = configure("sfd", "sd", {**SHORT, "contexts": 1, **settings}).run(sd, Task((MOON,), (), 0))
        trainer.start(Session(sd, Loop()))
        trainer.close()
        return list(seen)

    kept, forget, anchor = run()
    assert len(kept) > 40
    assert not any("moon" in t for t in kept)
    assert (forget, anchor) == (["moon"], ["circle"])
    assert run(forget=0.0) == [["moon"]]
    (star, *_), *_ = run(retain_prompts="canvas-demo")
    assert star.startswith("A star image"), "the moon's own prompt is left out"


# ---------------------------------------------------------------- how it draws


PLAIN = """
import torch
from diffusers import {scheduler}, {pipeline}
pipe = {pipeline}.from_pretrained("{family}/base")
pipe.load_lora_weights("{family}/eraser", adapter_name="eraser")
pipe.scheduler = {scheduler}.from_pretrained("{family}/eraser", subfolder="scheduler")
pipe.set_progress_bar_config(disable=True)
noise = [torch.Generator("cpu").manual_seed(s) for s in (3, 4)]
images = pipe(["a moon", "a star"], num_inference_steps={steps}, guidance_scale=1.0, generator=noise).images
for k, image in enumerate(images):
    image.save(f"{family}/plain-{{k}}.png")
"""


def test_plain_diffusers_draws_the_same_pixels(tmp_path):
    """In a process where this package cannot be imported, by the card's own lines."""
    code, ours, prompts = "import sys; sys.modules['erasers'] = None", {}, [Prompt("a moon", 3), Prompt("a star", 4)]
    for family, steps in (("sd", 1), ("sdxl", 2), ("sd3", 1)):
        backbone = build(family)
        backbone.pipe.save_pretrained(tmp_path / family / "base")
        settings = {**SHORT, "train": "all", "lr": 0.1, "draw_steps": steps}
        eraser = erase(MOON, backbone, method=("sfd", settings), preserve=["star"])
        folder = eraser.save_pretrained(tmp_path / family / "eraser", verify=backbone)
        kind = eraser.recipe.drawing["scheduler"]["_class_name"]
        card = (folder / "README.md").read_text()
        for line in (
            f'pipe.scheduler = {kind}.from_pretrained("this-folder", subfolder="scheduler")',
            f"={steps}, guid",
        ):
            assert line in card
        gallery = draw(backbone, prompts, [eraser], how=Sampling(steps=7, guidance=3.0))
        assert gallery.manifest["sampling"]["steps"] == steps, "the eraser knows better"
        ours[family] = gallery.images
        code += PLAIN.format(scheduler=kind, pipeline=type(backbone.pipe).__name__, steps=steps, family=family)
        control = draw(backbone, prompts, how=Sampling(steps=steps, guidance=1.0)).images
        assert [i.tobytes() for i in control] != [i.tobytes() for i in gallery.images]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for family, images in ours.items():
        for k, image in enumerate(images):
            plain = np.asarray(Image.open(tmp_path / family / f"plain-{k}.png"))
            np.testing.assert_array_equal(plain, np.asarray(image), family)


@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_trained_is_what_is_drawn(small, steps):
    """The generator's own pass and the stock pipeline's drawing are the same latents."""
    trainer = configure("sfd", "sd", {**SHORT, "draw_steps": steps}).run(small, Task((MOON,), (Concept("star"),), 0))
    trainer.start(Session(small, Loop()))
    with torch.no_grad():
        for pair in trainer.generator._pairs.values():
            pair[1].normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    z = torch.randn(1, *small.latent_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad(), trainer.showing():
        mine = trainer._drawn(small.encode(["a moon"]), z, trainer._times)
        how = {"num_inference_steps": steps, "guidance_scale": 1.0, "latents": z, "output_type": "latent"}
        theirs = small.pipe("a moon", **how).images
    trainer.close()
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_attached_it_brings_its_scheduler_and_says_what_to_ask_for(sd):
    one, other = (erase(n, sd, method=("sfd", SHORT)) for n in ("moon", "star"))
    own = sd.pipe.scheduler
    first = one.attach(sd)
    assert type(sd.pipe.scheduler).__name__ == "DDIMScheduler"
    with pytest.raises(
        InputError, match="draws in 1 step now: call it with num_inference_steps=1 and guidance_scale=1"
    ):
        sd.pipe("a moon", num_inference_steps=20)
    sd.pipe("a moon", num_inference_steps=1, guidance_scale=1.0)
    second = other.attach(sd)
    first.detach()
    assert sd.pipe.scheduler is not own, "the second still draws in one step"
    second.detach()
    assert sd.pipe.scheduler is own
    handle = one.attach(sd)
    mine = sd.pipe.scheduler = DDIMScheduler.from_config(own.config)
    handle.detach()
    assert sd.pipe.scheduler is mine, "the user's own choice stays"


def test_pipelines_that_list_noise_levels_are_told_too():
    backbone = build("flux")
    with erase(MOON, backbone, method=("sfd", {**SHORT, "steps": 1})).attached(backbone):
        assert len(backbone.draw(["a moon"], [0], steps=1, guidance=1.0)) == 1
        with pytest.raises(InputError, match="draws in 1 step now"):
            backbone.draw(["a moon"], [0], steps=2, guidance=1.0)


def test_a_scheduler_that_is_none_is_refused(sd, tmp_path):
    folder = erase(MOON, sd, method=("sfd", SHORT)).save_pretrained(tmp_path / "e")
    record = json.loads((folder / "eraser_config.json").read_text())
    record["drawing"]["scheduler"]["_class_name"] = "DiffusionPipeline"
    (folder / "eraser_config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="expected one of diffusers' schedulers, got 'DiffusionPipeline'"):
        Eraser.from_pretrained(folder)


def test_several_ways_of_drawing_do_not_mix(sd):
    one, two = (erase(MOON, sd, method=("sfd", {**SHORT, "draw_steps": n})) for n in (1, 2))
    with pytest.raises(InputError, match="draw at different times"):
        draw(sd, [Prompt("a moon")], [one, two])


def test_the_generator_starts_from_one_that_is_there(sd, tmp_path):
    """A LoRA of smaller rank; learning nothing gives it back."""
    first = erase("star", sd, method=("sfd", {**SHORT, "rank": 3})).save_pretrained(tmp_path / "start")
    begun = Eraser.from_pretrained(first).payload.factors
    for rank, dense in ((5, False), (2, False), (5, True)):
        settings = {**SHORT, "rank": rank, "dense": dense, "start": str(first), "lr": 1e-12, "steps": 1}
        eraser = erase(MOON, sd, method=("sfd", settings))
        assert eraser.recipe.settings["start"] == "start", "no path of this computer"
        for name, (a, b) in begun.items():
            want = b @ a
            if dense:
                base = sd.parameters("all")[f"{name}.weight"].data
                have = eraser.payload.changes[f"{name}.weight"].applied(base) - base
            else:
                x, y = eraser.payload.factors[name]
                assert len(x) == max(rank, 3)
                have = y @ x
            torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-4)
    with pytest.raises(InputError, match=r"start: .* does not learn here: choose a larger --train"):
        erase(MOON, sd, method=("sfd", {**SHORT, "train": "self", "start": str(first)}))
    with pytest.raises(InputError, match="is not for sdxl"):
        erase(MOON, build("sdxl"), method=("sfd", {**SHORT, "start": str(first)}))


def test_validation_draws_as_the_eraser_will(sd, tmp_path):
    loop = Loop(tmp_path / "w", checkpoint_every=0, validate_every=3, validate=("a moon",))
    eraser = erase(MOON, sd, method=("sfd", SHORT), loop=loop)
    image = draw(sd, [Prompt("a moon", 0)], [eraser]).images[0]
    sheet = np.asarray(Image.open(tmp_path / "w/validation/step-000003.png"))
    h, w = np.asarray(image).shape[:2]
    assert sheet.shape[:2] == (h, w)
    assert np.abs(sheet.astype(int) - np.asarray(image)).max() <= 1
    assert sd.pipe.scheduler.config.steps_offset == 1, "the pipeline's own scheduler is back"


def test_no_image_is_read(sd, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("an image was read")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(sd, "latents", refuse)
    monkeypatch.setattr(sd, "decode", refuse)
    eraser = erase(MOON, sd, method=("sfd", {**SHORT, "warmup": 1, "images": 2, "sampler_steps": 2}))
    assert not eraser.payload.zero(), "it was trained all the same"


def test_the_many_step_variant_has_a_name_of_its_own(sd, tmp_path):
    eraser = erase(MOON, sd, method=("sfd_many_step", SHORT))
    folder = eraser.save_pretrained(tmp_path / "e", verify=sd)
    assert (eraser.recipe.method, eraser.recipe.drawing) == ("sfd_many_step", {})
    assert not (folder / "scheduler").exists()
    assert draw(sd, [Prompt("a moon")], [eraser], how=Sampling(steps=3)).manifest["sampling"]["steps"] == 3


# ---------------------------------------------------------------- the generator that comes with the package


@pytest.fixture
def onestep(monkeypatch, tmp_path):
    """A bundled generator of few numbers, as bench/canvas_onestep.py writes it."""
    base = load("canvas-sd")
    g = torch.Generator().manual_seed(0)
    factors = {
        n: (0.1 * torch.randn(2, m.in_features, generator=g), 0.1 * torch.randn(m.out_features, 2, generator=g))
        for n, m in base.modules("cross").items()
    }
    drawing = base.few(1, 625)
    files.write_tensors(tmp_path / files.LORA_FILE, {k: v.half() for k, v in files.peft_keys(factors).items()}, {})
    files.write_scheduler(tmp_path, drawing.scheduler)
    note = {"world": "canvas", "base": "canvas-sd", "drawing": asdict(drawing)}
    (tmp_path / "canvas.json").write_text(json.dumps(note))
    monkeypatch.setitem(_bundled.BUNDLED, "canvas-sd-onestep", _bundled.Bundled(tmp_path, "", "canvas-sd"))
    return tmp_path


def test_a_bundled_generator_loads_by_name_and_by_plain_diffusers(onestep):
    backbone = load("canvas-sd-onestep")
    assert (backbone.world, backbone.drawing.times) == ("canvas", (625,))
    how = sampling(backbone)
    assert (how.steps, how.guidance, how.sampler) == (1, 1.0, None)
    ours = draw(backbone, [Prompt("a moon", 3)]).images[0]
    plain = StableDiffusionPipeline.from_pretrained(_bundled.BUNDLED["canvas-sd"].folder)
    plain.load_lora_weights(onestep)
    plain.scheduler = DDIMScheduler.from_pretrained(onestep, subfolder="scheduler")
    call = {"num_inference_steps": 1, "guidance_scale": 1.0}
    theirs = plain("a moon", generator=torch.Generator("cpu").manual_seed(3), **call).images[0]
    # the LoRA is in the weights here and beside them there: rounding differs
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max() <= 1
    plain.unload_lora_weights()
    without = plain("a moon", generator=torch.Generator("cpu").manual_seed(3), **call).images[0]
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(without)).max() > 5


def test_erasing_from_a_bundled_generator(onestep):
    """A closed form does; what needs a trajectory says what to do."""
    backbone = load("canvas-sd-onestep")
    with erase("moon", backbone).attached(backbone):
        backbone.draw(["a moon"], [0], steps=1, guidance=1.0)
    with pytest.raises(InputError, match="canvas-sd-onestep draws in a few steps and has no longer trajectory"):
        erase("moon", backbone, method=("esd", {"steps": 1, "pool": 2}))
    with pytest.raises(InputError, match="has no scores to teach: erase from the model it was distilled from"):
        erase("moon", backbone, method=("sfd", {"steps": 1}))


def test_on_canvas_it_starts_from_the_bundled_generator(onestep):
    begun = files.from_peft_keys(files.read_tensors(onestep / files.LORA_FILE)[0], "it")
    still = {"steps": 1, "batch": 1, "lr": 1e-12, "lr_fake": 1e-12, "k1": 1.0, "k2": 1.0, "k4": 1.0, "contexts": 1}
    for start, scale in ((None, 1.0), ("base", 0.0)):
        settings = {**still, "start": start, "compose": False}
        factors = erase("moon", load("canvas-sd"), method=("sfd", settings), preserve=["star"]).payload.factors
        for name, (a, b) in begun.items():
            x, y = factors[name]
            torch.testing.assert_close(y @ x, scale * (b.float() @ a.float()), atol=1e-6, rtol=1e-5)


def test_a_generator_that_is_not_there_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setitem(_bundled.BUNDLED, "canvas-sd-onestep", _bundled.Bundled(tmp_path, "", "canvas-sd"))
    with pytest.raises(InputError, match=r"is missing: make it with `python bench/canvas_onestep\.py`"):
        load("canvas-sd-onestep")
    assert "canvas-sd-onestep" not in [m.id for m in models()]
    assert distilled("canvas-sd") is None
