"""The loop: what it owns works for every trained method, and nothing of a run depends on how it was run."""

import gc
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import test_cli
import torch
from safetensors.torch import load_file

import tiny
from erasers.erase import Diverged, Loop, checkpoints, erase
from erasers.erase._finetune import Finetuner
from erasers.pipelines import wrap
from erasers.prompts import InputError

SHORT = {"steps": 6, "batch": 3, "sampler_steps": 3, "lr": 1e-2, "rank": 2}
KINDS = {
    "lora": ("esd", SHORT),
    "pool": ("esd", {**SHORT, "pool": 4, "refresh": 2, "keep": 0.5, "relative": 0.5, "decay": True}),
    "dense": ("esd", {**SHORT, "dense": True, "lr": 1e-3}),
    "images": ("concept_ablation", {**SHORT, "images": 4}),
    "mask": ("salun", {**SHORT, "images": 4, "lr": 1e-3, "soft": 0.5, "decay": True, "train": "cross"}),
    "mask, frozen target": ("salun", {**SHORT, "images": 4, "lr": 1e-3, "clip": 1.0, "target": "frozen"}),
    "layers": ("salun", {**SHORT, "images": 4, "dense": False, "target": "frozen"}),
}


def erased(words, out):
    """The command line in this process, which has everything imported."""
    code, _, err = test_cli.run("erase", *words, "--out", out)
    assert code == 0, err


def erased_by_two(words, out):
    """The command line in two processes; what they print."""
    launch = shlex.split("-m torch.distributed.run --standalone --nproc_per_node 2 -m erasers.app.cli erase")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launch, *words, "--out", str(out)], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def tensors(eraser):
    if eraser.recipe.kind == "lora":
        return {f"{n}.{s}": t for n, p in eraser.payload.factors.items() for s, t in zip("AB", p, strict=True)}
    return {n: c.values for n, c in eraser.payload.changes.items()}


def changes(eraser, start):
    """What was learnt: factors, or what every weight moved by."""
    if eraser.recipe.kind == "lora":
        return tensors(eraser)
    return {n: c.applied(start[n]) - start[n] for n, c in eraser.payload.changes.items()}


def same(one, two):
    a, b = tensors(one), tensors(two)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run(backbone, kind="lora", loop=None, **more):
    method, settings = KINDS[kind]
    return erase("moon", backbone, method=(method, {**settings, **more}), preserve=["star"], loop=loop)


class Killed(BaseException):
    """Stands for a power cut."""


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_killed_at_any_step_and_resumed_gives_the_same_bytes(sd, kind, tmp_path, monkeypatch):
    whole = run(sd, kind)
    step = Finetuner.step
    for k in range(SHORT["steps"]):
        loop = Loop(tmp_path / str(k), checkpoint_every=2)

        def cut(self, n, rng, k=k):
            if n == k:
                raise Killed
            return step(self, n, rng)

        monkeypatch.setattr(Finetuner, "step", cut)
        with pytest.raises(Killed):
            run(sd, kind, loop)
        monkeypatch.setattr(Finetuner, "step", step)
        if k >= 2:
            with pytest.raises(InputError, match="holds checkpoints of an unfinished run: go on with --resume"):
                run(sd, kind, loop)
        again = run(sd, kind, Loop(tmp_path / str(k), checkpoint_every=2, resume=True))
        assert same(whole, again), f"killed at step {k}"
        rows = [json.loads(r) for r in (tmp_path / str(k) / "log.jsonl").read_text().splitlines()]
        assert [r["step"] for r in rows] == list(range(1, SHORT["steps"] + 1))


def test_killed_from_outside(tmp_path):
    """SIGKILL at no chosen moment, through the command line; before and after it this process does the same."""
    tiny.sd().save_pretrained(tmp_path / "base")
    words = ["moon", "--model", str(tmp_path / "base")]
    words += shlex.split("--method esd --steps 20 --batch 2 --sampler-steps 3 --lr 0.01 --checkpoint-every 1")
    erased([*words], tmp_path / "whole")
    log = tmp_path / "cut.training/log.jsonl"
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "erasers.app.cli", "erase", *words, "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    while not log.exists() or len(log.read_text().splitlines()) < 7:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut").exists()
    assert checkpoints(tmp_path / "cut.training")
    erased([*words, "--resume"], tmp_path / "cut")
    name = "pytorch_lora_weights.safetensors"
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not checkpoints(tmp_path / "cut.training"), "a finished run needs none"


def test_two_processes_give_the_same_adapter(tmp_path):
    tiny.sd().save_pretrained(tmp_path / "base")
    words = ["moon", "--model", str(tmp_path / "base"), "--method", "esd"]
    words += shlex.split("--steps 4 --batch 5 --sampler-steps 3 --lr 0.01 --validate-every 2")
    erased([*words], tmp_path / "one")
    assert erased_by_two(words, tmp_path / "two").count("erased from") == 1, "only one process speaks"
    rows = [(tmp_path / f"{n}.training/log.jsonl").read_text().splitlines() for n in ("one", "two")]
    assert [json.loads(r[0])["processes"] for r in rows] == [1, 2]
    assert [len(r) for r in rows] == [4, 4]
    a, b = (load_file(tmp_path / n / "pytorch_lora_weights.safetensors") for n in ("one", "two"))
    assert a.keys() == b.keys()
    moved = 0.0
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=2e-5, rtol=1e-3)
        moved = max(moved, a[key].abs().max().item() if "lora_B" in key else 0.0)
    assert moved > 1e-3, "something was learnt"
    assert (tmp_path / "two.training/validation/step-000004.png").exists()


def test_two_processes_train_under_one_mask(tmp_path):
    """The first one's, made by it or found in its work folder; the values agree up to rounding."""
    tiny.sd().save_pretrained(tmp_path / "base")
    words = ["moon", "--model", str(tmp_path / "base"), "--method", "salun"]
    words += shlex.split("--steps 3 --batch 4 --images 6 --sampler-steps 3 --lr 0.001 --checkpoint-every 0")
    erased([*words], tmp_path / "one")
    erased_by_two(words, tmp_path / "two")
    (tmp_path / "three.training").mkdir()
    for name in ("mask.safetensors", ".training"):
        (tmp_path / "three.training" / name).write_bytes((tmp_path / "two.training" / name).read_bytes())
    erased_by_two(words, tmp_path / "three")
    one, two, three = (load_file(tmp_path / n / "delta.safetensors") for n in ("one", "two", "three"))
    assert one.keys() == two.keys() == three.keys()
    for key in one:
        if key.endswith(".bitmap"):
            assert torch.equal(two[key], three[key])
            assert torch.equal(one[key], two[key]), "one process makes it, whoever else trains"
        torch.testing.assert_close(three[key], two[key], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(one[key], two[key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_parts_of_a_batch_and_checkpointed_layers_change_rounding_only(sd, kind):
    whole = tensors(run(sd, kind, steps=2))
    modes = [m.training for m in sd.denoiser.modules()]
    for loop in (Loop(accumulate=2), Loop(accumulate=3), Loop(accumulate=8), Loop(gradient_checkpointing=True)):
        other = tensors(run(sd, kind, loop, steps=2))
        for key in whole:
            torch.testing.assert_close(other[key], whole[key], atol=2e-4, rtol=1e-2)
    assert modes == [m.training for m in sd.denoiser.modules()]
    assert not sd.denoiser.is_gradient_checkpointing


def test_one_network_in_memory(sd, monkeypatch):
    """Teacher and student are one network: nothing beyond the student's own weights comes on top."""
    seen = []
    step = Finetuner.step

    def count(self, n, rng):
        gc.collect()
        kind = type(sd.denoiser)
        seen.append(sum(isinstance(o, kind) for o in gc.get_objects()))
        return step(self, n, rng)

    monkeypatch.setattr(Finetuner, "step", count)
    gc.collect()
    before = sum(isinstance(o, type(sd.denoiser)) for o in gc.get_objects())
    run(sd, "lora", steps=2)
    run(sd, "dense", steps=2)
    assert set(seen) == {before}


class TestWatching:
    """Divergence, validation images, trackers."""

    def test_divergence_keeps_the_last_good_checkpoint(self, sd, tmp_path, monkeypatch):
        loss = Finetuner.step
        calls = []

        def blow_up(self, n, rng):
            calls.append(n)
            logs = loss(self, n, rng)
            return {**logs, "loss": float("nan")} if n == 4 else logs

        monkeypatch.setattr(Finetuner, "step", blow_up)
        with pytest.raises(
            Diverged, match=r"esd diverged at step 5: the loss is nan; .* step 4 in .*--resume --steps 4"
        ):
            run(sd, loop=Loop(tmp_path, checkpoint_every=2))
        monkeypatch.setattr(Finetuner, "step", loss)
        kept = run(sd, loop=Loop(tmp_path, checkpoint_every=2, resume=True), steps=4)
        assert same(kept, run(sd, steps=4))

    def test_a_loss_far_above_its_start(self, sd, monkeypatch):
        step = Finetuner.step
        monkeypatch.setattr(Finetuner, "step", lambda self, n, rng: {**step(self, n, rng), "loss": 1.0 + (n > 3)})
        run(sd)
        with pytest.raises(
            Diverged, match=r"at step 5: the loss is 2, more than 1.5 times where it started; lower --lr"
        ):
            run(sd, loop=Loop(divergence=1.5))
        assert not hasattr(sd.denoiser, "peft_config"), "a stopped run leaves nothing behind"
        assert all(p.requires_grad and p.grad is None for p in sd.denoiser.parameters())

    def test_a_learning_rate_that_is_far_too_high(self, sd):
        with pytest.raises(Diverged, match="lower --lr"):
            run(sd, loop=Loop(divergence=100), lr=10.0)  # its 900 to 1,100 times depend on the number of threads

    def test_validation_images_and_tensorboard(self, sd, tmp_path):
        from tensorboard.backend.event_processing import event_accumulator as events

        loop = Loop(tmp_path, validate_every=3, validate=("a moon", "a star"), track=("tensorboard",))
        run(sd, loop=loop)
        drawn = sorted(p.name for p in (tmp_path / "validation").iterdir())
        assert drawn == ["step-000000.png", "step-000003.png", "step-000006.png"]
        assert len({p.read_bytes() for p in (tmp_path / "validation").iterdir()}) == 3, "the student is drawn"
        file = next(p for p in tmp_path.rglob("events.out.*"))
        read = events.EventAccumulator(str(file.parent)).Reload()
        rows = [json.loads(r) for r in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert [e.step for e in read.Scalars("loss")] == [r["step"] for r in rows] == list(range(1, 7))
        assert [e.step for e in read.Images("validation")] or read.Tags()["images"]
        assert [e.value for e in read.Scalars("loss")] == pytest.approx([r["loss"] for r in rows], rel=1e-4)

    def test_watching_changes_nothing(self, sd, tmp_path):
        plain = run(sd)
        assert same(plain, run(sd, loop=Loop(tmp_path, validate_every=1, checkpoint_every=1)))
        assert len(checkpoints(tmp_path)) == 2, "the last two are kept"


class TestCheckpoints:
    """What is resumed, and what is not."""

    def test_a_damaged_one_is_passed_over(self, sd, tmp_path):
        whole = run(sd, loop=Loop(tmp_path, checkpoint_every=2))
        newest = checkpoints(tmp_path)[-1]
        newest.write_bytes(newest.read_bytes()[:-20])
        assert same(whole, run(sd, loop=Loop(tmp_path, checkpoint_every=2, resume=True)))

    @pytest.mark.parametrize(
        ("change", "message"),
        [({"lr": 0.5}, "its lr is 0.01, asked for 0.5"), ({"rank": 3}, "its rank is 2, asked for 3")],
    )
    def test_of_another_run(self, sd, tmp_path, change, message):
        run(sd, loop=Loop(tmp_path, checkpoint_every=2))
        with pytest.raises(InputError, match=message):
            run(sd, loop=Loop(tmp_path, resume=True), **change)

    def test_of_another_base(self, sd, tmp_path):
        run(sd, loop=Loop(tmp_path, checkpoint_every=2))
        with pytest.raises(InputError, match="is of another run: its base is"):
            run(wrap(tiny.sd(seed=1), "tiny-sd"), loop=Loop(tmp_path, resume=True))

    def test_a_shorter_run_does_not_pass_for_a_longer_one(self, sd, tmp_path):
        run(sd, loop=Loop(tmp_path, checkpoint_every=2))
        short = run(sd, loop=Loop(tmp_path, resume=True), steps=4)
        assert same(short, run(sd, steps=4))

    def test_one_with_longer_checkpoints_only_is_refused(self, sd, tmp_path):
        run(sd, loop=Loop(tmp_path, checkpoint_every=2))
        with pytest.raises(InputError, match=r"within 2 steps \(there: checkpoint-000004.*ask for more --steps"):
            run(sd, loop=Loop(tmp_path, resume=True), steps=2)

    def test_somebody_elses_folder_is_left_alone(self, sd, tmp_path):
        (tmp_path / "log.jsonl").write_text("mine")
        with pytest.raises(InputError, match="holds files of no training run"):
            run(sd, loop=Loop(str(tmp_path), restart=True))
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("log.jsonl", "mine")]

    def test_restart(self, sd, tmp_path):
        loop = Loop(tmp_path, checkpoint_every=2, validate_every=6, validate=("a moon",))
        run(sd, loop=loop)
        run(sd, loop=Loop(tmp_path, checkpoint_every=2, restart=True), steps=2, lr=1e-3)
        assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-000002.safetensors"]
        assert not list(tmp_path.glob("validation/*")), "pictures of another run"

    def test_a_log_cut_in_the_middle_of_a_line(self, sd, tmp_path):
        whole = run(sd, loop=Loop(tmp_path, checkpoint_every=2))
        with (tmp_path / "log.jsonl").open("a") as f:
            f.write('{"step": 7, "lo')
        assert same(whole, run(sd, loop=Loop(tmp_path, checkpoint_every=2, resume=True)))

    def test_a_full_disk(self, sd, tmp_path, monkeypatch):
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("erasers.erase._train.files.write_tensors", full)
        with pytest.raises(InputError, match=r"No space left on device; make room and go on with --resume"):
            run(sd, loop=Loop(tmp_path, checkpoint_every=2))

    def test_a_disk_that_is_full_when_the_log_is_written(self, sd, tmp_path, monkeypatch):
        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("erasers.erase._train._Journal._log", full)
        with pytest.raises(InputError, match=r"No space left on device; make room and go on with --resume"):
            run(sd, loop=Loop(tmp_path))

    def test_flags_that_a_closed_form_has_no_use_for(self, sd, tmp_path):
        with pytest.raises(InputError, match="leave out --accumulate, --gradient-checkpointing"):
            erase("moon", sd, loop=Loop(accumulate=2, gradient_checkpointing=True))

    def test_nothing_there_starts_at_the_beginning(self, sd, tmp_path):
        assert same(run(sd), run(sd, loop=Loop(tmp_path / "new", resume=True)))

    def test_closed_forms_have_none(self, sd, tmp_path):
        with pytest.raises(InputError, match="'uce' is a closed form and has no checkpoints"):
            erase("moon", sd, method="uce", loop=Loop(tmp_path, resume=True))
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", list(KINDS))
def test_bfloat16_autocast(sd, kind):
    """The same direction as in float32; for dense weights the teacher's values must not stand in for the student's."""
    start = {n: p.detach().clone() for n, p in sd.parameters("all").items()}
    plain, mixed = (changes(run(sd, kind, loop), start) for loop in (None, Loop(mixed_precision="bf16")))
    assert {t.dtype for t in mixed.values()} == {torch.float32}
    assert any(not torch.equal(plain[k], mixed[k]) for k in plain)
    moved = [k for k in plain if not k.endswith(".A") and plain[k].shape == mixed[k].shape]
    one, two = ([t[k].flatten() for k in moved] for t in (plain, mixed))
    assert torch.cosine_similarity(torch.cat(one), torch.cat(two), dim=0) > 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixed_precision": "fp8"}, "unknown --mixed-precision 'fp8'"),
        ({"track": ("tensorbord",)}, "unknown tracker 'tensorbord': did you mean 'tensorboard'"),
        ({"accumulate": 0}, "accumulate: expected a number of at least 1, got 0"),
        ({"resume": True}, "need a folder"),
        ({"work": "x", "resume": True, "restart": True}, "leave one of them out"),
        ({"work": "x", "validate": ("a moon",)}, "say how often with --validate-every"),
        ({"divergence": float("nan")}, "divergence: expected"),
    ],
)
def test_what_a_loop_refuses(settings, message):
    with pytest.raises(InputError, match=message):
        Loop(**settings)


def test_fp16_needs_a_gpu(sd):
    with pytest.raises(InputError, match="--mixed-precision fp16 needs a GPU: use bf16 or no"):
        run(sd, loop=Loop(mixed_precision="fp16"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("precision", "kind"),
    # a mask does not know scaled gradients, and says so
    [(p, k) for p in ("no", "fp16", "bf16") for k in KINDS if not (p == "fp16" and k.startswith("mask"))],
)
def test_on_a_gpu(precision, kind, tmp_path):
    backbone = wrap(tiny.sd().to("cuda"), "gpu")
    whole = run(backbone, kind, Loop(tmp_path, mixed_precision=precision, checkpoint_every=2))
    assert all(t.isfinite().all() for t in tensors(whole).values())
    checkpoints(tmp_path)[-1].unlink()
    assert tensors(run(backbone, kind, Loop(tmp_path, mixed_precision=precision, resume=True))).keys()
