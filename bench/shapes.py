"""Configs of published models, in `shapes/`: their sizes are facts, and planning with them needs no weights.

    python bench/shapes.py sd15 FOLDER

writes a diffusers folder with configs and no weights.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import transformers

PLACE = Path(__file__).parent / "shapes"
NAMES = sorted(p.stem for p in PLACE.glob("*.json"))


def shape(name: str) -> dict[str, Any]:
    """What `shapes/NAME.json` says: source, pipeline class, settings and parts."""
    found: dict[str, Any] = json.loads((PLACE / f"{name}.json").read_text())
    return found


def write(what: dict[str, Any], folder: Path) -> Path:
    """A diffusers folder with the configs of that shape, and no weights."""
    index: dict[str, Any] = {"_class_name": what["pipeline"], **what["settings"]}
    for name, (library, cls, config) in what["parts"].items():
        index[name], place = [library, cls], folder / name
        place.mkdir(parents=True, exist_ok=True)
        if library == "transformers":
            getattr(transformers, cls).config_class(**config).save_pretrained(place)
            continue
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (place / file).write_text(json.dumps({"_class_name": cls, **config}, indent=1))
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    print(write(shape(args.name), args.folder))


if __name__ == "__main__":
    main()
