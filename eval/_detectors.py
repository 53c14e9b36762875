"""Other people's detectors behind one face: for each image, what was seen and how surely.

They are optional: nothing here is installed with the package, and a missing one is named in one line.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..prompts import InputError
from ._features import BATCH


@dataclass(frozen=True)
class Seen:
    """One thing in an image: its name, and the detector's confidence from 0 to 1."""

    name: str
    confidence: float


Detector = Callable[[Sequence[Image.Image]], list[list[Seen]]]
"""Images -> what was seen in each; an empty list: nothing."""


def nudenet(model: str = "") -> Detector:
    """NudeNet 3 (github.com/notAI-tech/NudeNet, AGPL-3.0), through its own package.

    Args:
        model: an .onnx file of one of its releases (320n, or 640m, which reads 640 pixels); "" for the package's own.

    Raises:
        InputError: the package is not installed, or the file is not there.
    """
    if model and not Path(model).is_file():
        raise InputError(f"NudeNet: no such file {model}; name an .onnx file of its releases, or none")
    package = _needs("nudenet", "NudeNet", "nudity")
    wide = {"inference_resolution": 640} if "640" in Path(model).name else {}
    tool = package.NudeDetector(model_path=model, **wide) if model else package.NudeDetector()

    def look(images: Sequence[Image.Image]) -> list[list[Seen]]:
        import numpy as np

        out = []
        for image in images:
            bgr = np.asarray(image.convert("RGB"))[:, :, ::-1].copy()  # OpenCV's order
            out.append([Seen(str(d["class"]), float(d["score"])) for d in tool.detect(bgr)])
        return out

    return look


def giphy(resources: str) -> Detector:
    """GIPHY's Celebrity Detector (github.com/Giphy/celeb-detection-oss, MPL-2.0): 2,300 faces, as MACE and others use
    it. Its package `model_training` is no release: install a checkout, and name its folder `resources`.

    Raises:
        InputError: the package is not installed, or the folder lacks the list of names.
    """
    if not (Path(resources) / "face_recognition/labels.csv").is_file():
        raise InputError(
            f"GIPHY's detector: expected its folder `resources` with face_recognition/labels.csv, got {resources!r}"
        )
    parts = [
        _needs(f"model_training.{name}", "GIPHY's celebrity detector", "")
        for name in (
            "helpers.labels",
            "helpers.face_recognizer",
            "preprocessors.face_detection.face_detector",
            "utils",
        )
    ]
    labels, recognizer, detector, utils = parts
    os.environ.setdefault("APP_RECOGNITION_WEIGHTS_FILE", "face_recognition/best_model_states.pkl")
    faces = detector.FaceDetector(resources, margin=0.2, use_cuda=False)
    names = recognizer.FaceRecognizer(
        labels=labels.Labels(resources_path=resources), resources_path=resources, use_cuda=False
    )

    def look(images: Sequence[Image.Image]) -> list[list[Seen]]:
        import numpy as np

        out = []
        for image in images:
            found = faces.perform_single(np.asarray(image.convert("RGB")))
            people = names.perform([utils.preprocess_image(face, 224) for face, _ in found])
            best = [ranking[0] for ranking, _ in people]
            out.append([Seen(str(label).split("_[")[0].replace("_", " "), float(p)) for label, p in best])
        return out

    return look


def detector(name: str) -> Detector:
    """A detector of your own, "my_lab.faces:detect": a function from a list of images, so many at a time, to, for each,
    a list of (name, confidence), the surest first.

    Raises:
        InputError: it cannot be imported, or is no function.
    """
    module, _, attribute = name.partition(":")
    try:
        tool = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot import detector {name!r}: {error}; expected 'package.module:function'") from error
    if not callable(tool):
        raise InputError(f"{name} is no detector: expected a function from images to (name, confidence) pairs")

    def look(images: Sequence[Image.Image]) -> list[list[Seen]]:
        out: list[list[Seen]] = []
        for k in range(0, len(images), BATCH):
            part = [images[i] for i in range(k, min(k + BATCH, len(images)))]
            found = [[Seen(str(n), float(c)) for n, c in seen] for seen in tool(part)]
            if len(found) != len(part):
                raise InputError(f"{name}: expected an answer for each of {len(part)} images, got {len(found)}")
            out += found
        return out

    return look


def _needs(module: str, what: str, extra: str) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(module)
    except ImportError as error:
        how = f"pip install 'erasers[{extra}]'" if extra else "install a checkout of its repository"
        raise InputError(f"{what} is not installed ({error}): {how}") from error
