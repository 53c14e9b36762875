"""The trained methods' mathematics, each against an independent computation on two separate networks."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from erasers.erase import Task, configure, erase, solve
from erasers.erase._finetune import together
from erasers.erase._student import Student
from erasers.erase.esd import away
from erasers.pipelines import step_generator
from erasers.prompts import Concept, InputError

MOON = Concept("moon", "circle")
CROSS = {
    "unet": {"attn2"},
    "transformer": {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context", "norm1_context"}
    | {"context_embedder", "norm_added_q", "norm_added_k"},
}
ONE = {"steps": 1, "batch": 4, "dense": True, "lr": 1e-3, "train": "cross", "sampler_steps": 3}


def test_away_is_the_papers_equation():
    rng = np.random.default_rng(0)
    null, concept = rng.standard_normal((2, 3, 4, 5, 5))
    for eta in (0.5, 1.0, 3.0):
        want = null - eta * (concept - null)
        have = away(torch.tensor(null), torch.tensor(concept), torch.tensor(null), eta).numpy()
        np.testing.assert_allclose(have, want)
        # the published code starts from e(c): with eta one larger it is the same
        np.testing.assert_allclose(have, concept - (eta + 1) * (concept - null), atol=1e-12)


def test_away_commutes_with_every_affine_parameterisation():
    """Coefficients sum to 1: forming the target in epsilon and turning it into v gives the target formed in v."""
    g = torch.Generator().manual_seed(0)
    x, null, concept = torch.randn(3, 2, 4, 5, 5, generator=g, dtype=torch.float64)
    a, s = 0.6, 0.8

    def v(eps):
        return (eps - s * x) / a

    torch.testing.assert_close(v(away(null, concept, null, 2.0)), away(v(null), v(concept), v(null), 2.0))


def walked(backbone, cond, null, stop, noise, steps, guidance):
    """Partial denoising row by row with diffusers' scheduler and two separate calls for guidance."""
    rows = []
    config = backbone.pipe.scheduler.config
    for k in range(len(stop)):
        scheduler = (
            DDIMScheduler.from_config(config, clip_sample=False)
            if "prediction_type" in config
            else FlowMatchEulerDiscreteScheduler.from_config(config)
        )
        scheduler.set_timesteps(steps)
        x = noise[k : k + 1]
        for t in scheduler.timesteps[: stop[k]]:
            free, led = (backbone.denoise(x, t.expand(1), c) for c in (null, cond[[k]]))
            x = scheduler.step(free + guidance * (led - free), t, x).prev_sample
        times = [*scheduler.timesteps.tolist(), 0]
        rows.append((x, times[stop[k]]))
    return torch.cat([x for x, _ in rows]), torch.tensor([t for _, t in rows])


def stepped(student, loss):
    """One step of Adam, written out: each cross-attention weight moves by lr g / (|g| + eps)."""
    part = student.component
    names = [n for n, _ in student.denoiser.named_parameters() if {*n.split(".")} & CROSS[part]]
    params = [dict(student.denoiser.named_parameters())[n] for n in names]
    grads = torch.autograd.grad(loss, params)
    return {
        f"{part}.{n}": (p - 1e-3 * g / (g.abs() + 1e-8)).detach() for n, p, g in zip(names, params, grads, strict=True)
    }


def compare(backbone, method, settings, want):
    delta = solve(configure(method, "sd", {**ONE, **settings}), backbone, task=Task((MOON,), (), 7))
    params = backbone.parameters("cross")
    assert set(delta.changes) == set(want) == set(params)
    moved = 0.0
    for name, value in want.items():
        have = delta.changes[name].applied(params[name].data)
        # where the gradient is about Adam's epsilon, rounding decides the step
        torch.testing.assert_close(have, value, atol=2e-4, rtol=0)
        assert (have - value).abs().mean() < 1e-5
        moved = max(moved, (have - params[name]).abs().max().item())
    assert moved == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(("host", "relative"), [(None, 0.0), ("star", 0.0), (None, 1.0)])
def test_esd_step(small, host, relative):
    backbone = small
    other = copy.deepcopy(backbone)  # the student is a second network here
    rng = step_generator(7, 0)
    stop, prompt = torch.randint(3, (4,), generator=rng), torch.randint(1, (4,), generator=rng)
    noise = torch.randn(4, *backbone.latent_shape, generator=rng)
    assert prompt.tolist() == [0] * 4
    concept, null = backbone.encode(["moon"] * 4), backbone.unconditional(1)
    asked = concept if host is None else backbone.encode([host] * 4)
    with torch.no_grad():
        x, t = walked(backbone, asked, null, stop, noise, 3, 3.0)
        e_c, e_0, e_h = (backbone.denoise(x, t, c) for c in (concept, null[[0] * 4], asked))
    target = (e_0 if host is None else e_h) - 2.0 * (e_c - e_0)
    error = (other.denoise(x, t, asked) - target).square().mean((1, 2, 3))
    loss = sum(e / (a - b).square().mean() ** relative for e, a, b in zip(error, e_c, e_0, strict=True)) / 4
    compare(
        backbone,
        "esd",
        {"eta": 2.0, "from_": host, "relative": relative},
        stepped(other, loss),
    )


def test_esd_in_company(sd):
    """Beside a style that stays, the target starts from that style alone and goes away from the pair."""
    moon, ink = Concept("moon", "circle", kind="object"), Concept("ink", "pencil", kind="style")
    pairs = together((moon,), (ink, Concept("star", "")), synonyms=True)
    assert pairs == {"a moon in ink style": "in ink style"}
    other, rng = copy.deepcopy(sd), step_generator(7, 0)
    stop, prompt = torch.randint(3, (4,), generator=rng), torch.randint(2, (4,), generator=rng)
    assert set(prompt.tolist()) == {0, 1}
    noise = torch.randn(4, *sd.latent_shape, generator=rng)
    null = sd.unconditional(1)
    asked = sd.encode(["moon", "a moon in ink style"])[prompt]
    start = (null + sd.encode(["in ink style"]))[prompt]
    with torch.no_grad():
        x, t = walked(sd, asked, null, stop, noise, 3, 3.0)
        e_c, e_s = (sd.denoise(x, t, c) for c in (asked, start))
    loss = (other.denoise(x, t, asked) - (e_s - 2.0 * (e_c - e_s))).square().mean()
    want = stepped(other, loss)
    tool = configure("esd", "sd", {**ONE, "eta": 2.0, "compose": True})
    delta = solve(tool, sd, task=Task((moon,), (ink,), 7))
    for name, value in want.items():
        have = delta.changes[name].applied(sd.parameters("cross")[name].data)
        assert (have - value).abs().mean() < 1e-5


def test_esd_keeps_and_walks_by_itself(sd):
    """Two steps: in the second the student has moved, so what it keeps pulls on it, the way to the concept is its own,
    not the teacher's, and the learning rate has fallen to half.
    """
    other = copy.deepcopy(sd)
    concept, null = sd.encode(["moon"] * 4), sd.unconditional(1)
    empty = sd.encode([""] * 4)
    cross = [p for n, p in other.denoiser.named_parameters() if ".attn2." in n]
    adam = torch.optim.Adam(cross, lr=1e-3)
    for k in range(2):
        rng = step_generator(7, k)
        stop = torch.randint(3, (4,), generator=rng)
        ways = []
        for cond in (concept, empty):
            torch.randint(1, (4,), generator=rng)
            noise = torch.randn(4, *sd.latent_shape, generator=rng)
            with torch.no_grad():
                ways.append(walked(other, cond, null, stop, noise, 3, 3.0))
        (x, t), (y, u) = ways
        with torch.no_grad():
            e_c, e_0, stay = (sd.denoise(*a) for a in ((x, t, concept), (x, t, null[[0] * 4]), (y, u, empty)))
        pull = (e_c - e_0).square().mean((1, 2, 3))
        gone = (other.denoise(x, t, concept) - (e_0 - 2.0 * (e_c - e_0))).square().mean((1, 2, 3))
        kept = (other.denoise(y, u, empty) - stay).square().mean((1, 2, 3))
        assert bool(kept.any()) == (k == 1)
        adam.param_groups[0]["lr"] = 1e-3 * (1 - k / 2)
        adam.zero_grad()
        ((gone + 0.5 * kept) / pull).mean().backward()
        adam.step()
    settings = {**ONE, "steps": 2, "eta": 2.0, "keep": 0.5, "relative": 1.0, "decay": True}
    delta = solve(configure("esd", "sd", settings), sd, task=Task((MOON,), (), 7))
    for name, want in other.parameters("cross").items():
        have = delta.changes[name].applied(sd.parameters("cross")[name].data)
        assert (have - want).abs().mean() < 2e-5
        assert (have - sd.parameters("cross")[name]).abs().mean() > 5e-4 or name.endswith("bias")


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("concept_ablation", {"variant": "model", "keep": 0.7}),
        ("concept_ablation", {"variant": "noise", "keep": 0.0}),
        ("gradient_ascent", {}),
        ("anchor_finetune", {}),
    ],
    ids=["ablation-model", "ablation-noise", "ascent", "finetune"],
)
def test_steps_on_images(small, method, settings):
    backbone = small
    other = copy.deepcopy(backbone)
    rng = step_generator(7, -1 % 1_000_003)
    prompt = torch.randint(1, (3,), generator=rng)
    start = torch.randn(3, *backbone.latent_shape, generator=rng)
    forget, anchor, null = backbone.encode(["moon"] * 4), backbone.encode(["circle"] * 4), backbone.unconditional(1)
    source = forget if method == "gradient_ascent" else anchor
    with torch.no_grad():
        images, _ = walked(backbone, source, null, [3, 3, 3], start, 3, 4.0)
    rng = step_generator(7, 0)
    row, config = torch.randint(3, (4,), generator=rng), backbone.pipe.scheduler.config
    if "prediction_type" in config:
        t = torch.randint(1000, (4,), generator=rng)
        abar = DDIMScheduler.from_config(config).alphas_cumprod[t].view(-1, 1, 1, 1)
        a, s = abar.sqrt(), (1 - abar).sqrt()
    else:
        logit = torch.randn(4, generator=rng)
        t = 1000 * 3 / (3 + (-logit).exp())  # logit-normal, shifted by 3: the odds are three times as high
        s = (t / 1000).view(-1, 1, 1, 1)
        a = 1 - s
    eps = torch.randn(4, *backbone.latent_shape, generator=rng)
    assert prompt.tolist() == [0] * 3
    x = a * images[row] + s * eps
    kind = config.get("prediction_type", "flow")
    truth = {"epsilon": eps, "v_prediction": a * eps - s * images[row], "flow": eps - images[row]}[kind]

    def mse(cond, target):
        return (other.denoise(x, t, cond) - target).square().mean()

    if method == "gradient_ascent":
        loss = -mse(forget, truth)
    elif settings.get("variant") == "model":
        with torch.no_grad():
            target = other.denoise(x, t, anchor)
        loss = mse(forget, target) + 0.7 * mse(anchor, truth)
    else:
        loss = mse(forget, truth)
    compare(backbone, method, {**settings, "images": 3, "guidance": 4.0}, stepped(other, loss))


@pytest.mark.parametrize("method", ["esd", "concept_ablation", "gradient_ascent", "anchor_finetune"])
@pytest.mark.parametrize("train", ["text-kv", "cross", "self", "not-cross", "all"])
@pytest.mark.parametrize("dense", [False, True])
def test_only_the_chosen_part_learns(sd, method, train, dense):
    settings = {
        "steps": 2,
        "batch": 2,
        "sampler_steps": 2,
        "lr": 1e-4 if dense else 1e-2,
        "train": train,
        "dense": dense,
    }
    settings |= {} if method == "esd" else {"images": 2}
    payload = erase(MOON, sd, method=(method, settings)).payload
    parts = {
        "text-kv": lambda n: ".attn2.to_k" in n or ".attn2.to_v" in n,
        "cross": lambda n: ".attn2." in n,
        "self": lambda n: ".attn1." in n,
        "not-cross": lambda n: ".attn2." not in n,
        "all": lambda n: True,
    }
    want = {f"unet.{n}" for n, _ in sd.denoiser.named_parameters() if parts[train](n)}
    if dense:
        assert set(payload.changes) == want
        assert sum(len(c.values) for c in payload.changes.values()) > 0
    else:
        linear = {f"unet.{n}" for n, m in sd.denoiser.named_modules() if isinstance(m, torch.nn.Linear)}
        assert set(payload.factors) == {n for n in linear if f"{n}.weight" in want}
        assert any(b.any() for _, b in payload.factors.values())


def test_the_students_first_answer_is_the_teachers(backbone):
    """B starts at zero, and both switch on one network."""
    x = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    cond, t = backbone.encode(["a moon"]), torch.tensor([500])
    with torch.no_grad():
        base = backbone.denoise(x, t, cond)
        for rank in (0, 2):
            student = Student(backbone, "cross", rank=rank, generator=torch.Generator().manual_seed(0))
            with student.on():
                assert torch.equal(backbone.denoise(x, t, cond), base)
                for p in student.parameters.values():
                    p.add_(0.05)
                assert not torch.equal(backbone.denoise(x, t, cond), base)
            with student.teacher():
                assert torch.equal(backbone.denoise(x, t, cond), base)
            assert all(p.requires_grad for p in student.parameters.values())
            frozen = [p for p in backbone.denoiser.parameters() if not any(p is q for q in student.parameters.values())]
            assert not any(p.requires_grad for p in frozen)
            student.close()
            assert torch.equal(backbone.denoise(x, t, cond), base)
            assert all(p.requires_grad for p in backbone.denoiser.parameters())


def test_dense_needs_float32(sd):
    sd.pipe.to(torch.float16)
    with pytest.raises(InputError, match=r"dense training needs float32 weights, got torch\.float16"):
        erase("moon", sd, method=("esd", {"dense": True, "steps": 1}))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("esd", {"eta": -1.0}, "eta: expected a number of at least 0"),
        ("esd", {"eta": 0.0, "from_": "cat"}, "eta: expected a number of at least 0, with --from above it"),
        ("esd", {"keep": -1.0}, "keep: expected a number of at least 0"),
        ("esd", {"pool": -1}, "pool: expected"),
        ("esd", {"sampler_steps": 0}, "sampler-steps: expected a number of at least 1"),
        ("esd", {"train": "corss"}, "unknown train 'corss': did you mean 'cross'"),
        ("esd", {"rank": 0}, "rank: expected at least 1"),
        ("esd", {"lr": float("inf")}, "lr: expected a number above 0"),
        ("esd", {"contexts": 99}, "contexts: expected at most"),
        ("concept_ablation", {"variant": "modal"}, "unknown variant 'modal': did you mean 'model'"),
        ("concept_ablation", {"keep": float("nan")}, "keep: expected"),
        ("gradient_ascent", {"images": 0}, "images: expected at least 1"),
    ],
)
def test_settings_that_make_no_sense(sd, method, settings, message):
    with pytest.raises(InputError, match=message):
        erase("moon", sd, method=(method, settings))
    assert not hasattr(sd.denoiser, "peft_config"), "a refused run leaves nothing behind"
