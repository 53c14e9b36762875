"""docs/presets.md against the code: every published preset has a table, and every value in it is what runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from families import build
from test_cli import run

from erasers.erase import Loop, Session, Task, configure, find, methods, settings_of, suited
from erasers.prompts import Concept, InputError

PAGE = (Path(__file__).parent.parent / "docs/presets.md").read_text()
TABLES = {
    (method, preset): dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", body, re.M))
    for method, preset, body in re.findall(r"^### `(\w+)`, preset `([\w-]+)`\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
}


def value(text, like):
    """A cell of the page, of the type that the setting has."""
    if isinstance(like, bool):
        return {"on": True, "off": False}[text]
    return type(like)(text)


def test_every_published_preset_has_a_table():
    published = {(m, p) for m in methods() for p in find(m).presets if p.partition("-")[0] == "paper"}
    assert set(TABLES) == published


@pytest.mark.parametrize(("method", "preset"), TABLES)
def test_page_and_code_agree(method, preset):
    table, runs = TABLES[method, preset], settings_of(configure(method, preset, {}))
    assert {k: value(v, runs[k]) for k, v in table.items()} == {k: runs[k] for k in table}
    if method != "sfd_many_step":  # whose table is that of sfd
        assert set(table) >= set(find(method).presets[preset]), "a value of the preset stands nowhere"


def test_a_familys_preset_changes_only_what_it_names():
    plain, sdxl = (settings_of(configure("esd", p, {})) for p in ("paper", "paper-sdxl"))
    assert {k for k in plain if plain[k] != sdxl[k]} == {"train", "steps", "lr", "eta", "guidance"}
    assert settings_of(configure("uce", "canvas-flow", {}))["contexts"] == 6, "what canvas says"


def test_the_family_chooses():
    assert suited("esd", "paper", "sdxl") == "paper-sdxl"
    assert suited("esd", "paper", "flux") == "paper-flux"
    assert suited("esd", "paper", "sd3") == "paper"
    assert suited("esd", "sd", "sdxl") == "sd"
    with pytest.raises(InputError, match="unknown preset of salun 'paper-sdxl': did you mean 'paper'"):
        configure("salun", "paper-sdxl", {})


def test_eta_of_zero_teaches_what_the_empty_prompt_predicts():
    """The released code's target for SDXL and Flux: at the student's start the loss is |e(c) - e("")|^2."""
    backbone = build("sdxl")
    tool = configure("esd", "paper-sdxl", {"steps": 1, "sampler_steps": 2, "guidance": 1.0})
    trainer = tool.run(backbone, Task((Concept("a cat"),)))
    trainer.start(Session(backbone, Loop()))
    draws = trainer.draw(torch.Generator().manual_seed(0))
    seen = trainer._look(draws)
    with torch.no_grad(), backbone.using(None):
        empty = backbone.denoise(seen["x"], seen["t"], backbone.unconditional(1)).float()
    trainer.close()
    torch.testing.assert_close(seen["target"], empty)


def test_preset_paper_on_sdxl_by_the_command_line(tmp_path):
    build("sdxl").pipe.save_pretrained(tmp_path / "xl")
    given = ("--preset", "paper", "--steps", 1, "--sampler-steps", 2)
    assert run("erase", "cat", "--model", tmp_path / "xl", "--method", "esd", *given, "--out", tmp_path / "e")[0] == 0
    used = json.loads((tmp_path / "e/eraser_config.json").read_text())["settings"]
    assert (used["train"], used["lr"], used["eta"]) == ("text-kv", 2e-4, 0.0)
    assert used["steps"] == 1, "flags go before the preset"
