"""The command line as a user meets it: what it writes, and every mistake in one line with exit code 2."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file

import tiny
from erasers.app import cli
from erasers.pipelines import load
from erasers.prompts import load as prompts


def run(*args, cwd=None):
    """In this process: (exit code, stdout, stderr)."""
    import contextlib
    import io
    import os

    streams = io.StringIO(), io.StringIO()
    old, code = os.getcwd(), 0
    os.chdir(cwd or old)
    consoles = cli.out.file, cli.err.file
    cli.out.file, cli.err.file = streams
    os.environ["COLUMNS"] = "200"
    argv, sys.argv = sys.argv, ["erasers", *map(str, args)]
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            cli.main()
    except SystemExit as leave:
        code = leave.code or 0
    finally:
        sys.argv = argv
        cli.out.file, cli.err.file = consoles
        os.chdir(old)
    return code, streams[0].getvalue(), streams[1].getvalue()


@pytest.fixture(scope="module")
def eraser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "moon"
    assert run("erase", "moon", "--out", folder)[0] == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_erase_writes_an_eraser_and_says_what_next(tmp_path):
    code, out, _ = run("erase", "moon", "star", "--out", tmp_path / "e", "--seed", 3, "--ridge", 2, "--no-synonyms")
    assert code == 0
    record = json.loads((tmp_path / "e/eraser_config.json").read_text())
    assert [c["name"] for c in record["concepts"]] == ["moon", "star"]
    assert (record["seed"], record["settings"]["ridge"], record["settings"]["synonyms"]) == (3, 2.0, False)
    assert record["settings"]["contexts"] == 6, "the Canvas preset"
    assert "next: erasers grid" in out


def test_default_folder_anchor_preserve_and_preset(tmp_path):
    args = ("erase", "moon", "--anchor", "cat", "--preserve", "star, ink", "--preset", "paper")
    code, _, err = run(*args, cwd=tmp_path)
    assert code == 0
    record = json.loads((tmp_path / "eraser-moon-uce/eraser_config.json").read_text())
    assert record["concepts"][0]["anchor"] == "cat"
    assert record["preserve"] == ["star", "ink"]
    assert "--preserve" not in err
    assert record["settings"]["contexts"] == 1


def test_empty_anchor_erases_to_nothing(tmp_path):
    assert run("erase", "moon", "--anchor", "", "--out", tmp_path / "e")[0] == 0
    assert json.loads((tmp_path / "e/eraser_config.json").read_text())["concepts"][0]["anchor"] == ""


def test_folder_as_model(tmp_path):
    tiny.sd().save_pretrained(tmp_path / "m")
    assert run("erase", "a cat", "--model", tmp_path / "m", "--out", tmp_path / "e", "--tokens", "subject")[0] == 0
    assert json.loads((tmp_path / "e/eraser_config.json").read_text())["concepts"][0]["anchor"] == ""


def test_the_next_command_can_be_copied(tmp_path):
    """Whatever is in the names, and as the model was loaded."""
    tiny.sd().save_pretrained(tmp_path / "my model")
    few = shlex.split("--method gradient_ascent --steps 1 --batch 1 --images 1 --sampler-steps 1 --checkpoint-every 0")
    flags = shlex.split("--dtype float32 --device cpu --vae-slicing")
    args = ("erase", "a cat", "--model", "my model", *few, *flags, "--preserve", "dog", "--out", "it's gone")
    code, said, err = run(*args, cwd=tmp_path)
    assert code == 0
    words = shlex.split(said.partition("next: ")[2])
    assert words == ["erasers", "grid", "--model", "my model", *flags, "--eraser", "it's gone", "--out", "grid.png"]
    assert err.splitlines()[-1] == (
        "erasers: --preserve changed nothing: gradient_ascent with these settings reads no preserved names; "
        "choose uce, salun, or esd with --keep 1"
    )
    assert json.loads((tmp_path / "it's gone/eraser_config.json").read_text())["preserve"] == []


def test_draw_and_grid(eraser, tmp_path):
    (tmp_path / "p.csv").write_text("text,seed\na moon,1\na cat,2\n")
    args = ("--eraser", eraser, "--prompts", tmp_path / "p.csv", "--steps", 2)
    assert run("draw", *args, "--seeds", 2, "--out", tmp_path / "g")[0] == 0
    manifest, control = (json.loads((tmp_path / f"g/{s}/manifest.json").read_text()) for s in ("erased", "original"))
    assert control["erasers"] == []
    assert [r["seed"] for r in control["images"]] == [r["seed"] for r in manifest["images"]]
    assert control["images"][0]["sha256"] != manifest["images"][0]["sha256"]
    assert [(r["text"], r["seed"]) for r in manifest["images"]] == [
        ("a moon", 0),
        ("a moon", 1),
        ("a cat", 0),
        ("a cat", 1),
    ]
    assert manifest["sampling"]["steps"] == 2
    assert manifest["erasers"][0]["concepts"][0]["name"] == "moon"
    assert run("draw", *args, "--out", tmp_path / "g")[0] == 2
    assert run("draw", *args, "--out", tmp_path / "g", "--force")[0] == 0
    assert run("grid", *args, "--out", tmp_path / "g.png")[0] == 0
    assert Image.open(tmp_path / "g.png").size[0] > 2 * 128


@pytest.fixture(scope="module")
def scored(eraser, tmp_path_factory):
    """What `evaluate --json` prints, and the file it also writes."""
    file = tmp_path_factory.mktemp("scored") / "s.json"
    words = ("--steps", 1, "--json", "--only", "ua,ira,cra")
    code, out, err = run("evaluate", "--eraser", eraser, *words, "--out", file)
    assert code == 0, err
    return json.loads(out), file


def test_evaluate_json_has_the_promised_shape(scored):
    report, file = scored
    assert report == json.loads(file.read_text())
    assert set(report["scores"]) == {"ua", "ira", "cra"}
    for score in report["scores"].values():
        assert {"value", "n", "low", "high"} <= set(score)
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 100
    assert report["scores"]["ua"]["n"] == 50
    assert report["settings"]["sampling"]["steps"] == 1


def test_evaluate_records_the_scores_in_a_lora_of_its_own(eraser, tmp_path):
    file = tmp_path / "lora.safetensors"
    assert run("export", eraser, "--to", "peft", "--out", file)[0] == 0
    code, out, _ = run("evaluate", "--eraser", file, "--steps", 1, "--json", "--only", "ua,cra", "--record")
    assert code == 0
    measured = json.loads(out)["scores"]
    kept = json.loads(run("inspect", file, "--json")[1])[0]["scores"]
    assert kept["settings"]["steps"] == 1
    for name in ("ua", "cra"):
        assert kept[name] == {k: measured[name][k] for k in kept[name]}
        assert kept[name]["n"] > 0


def test_export_and_inspect(eraser, tmp_path):
    for to in ("peft", "kohya"):
        assert run("export", eraser, "--to", to, "--out", tmp_path / f"{to}.safetensors")[0] == 0
        assert load_file(tmp_path / f"{to}.safetensors")
    code, out, _ = run("inspect", eraser, tmp_path / "kohya.safetensors", "--json")
    assert code == 0
    one, two, pair = json.loads(out)
    assert one["concepts"] == two["concepts"] == ["moon"]
    assert "expected pairs of lora_A" in pair["not compared"], "kohya keys are described, not compared"
    assert "moon" in run("inspect", eraser)[1]


def test_export_of_a_hypernetwork(tmp_path):
    tiny.sd().save_pretrained(tmp_path / "base")
    few = ["--steps", "2", "--batch", "2", "--pool", "0", "--sampler-steps", "2", "--retained", "2", "--lr", "0.01"]
    made = tmp_path / "e"
    code, said, _ = run("erase", "moon", "--model", tmp_path / "base", "--method", "unhype", *few, "--out", made)
    assert code == 0
    assert "compact hypernetwork of" in said
    export = ["export", made, "--to", "peft", "--out", tmp_path / "x.safetensors"]
    assert "materialize it for one prompt" in run(*export)[2]
    assert "name that with --model" in run(*export, "--prompt", "a moon")[2]
    code, said, _ = run(*export, "--prompt", "a moon", "--model", tmp_path / "base")
    assert code == 0
    assert "acts on: every prompt alike (static)" in said
    assert all(".lora_" in k for k in load_file(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("what", ["models", "methods", "evaluators", "prompts"])
def test_lists(what):
    rows = json.loads(run("list", what, "--json")[1])
    assert all("id" in r for r in rows)
    if what == "models":
        whole = {r["id"] for r in rows if (Path(r["path"]) / "model_index.json").exists()}
        assert {"canvas-sd", "canvas-flow"} <= whole
        for row in rows:  # a distilled generator is a LoRA and a scheduler
            assert row["id"] in whole or (Path(row["path"]) / "scheduler/scheduler_config.json").exists()
    assert rows[0]["id"] in run("list", what)[1]


def test_help_names_every_flag_with_its_default():
    out = run("erase", "--help")[1]
    for word in ("--tokens", "--ridge", "--no-synonyms", "--erase-scale", "Default: 0.5", "--anchor", "--preserve"):
        assert word in out
    assert "--strength" in run("erase", "--method", "random", "--help")[1]
    for command in ("draw", "grid", "evaluate", "compare", "export", "inspect", "list"):
        assert run(command, "--help")[0] == 0


BAD = {
    "unknown method": (["erase", "moon", "--method", "uec"], "did you mean 'uce'"),
    "unknown model": (["erase", "moon", "--model", "canvas-ds"], "did you mean 'canvas-sd'"),
    "no concept": (["erase"], "no concept given"),
    "empty concept": (["erase", ""], "expected a concept name"),
    "unknown concept": (["erase", "mooon"], "did you mean 'moon'"),
    "anchor is the concept": (["erase", "moon", "--anchor", "moon"], "is the concept itself"),
    "misspelt flag": (["erase", "moon", "--rige", "1"], "--ridge"),
    "misspelt method flag": (["erase", "moon", "--method", "random", "--strenght", "1"], "--strength"),
    "missing value": (["draw", "--out"], "--out"),
    "missing flag": (["draw"], "--out"),
    "misspelt command": (["eras", "moon"], "erase"),
    "not a number": (["erase", "moon", "--ridge", "much"], "valid number"),
    "bad setting": (["erase", "moon", "--ridge", "0"], "ridge: expected a number above 0"),
    "rank 0": (["erase", "moon", "--method", "random", "--rank", "0"], "rank: expected at least 1"),
    "unknown preset": (["erase", "moon", "--preset", "papr"], "did you mean 'paper'"),
    "resume a closed form": (["erase", "moon", "--resume"], "has no checkpoints"),
    "this folder as output": (["erase", "moon", "--out", "."], "expected the name of a new folder"),
    "unwritable output": (["erase", "moon", "--out", "/proc/nowhere/e"], "cannot write"),
    "no eraser": (["grid", "--out", "g.png"], "no eraser given"),
    "missing eraser": (["grid", "--eraser", "nothing", "--out", "g.png"], "no eraser at nothing"),
    "grid is no png": (["grid", "--eraser", "E", "--out", "g.jpg"], "ending in .png"),
    "unknown prompts": (["draw", "--prompts", "canvs", "--out", "d"], "did you mean 'canvas'"),
    "empty prompts": (["draw", "--prompts", "empty.csv", "--out", "d"], "has a header and no prompts"),
    "scores of a stack": (["evaluate", "--eraser", "E", "--eraser", "E", "--record"], "the scores of one eraser"),
    "unknown evaluator": (["evaluate", "--eraser", "E", "--only", "uaa"], "did you mean 'ua'"),
    "unknown setting": (
        ["compare", "a", "b", "--only", "fid", "--set", "fid.features=x", "--set", "fid.reference"],
        "expected EVALUATOR.SETTING=VALUE",
    ),
    "setting of nobody": (["compare", "a", "b", "--only", "kid", "--set", "fid.features=x"], "did you mean 'kid'"),
    "misspelt setting": (["evaluate", "--eraser", "E", "--only", "kid", "--set", "kid.subest=3"], "mean 'subset'"),
    "setting of another kind": (
        ["evaluate", "--eraser", "E", "--only", "kid", "--set", "kid.subset=x"],
        "a whole number",
    ),
    "refused setting": (["evaluate", "--eraser", "E", "--only", "kid", "--set", "kid.subset=1"], "2 or more images"),
    "no gallery": (["compare", "a", "b"], "a is no gallery"),
    "export to nowhere": (["export", "E", "--to", "koya", "--out", "x.safetensors"], "did you mean 'kohya'"),
    "pickle": (["inspect", "evil.bin"], "is a pickle"),
    "truncated": (["inspect", "cut.safetensors"], "no whole safetensors file"),
    "quantised for nothing": (
        ["export", "E", "--to", "peft", "--out", "x.safetensors", "--quantize", "ao-int8"],
        "--quantize ao-int8: no base model is loaded here; name it with --model",
    ),
    "a device for nothing": (
        ["push", "E", "me/e", "--dtype", "float16", "--device", "cpu", "--vae-slicing"],
        "--dtype float16 --device cpu --vae-slicing: no base model is loaded here",
    ),
    "no such flag": (["push", "E", "me/e", "--no-private"], "--no-private"),
    "no revision": (["grid", "--eraser", "you/x@", "--out", "g.png"], "expected a branch, a tag or a commit after"),
    "a revision": (["grid", "--eraser", "you/x@v2", "--out", "g.png"], "(revision 'v2'): no folder or file here"),
    "unknown list": (["list", "model"], "did you mean 'models'"),
    "unknown dtype": (["erase", "moon", "--dtype", "fp16"], "did you mean 'float16'"),
    "too large a seed": (["erase", "moon", "--seed", str(10**20)], "--seed"),
    "too many steps": (["draw", "--out", "d", "--steps", "2000"], "--steps"),
    "nonsense method": (["erase", "moon", "--method", ":X"], "cannot import method"),
    "misspelt part": (["erase", "moon", "--method", "esd", "--train", "corss"], "did you mean 'cross'"),
    "zero training steps": (["erase", "moon", "--method", "esd", "--steps", "0"], "steps: expected at least 1"),
    "unknown precision": (["erase", "moon", "--method", "esd", "--mixed-precision", "fp8"], "did you mean 'fp16'"),
    "unknown tracker": (["erase", "moon", "--method", "esd", "--track", "tensorbord"], "did you mean 'tensorboard'"),
    "too many contexts": (["erase", "moon", "--method", "esd", "--contexts", "99"], "contexts: expected at most"),
    "component without base": (["export", "E", "--to", "component", "--out", "u"], "name the base model with --model"),
    "zero steps": (["draw", "--out", "d", "--steps", "0"], "--steps"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_mistakes(name, eraser, tmp_path):
    args, message = BAD[name]
    (tmp_path / "empty.csv").write_text("text\n")
    (tmp_path / "evil.bin").write_bytes(b"\x80\x04.")
    (tmp_path / "cut.safetensors").write_bytes((eraser / "pytorch_lora_weights.safetensors").read_bytes()[:-9])
    before = snapshot(tmp_path)
    code, out, err = run(*(str(eraser) if a == "E" else a for a in args), cwd=tmp_path)
    assert code == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert err.startswith("erasers: ")
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert snapshot(tmp_path) == before


def test_an_interruption_is_one_line(eraser, tmp_path, monkeypatch):
    """However typer tells of it."""
    grid = ("grid", "--eraser", eraser, "--out", tmp_path / "g.png")
    for place in ("_load", "build"):
        for error in (KeyboardInterrupt, typer.Abort):

            def stop(*_args, error=error):
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(cli, place, stop)
                code, _, err = run(*grid)
            assert code == 130
            assert err.strip() == "erasers: interrupted; a training run goes on with the same command and --resume"


class TestRememberedPrompts:
    """--embeddings in the commands that draw."""

    def test_grid_without_a_text_encoder(self, tmp_path):
        tiny.sd().save_pretrained(tmp_path / "m")
        (tmp_path / "a.csv").write_text("text,seed\na moon,1\n")
        (tmp_path / "b.csv").write_text("text,seed\na lamp,1\n")
        erase = ["moon", "--model", "m", "--preserve", "star"]
        code, said, err = run("remember", *erase, "-p", "a.csv", "-p", "b.csv", "--out", "p.safetensors", cwd=tmp_path)
        assert code == 0, err
        assert "add --embeddings p.safetensors" in said
        code, said, err = run("erase", *erase, "--embeddings", "p.safetensors", "--out", "e", cwd=tmp_path)
        assert code == 0, err
        assert "--embeddings" not in said, "the next command draws prompts that are not remembered"
        grid = ["grid", "--model", "m", "--eraser", "e", "--steps", 1]
        plain = [(n, run(*grid, "--prompts", f"{n}.csv", "--out", f"{n}1.png", cwd=tmp_path)[0]) for n in "ab"]
        assert plain == [("a", 0), ("b", 0)]
        shutil.rmtree(tmp_path / "m/text_encoder")
        code, _, err = run(*grid, "--prompts", "a.csv", "--out", "no.png", cwd=tmp_path)
        assert code == 2
        assert "--embeddings" in err
        grid += ["--embeddings", "p.safetensors"]
        for name in "ab":
            code, _, err = run(*grid, "--prompts", f"{name}.csv", "--out", f"{name}2.png", cwd=tmp_path)
            assert code == 0, err
            assert (tmp_path / f"{name}1.png").read_bytes() == (tmp_path / f"{name}2.png").read_bytes()
        assert (tmp_path / "a1.png").read_bytes() != (tmp_path / "b1.png").read_bytes()
        before = snapshot(tmp_path)
        for words in (grid, ["draw", *grid[1:]]):
            code, _, err = run(*words, "--out", "c.png", cwd=tmp_path)
            assert code == 2
            assert len(err.strip().splitlines()) == 1
            assert "12 of 12 prompts are not remembered ('A " in err
            assert "`erasers remember` that made the file of --embeddings once more, with --prompts canvas-demo" in err
        code, _, err = run(*grid[:-1], "none.safetensors", "--out", "c.png", cwd=tmp_path)
        assert code == 2
        assert "no such file of remembered prompts: none.safetensors; `erasers remember` writes it" in err
        assert snapshot(tmp_path) == before

    def test_evaluate(self, eraser, scored, tmp_path):
        file = tmp_path / "p.safetensors"
        more = ("--prompts", "plan:canvas:moon", "--prompts", "canvas-demo")
        assert run("remember", "moon", *more, "--out", file)[0] == 0
        words = ("--steps", 1, "--json", "--only", "ua,ira,cra", "--embeddings", file)
        code, out, err = run("evaluate", "--eraser", eraser, *words)
        assert code == 0, err
        for name, want in scored[0]["scores"].items():
            have = json.loads(out)["scores"][name]
            assert have["n"] == want["n"]
            assert abs(have["value"] - want["value"]) <= 2, "rounding may turn one image"
        code, said, err = run("erase", "moon", "--embeddings", file, "--out", tmp_path / "e")
        assert code == 0, err
        assert f"erasers grid --model canvas-sd --embeddings {file} --eraser" in said

    def test_evaluate_names_the_prompts_to_remember(self, eraser, tmp_path, monkeypatch):
        """Before anything is drawn, and before the first of several is scored."""
        assert run("erase", "star", "--out", tmp_path / "star")[0] == 0
        some = load("canvas-sd").remember([p.text for p in prompts("plan:canvas:moon")])
        file = some.save(tmp_path / "p.safetensors")
        both = ["evaluate", "--eraser", eraser, "--eraser", tmp_path / "star", "--embeddings", file]

        def never(*_args, **_kwargs):
            raise AssertionError

        monkeypatch.setattr("erasers.pipelines._stock.StockBackbone.draw", never)
        for words in (both, [*both, "--sequential"]):
            code, _, err = run(*words)
            assert code == 2
            assert len(err.strip().splitlines()) == 1
            assert "with --prompts plan:canvas:moon --prompts plan:canvas:star --force" in err
        missing = {p.text for p in prompts("plan:canvas:star")} - set(some.states)
        assert f"{len(missing)} of " in err


def test_out_of_memory_has_a_line_of_its_own():
    assert cli.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert cli.out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not cli.out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_existing_output(eraser):
    before = snapshot(eraser)
    code, _, err = run("erase", "moon", "--out", eraser)
    assert code == 2
    assert "add --force" in err
    assert snapshot(eraser) == before
    assert run("erase", "moon", "--out", eraser, "--force")[0] == 0


def test_nothing_of_the_users_is_deleted(eraser, tmp_path):
    """--force replaces only what the same command wrote."""
    before = snapshot(eraser)
    (tmp_path / "thesis.docx").write_text("precious")
    for args in (
        ("draw", "--out", eraser, "--force"),
        ("evaluate", "--eraser", eraser, "--out", eraser, "--force"),
        ("draw", "--out", tmp_path / "thesis.docx", "--force"),
        ("erase", "moon", "--out", tmp_path / "thesis.docx", "--force"),
        ("evaluate", "--eraser", eraser, "--keep", tmp_path / "thesis.docx"),
    ):
        code, _, err = run(*args)
        assert code == 2, args
        assert len(err.strip().splitlines()) == 1, args
    assert snapshot(eraser) == before
    assert (tmp_path / "thesis.docx").read_text() == "precious"


def test_a_trained_method(tmp_path):
    """ESD with its own flags: LoRA and dense, from a host, watched; what inspect and export say of the results."""
    short = shlex.split(
        "--method esd --steps 2 --batch 2 --sampler-steps 2 --pool 4 --validate-every 2 --checkpoint-every 1"
    )
    code, out, err = run("erase", "moon", "star", *short, "--from", "cat", "--out", tmp_path / "a")
    assert code == 0, err
    assert "rank 8" in out
    record = json.loads((tmp_path / "a/eraser_config.json").read_text())
    assert (record["settings"]["from_"], record["settings"]["steps"], record["kind"]) == ("cat", 2, "lora")
    work = tmp_path / "a.training"
    assert sorted(p.name for p in work.rglob("*")) == [
        ".training",
        "log.jsonl",
        "step-000000.png",
        "step-000002.png",
        "validation",
    ]
    code, out, err = run("erase", "moon", *short, "--dense", "--out", tmp_path / "b")
    assert code == 0, err
    assert "weights" in out
    assert run("inspect", tmp_path / "b")[1].count("delta") >= 1
    found = json.loads(run("inspect", tmp_path / "a", tmp_path / "a", "--json")[1])
    assert found[2]["cosine"] == 1.0
    assert "cosine" in run("inspect", tmp_path / "a", tmp_path / "a")[1]
    assert "cannot compare" in run("inspect", tmp_path / "a", tmp_path / "b")[1]
    code, out, err = run("export", tmp_path / "b", "--to", "component", "--model", "canvas-sd", "--out", tmp_path / "u")
    assert code == 0, err
    assert (tmp_path / "u/diffusion_pytorch_model.safetensors").exists()
    code, out, err = run("export", tmp_path / "b", "--to", "kohya", "--out", tmp_path / "x.safetensors")
    assert code == 2
    assert "export it to component" in err


def test_a_diverging_run_ends_in_one_line(tmp_path):
    args = shlex.split(
        "--method esd --steps 30 --batch 2 --sampler-steps 2 --pool 2 --lr 10 --divergence 5 --checkpoint-every 1"
    )
    code, _, err = run("erase", "moon", *args, "--out", tmp_path / "a")
    assert code == 2
    assert "esd diverged at step" in err
    assert len([line for line in err.splitlines() if line.startswith("erasers:")]) == 1
    assert not (tmp_path / "a").exists()


def test_seeds_replace_the_sets_own(tmp_path):
    (tmp_path / "p.csv").write_text("text,seed\na moon,1\na moon,2\n")
    assert run("draw", "--prompts", tmp_path / "p.csv", "--seeds", 3, "--steps", 1, "--out", tmp_path / "g")[0] == 0
    assert [r["seed"] for r in json.loads((tmp_path / "g/manifest.json").read_text())["images"]] == [0, 1, 2]


def test_eraser_for_another_base(eraser, tmp_path):
    tiny.sd().save_pretrained(tmp_path / "m")
    code, _, err = run("draw", "--model", tmp_path / "m", "--eraser", eraser, "--out", tmp_path / "d")
    assert code == 2
    assert "was made for 'canvas-sd'" in err
    assert not (tmp_path / "d").exists()


def test_the_installed_command(eraser):
    """The real entry point in a real process, once well and once badly."""
    program = Path(sys.executable).with_name("erasers")
    good = subprocess.run([program, "inspect", str(eraser), "--json"], capture_output=True, text=True)
    assert good.returncode == 0
    assert json.loads(good.stdout)[0]["method"] == "uce"
    bad = subprocess.run([program, "erase", "moon", "--method", "nope"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("erasers: unknown method 'nope'")
    assert len(bad.stderr.strip().splitlines()) == 1
