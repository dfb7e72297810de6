"""What computes an edit: torch, or OpenVINO; in float32, in bfloat16 where hardware has it, or mostly in 8 bits.

Every runtime takes and gives what `EditingModel` does, and pixels outside the hole are the image's, bit by bit.
"""

from __future__ import annotations

import copy
import logging
import math
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfegan_ray.errors import ConfigError
from scfegan_ray.models.editing import EditingModel
from scfegan_ray.models.generator import margin_px
from scfegan_ray.precision import autocast, has_bfloat16, name_of, resolve_precision
from scfegan_ray.serving import conversion

logger = logging.getLogger(__name__)

RuntimeName = Literal["auto", "torch", "openvino"]
PrecisionName = Literal["auto", "float32", "bfloat16", "int8"]

Edit = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Image, mask, sketch, color and noise to a picture, as `EditingModel.forward`, on the device it was made for."""

_STAGES_OF_THE_HOLE = 3
"""Of the decoder, the last ones. In them a margin of 21 pixels is wrong; one more would make it 45."""
_WINDOWS = (0.25, 0.5, 0.625, 0.75, 1.0)
"""Shares of the sides of an image."""

INSTALL = "pip install 'scfegan-ray[openvino]'"
INSTALL_INT8 = "pip install 'scfegan-ray[int8]'"


@dataclass(frozen=True, slots=True)
class Choice:
    """What computes.

    Attributes:
        runtime: that.
        dtype: torch.float32, torch.bfloat16 or torch.int8.
    """

    runtime: Literal["torch", "openvino"]
    dtype: torch.dtype

    def __str__(self) -> str:
        """Name both."""
        return f"{self.runtime}, {self.precision}"

    @property
    def precision(self) -> PrecisionName:
        """The type's name as the settings spell it."""
        return cast(PrecisionName, name_of(self.dtype))

    @property
    def takes_any_size(self) -> bool:
        """Whether what `compiled` returns edits images of other sizes, too."""
        return self.runtime == "torch"


def choose(device: torch.device, runtime: RuntimeName = "auto", precision: PrecisionName = "auto") -> Choice:
    """Settle what computes.

    Args:
        device: where.
        runtime: "auto" means OpenVINO on CPUs where it is installed, else torch.
        precision: "auto" means bfloat16 where the hardware computes it natively, else float32. int8 is OpenVINO's
            alone.

    Raises:
        ConfigError: OpenVINO is asked for and is not installed, or not on a CPU; or bfloat16, and the hardware would
            have to emulate it; or int8, without OpenVINO or NNCF; or a name is unknown.
    """
    for name, given, known in (
        ("runtime", runtime, ("auto", "torch", "openvino")),
        ("precision", precision, ("auto", "float32", "bfloat16", "int8")),
    ):
        if given not in known:
            raise ConfigError(f"{name} is {given!r}; give one of {', '.join(known)}")
    is_on_cpu, is_there = device.type == "cpu", util.find_spec("openvino") is not None
    if runtime == "openvino" and not is_on_cpu:
        raise ConfigError(f'OpenVINO edits on CPUs, not on {device}; give runtime="torch" or device="cpu"')
    if runtime == "openvino" and not is_there:
        raise ConfigError(f'OpenVINO is not installed; {INSTALL}, or give runtime="torch"')
    if precision == "bfloat16" and not has_bfloat16(device):
        what = "processor" if is_on_cpu else "GPU"
        raise ConfigError(f'this {what} does not compute bfloat16; give precision="float32" or "auto"')
    is_chosen = runtime == "openvino" or (runtime == "auto" and is_on_cpu and is_there)
    if precision == "int8":
        if not is_chosen:
            raise ConfigError(
                f'int8 wants a CPU, and runtime="openvino" or "auto" where it is installed: {INSTALL_INT8}'
            )
        if util.find_spec("nncf") is None:
            raise ConfigError(f"NNCF, which quantizes, is not installed; {INSTALL_INT8}")
        return Choice("openvino", torch.int8)
    choice = Choice("openvino" if is_chosen else "torch", resolve_precision(precision, device))
    if runtime == "auto" and is_on_cpu and not is_there:
        logger.info("OpenVINO would edit faster on this CPU: %s", INSTALL)
    return choice


def compiled(model: EditingModel, size_px: tuple[int, int], device: torch.device, choice: Choice) -> Edit:
    """Make a model ready to edit one image after the other.

    In torch and float32 it is the model itself. OpenVINO wants some seconds, and a second copy of the weights; it
    takes one image at a time, and as many threads as `torch.get_num_threads` says now.

    Args:
        model: on the device, in evaluation mode.
        size_px: height and width of the images.
        device: where to compute.
        choice: of `choose`.
    """
    if choice.runtime == "openvino":
        return _OpenVino(model, size_px, choice.dtype)
    return _torch(model, device, choice.dtype)


def sample(size_px: int) -> tuple[NDArray[np.uint8], ...]:
    """Return what runtimes are timed with and compared by: image, mask, sketch, color and noise of one edit.

    All is drawn at random but the hole, which is a square in the middle, a quarter of the image.

    Args:
        size_px: side of the square image.
    """
    rng = np.random.default_rng(0)
    shape = (1, size_px, size_px, 1)
    image, color = (rng.integers(0, 256, (*shape[:3], 3), np.uint8) for _ in range(2))
    mask = np.zeros(shape, np.uint8)
    mask[:, size_px // 4 : 3 * size_px // 4, size_px // 4 : 3 * size_px // 4] = 255
    sketch, noise, painted = (np.uint8(255) * (rng.random(shape) < share) for share in (0.05, 0.15, 0.5))
    return image, mask, sketch, color * (painted > 0), noise


def _torch(model: EditingModel, device: torch.device, dtype: torch.dtype) -> Edit:
    if dtype == torch.bfloat16:
        # In the layout in which it is fast, on CPUs and GPUs; a copy, as the model may be in use elsewhere.
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def edit(*maps: Tensor) -> Tensor:
        with torch.no_grad(), autocast(dtype, device):
            filled: Tensor = model(*maps)
        return filled

    return edit


class _OpenVino:
    """An edit by OpenVINO, whose last stages are done for the hole and its surroundings alone, and never in 8 bits.

    Such a window is one of a few sizes, as each is compiled for itself, at the first edit that wants it.
    """

    def __init__(self, model: EditingModel, size_px: tuple[int, int], dtype: torch.dtype) -> None:
        self._size = size_px
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # threads share the cores with whatever else runs here
        }
        self._num_left = min(_STAGES_OF_THE_HOLE, model.generator.config.num_downsamples)
        ends = _windows(size_px, 2**self._num_left)
        with tempfile.TemporaryDirectory(prefix="scfegan-") as scratch:
            conversion.convert(model, size_px, self._num_left, ends, Path(scratch), quantize=dtype == torch.int8)
            self._begin = self._compiled(_core().read_model(Path(scratch, conversion.BEGINNING)))
            self._ends = {end: _core().read_model(Path(scratch, conversion.end_of(*end))) for end in ends}
        self._ready: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()  # a request does one thing at a time

    def __call__(self, *maps: Tensor) -> Tensor:
        image, mask = maps[:2]
        hole = mask[0, :, :, 0].numpy() != 0
        result = image.clone()
        if not hole.any():
            return result
        rows, columns = _window(hole, 2**self._num_left, margin_px(self._num_left))
        with self._lock:
            self._begin.infer([one.numpy() for one in maps])
            features = [self._part(tensor.data, rows, columns) for tensor in self._begin.output_tensors]
            shape = rows.stop - rows.start, columns.stop - columns.start
            if shape not in self._ready:
                self._ready[shape] = self._compiled(self._ends[shape])
            filled = torch.from_numpy(self._ready[shape].infer(features)[0])
            part = result[:, rows, columns]
            part.copy_(torch.where(mask[:, rows, columns].ne(0), filled, part))
        return result

    def _part(self, features: NDArray[np.float32], rows: slice, columns: slice) -> NDArray[np.float32]:
        """Return a copy of what features, (1, C, h, w), have at these rows and columns of the image."""
        step = self._size[0] // features.shape[2]
        inner = (slice(one.start // step, one.stop // step) for one in (rows, columns))
        return np.ascontiguousarray(features[:, :, *inner])

    def _compiled(self, model: Any) -> Any:
        return _core().compile_model(model, "CPU", self._settings).create_infer_request()


_CORE_LOCK = threading.Lock()


def _core() -> Any:
    """Return OpenVINO's core, one for the life of the process.

    Its CPU plugin gives the thread that makes it another stack for signals (for AMX), and takes that away when it goes.
    Of two that go in the order in which they came, the second restores the stack that the first has unmapped (openvino
    2026.4), and as Python's handlers run there, the next signal that is caught ends the process.
    """
    with _CORE_LOCK:
        return _only_core()


@cache
def _only_core() -> Any:
    return conversion.imported("openvino").Core()


def _windows(size_px: tuple[int, int], step: int) -> list[tuple[int, int]]:
    """Return heights and widths of windows, the smallest first."""
    height, width = (size // step for size in size_px)
    sides = ((math.ceil(share * height) * step, math.ceil(share * width) * step) for share in _WINDOWS)
    return list(dict.fromkeys(sides))


def _window(hole: NDArray[np.bool_], step: int, margin: int) -> tuple[slice, slice]:
    """Return rows and columns around a hole, as many as one of `_windows` has.

    Args:
        hole: (H, W), some of it true; sides are divisible by `step`.
        step: that begins and ends are multiples of.
        margin: pixels around the hole that must be within, where the image has them.
    """
    begins, ends = [], []
    for axis, size in enumerate(hole.shape):
        marked = np.flatnonzero(hole.any(axis=1 - axis))
        begins.append(max(int(marked[0]) - margin, 0) // step * step)
        ends.append(min(-(-(int(marked[-1]) + 1 + margin) // step) * step, size))
    sizes = (hole.shape[0], hole.shape[1])
    window = next(
        one for one in _windows(sizes, step) if all(e - b <= n for b, e, n in zip(begins, ends, one, strict=True))
    )
    firsts = (min(begin, size - side) for begin, size, side in zip(begins, sizes, window, strict=True))
    rows, columns = (slice(first, first + side) for first, side in zip(firsts, window, strict=True))
    return rows, columns
