"""Encoders for other libraries: a folder with the weights, how to load them, and a model card.

    OUT/model.safetensors (or .onnx, .pt)    the weights, or the program
        config.json                          the network and what it sees of an image: size, mean, standard deviation
        load.py                              loads both with the library alone, without this package
        README.md                            the model card

`load.py` is the module load_FORMAT.py of this package as it stands.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from wmse.errors import ConfigError, WmseError, unknown
from wmse.export.card import model_card
from wmse.files import atomic_path, write_json, write_text
from wmse.pretrained import Pretrained
from wmse.streams import stream

TOLERANCE = 1e-5  # The largest difference of a feature that is allowed, for features of a size of about 1.


def export_encoder(run: Pretrained, kind: str, out: Path, log: Callable[[str], None] = print) -> list[Path]:
    """Write the encoder of a run to the folder `out` in a format of FORMATS, and try it; returns the files.

    The trial loads what was written by the folder's own load.py and compares features of random images with those of
    the encoder; where the library is missing, `log` hears that nothing was tried.

    Raises:
        ConfigError: no such format, or a package is missing that writing it needs.
        WmseError: the features differ by more than TOLERANCE.
    """
    if kind not in FORMATS:
        raise ConfigError(unknown("format", kind, FORMATS))
    write, weights, library = FORMATS[kind]
    config = _config(run, kind)
    with atomic_path(out / weights) as temporary:
        write(run, temporary, {"wmse": json.dumps(config)})
    write_json(out / "config.json", config)
    write_text(out / "load.py", (Path(__file__).parent / f"load_{kind}.py").read_text(encoding="utf-8"))
    write_text(out / "README.md", model_card(run, kind, weights))
    files = [out / name for name in (weights, "config.json", "load.py", "README.md")]
    if importlib.util.find_spec(library):
        difference = try_export(run, out)
        log(f"{out}: loaded by {library} {metadata.version(library)}; the features differ by {difference:.1e} at most")
    else:
        log(f"{out}: not tried, because {library} is not installed (`pip install {library}`)")
    return files


def _config(run: Pretrained, kind: str) -> dict[str, Any]:
    """The content of config.json."""
    encoder, seen = run.encoder, run.preprocessing
    config = {
        "architecture": encoder.arch,
        "stem": encoder.stem,
        "width": encoder.width,
        "num_features": encoder.features,
        **asdict(seen),
        "run": run.spec.run,
        "encoder": run.digest,
    }
    if kind == "timm" and (encoder.stem, encoder.width) == ("imagenet", 64):
        # timm's own network, which `timm.create_model("local-dir:OUT", pretrained=True)` makes of this
        config["num_classes"] = 0
        config["pretrained_cfg"] = {
            "input_size": [3, seen.size, seen.size],
            "interpolation": "bicubic",
            "crop_pct": seen.size / (seen.resize + 1e-6),
            "mean": seen.mean,
            "std": seen.std,
            "num_classes": 0,
            "first_conv": "conv1",
            "classifier": "fc",
        }
    return config


def try_export(run: Pretrained, out: Path) -> float:
    """The largest difference between features of an exported encoder and of ours, for images of three shapes.

    Features above 1 count as the share of the largest one. Raises WmseError if it is above TOLERANCE.
    """
    from PIL import Image

    loaded = runpy.run_path(str(out / "load.py"))  # not imported, which would leave a __pycache__ in the folder
    encoder, size = loaded["load_encoder"](), run.preprocessing.size
    worst = 0.0
    for number, (h, w) in enumerate(((size, size), (2 * size + 3, size + 1), (size + 5, 3 * size))):
        pixels = torch.randint(0, 256, (1, 3, h, w), generator=stream(0, "export", number), dtype=torch.uint8)
        image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
        with torch.inference_mode():
            ours = run.encoder(run.preprocessing(pixels)).numpy()
            theirs = np.asarray(encoder(loaded["preprocess"](image)[None]))
        worst = max(worst, float(np.abs(ours - theirs).max() / max(1.0, np.abs(ours).max())))
    if not worst <= TOLERANCE:
        raise WmseError(f"{out}: gives other features than the encoder; they differ by {worst:.1e}: do not use it")
    return worst


# --- formats ----------------------------------------------------------------------------------------------------------


def _write_weights(run: Pretrained, file: Path, about: dict[str, str]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in run.encoder.state_dict().items()}, file, about)


def _write_torchscript(run: Pretrained, file: Path, about: dict[str, str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is not developed any further, but is what libtorch loads
        traced = torch.jit.trace(run.encoder, _example(run))
        torch.jit.save(traced, file, _extra_files=about)


def _write_onnx(run: Pretrained, file: Path, about: dict[str, str]) -> None:
    missing = [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]
    if missing:
        raise ConfigError(f"ONNX needs {' and '.join(missing)}: `pip install {' '.join(missing)}`")
    program = torch.onnx.export(
        run.encoder,
        (_example(run),),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(about)
    program.save(file)


def _example(run: Pretrained) -> torch.Tensor:
    """Two images: of one, a program would believe that there is always one."""
    return torch.zeros(2, 3, run.preprocessing.size, run.preprocessing.size)


# The file, and the library that loads it.
FORMATS: dict[str, tuple[Callable[[Pretrained, Path, dict[str, str]], None], str, str]] = {
    "torchvision": (_write_weights, "model.safetensors", "torchvision"),
    "timm": (_write_weights, "model.safetensors", "timm"),
    "onnx": (_write_onnx, "model.onnx", "onnxruntime"),
    "torchscript": (_write_torchscript, "model.pt", "torch"),
}
