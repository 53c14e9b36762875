"""Galleries drawn into their folder: resumed, shared between processes, and refused when they are others."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_cli import run

import tiny
from erasers.erase import erase
from erasers.eval import Gallery, Sampling, clear, collect, draw
from erasers.pipelines import wrap
from erasers.prompts import InputError, Prompt
from erasers.prompts import load as load_prompts

PROMPTS = [Prompt(f"a moon and {n} stars", seed=n, concept="moon") for n in range(11)]
HOW = Sampling(steps=2, guidance=3.0, batch=3)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def files(folder: Path) -> dict[str, bytes]:
    """Every file, but the seconds in the manifest."""
    out = {p.name: p.read_bytes() for p in folder.iterdir()}
    if "manifest.json" in out:
        value = json.loads(out["manifest.json"])
        out["manifest.json"] = json.dumps({k: v for k, v in value.items() if k != "seconds"}).encode()
    return out


def counted(backbone, monkeypatch, stop: int | None = None) -> list[tuple[str, int]]:
    """Notes every (prompt, seed) that is drawn; raises `Killed` in the batch number `stop`."""
    drawn: list[tuple[str, int]] = []
    calls: list[int] = []
    real = type(backbone).draw

    def watched(self, prompts, seeds, **how):
        calls.append(len(prompts))
        if stop is not None and len(calls) > stop:
            raise Killed
        drawn.extend(zip(prompts, seeds, strict=True))
        return real(self, prompts, seeds, **how)

    monkeypatch.setattr(type(backbone), "draw", watched)
    return drawn


def cut(backbone, folder: Path, monkeypatch, *, stop: int, **task) -> list[tuple[str, int]]:
    """Begin a gallery that is killed in the batch number `stop`; what was drawn until then."""
    with monkeypatch.context() as patch:
        drawn = counted(backbone, patch, stop)
        with pytest.raises(Killed):
            collect(folder, backbone, **{**dict(prompts=PROMPTS, how=HOW), **task})
    return drawn


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a gallery that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "g"
    collect(folder, wrap(tiny.sd(), "tiny-sd"), prompts=PROMPTS, how=HOW)
    return files(folder)


def test_the_folder_holds_what_draw_returns(sd, tmp_path):
    gallery = collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    in_memory = draw(sd, PROMPTS, how=HOW)
    assert [i.tobytes() for i in gallery.images] == [i.tobytes() for i in in_memory.images]
    assert gallery.prompts == in_memory.prompts
    assert {k: v for k, v in gallery.manifest.items() if k != "seconds"} == {
        k: v for k, v in in_memory.manifest.items() if k != "seconds"
    }
    assert gallery.manifest["fingerprint"]
    assert sorted(files(tmp_path / "g")) == sorted([f"{k:04d}_moon_seed{k}.png" for k in range(11)] + ["manifest.json"])
    assert len(Gallery.load(tmp_path / "g").images) == 11


def test_a_finished_gallery_is_not_drawn_again(sd, tmp_path, monkeypatch):
    collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    before = files(tmp_path / "g")
    drawn = counted(sd, monkeypatch)
    collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    assert drawn == []
    assert files(tmp_path / "g") == before


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_killed_between_batches(sd, whole, tmp_path, monkeypatch, stop):
    """The files and bytes of a gallery that was never interrupted; no image drawn twice."""
    drawn = cut(sd, tmp_path / "cut", monkeypatch, stop=stop)
    assert (tmp_path / "cut/plan.json").exists()
    with pytest.raises(InputError, match="is an unfinished gallery: go on"):
        Gallery.open(tmp_path / "cut")
    again = counted(sd, monkeypatch)
    collect(tmp_path / "cut", sd, prompts=PROMPTS, how=HOW)
    assert sorted(drawn + again) == sorted((p.text, p.seed) for p in PROMPTS)
    assert files(tmp_path / "cut") == whole


@pytest.mark.parametrize("moment", ["half of an image", "before the mark", "after the mark", "half of the names"])
def test_killed_while_a_batch_is_written(sd, whole, tmp_path, monkeypatch, moment):
    """A batch without its mark is drawn anew, one with it only gets its names."""
    from erasers.eval import _collect

    seen: list[int] = []
    with monkeypatch.context() as patch:
        real_write, real_name, real_save = _collect._write, _collect._name, Image.Image.save

        def write(path, value):
            if path.name.startswith(".batch-000001"):
                if moment == "before the mark":
                    raise Killed
                real_write(path, value)
                if moment == "after the mark":
                    raise Killed
                return
            real_write(path, value)

        def name(root, names):
            if moment == "half of the names" and names[0].startswith("0003"):
                real_name(root, names[:1])
                raise Killed
            real_name(root, names)

        def save(self, path, **options):
            if moment == "half of an image" and "0004_" in str(path):
                Path(path).write_bytes(b"\x89PNG half")
                raise Killed
            seen.append(1)
            real_save(self, path, **options)

        patch.setattr(_collect, "_write", write)
        patch.setattr(_collect, "_name", name)
        patch.setattr(Image.Image, "save", save)
        with pytest.raises(Killed):
            collect(tmp_path / "cut", sd, prompts=PROMPTS, how=HOW)
    drawn = counted(sd, monkeypatch)
    collect(tmp_path / "cut", sd, prompts=PROMPTS, how=HOW)
    again = [(p.text, p.seed) for p in PROMPTS[3:6]]
    assert (set(again) <= set(drawn)) == (moment in ("half of an image", "before the mark"))
    assert len(drawn) == len(set(drawn))
    assert files(tmp_path / "cut") == whole


def test_an_image_taken_away_comes_back_alone(sd, tmp_path, monkeypatch):
    collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    before = files(tmp_path / "g")
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "g").glob("*.png")}
    (tmp_path / "g/0004_moon_seed4.png").unlink()
    drawn = counted(sd, monkeypatch)
    collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    assert [seed for _, seed in drawn] == [3, 4, 5], "its batch, whole, so that it is the same image"
    assert files(tmp_path / "g") == before
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "g").glob("*.png")}
    assert {n for n in times if times[n] != after[n]} == {"0004_moon_seed4.png"}


def test_killed_while_a_missing_image_is_drawn_again(sd, whole, tmp_path, monkeypatch):
    """The mark that its batch has from before does not stand for the half of a file."""
    cut(sd, tmp_path / "g", monkeypatch, stop=3)
    (tmp_path / "g/0004_moon_seed4.png").unlink()

    def half(self, path, **options):
        Path(path).write_bytes(b"\x89PNG half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half)
        with pytest.raises(Killed):
            collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    assert files(tmp_path / "g") == whole


def test_a_damaged_image_is_named(sd, tmp_path, monkeypatch):
    cut(sd, tmp_path / "g", monkeypatch, stop=2)
    (tmp_path / "g/0001_moon_seed1.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"0001_moon_seed1\.png is damaged: delete it and run the same command"):
        collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    (tmp_path / "g/0001_moon_seed1.png").unlink()
    collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    (tmp_path / "g/0001_moon_seed1.png").write_bytes((tmp_path / "g/0002_moon_seed2.png").read_bytes())
    with pytest.raises(InputError, match="is not the image of the manifest"):
        _ = Gallery.open(tmp_path / "g").images[1]


@pytest.mark.parametrize("finished", [True, False])
def test_another_gallery_is_refused_in_one_line(sd, tmp_path, monkeypatch, finished):
    eraser, place = erase("moon", sd), tmp_path / "g"
    if finished:
        collect(place, sd, prompts=PROMPTS, erasers=[eraser], how=HOW)
    else:
        cut(sd, place, monkeypatch, stop=1, erasers=[eraser])
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    stronger = replace(eraser, recipe=replace(eraser.recipe, scale=0.5))
    other = wrap(tiny.sd(seed=1), "tiny-sd")
    moved = wrap(tiny.sd(), "tiny-sd")
    with torch.no_grad():
        next(moved.pipe.text_encoder.parameters()).add_(0.01)
    tries = (
        (dict(how=replace(HOW, steps=3)), sd, "its steps is 2, asked for 3"),
        (dict(how=replace(HOW, guidance=2.0)), sd, "its guidance is 3.0, asked for 2.0"),
        (dict(how=replace(HOW, batch=4)), sd, "its batch is 3, asked for 4"),
        (dict(how=replace(HOW, noise="sequence")), sd, "its noise is image, asked for sequence"),
        (dict(erasers=[]), sd, "its eraser is moon uce 1.0 .*, asked for none"),
        (dict(erasers=[stronger]), sd, "its eraser is moon uce 1.0 .*, asked for moon uce 0.5"),
        (dict(erasers=[erase("moon", sd, method="random")]), sd, "asked for moon random"),
        (dict(prompts=PROMPTS[:-1]), sd, "its number of images is 11, asked for 10"),
        (dict(prompts=[*PROMPTS[:-1], replace(PROMPTS[-1], text="a cat")]), sd, r"image 11 is .*, asked for .*'a cat'"),
        (dict(erasers=[]), other, "its model is tiny-sd .*, asked for tiny-sd"),
        (dict(erasers=[]), moved, "its model is tiny-sd .*, asked for tiny-sd"),
    )
    for change, backbone, message in tries:
        with pytest.raises(InputError, match=message) as error:
            collect(place, backbone, **{**dict(prompts=PROMPTS, erasers=[eraser], how=HOW), **change})
        assert "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before


def test_folders_that_are_not_ours(sd, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(InputError, match=r"holds no manifest\.json, so it is not ours"):
        collect(tmp_path / "mine", sd, prompts=PROMPTS, how=HOW)
    with pytest.raises(InputError, match=r"holds no manifest\.json, so it is not ours"):
        clear(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        collect(tmp_path / "file", sd, prompts=PROMPTS, how=HOW)
    collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW)
    (tmp_path / "g/notes.txt").write_text("mine")
    clear(tmp_path / "g")
    assert [p.name for p in (tmp_path / "g").iterdir()] == ["notes.txt"]


def test_one_command_at_a_time(sd, tmp_path):
    from erasers.eval._collect import _alone

    place = tmp_path / "g"
    collect(place, sd, prompts=PROMPTS, how=HOW)
    with _alone(place), pytest.raises(InputError, match="another process draws into"):
        collect(place, sd, prompts=PROMPTS, how=HOW)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.png"] * 11, "two images would be named a.png"),
        (["a.png"], "expected 11 file names, got 1"),
        ([f"../{k}.png" for k in range(11)], r"expected a plain file name .*'\.\./0\.png'"),
        ([f"{k}.gif" for k in range(11)], r"ending in \.png or \.jpg, got '0\.gif'"),
    ],
)
def test_names(sd, tmp_path, names, message):
    with pytest.raises(InputError, match=message):
        collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW, names=names)
    assert not (tmp_path / "g").exists()


def test_jpeg(sd, tmp_path):
    names = [f"{k}.jpg" for k in range(11)]
    gallery = collect(tmp_path / "g", sd, prompts=PROMPTS, how=HOW, names=names)
    with Image.open(tmp_path / "g/3.jpg") as image:
        assert image.format == "JPEG"
        assert image.convert("RGB").tobytes() == gallery.images[3].tobytes()


class TestNoise:
    """Two conventions: what an image's noise depends on, and what it does not."""

    def test_one_generator_an_image_shares_its_noise(self, sd):
        same = [Prompt("a moon", 5), Prompt("a cat", 3), Prompt("a moon", 5)]
        images = draw(sd, same, how=replace(HOW, batch=1)).images
        assert images[0].tobytes() == images[2].tobytes()

    def test_one_generator_a_seed_is_one_stream(self, sd):
        """The reference: one torch generator, one latent after the other, given to the stock pipeline itself."""
        prompts = [Prompt("a moon", 5), Prompt("a cat", 7), Prompt("a moon", 5), Prompt("a star", 5)]
        how = Sampling(steps=2, guidance=3.0, batch=1, noise="sequence")
        drawn = draw(sd, prompts, how=how).images
        streams = {s: torch.Generator().manual_seed(s) for s in (5, 7)}
        for prompt, image in zip(prompts, drawn, strict=True):
            latent = torch.randn(1, *sd.latent_shape, generator=streams[prompt.seed])
            call = dict(num_inference_steps=2, guidance_scale=3.0, latents=latent)
            assert sd.pipe(prompt.text, **call).images[0].tobytes() == image.tobytes()
        assert drawn[0].tobytes() != drawn[2].tobytes(), "the second moon has the next noise"

    def test_a_stream_is_resumed_where_it_was(self, sd, tmp_path, monkeypatch):
        prompts, how = [replace(p, seed=k % 2) for k, p in enumerate(PROMPTS)], replace(HOW, noise="sequence")
        names = [f"{k}.png" for k in range(11)]
        collect(tmp_path / "whole", sd, prompts=prompts, how=how, names=names)
        cut(sd, tmp_path / "cut", monkeypatch, stop=2, prompts=prompts, how=how, names=names)
        collect(tmp_path / "cut", sd, prompts=prompts, how=how, names=names)
        assert files(tmp_path / "cut") == files(tmp_path / "whole")

    def test_the_batch_changes_rounding_only(self, sd):
        """At most one grey level in a few pixels of a random network in float32."""
        one, many = (draw(sd, PROMPTS, how=replace(HOW, batch=b)).images for b in (1, 11))
        for a, b in zip(one, many, strict=True):
            gap = torch.tensor(list(a.tobytes())).float() - torch.tensor(list(b.tobytes())).float()
            assert gap.abs().max() <= 1
            assert (gap != 0).float().mean() < 0.01

    def test_unknown(self):
        with pytest.raises(InputError, match="unknown noise convention 'seed'"):
            Sampling(noise="seed")  # type: ignore[arg-type]


ENV = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
CLI = ("-m", "erasers.app.cli")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, a prompt file, and the gallery that one command draws of them."""
    folder = tmp_path_factory.mktemp("commands")
    tiny.sd().save_pretrained(folder / "model")
    rows = "\n".join(f"a moon and {n} stars,{n}" for n in range(24))
    (folder / "prompts.csv").write_text(f"text,seed\n{rows}\n")
    code, _, err = run(*command(folder, folder / "whole"))
    assert code == 0, err
    return folder


def command(place: Path, out: Path) -> list[str]:
    text = f"draw --model {place / 'model'} --prompts {place / 'prompts.csv'} --out {out}"
    return shlex.split(f"{text} --steps 2 --guidance 2 --batch 4")


def test_two_processes_draw_the_same_files(place, tmp_path):
    """By `accelerate launch`, which hands several processes to torchrun; here they have no GPU to sit on."""
    launch = shlex.split("-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1")
    launch = [sys.executable, *launch, "--mixed_precision", "no", "--dynamo_backend", "no"]
    two = subprocess.run([*launch, *CLI, *command(place, tmp_path / "two")], env=ENV, capture_output=True)
    assert two.returncode == 0, two.stderr.decode()
    assert two.stdout.decode().count("24 images in") == 1, "only one process speaks"
    assert files(place / "whole") == files(tmp_path / "two")
    assert len(load_prompts(place / "prompts.csv")) == 24


def test_killed_at_random(place, tmp_path):
    """SIGKILL at any moment: the same files in the end as without, and no image written twice."""
    rng, folder = random.Random(), tmp_path / "cut"
    process = subprocess.Popen([sys.executable, *CLI, *command(place, folder)], env=ENV, stderr=subprocess.DEVNULL)
    wanted = rng.randint(1, 20)
    while process.poll() is None and len(list(folder.glob("[0-9]*.png"))) < wanted:
        time.sleep(0.001)
    time.sleep(rng.random() / 50)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in folder.glob("[0-9]*.png")}
    assert len(kept) >= wanted
    code, _, err = run(*command(place, folder))
    assert code == 0, err
    now = {p.name: p.stat().st_mtime_ns for p in folder.glob("[0-9]*.png")}
    assert kept.items() <= now.items(), "what was drawn is left alone"
    assert files(folder) == files(place / "whole")
