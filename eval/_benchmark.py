"""The benchmark: methods x settings x concepts x seeds on models, cell by cell, each kept as soon as it is done."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..erase import Eraser, Loop, Method, checkpoints, configure, settings_of, write_folder, write_text
from ..erase import concept as known
from ..erase import erase as make
from ..pipelines import ROUNDED, SAME, Backbone, distance, fingerprint
from ..pipelines import load as load_model
from ..prompts import CANVAS, UNLEARN_CANVAS, InputError, Prompt, World, unknown
from ..prompts import world as find_world
from ._cells import SCHEMA, CellKey, Cells, Row, digest, key_of, slug
from ._cost import Cost
from ._evaluate import Control, Report, evaluate, protocol_sampling
from ._evaluator import choose
from ._gallery import Gallery, Sampling, loaded_as
from ._grid import save_image
from ._judge import Judges, Verdict
from ._paired import hits

RECORD = "benchmark.json"
MADE = "made.json"
SHOWN = 8
"""Pictures kept of each cell, beside the unerased ones."""


@dataclass(frozen=True)
class Plan:
    """What a benchmark makes.

    Attributes:
        methods: names; `random` is the control.
        concepts: names, or stacks of erasers "a+b" that are attached together and scored as one.
        models: bundled names, folders or Hub ids.
        seeds: of the making of each eraser.
        settings: by method, what is changed from the preset that suits the model: one mapping, or several to compare.
        only: evaluators; all by default.
        options: settings of evaluators, as `choose` takes them ("fid.reference=FOLDER").
        rank: score the LoRAs of this rank that are made of deltas.
        steps, guidance: of the sampler; what suits the model by default.
        protocol: whose concepts these are: a world's name; by default the models' own, or unlearncanvas with judges.
        judges: a folder with judges of that world, in `object` and `style`; by default those that come with it.
        loading: what the loader of the models was asked for beside a name (dtype, revision, quantize ...): with other
            words for it a model is opened and looked at before its finished cells are taken for done.

    Raises:
        InputError: nothing to do, an unknown evaluator or setting of one, or settings of a method that is not among the
            methods.
    """

    methods: tuple[str, ...]
    concepts: tuple[str, ...]
    models: tuple[str, ...] = ("canvas-sd",)
    seeds: tuple[int, ...] = (0,)
    settings: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    only: tuple[str, ...] | None = None
    options: tuple[str, ...] = ()
    rank: int | None = None
    steps: int | None = None
    guidance: float | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    protocol: str | None = None
    judges: Path | None = None

    def __post_init__(self) -> None:
        if self.world != CANVAS and self.judges is None:
            raise InputError(f"no judges of {self.world.name} come with the package: name a folder of yours")
        object.__setattr__(self, "methods", tuple(m for m in self.methods if m != "original"))
        for name in ("methods", "concepts", "models", "seeds"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
            if not getattr(self, name):
                raise InputError(f"expected at least one of the {name}, got none")
        object.__setattr__(self, "options", tuple(sorted(set(self.options))))
        choose(self.only, self.options)
        for name, several in self.settings.items():
            if name not in self.methods:
                raise unknown("method in the settings", name, self.methods)
            if not several:
                raise InputError(f"the settings of {name}: expected at least one mapping, got none")

    @property
    def scores(self) -> list[str] | None:
        """The names of the evaluators that were asked for, and settings of theirs; None for those that run unasked."""
        return [*sorted(set(self.only or ())), *self.options] or None

    @property
    def world(self) -> World:
        """Whose concepts are erased and whose prompts are drawn."""
        if self.protocol is not None:
            return find_world(self.protocol)
        return CANVAS if self.judges is None else UNLEARN_CANVAS

    @property
    def judged(self) -> list[str | None]:
        """What was asked for of protocol and judges, in words."""
        return [self.protocol, None if self.judges is None else str(self.judges)]

    def sampling(self, backbone: Backbone) -> Sampling:
        """How images of a model are drawn."""
        given: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance}
        return replace(protocol_sampling(self.world, backbone), **{k: v for k, v in given.items() if v is not None})

    def cells(self, model: str, preset: str) -> dict[CellKey, Mapping[str, Any]]:
        """Every cell of a model, with the settings that were asked for; concept by concept, so that a run cut short has
        few concepts with all methods rather than all concepts with few.
        """
        out: dict[CellKey, Mapping[str, Any]] = {}
        for concept in self.concepts:
            for method in self.methods:
                for given in self.settings.get(method, ({},)):
                    effective = settings_of(configure(method, preset, given))
                    for seed in self.seeds:
                        out[CellKey(model, method, digest(effective, self.rank), concept, seed)] = given
        return out


class KeptControl(Control):
    """The unerased side, kept in a folder: a run that goes on draws none of it again."""

    def __init__(self, backbone: Backbone, how: Sampling, cells: Cells, judges: Judges | None = None) -> None:
        super().__init__(backbone, how, judges=judges)
        self.cells = cells
        self.folder = cells.folder / "control" / slug(backbone.name)
        self._read: set[str] = set()
        self._look()

    def _look(self) -> None:
        """Take in what lies in the folder and was not read yet."""
        for part in sorted(p for p in self.folder.glob("[!.]*") if p.is_dir() and p.name not in self._read):
            gallery = Gallery.open(part)
            seen = gallery.manifest["seen"]
            self._add(gallery, Verdict(tuple(seen["objects"]), tuple(seen["styles"])))
            self._read.add(part.name)

    def side(self, prompts: Sequence[Prompt], *, pictures: bool = True) -> tuple[Gallery, Verdict]:
        """Gallery and verdict of these prompts; what lies in the folder is not drawn again. All images are kept there,
        whether they are looked at or not.
        """
        if self._missing(prompts, True):
            with self.cells.alone(f"control {self.folder.name}"):
                self._look()  # another process may have drawn them meanwhile
                if new := self._missing(prompts, True):
                    self._save(tuple(new))
        return self._gathered(prompts, {"model": self.backbone.name, "erasers": [], "sampling": asdict(self.how)})

    def _save(self, new: tuple[Prompt, ...]) -> None:
        name = hashlib.sha256(repr(new).encode()).hexdigest()[:12]
        self.cells.clear(self.folder / name)
        begun = self.folder / f".{name}"  # a run that goes on finishes it
        gallery, seen = self._drawn(new, begun)
        manifest = {k: v for k, v in gallery.manifest.items() if k != "seconds"}
        replace(gallery, manifest={**manifest, "seen": asdict(seen)}).save(self.folder / name, force=True)
        for left in self.folder.glob(".*"):  # this one, and those begun for other concepts
            shutil.rmtree(left, ignore_errors=True)
        self._look()


@dataclass
class _Bench:
    """One model's part of a run."""

    plan: Plan
    cells: Cells
    backbone: Backbone
    control: KeptControl
    keep: bool

    def score(self, key: CellKey, given: Mapping[str, Any]) -> Row:
        """Make, or take from an earlier run, the erasers of a cell; score them as one."""
        parts = [self._made(replace(key, concept=n), given) for n in key.concept.split("+")]
        erasers, took = [e for e, _ in parts], [t for _, t in parts]
        if self.plan.rank is not None:
            erasers = [e.to_lora(self.backbone, rank=self.plan.rank) for e in erasers]
            took = [{**t, "bytes": _size(e)} for e, t in zip(erasers, took, strict=True)]
        place = self.cells.folder / ".galleries" / key.place
        galleries = place / "-".join(e.fingerprint for e in erasers)  # of an eraser made anew nothing goes on
        tools = choose(self.plan.only, self.plan.options)
        report = evaluate(erasers, self.backbone, only=tools, control=self.control, keep=galleries)
        pictures = self._pictures(key, report, Gallery.open(galleries / "erased"))
        if self.keep:
            kept = self.cells.folder / "galleries" / key.place
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            galleries.replace(kept)
        return self._row(key, given, report) | {
            "derived": {**erasers[0].recipe.derived, "asked": self.plan.rank} if self.plan.rank is not None else {},
            "seconds": _add([t["seconds"] for t in took]),
            "extra_mb": max((t["extra_mb"] for t in took if t["extra_mb"] is not None), default=None),
            "bytes": sum(t["bytes"] for t in took),
            "versions": erasers[0].recipe.versions,
            "pictures": pictures,
        }

    def _row(self, key: CellKey, given: Mapping[str, Any], report: Report) -> Row:
        judged = report.settings["judge accuracy on the unerased model"]
        return {
            "schema": SCHEMA,
            "world": self.control.world.name,
            **asdict(key),
            "settings": dict(given),
            "effective": settings_of(configure(key.method, self.backbone.preset, given)),
            "images": report.settings["images"],
            "sampling": report.settings["sampling"],
            "loaded": loaded_as(self.backbone),
            "judge": judged if isinstance(judged, dict) else {},
            "judge_real": real_accuracy(report.settings["judge accuracy on real images"]),
            "scores": {k: v.to_json() for k, v in report.scores.items()},
            "by_concept": {c: {k: v.to_json() for k, v in s.items()} for c, s in report.by_concept.items()},
            "hits": hits(report),
            "hits_control": hits(report, control=True),
            "source": "run",
        }

    def _made(self, key: CellKey, given: Mapping[str, Any]) -> tuple[Eraser, Row]:
        """The eraser of one concept, read from its folder; made first where there is none."""
        tool = configure(key.method, self.backbone.preset, given)
        place = self.cells.folder / "erasers" / replace(key, digest=digest(settings_of(tool))).place
        with self.cells.alone(f"eraser {place.relative_to(self.cells.folder)}"):
            if not (place / MADE).exists():
                self._make(key, tool, place)
        took = json.loads((place / MADE).read_text(encoding="utf-8"))
        return Eraser.from_pretrained(place / "eraser"), took

    def _make(self, key: CellKey, tool: Method, place: Path) -> None:
        """Make an eraser and write its folder; a training goes on from its last checkpoint."""
        self.cells.clear(place)
        work = place.with_name(place.name + ".training")
        again = bool(checkpoints(work))
        with Cost(self.backbone.device) as cost:
            loop = Loop(work=work, resume=True) if again else Loop(work=work)
            world = self.control.world
            name = key.concept if world == CANVAS else f"{world.name}:{key.concept}"
            eraser = make(name, self.backbone, method=tool, seed=key.seed, loop=loop)
        took = {
            "seconds": round(_spent(work) if again else cost.seconds, 3),
            "extra_mb": cost.to_json()["peak MB"],
            "resumed": again,
        }

        def fill(partial: Path) -> None:
            saved = eraser.save_pretrained(partial / "eraser", verify=self.backbone)
            size = (saved / eraser.payload.file).stat().st_size
            (partial / MADE).write_text(json.dumps({**took, "bytes": size}), encoding="utf-8")

        write_folder(place, fill, holds=MADE, force=True)
        for path in checkpoints(work):
            path.unlink()

    def _pictures(self, key: CellKey, report: Report, gallery: Gallery) -> list[Row]:
        """Keep a few images, and of each the unerased one of the same prompt and seed."""
        out = []
        base, seen_base = self.control.side(report.prompts)
        for k in shown(report.prompts, frozenset(key.concept.split("+")), self.control.world):
            p = report.prompts[k]
            name = hashlib.sha256(f"{p.text}|{p.seed}".encode()).hexdigest()[:12]
            own = Path("pictures", key.place, f"{name}.png")
            original = Path("pictures", key.place.parts[0], "original", f"{name}.png")
            save_image(gallery.images[k], self.cells.folder / own)
            if not (self.cells.folder / original).exists():
                with self.cells.alone("originals"):
                    save_image(base.images[k], self.cells.folder / original)
            out.append(
                {
                    **asdict(p),
                    "asks": bool({p.object, p.style} & set(key.concept.split("+"))),
                    "file": own.as_posix(),
                    "original": original.as_posix(),
                    "saw": [report.seen.objects[k], report.seen.styles[k]],
                    "saw_original": [seen_base.objects[k], seen_base.styles[k]],
                }
            )
        return out


def real_accuracy(told: Mapping[str, Any]) -> dict[str, float]:
    """Of each judge that was measured on real images, how often it was right, in percent."""
    return {domain: v["value"] for domain, v in told.items() if isinstance(v, dict)}


def shown(prompts: Sequence[Prompt], gone: frozenset[str], world: World = CANVAS) -> list[int]:
    """Which images a cell keeps: half of them ask for what was erased, half do not, look-alikes first; spread over both
    domains, the same for every method.
    """
    grid = [k for k, p in enumerate(prompts) if p.role == "grid"]
    asked = [k for k in grid if {prompts[k].object, prompts[k].style} & gone]
    near = {n for g in gone if g in world.concepts for n in world.concepts[g].neighbours} - gone
    kept = [k for k in grid if k not in set(asked)]
    close = [k for k in kept if {prompts[k].object, prompts[k].style} & near]
    far = [k for k in kept if k not in set(close)]
    half, quarter = SHOWN // 2, SHOWN // 4
    return [*_spread(asked, half), *_spread(close, quarter), *_spread(far, SHOWN - half - min(quarter, len(close)))]


def _spread(rows: Sequence[int], n: int) -> list[int]:
    """About n of them, evenly."""
    return [rows[(2 * i + 1) * len(rows) // (2 * n)] for i in range(n)] if len(rows) > n else list(rows)


def _add(values: Sequence[float | None]) -> float | None:
    return None if any(v is None for v in values) else round(sum(v for v in values if v is not None), 3)


def _size(eraser: Eraser) -> int:
    with tempfile.TemporaryDirectory() as folder:
        return eraser.export(Path(folder) / "lora.safetensors").stat().st_size


def _spent(work: Path) -> float:
    """Seconds that a training took, its earlier parts included, by its log."""
    return float(json.loads((work / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"])


def benchmark(
    plan: Plan,
    folder: Path,
    *,
    load: Callable[[str], Backbone] = load_model,
    say: Callable[[str], None] = lambda _: None,
    keep: bool = False,
) -> list[Row]:
    """Make every cell that is missing and hand back all that the folder then holds.

    Killed at any point it goes on with the same call: finished cells and erasers are not made again, a training goes on
    from its last checkpoint. Several processes may work in one folder; each takes cells that no other one makes.

    Args:
        plan: what to make.
        folder: for cells, erasers, pictures and the record of how they are scored.
        load: opens a model by its name.
        say: told of each finished cell, in one line.
        keep: keep all images, not only the few that a report shows.

    Raises:
        InputError: the folder was made with other evaluators, sampling, another model of a name or the same loaded
            otherwise; or cells failed, which is said once all others are done.
    """
    cells = Cells(folder)
    failed: list[str] = []
    taken: list[CellKey] = []
    for model in plan.models:
        if _complete(plan, cells, model):
            continue
        bench = _start(plan, cells, model, load(model), keep)
        missing = {k: v for k, v in bench.plan.cells(model, bench.backbone.preset).items() if not cells.done(k)}
        for k, (key, given) in enumerate(missing.items(), start=1):
            with cells.claimed(key) as mine:
                if not mine:
                    taken.append(key)
                if not mine or cells.done(key):
                    continue
                what = f"{k} of {len(missing)}: {key.method} {key.digest} on {key.concept}, seed {key.seed}"
                try:
                    row = bench.score(key, given)
                except InputError as error:  # the others are still worth having
                    failed.append(f"{key.method} on {key.concept}: {error}")
                    say(f"{what}: failed: {error}")
                    continue
                cells.write(row)
                shutil.rmtree(cells.folder / ".galleries" / key.place, ignore_errors=True)
            figures = {n: s["value"] for n, s in row["scores"].items() if s["value"] is not None}
            say(f"{what}: " + ", ".join(f"{n} {v:.1f}" for n, v in figures.items()))
    rows = cells.rows()
    if left := [k for k in taken if not cells.done(k)]:
        say(
            f"{len(left)} cells, such as {left[0].method} on {left[0].concept}, are being made by another process and "
            "are not in this table yet: once it is done the same command writes the whole one"
        )
    if failed:
        raise InputError(f"{len(failed)} cells failed and are missing from the table; the first, {failed[0]}")
    return rows


def _complete(plan: Plan, cells: Cells, model: str) -> bool:
    """Whether nothing is left to do, as far as can be told without opening the model."""
    record = _recorded(cells.folder)
    there = record.get("models", {}).get(model)
    if there is None or there["asked"] != [plan.steps, plan.guidance]:
        return False
    if there.get("loading", {}) != plan.loading or there.get("judged", [None, None]) != plan.judged:
        return False
    _check_scores(record, plan, cells.folder)
    return all(cells.done(k) for k in plan.cells(model, there["preset"]))


def _recorded(folder: Path) -> dict[str, Any]:
    """How the cells of a folder are scored, as far as it is settled."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except FileNotFoundError:
        return {}
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / RECORD} cannot be read ({error}): the folder is no benchmark's") from error


def _check_scores(record: Mapping[str, Any], plan: Plan, folder: Path) -> None:
    """Refuse to put figures side by side that were not made alike."""
    if record.get("evaluators", plan.scores) != plan.scores:
        was, now = (",".join(names) if names else "all by default" for names in (record["evaluators"], plan.scores))
        raise InputError(
            f"{folder} holds the scores {was}, asked for are {now}: say the same --only and --set, or another --out"
        )


def _start(plan: Plan, cells: Cells, model: str, backbone: Backbone, keep: bool) -> _Bench:
    """Open a model and settle, or check, how its cells are scored."""
    folder = cells.folder
    plan = replace(plan, concepts=tuple(_named(c, backbone, plan.world) for c in plan.concepts))
    plan.cells(model, backbone.preset)  # refuse a bad setting before anything is drawn
    how = plan.sampling(backbone)
    print_of = fingerprint(backbone.values("all"))
    record = _recorded(folder)
    _check_scores(record, plan, folder)
    there = record.get("models", {}).get(model)
    judges = None if plan.judges is None else Judges.from_folder(plan.judges, plan.world, str(backbone.device))
    control = KeptControl(backbone, how, cells, judges)
    mine: dict[str, Any] = {
        "preset": backbone.preset,
        "asked": [plan.steps, plan.guidance],
        "sampling": asdict(how),
        "fingerprint": print_of,
        "loading": dict(plan.loading),
        "judged": plan.judged,
        "judges": {"world": control.world.name, **{d: r["weights"] for d, r in control.judges.record().items()}},
        "loaded": loaded_as(backbone),
    }
    if there is not None:
        as_then, as_now = there.get("loaded", mine["loaded"]), mine["loaded"]  # older folders do not say it
        if as_then != as_now:
            raise InputError(
                f"{folder} holds cells of {model} loaded as {as_then}, now it is {as_now}: load it alike (--dtype, "
                "--device, --quantize, --model-...), or use another --out"
            )
        then, now = ({k: v for k, v in m["sampling"].items() if k != "batch"} for m in (there, mine))
        if then != now:
            raise InputError(
                f"{folder} holds images of {model} drawn with {then}, asked for is {now}: use another --out"
            )
        # older folders do not name them: they can only have been those of a bundled pipeline's own world
        judged_by = there.get("judges", mine["judges"] if plan.judges is None else "of the pipeline's own world")
        if judged_by != mine["judges"]:
            raise InputError(
                f"{folder} was scored by the judges {judged_by}, asked for are {mine['judges']}: name the same "
                "--judges and --protocol, or another --out"
            )
        away = distance(there["fingerprint"]["weights"], print_of["weights"])
        if not away <= (ROUNDED if backbone.quantized else SAME):
            raise InputError(f"{folder} was made with another model of the name {model!r}: use another --out")
    if there is None:
        with cells.alone("record"):
            record = {"evaluators": plan.scores, "models": {**_recorded(folder).get("models", {}), model: mine}}
            write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")
    return _Bench(plan, cells, backbone, control, keep)


def _named(concept: str, backbone: Backbone, world: World) -> str:
    """A concept, or a stack of several, under the name that the world has for each.

    Raises:
        InputError: no such concept, or one twice.
    """
    parts = [part.strip() for part in concept.split("+")]
    names = [(known(part, backbone) if world == CANVAS else world.find(part)).name for part in parts]
    if len(set(names)) < len(names):
        raise InputError(f"the stack {concept!r} names a concept twice: leave one out")
    return "+".join(names)


def rows_of(folder: Path) -> list[Row]:
    """Every finished cell of a benchmark's folder.

    Raises:
        InputError: there is none.
    """
    rows = Cells(folder).rows()
    if not rows:
        raise InputError(f"{folder} holds no finished cells: run `erasers benchmark --out {folder}` first")
    return sorted(rows, key=lambda r: str(key_of(r)))
