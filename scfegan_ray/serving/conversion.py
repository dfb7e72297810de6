"""A model as files that OpenVINO reads, written by a process of its own.

torch's tracing takes part in every call of a module in its process, and keeps Python busy for seconds: beside a server
it would hold up edits. So a child traces, at low priority, and this process only reads what came of it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scfegan_ray import children, faces, images
from scfegan_ray.errors import ModelError
from scfegan_ray.models.editing import EditingModel
from scfegan_ray.models.layers import shifted_sums

BEGINNING = "beginning.xml"
"""Of an edit in two parts: all that needs the whole image; five uint8 maps as `EditingModel.forward` takes them."""

_MODEL = "model.pt"
_NICE = 10
_SAMPLES = 4
_LOOK_SECONDS = 0.2

_ending: ContextVar[threading.Event | None] = ContextVar("ending", default=None)


class StoppedError(Exception):
    """Nobody waits for the files any longer."""


def end_of(height: int, width: int) -> str:
    """Return the file of an edit's second part, for so many rows and columns of the image: features to uint8."""
    return f"end_{height}x{width}.xml"


@contextmanager
def given_up_when(ending: threading.Event) -> Iterator[None]:
    """Let `convert` raise `StoppedError` in this thread once an event is set."""
    token = _ending.set(ending)
    try:
        yield
    finally:
        _ending.reset(token)


def convert(
    model: EditingModel,
    size_px: tuple[int, int],
    num_left: int,
    ends: Sequence[tuple[int, int]],
    into: Path,
    *,
    quantize: bool = False,
) -> None:
    """Write a model in two parts.

    Args:
        model: on the CPU, in evaluation mode.
        size_px: height and width of the images.
        num_left: how many stages of the decoder the second part has.
        ends: heights and widths that it is wanted for, of pixels of the image.
        into: existing folder, of this process alone.
        quantize: let the first part multiply in 8 bits, with ranges that are measured on drawn faces.

    Raises:
        ModelError: OpenVINO cannot take it.
        StoppedError: see `given_up_when`.
    """
    torch.save(model, into / _MODEL)
    settings = {"folder": str(into), "size_px": size_px, "num_left": num_left, "ends": ends, "quantize": quantize}
    ending = _ending.get() or threading.Event()
    with (
        (into / "log.txt").open("w+", errors="replace") as log,
        children.start(__name__, settings, stderr=log) as child,
    ):
        try:
            while child.poll() is None:
                if ending.wait(_LOOK_SECONDS):
                    raise StoppedError
        finally:
            child.kill()
        log.seek(0)
        said = log.read()
    if child.returncode:
        reason = " ".join(said.split()[-60:]) or f"its process ended by {child.returncode}"
        raise ModelError(f'OpenVINO cannot take the model: {reason}; give runtime="torch"')


def imported(name: str) -> Any:
    """Import a module of OpenVINO without its telemetry.

    That would write into the home folder and send a message to its makers at each import; OpenVINO does without where
    it is not installed.
    """
    telemetry = "openvino_telemetry"
    if telemetry in sys.modules:
        return import_module(name)
    sys.modules[telemetry] = None  # type: ignore[assignment]  # what Python takes for "not installed"
    try:
        return import_module(name)
    finally:
        del sys.modules[telemetry]


class _Beginning(nn.Module):
    def __init__(self, model: EditingModel, num_left: int) -> None:
        super().__init__()
        self.model, self.num_left = model, num_left

    def forward(self, image: Tensor, mask: Tensor, sketch: Tensor, color: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        x, skips, fill = self.model.generator.begin(self.model.packed(image, mask, sketch, color, noise), self.num_left)
        return x, *skips, *(() if fill is None else (fill,))


class _End(nn.Module):
    def __init__(self, model: EditingModel, num_left: int) -> None:
        super().__init__()
        self.model, self.num_left = model, num_left

    def forward(self, *features: Tensor) -> Tensor:
        x, skips, fills = features[0], list(features[1 : 1 + self.num_left]), features[1 + self.num_left :]
        return images.to_uint8(self.model.generator.finish(x, skips, fills[0] if fills else None))


def _main() -> None:
    os.nice(_NICE)
    torch.set_num_threads(1)
    given = json.loads(sys.argv[1])
    folder, num_left = Path(given["folder"]), given["num_left"]
    model = torch.load(folder / _MODEL, weights_only=False)  # of the process that started this one
    samples = [_sample(index, *given["size_px"]) for index in range(_SAMPLES)] if given["quantize"] else []
    maps = tuple(torch.from_numpy(one) for one in _sample(0, *given["size_px"]))
    beginning = _Beginning(model, num_left)
    features = _write(beginning, maps, folder / BEGINNING, samples)
    for height, width in given["ends"]:
        steps = [given["size_px"][0] // one[2] for one in features]
        parts = (torch.zeros(*one[:2], height // n, width // n) for one, n in zip(features, steps, strict=True))
        _write(_End(model, num_left), tuple(parts), folder / end_of(height, width), [])


def _sample(index: int, height: int, width: int) -> tuple[NDArray[np.uint8], ...]:
    """Return image, mask, sketch, color and noise of an edit: a part of a drawn face is to be drawn again."""
    image = faces.draw_face(0, index, max(height, width)).image[None, :height, :width]
    rng = np.random.default_rng(index)
    mask = np.zeros((1, height, width, 1), np.uint8)
    top, left = (int(rng.integers(0, size // 2)) for size in (height, width))
    mask[:, top : top + height // 2, left : left + width // 2] = 1
    sketch, noise, painted = (mask * (rng.random(mask.shape) < share) for share in (0.05, 0.15, 0.5))
    return image, mask, sketch.astype(np.uint8), (image * painted).astype(np.uint8), noise.astype(np.uint8)


def _write(
    module: nn.Module, arguments: tuple[Tensor, ...], file: Path, samples: Sequence[tuple[NDArray[np.uint8], ...]]
) -> list[torch.Size]:
    """Write a module for arguments of these shapes, quantized by samples of them if there are any.

    Returns:
        Shapes of what it gives.
    """
    decoder = imported("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
    kept = imported("openvino.frontend.pytorch.torchdynamo.export_decompositions").ops_to_not_decompose
    with torch.no_grad(), shifted_sums(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, of its own classes
        program = torch.export.export(module.eval(), arguments)
        steps = torch.export.default_decompositions()
        for operator in kept():
            steps.pop(operator, None)  # type: ignore[no-untyped-call]
        reader = decoder(program.run_decompositions(steps).module(), dynamic_shapes=False)
    # By the frontend alone: `openvino.convert_model` is for people who watch it, and reports to its makers.
    frontend = imported("openvino.frontend").FrontEndManager().load_by_framework("pytorch")
    converted = frontend.convert(frontend.load(reader))  # `reader` must live until then
    if samples:
        nncf = imported("nncf")
        converted = nncf.quantize(converted, nncf.Dataset(samples), subset_size=len(samples))
    imported("openvino").save_model(converted, str(file), compress_to_fp16=False)
    return [one.meta["val"].shape for one in program.graph.output_node().args[0]]


if __name__ == "__main__":
    _main()
