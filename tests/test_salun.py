"""SalUn: its mask, its steps and its losses, each against an independent computation."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image

from erasers.erase import Delta, Eraser, Loop, Lora, Session, Task, configure, describe, erase, overlap, salun, solve
from erasers.erase._delta import pack, unpack
from erasers.erase._masked import MaskedStudent, adam_, shrunk
from erasers.erase._pictures import of_concept, retained
from erasers.erase._saliency import Mask, choose, combined, forgetting, kth_largest, salient_layers
from erasers.pipelines import step_generator
from erasers.prompts import Concept, InputError

MOON = Concept("moon", "circle")
STAR = Concept("star", "circle")
SHORT = {"rank_over": "all", "contexts": 1, "steps": 2, "batch": 4, "images": 6, "sampler_steps": 2, "lr": 1e-3}


def short(backbone, **more):
    return configure("salun", backbone.preset, {**SHORT, **more})


# ---------------------------------------------------------------- the mask


@pytest.mark.parametrize("seed", range(3))
def test_kth_largest_is_what_sorting_finds(seed):
    g = torch.Generator().manual_seed(seed)
    parts = {"a": torch.randn(7, 11, generator=g).abs(), "b": torch.rand(301, generator=g) * 1e-30, "c": torch.zeros(5)}
    parts["b"][:20] = parts["b"][20]
    everything = np.sort(np.concatenate([p.numpy().ravel() for p in parts.values()]))[::-1]
    for k in (1, 2, 77, 78, 90, 378, len(everything)):
        edge, ties = kth_largest(parts, k)
        assert edge == everything[k - 1]
        assert ties == k - (everything > edge).sum()


def test_kth_largest_refuses_what_is_not_finite():
    with pytest.raises(InputError, match="not finite"):
        kth_largest({"a": torch.tensor([1.0, float("inf")])}, 1)
    with pytest.raises(InputError, match="not finite"):
        kth_largest({"a": torch.tensor([1.0, float("nan")])}, 1)


@pytest.mark.parametrize("choice", ["saliency", "lowest", "random", "none"])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.999, 1.0])
def test_masks_have_exactly_their_density(choice, density):
    g = torch.Generator().manual_seed(1)
    sums = {"a": torch.randn(13, 7, generator=g).abs(), "b": torch.zeros(40), "c": torch.randn(3, generator=g).abs()}
    mask = choose(sums, density, choice=choice, generator=g, about={})
    inside = torch.cat([mask.of(n).flatten() for n in sums])
    values = torch.cat([s.flatten() for s in sums.values()])
    assert inside.sum() == (134 if choice == "none" else int(density * 134))
    if choice in ("saliency", "lowest") and density < 1:
        sign = 1 if choice == "saliency" else -1
        assert (sign * values[inside]).min() >= (sign * values[~inside]).max()
    assert mask.density == pytest.approx(inside.sum().item() / 134)


def test_random_masks_follow_their_seed():
    sums = {"a": torch.zeros(1000)}
    one, two, three = (
        choose(sums, 0.5, choice="random", generator=torch.Generator().manual_seed(s), about={}).bitmaps["a"]
        for s in (1, 1, 2)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_bits_are_numpys():
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(3, 7, generator=g) > 0.5
    assert torch.equal(unpack(pack(mask), (3, 7)), mask)
    assert pack(mask).tolist() == np.packbits(mask.numpy().ravel()).tolist()


def test_mask_file(tmp_path):
    g = torch.Generator().manual_seed(0)
    sums = {"unet.a.weight": torch.rand(300, 900, generator=g), "unet.b": torch.rand(1001, generator=g)}
    mask = choose(sums, 0.3, choice="saliency", generator=g, about={"density": 0.3})
    mask.save(tmp_path / "m.safetensors")
    again = Mask.load(tmp_path / "m.safetensors")
    assert all(torch.equal(again.bitmaps[n], mask.bitmaps[n]) for n in sums)
    assert (again.shapes, again.about) == (mask.shapes, {"density": 0.3})
    header = 8 + 300  # safetensors' own header names every tensor
    assert (tmp_path / "m.safetensors").stat().st_size <= math.ceil(271_001 / 8) + 2 * header
    (tmp_path / "n.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-3])
    with pytest.raises(InputError, match="no whole safetensors file"):
        Mask.load(tmp_path / "n.safetensors")


def test_layers_for_a_lora():
    ones = {"a": 8, "b": 2, "c": 6, "d": 1}
    bits = {f"{n}.weight": pack(torch.arange(8) < k) for n, k in ones.items()}
    mask = Mask(bits, dict.fromkeys(bits, (2, 4)), {})
    g = torch.Generator().manual_seed(0)
    assert salient_layers(mask, 0.5, choice="saliency", generator=g) == ["a", "c"]
    assert salient_layers(mask, 0.5, choice="lowest", generator=g) == ["a", "c"], "the mask is the other way round"
    assert salient_layers(mask, 0.1, choice="saliency", generator=g) == ["a"]
    assert salient_layers(mask, 0.5, choice="none", generator=g) == ["a", "b", "c", "d"]
    assert len(salient_layers(mask, 0.5, choice="random", generator=g)) == 2


# ---------------------------------------------------------------- formulas


def test_both_published_forms_of_guidance():
    rng = np.random.default_rng(0)
    free, led = rng.standard_normal((2, 3, 4))
    paper = free + 7.5 * (led - free)
    code = (1 + 7.5) * led - 7.5 * free
    a, b = torch.tensor(free), torch.tensor(led)
    np.testing.assert_allclose(combined(a, b, 7.5, "interpolate").numpy(), paper)
    np.testing.assert_allclose(combined(a, b, 7.5, "extrapolate").numpy(), code)
    truth = rng.standard_normal((3, 4))
    have = forgetting(a, b, torch.tensor(truth), scale=7.5, how="extrapolate")
    np.testing.assert_allclose(have.item(), -np.mean((truth - code) ** 2))


def test_adam_is_torchs():
    g = torch.Generator().manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(50, generator=g))
    ours, mean, square = theirs.detach().clone(), torch.zeros(50), torch.zeros(50)
    optimiser = torch.optim.Adam([theirs], lr=3e-3, foreach=False)
    for step in range(1, 8):
        grad = torch.randn(50, generator=g)
        theirs.grad = grad.clone()
        optimiser.step()
        adam_(ours, grad, mean, square, lr=3e-3, step=step)
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-7)


def test_soft_threshold():
    assert shrunk(torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0]), 1.0).tolist() == [-2.0, 0.0, 0.0, 0.0, 1.0]


def mask_of(delta):
    return {n: c.mask for n, c in delta.changes.items()}


def test_saliency_is_the_gradient_of_the_papers_loss(sd, monkeypatch):
    """The mask of one pass, computed on a second network with guidance as two calls and one batch after another."""
    settings = {"train": "all", "mask_passes": 1, "mask_guidance": 7.5, "steps": 1, "density": 0.25, "alpha": 0.0}
    tool = short(sd, **settings)
    task = Task((MOON,), (), 5)
    seen = {}

    build = salun._Trainer._build

    def keep(trainer, mask):
        seen.update(mask=mask, images=trainer.images)
        build(trainer, mask)

    monkeypatch.setattr(salun._Trainer, "_build", keep)
    delta = solve(tool, sd, task=task)
    other, rng = copy.deepcopy(sd), step_generator(5, -1 % 1_000_003)
    prompts = torch.randint(1, (6,), generator=rng)
    torch.randn(6, *sd.latent_shape, generator=rng)  # what the images were drawn from
    order = torch.randperm(6, generator=rng)
    sums = {n: torch.zeros_like(p) for n, p in other.parameters("all").items()}
    for row in (order[:4], order[4:]):
        eps = None
        noise = torch.randn(len(row), *sd.latent_shape, generator=rng)
        t = torch.randint(len(other.law.alphas), (len(row),), generator=rng)
        abar = other.law.alphas[t].view(-1, 1, 1, 1)
        eps, x = noise, abar.sqrt() * seen["images"]["forget latent"][row] + (1 - abar).sqrt() * noise
        led = other.denoise(x, t, other.encode(["moon"] * len(row)))
        free = other.denoise(x, t, other.unconditional(len(row)))
        loss = -((eps - (8.5 * led - 7.5 * free)) ** 2).mean()
        params = list(other.parameters("all").values())
        for total, grad in zip(sums.values(), torch.autograd.grad(loss, params, allow_unused=True), strict=True):
            total += 0 if grad is None else grad
    assert prompts.tolist() == [0] * 6
    flat = torch.cat([s.flatten() for s in sums.values()]).abs()
    want = torch.zeros(len(flat), dtype=torch.bool)
    want[flat.argsort(descending=True, stable=True)[: int(0.25 * len(flat))]] = True
    have = torch.cat([seen["mask"].of(n).flatten() for n in sums])
    assert have.sum() == want.sum()
    edge = flat[want].min()
    odd = flat[have != want]  # rounding may swap neighbours of the threshold, nothing else
    assert len(odd) < 1e-3 * len(flat)
    assert ((odd - edge).abs() <= 1e-3 * edge).all()
    assert all(torch.equal(m, seen["mask"].of(n)) for n, m in mask_of(delta).items())


def clean_errors(backbone, t):
    """Square error of the clean latent for one of the raw output, by hand."""
    config = backbone.pipe.scheduler.config
    if "beta_start" not in config:
        return (t / 1000) ** 2
    betas = np.linspace(config.beta_start**0.5, config.beta_end**0.5, 1000) ** 2
    abar = torch.tensor(np.cumprod(1 - betas))[t.long()].float()
    return 1 - abar if config.prediction_type == "v_prediction" else (1 - abar) / abar


@pytest.mark.parametrize(
    ("target", "retain", "early"), [("moving", "images", 0.0), ("frozen", "images", 0.5), ("moving", "base", 1.0)]
)
def test_relabelling_step(small, target, retain, early):
    """Two steps of masked Adam on two separate networks, written out."""
    backbone = small
    lr, alpha = 1e-3, 0.7
    more = {"target": target, "retain": retain, "early": early}
    tool = short(backbone, train="cross", alpha=alpha, density=0.5, mask="random", decay=False, **more)
    student, teacher = copy.deepcopy(backbone), copy.deepcopy(backbone)
    delta = solve(tool, backbone, task=Task((MOON,), (STAR,), 7))
    masks = mask_of(delta)
    names = list(masks)
    params = [student.parameters("all")[n] for n in names]
    mean, square = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
    rng = step_generator(7, -1 % 1_000_003)
    sides = {}
    for side, word in (("forget", "moon"), ("kept", "star")):
        assert torch.randint(1, (6,), generator=rng).tolist() == [0] * 6
        noise = torch.randn(6, *backbone.latent_shape, generator=rng)
        x, _ = backbone.partial(
            backbone.encode([word] * 6),
            torch.full((6,), 2),
            noise,
            steps=2,
            guidance=7.5,
            null=backbone.unconditional(1),
        )
        sides[side] = x
    for step in range(2):
        rng = step_generator(7, step)
        seen = {}
        for side in ("forget", "kept"):
            row = torch.randint(6, (4,), generator=rng)
            t = backbone.times(4, rng)
            eps = torch.randn(4, *backbone.latent_shape, generator=rng)
            seen[side] = backbone.noise(sides[side][row], t, eps), t, backbone.target(sides[side][row], eps, t)
        x, t, _ = seen["forget"]
        judge = student if target == "moving" else teacher
        with torch.no_grad():
            want = judge.denoise(x, t, judge.encode(["circle"] * 4))
        error = (student.denoise(x, t, student.encode(["moon"] * 4)) - want).square().mean((1, 2, 3))
        loss = (error * clean_errors(backbone, t) ** early).mean()
        x, t, truth = seen["kept"]
        if retain == "base":
            with torch.no_grad():
                truth = teacher.denoise(x, t, teacher.encode(["star"] * 4))
        loss = loss + alpha * (student.denoise(x, t, student.encode(["star"] * 4)) - truth).square().mean()
        grads = torch.autograd.grad(loss, params)
        with torch.no_grad():
            for p, g, m, v, n in zip(params, grads, mean, square, names, strict=True):
                g = g * masks[n]
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                k = step + 1
                p -= lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    moved = 0.0
    for n, p in zip(names, params, strict=True):
        base = backbone.parameters("all")[n]
        have = delta.changes[n].applied(base.data)
        assert torch.equal(have[~masks[n]], base[~masks[n]])
        assert (have - p).abs().mean() < 2e-5
        moved = max(moved, (have - base).abs().max().item())
    assert moved == pytest.approx(2e-3, rel=0.1)


# ---------------------------------------------------------------- what users see


@pytest.mark.parametrize("mask", ["saliency", "random", "none", "lowest"])
def test_unmasked_weights_are_bit_identical(small, mask):
    backbone = small
    before = {n: p.detach().clone() for n, p in backbone.parameters("all").items()}
    eraser = erase(
        MOON, backbone, method=("salun", {**SHORT, "train": "all", "mask": mask, "density": 0.3}), preserve=["star"]
    )
    assert isinstance(eraser.payload, Delta)
    total = sum(p.numel() for p in before.values())
    masks = mask_of(eraser.payload)
    assert sum(int(m.sum()) for m in masks.values()) == (total if mask == "none" else int(0.3 * total))
    moved = 0
    with eraser.attached(backbone):
        for n, p in backbone.parameters("all").items():
            inside = masks.get(n, torch.zeros_like(p, dtype=torch.bool))
            assert torch.equal(p[~inside], before[n][~inside])
            moved += int((p != before[n]).sum())
    assert moved > 0.05 * total
    assert all(torch.equal(p, before[n]) for n, p in backbone.parameters("all").items())


WAYS = {
    "plain": ({}, Loop()),
    "parts": ({}, Loop(accumulate=2)),
    "clip": ({"clip": 1e-3}, Loop()),
    "frozen": ({"target": "frozen", "retain": "base"}, Loop(divergence=0)),
    "soft": ({"soft": 0.5}, Loop()),
    "bfloat16": ({}, Loop(mixed_precision="bf16")),
    "checkpointed": ({}, Loop(gradient_checkpointing=True)),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_live_weights_outside_the_mask_never_move(sd, way, monkeypatch):
    """In the network itself, after every step, whatever the way of training; other adapters stay out of it."""
    settings, loop = WAYS[way]
    before = {n: p.detach().clone() for n, p in sd.parameters("all").items()}
    update, seen = salun._Trainer.update, []

    def look(trainer, k):
        norm = update(trainer, k)
        mask = trainer.student.mask
        with trainer.showing():
            for n, p in trainer.backbone.parameters("all").items():
                inside = mask.of(n) if n in mask.bitmaps else torch.zeros_like(p, dtype=torch.bool)
                assert torch.equal(p[~inside], before[n][~inside]), n
                seen.append(int((p[inside] != before[n][inside]).sum()))
        assert all(p.grad is None for p in trainer.backbone.denoiser.parameters())
        inside = sum(a for a, _ in mask.counts().values())
        kept = sum(t.numel() for pair in trainer.student._moments.values() for t in pair)
        assert kept <= 2 * inside, "moments only where the mask is on"
        return norm

    monkeypatch.setattr(salun._Trainer, "update", look)
    other = erase(STAR, sd, method="uce", preserve=[])
    with other.attached(sd):
        erase(MOON, sd, method=("salun", {**SHORT, "train": "all", **settings}), preserve=["cat"], loop=loop)
        assert other.attached
    assert sum(seen) > 0
    assert all(torch.equal(p, before[n]) for n, p in sd.parameters("all").items())


def test_a_failure_in_the_middle_restores_every_weight(sd, monkeypatch):
    before = {n: p.detach().clone() for n, p in sd.parameters("all").items()}
    loss, calls = salun._Trainer.loss, []

    def fail(trainer, draws):
        calls.append(1)
        if len(calls) == 2:
            with trainer.student.teacher():
                assert all(torch.equal(p, before[n]) for n, p in sd.parameters("all").items()), (
                    "the teacher is the base"
                )
                raise KeyboardInterrupt
        return loss(trainer, draws)

    monkeypatch.setattr(salun._Trainer, "loss", fail)
    with pytest.raises(KeyboardInterrupt):
        erase(MOON, sd, method=("salun", {**SHORT, "train": "all"}), preserve=["star"])
    assert all(torch.equal(p, before[n]) for n, p in sd.parameters("all").items())
    assert all(p.grad is None and p.requires_grad for p in sd.denoiser.parameters())


def test_gradients_in_parts_are_the_same(sd):
    """Adam inside the backward pass, and on gradients that are added up first."""
    settings = {**SHORT, "train": "cross", "mask": "random"}
    whole, parts, clipped = (
        erase(
            MOON,
            sd,
            method=("salun", {**settings, **more}),
            preserve=["star"],
            loop=Loop(accumulate=n, checkpoint_every=0),
        )
        for more, n in (({}, 1), ({}, 2), ({"clip": 1e9}, 1))
    )
    for other in (parts, clipped):
        for n, c in whole.payload.changes.items():
            torch.testing.assert_close(other.payload.changes[n].values, c.values, atol=3e-5, rtol=0)
            assert torch.equal(other.payload.changes[n].bitmap, c.bitmap)


def test_soft_threshold_of_all_changes_together(sd):
    """A share of the changes becomes zero, by one threshold, and the others move towards zero by it."""
    params = sd.parameters("text-kv")
    mask = choose(params, 0.5, choice="random", generator=torch.Generator().manual_seed(0), about={})
    student = MaskedStudent(sd, mask, Session(sd, Loop()), lr=1.0, clip=0.0)
    first = {n: student._read(n).clone() for n in params}
    g = torch.Generator().manual_seed(1)
    moves = {n: torch.randn(v.shape, generator=g) for n, v in first.items()}
    for n in params:
        student._write(n, first[n] + moves[n])
    student.soften(0.3)
    size = np.sort(np.concatenate([m.numpy() for m in moves.values()]).__abs__())
    edge = size[int(0.3 * len(size)) - 1]
    for n in params:
        have, move = student._read(n) - first[n], moves[n]
        want = np.sign(move) * np.maximum(np.abs(move) - edge, 0)
        torch.testing.assert_close(have, want, atol=1e-5, rtol=0)
    student.close()
    assert all(torch.equal(student.parameters[n].data[mask.of(n)], first[n]) for n in params)


def test_structured_lora_takes_the_salient_linears(sd):
    for mask in ("saliency", "lowest"):
        tool = {**SHORT, "train": "cross", "dense": False, "rank": 2, "density": 0.4, "mask": mask}
        eraser = erase(MOON, sd, method=("salun", tool), preserve=["star"])
        assert isinstance(eraser.payload, Lora)
        linears = sd.modules("cross")
        sizes = {n: m.weight.numel() for n, m in linears.items()}
        picked = sum(sizes[n] for n in eraser.payload.factors)
        assert 0.4 * sum(sizes.values()) <= picked < 0.4 * sum(sizes.values()) + max(sizes.values())
    first = erase(MOON, sd, method=("salun", {**tool, "mask": "saliency"}), preserve=["star"]).payload.factors
    assert set(first) != set(eraser.payload.factors)


def test_mask_is_kept_for_the_next_run(sd, tmp_path):
    work = tmp_path / "w"
    method = ("salun", {**SHORT, "train": "cross"})
    erase(MOON, sd, method=method, preserve=["star"], loop=Loop(work=work))
    there = work / "mask.safetensors"
    stamp = there.stat().st_mtime_ns
    one = erase(MOON, sd, method=method, preserve=["star"], loop=Loop(work=work, restart=True))
    assert there.stat().st_mtime_ns == stamp
    assert Mask.load(there).about["density"] == 0.5
    two = erase(MOON, sd, method=method, preserve=["star"])
    assert all(torch.equal(c.values, two.payload.changes[n].values) for n, c in one.payload.changes.items())
    erase(
        MOON,
        sd,
        method=("salun", {**method[1], "density": 0.25}),
        preserve=["star"],
        loop=Loop(work=work, restart=True),
    )
    assert there.stat().st_mtime_ns != stamp


def picture(path, colour, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_images_of_ones_own(sd, tmp_path):
    for style in ("Van_Gogh", "Ink"):
        for thing in ("Moon", "Dogs"):
            for k in range(3):
                picture(tmp_path / style / thing / f"{k}.png", (40 * k, 10, 200))
    (tmp_path / "Ink" / "Dogs" / "1.txt").write_text("a dog, in ink\n")
    gogh = Concept("Van_Gogh", "")
    assert not [p for p in retained(tmp_path, (gogh,)) if "gogh" in p.prompt]
    assert len(of_concept(tmp_path, MOON, alone=True)) == 6
    assert {p.parent.parent.name for p in of_concept(tmp_path, gogh, alone=False)} == {"Van_Gogh"}
    kept = retained(tmp_path, (MOON,))
    assert sorted({p.prompt for p in kept}) == [
        "A dogs image in ink style.",
        "A dogs image in van gogh style.",
        "a dog, in ink",
    ]
    both = {"forget_images": str(tmp_path), "retain_images": str(tmp_path)}
    eraser = erase(MOON, sd, method=("salun", {**SHORT, "train": "cross", **both}), preserve=[])
    assert eraser.payload.finite()
    assert eraser.recipe.settings["forget_images"] == tmp_path.name, "no path of this machine leaves it"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0.0}, "density: expected a share above 0 and at most 1, got 0.0"),
        ({"density": 1.5}, "density: expected a share above 0 and at most 1, got 1.5"),
        ({"mask": "salience"}, "saliency"),
        ({"soft": 0.5, "dense": False}, "leave out --no-dense"),
        ({"rank_over": "cross", "train": "all"}, "rank-over 'cross' leaves out"),
        ({"forget_images": "no-such-folder"}, "forget-images: expected a folder of images, got 'no-such-folder'"),
        ({"forget_images": "EMPTY"}, "forget-images: no image of 'moon' in"),
        ({"forget_images": "BAD"}, "is no readable image"),
        ({"forget_images": "GOOD", "retain_images": "GOOD"}, "retain-images: no image to stay with in"),
        ({"retain_images": "EMPTY"}, "retain-images: no image to stay with in"),
    ],
)
def test_mistakes(sd, tmp_path, settings, words):
    (tmp_path / "EMPTY").mkdir()
    picture(tmp_path / "GOOD" / "moon" / "1.png", "red")
    picture(tmp_path / "BAD" / "moon" / "1.png", "red")
    (tmp_path / "BAD" / "moon" / "2.png").write_bytes(b"no image")
    settings = {k: str(tmp_path / v) if str(v).isupper() else v for k, v in settings.items()}
    with pytest.raises(InputError, match=r"^[^\n]*$") as info:
        erase(MOON, sd, method=("salun", {**SHORT, **settings}), preserve=["star"])
    assert words in str(info.value)


def test_everyday_prompts_are_retained_where_nothing_is_named(sd, monkeypatch):
    asked = []
    encode = type(sd).encode
    monkeypatch.setattr(type(sd), "encode", lambda self, prompts: (asked.extend(prompts), encode(self, prompts))[1])
    erase(Concept("horse", ""), sd, method=("salun", SHORT), preserve=[])
    assert "a black cat asleep on a windowsill" in asked
    assert [p for p in asked if "horse" in p] == ["horse"]


def test_what_a_mask_covers(sd, tmp_path):
    settings = {**SHORT, "train": "all", "density": 0.25}
    erasers = []
    for name in ("moon", "star"):
        loop = Loop(work=tmp_path / f"{name}.training")
        eraser = erase(name, sd, method=("salun", settings), preserve=["cat"], loop=loop)
        erasers.append(eraser.save_pretrained(tmp_path / name, verify=sd))
    found, mask = describe(erasers[0]), describe(tmp_path / "moon.training" / "mask.safetensors")
    params = sd.parameters("all")
    masks = mask_of(Eraser.from_pretrained(erasers[0]).payload)
    total = sum(p.numel() for p in params.values())
    assert mask["density"] == round(int(0.25 * total) / total, 4)
    assert {"down_blocks.0", "mid_block", "conv_in"} <= set(mask["share by block"])
    for key, part in (("share by block", "mid_block"), ("share by layer", "attn2.to_k")):
        mine = [n for n in params if f".{part}." in n]
        share = sum(int(masks[n].sum()) for n in mine if n in masks) / sum(params[n].numel() for n in mine)
        assert mask[key][part] == pytest.approx(share, abs=1e-4)
    assert mask["mask"]["concepts"] == ["moon"]
    assert found["weights changed"] == int(0.25 * total)
    both = overlap(*erasers)
    other = mask_of(Eraser.from_pretrained(erasers[1]).payload)
    common = sum(int((masks[n] & other[n]).sum()) for n in masks if n in other)
    assert both["changed by both"] == common
    assert 0 < both["by chance"] < 1
