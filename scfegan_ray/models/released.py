"""Import of the weights that the authors published, from their TensorFlow variables."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scfegan_ray import storage
from scfegan_ray.config import ModelConfig
from scfegan_ray.errors import ModelError
from scfegan_ray.models import tensor_bundle
from scfegan_ray.models.generator import (
    INPUT_CHANNELS,
    Generator,
    decoder_widths,
    encoder_kernel_size,
    encoder_widths,
)

# Where RGB goes in the packed input (incomplete 3, sketch, color 3, mask, noise) when it held BGR; its own inverse.
_SWAPPED_INPUT = (2, 1, 0, 3, 6, 5, 4, 7, 8)
_SWAPPED_IMAGE = (2, 1, 0)

_MAX_BASE_CHANNELS = 4096

_OF_GENERATOR = re.compile(r"generator/\w+/(kernel|bias|w|biases1)")


def _encoder_name(index: int) -> str:
    return f"gconv{index + 1}_ds"


def _bottleneck_name(index: int) -> str:
    return f"co_conv{index + 1}_dlt"


def _upsampler_name(index: int) -> str:
    return f"deconv{index + 1}"


def _decoder_name(index: int, num_downsamples: int) -> str:
    return f"gconv{num_downsamples + index + 1}"


def expected_variables(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """List the TensorFlow variables that the generator's weights come from.

    Each gated convolution has four: `generator/<layer>/kernel:0` (kh, kw, in, out), `/bias:0` (out,), and the gate's
    twins under `<layer>_g`. Each transpose convolution has two, `generator/<layer>/w:0` (kh, kw, out, in) and
    `biases1:0` (out,); its `biases2:0` belongs to a gate that the released graph drops, and is not listed.

    Args:
        config: shapes of the generator.

    Returns:
        Shape by variable name, in the order of the graph.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def gated(layer: str, inputs: int, outputs: int, kernel_size: int) -> None:
        for name in (layer, f"{layer}_g"):
            shapes[f"generator/{name}/kernel:0"] = (kernel_size, kernel_size, inputs, outputs)
            shapes[f"generator/{name}/bias:0"] = (outputs,)

    down = encoder_widths(config)
    inputs = [INPUT_CHANNELS, *down[:-1]]
    for i, width in enumerate(down):
        gated(_encoder_name(i), inputs[i], width, encoder_kernel_size(i))
    for i in range(len(config.dilations)):
        gated(_bottleneck_name(i), down[-1], down[-1], 3)
    width = down[-1]
    for i, (skip, out) in enumerate(zip(reversed(inputs), decoder_widths(config), strict=True)):
        shapes[f"generator/{_upsampler_name(i)}/w:0"] = (5, 5, out, width)
        shapes[f"generator/{_upsampler_name(i)}/biases1:0"] = (out,)
        gated(_decoder_name(i, len(down)), skip + out, out, 3)
        width = out
    return shapes


def infer_config(variables: Mapping[str, NDArray[Any]]) -> ModelConfig:
    """Tell the generator's shapes from its variables.

    Dilations cannot be seen in the weights: they are taken to be 2, 4, 8, ..., as released. The discriminator was
    never published; its settings keep their defaults.

    Args:
        variables: arrays by TensorFlow name.

    Raises:
        ModelError: the variables that tell the shapes are missing or strange.
    """

    def count(pattern: str) -> int:
        matches = (re.fullmatch(f"generator/{pattern}/kernel:0", name) for name in variables)
        return max((int(match[1]) for match in matches if match), default=0)

    first = f"generator/{_encoder_name(0)}/kernel:0"
    if first not in variables:
        raise ModelError(f"variable {first} is missing; give the variables of the released SC-FEGAN generator")
    shape = tuple(variables[first].shape)
    if len(shape) != 4 or not 0 < shape[3] <= _MAX_BASE_CHANNELS:
        raise ModelError(f"variable {first} has shape {shape}, not (7, 7, 9, channels); give the released variables")
    return ModelConfig(
        base_channels=int(shape[3]),
        num_downsamples=count(r"gconv(\d+)_ds"),
        dilations=tuple(2 ** (i + 1) for i in range(count(r"co_conv(\d+)_dlt"))),
    )


def read_variables(uri: str) -> dict[str, NDArray[Any]]:
    """Read the generator's variables from the published checkpoint, or from a NumPy archive of them.

    Args:
        uri: a path that the files of a TensorFlow checkpoint begin with, such as `SC-FEGAN.ckpt`; or an `.npz` whose
            arrays are called as the variables are, with or without `:0`. Local or `s3://`.

    Returns:
        Arrays by TensorFlow name, such as `generator/gconv1_ds/kernel:0`.

    Raises:
        ModelError: it is neither, or damaged.
        StorageError: it cannot be read.
    """
    if not uri.lower().endswith(".npz"):
        found = tensor_bundle.read_variables(uri, lambda name: _OF_GENERATOR.fullmatch(name) is not None)
        return {f"{name}:0": values for name, values in found.items()}
    place = storage.absolute(uri)
    stream = storage.open_seekable(place)
    with stream, storage.errors_of_reading(place):
        try:
            with np.load(stream, allow_pickle=False) as archive:
                names = [name for name in archive.files if _OF_GENERATOR.fullmatch(name.removesuffix(":0"))]
                return {f"{name.removesuffix(':0')}:0": archive[name] for name in names}
        except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, AttributeError, MemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"{place} is no NumPy archive of arrays, or damaged: {reason}; copy it again") from error


def load_variables(variables: Mapping[str, NDArray[Any]], bgr: bool = True) -> Generator:
    """Build a generator from TensorFlow variables.

    Args:
        variables: float arrays by TensorFlow name, such as `generator/gconv1_ds/kernel:0`; names that the generator
            does not use are ignored.
        bgr: the weights expect and give BGR, as the published ones do; they are turned so that the generator is RGB
            like everything here. False takes the weights as they are.

    Returns:
        The generator on the CPU in evaluation mode, float32.

    Raises:
        ModelError: a variable is missing, of another shape, or holds what is no number.
    """
    config = infer_config(variables)
    arrays: dict[str, Tensor] = {}
    for name, shape in expected_variables(config).items():
        if name not in variables:
            raise ModelError(f"variable {name} is missing; give all variables of the released generator")
        if tuple(variables[name].shape) != shape:
            raise ModelError(
                f"variable {name} has shape {tuple(variables[name].shape)}, not {shape}; give the released variables"
            )
        if variables[name].dtype.kind != "f" or not np.isfinite(variables[name]).all():
            raise ModelError(f"variable {name} holds what is no number; give the released variables")
        arrays[name] = torch.from_numpy(np.array(variables[name], dtype=np.float32))

    def gated(layer: str) -> tuple[Tensor, Tensor]:
        """Return feature and gate as one: weight (2 out, in, kh, kw), bias (2 out,)."""
        twins = (f"generator/{layer}", f"generator/{layer}_g")
        weight = torch.cat([arrays[f"{twin}/kernel:0"].permute(3, 2, 0, 1) for twin in twins])
        return weight, torch.cat([arrays[f"{twin}/bias:0"] for twin in twins])

    n = config.num_downsamples
    state: dict[str, Tensor] = {}
    for i in range(n):
        state[f"encoder.{i}.weight"], state[f"encoder.{i}.bias"] = gated(_encoder_name(i))
        state[f"upsamplers.{i}.weight"] = arrays[f"generator/{_upsampler_name(i)}/w:0"].permute(3, 2, 0, 1)
        state[f"upsamplers.{i}.bias"] = arrays[f"generator/{_upsampler_name(i)}/biases1:0"]
        state[f"decoder.{i}.weight"], state[f"decoder.{i}.bias"] = gated(_decoder_name(i, n))
    for i in range(len(config.dilations)):
        state[f"bottleneck.{i}.weight"], state[f"bottleneck.{i}.bias"] = gated(_bottleneck_name(i))
    if bgr:
        _swap_red_and_blue(state, n)
    # On the meta device no initial weights are drawn, which would cost seconds and move torch's global generator.
    with torch.device("meta"):
        generator = Generator(config)
    generator.load_state_dict({name: value.contiguous() for name, value in state.items()}, assign=True)
    return generator.eval()


def _swap_red_and_blue(state: dict[str, Tensor], num_downsamples: int) -> None:
    """Reorder the weights wherever color channels meet them.

    The packed input enters the first encoder layer and, as the last skip, the last decoder layer; the image leaves
    that one. The three channels that the last upsampler hands it are features without a color, and stay.
    """
    last = f"decoder.{num_downsamples - 1}"
    skip_and_features = (*_SWAPPED_INPUT, *range(INPUT_CHANNELS, INPUT_CHANNELS + len(_SWAPPED_IMAGE)))
    feature_and_gate = (*_SWAPPED_IMAGE, *(len(_SWAPPED_IMAGE) + channel for channel in _SWAPPED_IMAGE))
    state["encoder.0.weight"] = state["encoder.0.weight"][:, list(_SWAPPED_INPUT)]
    state[f"{last}.weight"] = state[f"{last}.weight"][:, list(skip_and_features)][list(feature_and_gate)]
    state[f"{last}.bias"] = state[f"{last}.bias"][list(feature_and_gate)]
