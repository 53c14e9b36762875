"""Pushing to the Hub and fetching from it. The client is the real one, the Hub a stand-in of its API (tests/hub.py)."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import hub as stand_in
import pytest
from golden import plain
from test_cli import run

from erasers.erase import Eraser
from erasers.prompts import InputError

LORA, HYPER = plain.HERE / "lora-sd3", plain.HERE / "hyper-sd"

# What a user does, step by step; each ends in a line of JSON: what came of it, or the one line that was said.
STEPS = f"""
import json, sys
from dataclasses import replace
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from golden import plain
from safetensors.torch import save_file
from test_cli import run
from erasers.erase import Eraser
from erasers.pipelines import Loading, blueprint, load
from erasers.prompts import InputError

lora, hyper, delta = (Eraser.from_pretrained(plain.HERE / n) for n in ("lora-sd3", "hyper-sd", "delta-sd"))

def step(name, call):
    try:
        said = call()
    except InputError as error:
        said = {{"error": str(error)}}
    print(json.dumps({{name: said}}), flush=True)

def same(got, want):
    t, u = (e.payload for e in (got, want))
    a, b = (p.network.state_dict() if p.kind == "hyper" else p.factors for p in (t, u))
    flat = [(x, y) for k in b for x, y in (zip(a[k], b[k]) if p_lora(t) else [(a[k], b[k])])]
    return got.recipe == want.recipe and a.keys() == b.keys() and all(torch.equal(x, y) for x, y in flat)

def p_lora(payload):
    return payload.kind == "lora"

def drawn():
    pipe = plain.pipeline("sd3")
    name = "pytorch_lora_weights.safetensors"
    pipe.load_lora_weights("me/no-moon", weight_name=name, adapter_name="eraser", token="hf_reader")
    spec = next(e for e in plain.WORLD["erasers"] if e["name"] == "lora-sd3")
    tensors = plain.load_file(plain.HERE / "lora-sd3/expected.safetensors")
    return plain.away(plain.answer(pipe, spec, tensors), tensors["out.erased"], tensors["out.base"])

get, push = Eraser.from_pretrained, lora.push_to_hub
step("no token", lambda: push("me/no-moon"))
step("bad token", lambda: push("me/no-moon", token="hf_old"))
step("reader", lambda: push("me/no-moon", token="hf_reader"))
step("pushed", lambda: push("me/no-moon", private=True, token="hf_writer"))
step("private", lambda: same(get("me/no-moon"), lora))
step("wrong login", lambda: same(get("me/no-moon", token="hf_old"), lora))
# from here on it is in the cache, and read from there where the Hub refuses
step("fetched", lambda: same(get("me/no-moon", token="hf_reader"), lora))
step("plain diffusers", drawn)
step("again", lambda: push("me/no-moon", token="hf_writer"))
step("branch", lambda: hyper.push_to_hub("me/no-moon", revision="v2", token="hf_writer"))
step("branch fetched", lambda: same(get("me/no-moon", revision="v2", token="hf_reader"), hyper))
step("main still", lambda: same(get("me/no-moon", token="hf_reader"), lora))
step("no revision", lambda: same(get("me/no-moon", revision="v9", token="hf_reader"), lora))
step("delta pushed", lambda: delta.push_to_hub("me/delta", token="hf_writer"))
base = {{**delta.recipe.base, "id": "/srv/me/secret/models/x", "config": "/srv/me/secret/config"}}
old = replace(delta, recipe=replace(delta.recipe, base=base))  # as records once were
step("paths pushed", lambda: old.push_to_hub("me/old", token="hf_writer"))
step("private, but public", lambda: delta.push_to_hub("me/delta", private=True, token="hf_writer"))
step("private as it is", lambda: push("me/no-moon", private=True, token="hf_writer"))
step("delta fetched", lambda: get("me/delta").recipe == delta.recipe)
step("nothing", lambda: get("me/nothing"))
step("gated", lambda: get("me/gated"))
step("pickled", lambda: get("me/pickled"))
step("base model", lambda: get("me/base"))
gated = Loading(config="me/gated")
save_file({{"x": torch.zeros(1)}}, "alone.safetensors")
step("gated model", lambda: load("me/gated"))
step("gated shapes", lambda: blueprint("me/gated"))
step("gated file", lambda: load("https://huggingface.co/me/gated/blob/main/m.safetensors"))
step("gated config", lambda: load("alone.safetensors", how=gated))
step("no model", lambda: load("me/nothing"))
step("no model revision", lambda: load("me/base", how=Loading(revision="v9")))
step("no pipeline", lambda: load("me/delta"))
step("no file", lambda: load("https://huggingface.co/me/base/resolve/main/m.gguf", how=gated))
step("no id", lambda: push("just-a-name", token="hf_writer"))
step("odd id", lambda: get("me/no moon"))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(the stand-in afterwards, what each step gave)"""
    work = tmp_path_factory.mktemp("hub")
    with stand_in.running() as hub:
        bad = pickle.dumps(Path(work / "ran"))
        hub.repos["me/pickled"] = stand_in.Repo()
        record = (LORA / "eraser_config.json").read_bytes()
        hub.repos["me/pickled"].commit("main", {"eraser_config.json": record, "pytorch_lora_weights.bin": bad})
        hub.repos["me/base"] = stand_in.Repo()
        hub.repos["me/base"].commit("main", {"model_index.json": b"{}", "unet/x.safetensors": b"0" * 1000})
        hub.repos["me/gated"] = stand_in.Repo(gated=True)
        hub.repos["me/gated"].commit("main", {"eraser_config.json": record})
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        more = {"HF_ENDPOINT": hub.address, "HF_HOME": str(work / "home"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", STEPS], cwd=work, env={**clean, **more}, capture_output=True, text=True
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert done.returncode == 0, done.stderr[-3000:]
        yield hub, {k: v for line in lines for k, v in line.items()}


def test_what_is_pushed_is_what_is_saved(told, tmp_path):
    hub, steps = told
    repo = hub.repos["me/no-moon"]
    assert repo.private
    assert steps["pushed"] == f"{hub.address}/me/no-moon/commit/{repo.at('main')}"
    there = repo.commits[repo.at("main")]
    folder = Eraser.from_pretrained(LORA).save_pretrained(tmp_path / "saved")
    saved = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    card = there.pop("README.md").decode()
    saved.pop("README.md")
    there.pop(".gitattributes")
    assert there == saved
    assert 'pipe.load_lora_weights("me/no-moon"' in card
    assert "this-folder" not in card
    branch = repo.commits[repo.at("v2")]
    assert {"pipeline.py", "hypernet/model.safetensors"} <= set(branch)
    assert 'folder = snapshot_download("me/no-moon")' in branch["README.md"].decode()


def test_what_is_fetched_is_what_was_pushed(told):
    steps = told[1]
    for name in ("fetched", "branch fetched", "main still", "delta fetched"):
        assert steps[name] is True, name
    assert steps["plain diffusers"] < plain.TOLERANCE, "load_lora_weights of the Hub id, without this package"


def test_no_place_on_this_computer_is_pushed(told):
    repo = told[0].repos["me/old"]
    files = repo.commits[repo.at("main")]
    assert json.loads(files["eraser_config.json"])["base"]["id"] == "x"
    assert b"delta.safetensors" in files["README.md"]
    assert not [n for n, data in files.items() if b"secret" in data]


def test_private_is_never_public(told):
    hub, steps = told
    assert len(hub.repos["me/delta"].commits) == 2, "that of the new repository, and the public push"
    assert steps["private as it is"].startswith(f"{hub.address}/me/no-moon/commit/")


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("no token", "cannot push to me/no-moon: the Hub knows no such login: log in with `hf auth login`, or set HF_"),
        ("bad token", "cannot push to me/no-moon: the Hub knows no such login"),
        ("reader", "cannot push to me/no-moon: your token has no right to"),
        ("private", "no such repository on the Hub, or a private one: check the name; log in with"),
        ("wrong login", "cannot fetch me/no-moon: the Hub knows no such login"),
        ("nothing", "no eraser at me/nothing: no folder or file here, and no such repository on the Hub, or a private"),
        ("gated", "cannot fetch me/gated: accept its terms on the Hub first"),
        ("gated model", "cannot fetch me/gated: accept its terms on the Hub first, then log in with `hf auth login`"),
        ("gated shapes", "cannot fetch me/gated: accept its terms on the Hub first"),
        ("gated file", "cannot download from me/gated: accept its terms on the Hub first"),
        (
            "gated config",
            "--model-config me/gated: cannot fetch me/gated: accept its terms",
        ),
        ("no model", "no model at me/nothing: no folder or file here, and no such repository on the Hub, or a private"),
        ("no model revision", "me/base has no revision 'v9': name a branch, a tag or a commit"),
        ("no pipeline", "me/delta on the Hub is no diffusers pipeline: expected model_index.json in it"),
        ("no file", "me/base on the Hub has no file m.gguf in its revision 'main'"),
        ("no revision", "me/no-moon has no revision 'v9': name a branch, a tag or a commit"),
        ("pickled", "no such file"),
        ("base model", "me/base on the Hub is no eraser: expected eraser_config.json in it"),
        ("private, but public", "me/delta is on the Hub already and everybody can read it, --private is for a new"),
        ("no id", "expected a Hub id (owner/name) to push to, got 'just-a-name'"),
        ("odd id", "'me/no moon' is no Hub id (owner/name)"),
    ],
)
def test_one_clear_line(told, step, words):
    said = told[1][step]
    assert isinstance(said, dict), said
    assert words in said["error"]
    assert "\n" not in said["error"]


def test_no_pickle_no_code_and_no_base_model_is_ever_fetched(told):
    hub = told[0]
    assert hub.fetched("/me/pickled/resolve/*/eraser_config.json")
    assert not hub.fetched("*.bin")
    assert not hub.fetched("*.py")
    assert not hub.fetched("/me/base/resolve/*/unet/*")


def test_push_command():
    """What it hands over is tested above; offline, it ends in one line and exit code 2."""
    code, _, said = run("push", LORA, "me/no-moon", "--private")
    assert code == 2
    assert "cannot push to me/no-moon: HF_HUB_OFFLINE forbids to ask the Hub" in said
    assert "expected a Hub id (owner/name) to push to, got 'no-moon'" in run("push", LORA, "no-moon")[2]


def test_offline_and_here():
    with pytest.raises(InputError, match=r"cannot fetch me/eraser: no folder .*HF_HUB_OFFLINE forbids .*: unset it$"):
        Eraser.from_pretrained("me/eraser")
    with pytest.raises(InputError, match="is here on this computer and has no revision 'v2'"):
        Eraser.from_pretrained(LORA, revision="v2")
    with pytest.raises(InputError, match=r"expected a folder, a \.safetensors file or a Hub id"):
        Eraser.from_pretrained("a/b/c")
