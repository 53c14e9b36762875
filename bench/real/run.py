"""Published rows, one command each: erase every target as published, draw, judge, and stand beside the paper's figure.

    python bench/real/run.py list
    python bench/real/run.py esd-style --model you/sd-unlearncanvas --judges judges --out real
    python bench/real/run.py salun-style --model you/sd-unlearncanvas --judges judges --data data --out real
    python bench/real/run.py unhype-cifar10 --model CompVis/stable-diffusion-v1-4 --out real
    python bench/real/run.py esd-style --dry-run --out dry    # the same lines on canvas-sd; its figures mean nothing

Writes OUT/ROW/report.json and report.md: each figure with n, the published one, the tolerance, and whether it is met.
Finished targets are kept, so that the same command goes on after a kill. Exit code 1: a figure is not met.
"""

import argparse
import json
import math
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from erasers.app.answers import seed_list
from erasers.erase import CONFIG_FILE, Eraser, Loop, Method, checkpoints, configure, erase, settings_of, suited
from erasers.erase import write_text as write
from erasers.eval import (
    COST_FILE,
    Cost,
    Gallery,
    Judges,
    Sampling,
    Score,
    collect,
    compare,
    find,
    loaded_as,
    mean,
    protocol_sampling,
    sampling,
    save_image,
    score_answers,
)
from erasers.pipelines import Backbone, canvas_folder, load
from erasers.pipelines.canvas.draw import draw as drawing
from erasers.prompts import (
    CANVAS,
    UNLEARN_CANVAS,
    Concept,
    InputError,
    Prompt,
    World,
    canvas,
    fill,
    first_line,
    out_of_memory,
    unknown,
)

HERE = Path(__file__).parent
SCORES = ("ua", "ira", "cra")
SHORT = {"steps": 2, "batch": 2, "sampler_steps": 2, "images": 4, "retained": 4}
"""What a dry run makes of a method's lengths."""
SMALL = replace(CANVAS, objects=CANVAS.objects[:2], styles=CANVAS.styles[:2], seeds=CANVAS.seeds[:1])
"""The world of a dry run."""


@dataclass(frozen=True)
class Expected:
    """A published figure.

    Attributes:
        score: "ua", "ira", "cra" or "h_o".
        value: as published, in percent.
        tolerance: how far a figure may lie from it, in points; this project's own choice.
        target: of one target; "" is the mean over all.
    """

    score: str
    value: float
    tolerance: float
    target: str = ""


@dataclass(frozen=True)
class Row:
    """A published row: `rows/NAME.toml`.

    Attributes:
        name, title: of the file; in words.
        source: where the figures stand.
        settings_source: where the settings stand.
        protocol: "unlearncanvas" (answer sets, judges) or "classes" (one sentence a class, CLIP).
        method, preset, settings: what is run; `{data}` in a setting stands for the data set's folder.
        expected: the figures.
        domain: whose concepts are erased, one after the other: "style" or "object".
        prompt: what is erased, {x} the target's name.
        anchors: what is drawn instead: the first that is not the target itself.
        preserve: "others" (all other concepts of the world, or classes) or "none".
        dtype: of the model.
        sampling: what differs from the protocol's.
        targets: of "classes", what is erased, one at a time.
        classes: of "classes", every class with its synonyms.
        sentence: of "classes", how it is asked for.
        images: of "classes", how often.
        clip: of "classes", who names the images.
        notes: what is known to differ from the published run.
    """

    name: str
    title: str
    source: str
    settings_source: str
    protocol: str
    method: str
    preset: str
    expected: tuple[Expected, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    domain: str = "object"
    prompt: str = "{x}"
    anchors: tuple[str, ...] = ("",)
    preserve: str = "none"
    dtype: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ()
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sentence: str = ""
    images: int = 1
    clip: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "Row":
        """From its file.

        Raises:
            InputError: it is missing, no TOML, or lacks something.
        """
        try:
            told = tomllib.loads(path.read_text(encoding="utf-8"))
            told["expected"] = tuple(Expected(**e) for e in told["expected"])
            lists = {k: tuple(told[k]) for k in ("anchors", "targets", "notes") if k in told}
            return cls(**{"name": path.stem, **told, **lists})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"cannot read the row {path} ({error}): write it as those in {HERE / 'rows'}") from error

    def anchor(self, target: str) -> str:
        """What is drawn instead of a target."""
        return next(a for a in self.anchors if a != target)

    @property
    def needs_data(self) -> bool:
        """Whether it trains on images of the data set."""
        return any("{data}" in str(v) for v in self.settings.values())


@dataclass(frozen=True)
class Stage:
    """What a row is run on.

    Attributes:
        backbone: the pipeline.
        out: folder of all rows; the unerased images are shared.
        judges: of the answer sets; None for "classes".
        data: the data set's folder, style/object/1.jpg.
        seeds: of the answer set, where they are fewer than the protocol's.
        targets: names, where they are fewer than the row's.
        batch: images drawn at once; 0 is the usual number.
        keep: keep the erased models' images.
        dry: two steps of everything.
    """

    backbone: Backbone
    out: Path
    judges: Judges | None = None
    data: Path | None = None
    seeds: tuple[int, ...] | None = None
    targets: tuple[str, ...] | None = None
    batch: int = 0
    keep: bool = False
    dry: bool = False

    def how(self, usual: Sampling, row: Row) -> Sampling:
        """How images are drawn for a row."""
        how = replace(usual, **row.sampling)
        how = replace(how, batch=self.batch) if self.batch else how
        return replace(how, steps=2) if self.dry else how


def rows() -> dict[str, Path]:
    """Every row there is."""
    return {p.stem: p for p in sorted((HERE / "rows").glob("*.toml"))}


# ---------------------------------------------------------------- making


def method_of(row: Row, stage: Stage) -> Method:
    """The method with the row's settings; in a dry run shortly."""
    given = {k: v.format(data=stage.data) if isinstance(v, str) else v for k, v in row.settings.items()}
    preset = suited(row.method, row.preset, stage.backbone.family)
    tool = configure(row.method, preset, given)
    if not stage.dry:
        return tool
    lengths = settings_of(tool)
    return configure(row.method, preset, {**given, **{k: min(v, lengths[k]) for k, v in SHORT.items() if k in lengths}})


def made(row: Row, stage: Stage, place: Path, concept: Concept, preserve: Sequence[str]) -> Eraser:
    """The eraser of one target, read from its folder; made first where there is none."""
    folder, work = place / "eraser", place / "training"
    if not (folder / CONFIG_FILE).exists():
        loop = Loop(work=work, resume=True) if checkpoints(work) else Loop(work=work)
        with Cost(stage.backbone.device) as cost:
            eraser = erase(concept, stage.backbone, method=method_of(row, stage), preserve=preserve, loop=loop)
        eraser.save_pretrained(folder, verify=stage.backbone)
        write(folder / COST_FILE, json.dumps(cost.to_json()))
        shutil.rmtree(work, ignore_errors=True)
    return Eraser.from_pretrained(folder)


def kept(place: Path) -> dict[str, Score] | None:
    """The scores of a finished target."""
    path = place / "scores.json"
    if not path.exists():
        return None
    sure = ("change_low", "change_high", "control_low", "control_high")
    numbers = ("value", "low", "high", "control", "change", *sure)
    told = json.loads(path.read_text(encoding="utf-8"))
    return {n: Score(**{**s, **{k: math.nan for k in numbers if s.get(k, 0) is None}}) for n, s in told.items()}


def keep(place: Path, scores: Mapping[str, Any]) -> dict[str, Score]:
    """Write the scores of a finished target."""
    for name, score in scores.items():
        if not isinstance(score, Score):
            raise InputError(f"{place.name}: no {name}: {score.reason}")
    write(place / "scores.json", json.dumps({n: s.to_json() for n, s in scores.items()}, indent=1))
    return dict(scores)


def chosen(stage: Stage, names: Sequence[str]) -> list[str]:
    """The targets of a run, among all of a row."""
    for name in stage.targets or ():
        if name not in names:
            raise unknown("target", name, names)
    return [n for n in names if stage.targets is None or n in stage.targets]


# ---------------------------------------------------------------- protocols


def answer_sets(row: Row, stage: Stage) -> dict[str, dict[str, Score]]:
    """UnlearnCanvas: for each target the whole answer set of its erased model, seen by both judges."""
    judges = stage.judges
    assert judges is not None
    place: World = judges.world
    how = stage.how(protocol_sampling(place, stage.backbone), row)
    prompts = place.answers(stage.seeds)
    names = [place.file(p) for p in prompts]
    targets = chosen(stage, [n for n in place.names(row.domain) if n != place.photo])
    base = stage.out / f"control-{how.noise}"
    collect(base, stage.backbone, prompts=prompts, how=how, names=names)
    scores = {}
    for target in targets:
        mine = stage.out / row.name / target.replace(" ", "_")
        found = kept(mine)
        if found is None:
            known = place.find(target)
            wanted = replace(known, name=fill(row.prompt, x=known.name), anchor=row.anchor(known.name), synonyms=())
            others = [n for n in place.concepts if n not in (known.name, place.photo)]
            eraser = made(row, stage, mine, wanted, others if row.preserve == "others" else [])
            collect(mine / "answers", stage.backbone, prompts=prompts, erasers=[eraser], how=how, names=names)
            told = score_answers(
                mine / "answers", judges, concepts=[target], control=base, only=SCORES, seeds=stage.seeds
            )
            found = keep(mine, told.scores)
            if not stage.keep:
                shutil.rmtree(mine / "answers")
        scores[target] = found
        print(f"{row.name} {target}: " + ", ".join(f"{n} {s.value:.1f}" for n, s in found.items()), flush=True)
    return scores


def class_accuracy(row: Row, stage: Stage) -> dict[str, dict[str, Score]]:
    """Classes asked for in one sentence, named by CLIP: H_o of each target."""
    classes, sentence, clip, count = row.classes, row.sentence, row.clip, row.images
    names = dict(zip(row.targets, row.targets, strict=True))  # published name -> what is erased here
    if stage.dry:
        some = canvas.OBJECTS[: len(row.targets) + 1]
        classes, clip, count = {c.name: c.synonyms for c in some}, "canvas-clip", 1
        names = dict(zip(row.targets, classes, strict=False))
    how = stage.how(sampling(stage.backbone), row)

    def asked(name: str, word: str, role: str) -> list[Prompt]:
        return [Prompt(fill(sentence, x=word), k, name, object=name, role=role) for k in range(count)]

    grid = [p for name in classes for p in asked(name, name, "grid")]
    spoken = {t: [p for word in classes[t] for p in asked(t, word, "synonym")] for t in names.values()}
    everything = [*grid, *(p for prompts in spoken.values() for p in prompts)]
    base = collect(stage.out / f"control-{row.name}", stage.backbone, prompts=everything, how=how)
    judge = find("h_o")(model=clip, classes=",".join(classes), template=sentence, soft=True)  # type: ignore[call-arg]
    scores = {}
    for published in chosen(stage, row.targets):
        target = names[published]
        mine = stage.out / row.name / published.replace(" ", "_")
        found = kept(mine)
        if found is None:
            others = [n for n in classes if n != target] if row.preserve == "others" else []
            wanted = Concept(fill(row.prompt, x=target), row.anchor(target), kind="object")
            eraser = made(row, stage, mine, wanted, others)
            prompts = [*grid, *spoken[target]]
            erased = collect(mine / "images", stage.backbone, prompts=prompts, erasers=[eraser], how=how)
            at = {p: k for k, p in enumerate(base.prompts)}
            original = Gallery(erased.prompts, [base.images[at[p]] for p in prompts], base.manifest)
            found = keep(mine, compare(erased, original, Concept(target, kind="object"), only={"h_o": judge}))
            if not stage.keep:
                shutil.rmtree(mine / "images")
        scores[published] = found
        print(f"{row.name} {published}: H_o {found['h_o'].value:.1f}", flush=True)
    return scores


# ---------------------------------------------------------------- report


def judged(row: Row, stage: Stage, scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """Each published figure beside ours."""
    lines = []
    for e in row.expected:
        here = [s[e.score] for t, s in scores.items() if e.target in ("", t)]
        if not here:
            lines.append({**vars(e), "figure": None, "met": None, "n": 0})
            continue
        score = mean(here)
        assert isinstance(score, Score)
        told = {k: round(getattr(score, k), 2) for k in ("low", "high", "control")}
        told |= {"figure": round(score.value, 2), "n": score.n}
        met = None if stage.dry else bool(abs(score.value - e.value) <= e.tolerance)
        lines.append({**vars(e), **told, "targets": len(here), "met": met})
    return {
        "row": row.name,
        "title": row.title,
        "source": row.source,
        "settings_source": row.settings_source,
        "dry_run": stage.dry,
        "whole": stage.targets is None and stage.seeds is None and not stage.dry,
        "model": stage.backbone.name,
        "method": row.method,
        "settings": settings_of(method_of(row, stage)),
        "targets": list(scores),
        "figures": lines,
        "notes": list(row.notes),
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    out = [f"# {report['title']}", ""]
    if report["dry_run"]:
        out += ["**Dry run on canvas-sd, two steps of everything: the figures mean nothing.**", ""]
    elif not report["whole"]:
        out += ["**Not the whole row: fewer targets or seeds than published.**", ""]
    out += [
        "| score | target | figure | 95 % interval | n | unerased | published | tolerance | met |",
        "|---|---|---:|---|---:|---:|---:|---:|---|",
    ]
    for e in report["figures"]:
        head = f"| {e['score']} | {e['target'] or 'mean'} |"
        told = f"{e['value']} | {e['tolerance']} |"
        if e["figure"] is None:
            out.append(f"{head} not run | | 0 | | {told} - |")
            continue
        met = {True: "yes", False: "**no**", None: "-"}[e["met"]]
        out.append(f"{head} {e['figure']} | {e['low']} .. {e['high']} | {e['n']} | {e['control']} | {told} {met} |")
    out += ["", f"Published: {report['source']}. Settings: {report['settings_source']}.", ""]
    return "\n".join([*out, *(f"- {n}" for n in report["notes"]), ""])


def settle(row: Row, stage: Stage) -> None:
    """Write down what a row's folder is of, or refuse one that is of something else.

    Raises:
        InputError: it holds scores of another model or one loaded otherwise, other settings, sampling, seeds, judges or
            classes.
    """
    path = stage.out / row.name / "run.json"
    about = {
        "model": stage.backbone.name,
        "settings": settings_of(method_of(row, stage)),
        "asked": [row.prompt, row.anchors, row.preserve, dict(row.sampling), row.sentence, row.images],
        "seeds": stage.seeds,
        "dry": stage.dry,
        "loaded": loaded_as(stage.backbone),
        "judges": {} if stage.judges is None else stage.judges.record(),
        "classes": [dict(row.classes), row.clip],
    }
    told = json.loads(json.dumps(about, default=list))
    if not path.exists():
        write(path, json.dumps(told, indent=1) + "\n")
    elif (there := json.loads(path.read_text(encoding="utf-8"))) != told:
        other = ", ".join(k for k in told if there.get(k) != told[k])
        raise InputError(f"{path.parent} holds a run with another {other}: choose another --out, or delete it")


def run(row: Row, stage: Stage) -> dict[str, Any]:
    """A row, from its file to its report."""
    settle(row, stage)
    scores = (answer_sets if row.protocol == "unlearncanvas" else class_accuracy)(row, stage)
    report = judged(row, stage, scores)
    write(stage.out / row.name / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    write(stage.out / row.name / "report.md", markdown(report))
    return report


# ---------------------------------------------------------------- the command


def dry_stage(row: Row, out: Path) -> Stage:
    """canvas-sd, three objects in three styles, drawings in the place of the data set."""
    data = out / "data"
    if row.needs_data:
        for o in SMALL.objects:
            for folder, style in [*((s.name, s.name) for s in SMALL.styles), ("Seed_Images", "ink")]:
                (data / folder / o.name).mkdir(parents=True, exist_ok=True)
                save_image(drawing(o.name, style, 0), data / folder / o.name / "1.png")
    judges = None
    if row.protocol == "unlearncanvas":
        judges = Judges(canvas_folder("judge-object"), canvas_folder("judge-style"), world=SMALL)
    return Stage(load("canvas-sd"), out, judges, data, dry=True)


def real_stage(row: Row, args: argparse.Namespace) -> Stage:
    """What the command names, refused in one line before anything heavy is loaded."""
    if args.model is None:
        raise InputError(f"name the model that {row.name} was published on with --model, or rehearse with --dry-run")
    if row.protocol == "unlearncanvas" and args.judges is None:
        raise InputError(f"{row.name} needs UnlearnCanvas' judges: --judges DIR, made by `erasers convert-judge`")
    if row.needs_data and args.data is None:
        raise InputError(f"{row.name} trains on UnlearnCanvas' images: --data DIR, made by `erasers unpack`")
    seeds = seed_list(args.seed_list)
    judges = None if row.protocol != "unlearncanvas" else Judges.from_folder(args.judges, UNLEARN_CANVAS, args.device)
    return Stage(
        load(args.model, dtype=args.dtype or row.dtype, device=args.device),
        args.out,
        judges,
        args.data,
        seeds=None if seeds is None else tuple(seeds),
        targets=None if args.targets is None else tuple(t.strip() for t in args.targets.split(",")),
        batch=args.batch,
        keep=args.keep_images,
    )


def main(words: Sequence[str] | None = None) -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", help="a row's name, its file, or list")
    parser.add_argument("--model", help="diffusers folder or Hub id of the model the row was published on")
    parser.add_argument("--judges", type=Path, help="folder with both judges of UnlearnCanvas")
    parser.add_argument(
        "--data", type=Path, help="UnlearnCanvas' images, style/object/1.jpg, where a row trains on them"
    )
    parser.add_argument("--out", type=Path, default=Path("real"), help="folder; the same command goes on there")
    parser.add_argument("--targets", help="some targets, with commas; by default all that were published")
    parser.add_argument("--seed-list", help="fewer seeds of the answer set, with commas")
    parser.add_argument("--batch", type=int, default=0, help="images drawn at once")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16; by default the row's")
    parser.add_argument("--device", help="cpu, cuda, ...; by default a GPU where there is one")
    parser.add_argument("--keep-images", action="store_true", help="keep the erased models' images")
    parser.add_argument("--dry-run", action="store_true", help="on canvas-sd, two steps of everything")
    args = parser.parse_args(words)
    known = rows()
    if args.row == "list":
        for name, path in known.items():
            row = Row.read(path)
            print(f"{name}: {row.title}: " + ", ".join(f"{e.target} {e.score} {e.value}".strip() for e in row.expected))
        return 0
    if args.row not in known and not args.row.endswith(".toml"):
        raise unknown("row", args.row, known)
    row = Row.read(known.get(args.row, Path(args.row)))
    report = run(row, dry_stage(row, args.out) if args.dry_run else real_stage(row, args))
    print(markdown(report))
    return 0 if args.dry_run or all(e["met"] for e in report["figures"] if e["met"] is not None) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError, OSError) as error:
        if not out_of_memory(error):
            raise
        less = (
            "try a lower --batch, or --dtype float16 where the row's method trains no weights; the same command goes on"
        )
        print(f"{Path(sys.argv[0]).name}: out of memory: {first_line(error)[:160]}; {less}", file=sys.stderr)
        sys.exit(2)
