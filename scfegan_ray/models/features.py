"""Frozen VGG-16 whose activations the perceptual and style losses compare."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scfegan_ray import storage, weights
from scfegan_ray.errors import ModelError
from scfegan_ray.precision import lowered

_LOG = logging.getLogger(__name__)

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Caffe subtracts these from 0-255 BGR; here they are in RGB order.
_CAFFE_MEAN = (122.679, 116.669, 104.007)
# One number for what torchvision divides by per channel.
_CAFFE_STD = 0.225
CAFFE_SCALE = 255.0 * _CAFFE_STD
"""How much larger activations are with Caffe's input, from 0 to 255, than with torchvision's."""


class _Conv(NamedTuple):
    name: str
    torchvision_index: int
    in_channels: int
    out_channels: int
    pooled: bool
    """A max pooling follows, whose result is one of the features."""


_CONVS = (
    _Conv("conv1_1", 0, 3, 64, False),
    _Conv("conv1_2", 2, 64, 64, True),
    _Conv("conv2_1", 5, 64, 128, False),
    _Conv("conv2_2", 7, 128, 128, True),
    _Conv("conv3_1", 10, 128, 256, False),
    _Conv("conv3_2", 12, 256, 256, False),
    _Conv("conv3_3", 14, 256, 256, True),
)


class Features(nn.Module):
    """VGG-16 up to pool3; never trained, and always in evaluation mode.

    Args:
        convs: weight (out, in, 3, 3) and bias (out,) of conv1_1, conv1_2, conv2_1, ..., conv3_3; input RGB.
        mean: per RGB channel of an image in [0, 1], subtracted.
        std: per RGB channel of an image in [0, 1], divided by after that.
        description: which weights these are.
    """

    mean: Tensor
    std: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        convs: Sequence[tuple[Tensor, Tensor]],
        mean: Sequence[float],
        std: Sequence[float],
        description: str,
    ) -> None:
        """Take copies of the weights."""
        super().__init__()
        self.description = description
        for conv, (weight, bias) in zip(_CONVS, convs, strict=True):
            self.register_buffer(
                f"{conv.name}_weight",
                weight.detach().to(torch.float32, copy=True).contiguous(memory_format=torch.channels_last),
            )
            self.register_buffer(f"{conv.name}_bias", bias.detach().to(torch.float32, copy=True))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(1, 3, 1, 1))
        # ((images + 1) / 2 - mean) / std as one product and one sum.
        self.register_buffer("scale", 0.5 / self.std)
        self.register_buffer("shift", (0.5 - self.mean) / self.std)
        self.eval()

    def train(self, mode: bool = True) -> Features:
        """Stay in evaluation mode, whatever the networks around do."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the activations after each of the first three poolings.

        Args:
            images: (N, 3, H, W) float, RGB in [-1, 1]; H and W at least 8.

        Returns:
            pool1 (N, 64, H/2, W/2), pool2 (N, 128, H/4, W/4), pool3 (N, 256, H/8, W/8), sizes rounded down, float,
            0 or more. Paper: Theta in the perceptual and style losses. The scale of the input was never published;
            it is torchvision's, to which the published weights of the two losses belong.
        """
        # Convolutions of few channels on many pixels are up to twice as fast with channels last, on CPUs too.
        x = torch.addcmul(self.shift, images, self.scale).contiguous(memory_format=torch.channels_last)
        tensors = lowered([self.get_buffer(f"{conv.name}_{kind}") for conv in _CONVS for kind in ("weight", "bias")])
        pooled = []
        for conv, weight, bias in zip(_CONVS, tensors[::2], tensors[1::2], strict=True):
            x = F.relu_(F.conv2d(x, weight, bias, padding=1))
            if conv.pooled:
                x = F.max_pool2d(x, 2)
                pooled.append(x)
        return pooled


def _check(name: str, shape: Sequence[int], expected: Sequence[int], source: str) -> None:
    if tuple(shape) != tuple(expected):
        raise ModelError(f"{name} of {source} has shape {tuple(shape)}, not {tuple(expected)}; give VGG-16 weights")


def vgg_from_torchvision(state: Mapping[str, Tensor]) -> Features:
    """Build from the state dict of torchvision's `vgg16`, of which the first seven convolutions are read.

    Args:
        state: `features.0.weight` (64, 3, 3, 3) float, `features.0.bias` (64,) float, and so on; other keys are
            ignored.

    Raises:
        ModelError: a key is missing or of another shape.
    """
    source = "the VGG state dict"
    convs = []
    for conv in _CONVS:
        pair = []
        for kind, shape in (
            ("weight", (conv.out_channels, conv.in_channels, 3, 3)),
            ("bias", (conv.out_channels,)),
        ):
            key = f"features.{conv.torchvision_index}.{kind}"
            if not isinstance(state.get(key), Tensor):
                raise ModelError(f"{source} has no tensor {key}; give the state dict of torchvision's vgg16")
            _check(key, state[key].shape, shape, source)
            pair.append(state[key])
        convs.append((pair[0], pair[1]))
    return Features(convs, _IMAGENET_MEAN, _IMAGENET_STD, "VGG-16 from a torchvision state dict")


def vgg_from_hed(arrays: Mapping[str, NDArray[np.float32]]) -> Features:
    """Build from the trunk of the HED edge detector, which is VGG-16 fine-tuned under Caffe.

    Caffe's input is BGR in [0, 255] minus a mean. A network of convolutions and ReLUs is homogeneous once its biases
    scale with its input, so dividing both by 255 * 0.225 gives the activations that torchvision's input scale would.

    Args:
        arrays: `conv1_1/kernel` (3, 3, 3, 64) float32 for BGR input, `conv1_1/bias` (64,) float32, and so on, as
            `weights.hed_arrays` returns them; other keys are ignored.

    Raises:
        ModelError: a key is missing or of another shape.
    """
    source = "the HED weights"
    convs = []
    for conv in _CONVS:
        pair = []
        for kind, shape in (
            ("kernel", (3, 3, conv.in_channels, conv.out_channels)),
            ("bias", (conv.out_channels,)),
        ):
            key = f"{conv.name}/{kind}"
            if key not in arrays:
                raise ModelError(f"{source} have no {key}; give all arrays of weights.hed_arrays()")
            _check(key, arrays[key].shape, shape, source)
            pair.append(torch.from_numpy(np.array(arrays[key], dtype=np.float32)))
        weight = pair[0].permute(3, 2, 0, 1)
        if conv.in_channels == 3:
            weight = weight.flip(1)
        convs.append((weight, pair[1] / CAFFE_SCALE))
    mean = [value / 255.0 for value in _CAFFE_MEAN]
    return Features(convs, mean, [_CAFFE_STD] * 3, "VGG-16 trunk of HED (ImageNet, then fine-tuned on edges)")


def vgg_random(seed: int = 0) -> Features:
    """Build with random filters (He initialization, biases 0), the same for the same seed.

    Random filters still compare local structure, but do not know what matters in a photograph.

    Args:
        seed: of a generator of its own; torch's global one is left alone.
    """
    rng = torch.Generator().manual_seed(seed)
    convs = [
        (
            torch.randn(c.out_channels, c.in_channels, 3, 3, generator=rng) * math.sqrt(2.0 / (c.in_channels * 9)),
            torch.zeros(c.out_channels),
        )
        for c in _CONVS
    ]
    return Features(convs, _IMAGENET_MEAN, _IMAGENET_STD, f"VGG-16 with random filters (seed {seed})")


def settle_features(spec: str) -> str:
    """Turn a setting into what all workers of a run can be told, once it is sure that it can be had.

    Args:
        spec: as `load_features` takes it.

    Returns:
        `hed`, or `random` where only `auto` was asked for and hed cannot be had; `random`; or an absolute URI.

    Raises:
        ModelError: what was asked for by name cannot be had.
        StorageError: the store that is to hold it cannot be asked.
    """
    if spec == "random":
        return spec
    if spec not in ("auto", "hed"):
        uri = storage.absolute(spec)
        if not storage.exists(uri):
            raise ModelError(
                f"losses.features is {spec}, and there is no file {uri}; give one with torchvision's vgg16 weights, "
                "hed, or random"
            )
        return uri
    try:
        weights.hed_arrays()
    except ModelError as error:
        if spec == "hed":
            raise ModelError(
                f"the perceptual and style losses want the HED weights: {error}; or give --losses.features a file of "
                "torchvision's vgg16 weights, or random, which costs realism of skin and hair"
            ) from error
        _LOG.warning(
            "perceptual and style losses compare random filters, which cost realism of skin and hair: %s "
            "(or set losses.features to a file with torchvision's vgg16 weights)",
            error,
        )
        return "random"
    return "hed"


def load_features(spec: str) -> Features:
    """Get the feature network that `losses.features` names.

    Args:
        spec: `random`; `hed`; `auto` for hed, or random with a warning where the weights cannot be had; otherwise a
            path or URI of torchvision's `vgg16` state dict.

    Raises:
        ModelError: the weights cannot be had, read, or are not VGG-16's.
        StorageError: the path or URI cannot be read.
    """
    if spec == "auto":
        spec = settle_features(spec)
    if spec == "random":
        return vgg_random()
    if spec == "hed":
        features = vgg_from_hed(weights.hed_arrays())
        features.description += f", sha256 {weights.HED_WEIGHTS.member_sha256}"
        return features
    state, sha256 = read_state(spec, "vgg16")
    features = vgg_from_torchvision(state)
    features.description = f"torchvision's VGG-16 with sha256 {sha256} from {spec}"
    return features


def read_state(uri: str, network: str) -> tuple[Mapping[str, Any], str]:
    """Read a state dict of torchvision's.

    Args:
        uri: of the file; a path or URI.
        network: that it should be of, for the error.

    Returns:
        The state dict, and the file's SHA-256.

    Raises:
        ModelError: it holds something else.
        StorageError: it cannot be read.
    """
    content = storage.read_bytes(uri)
    try:
        state: Any = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"{uri} is not a file of torch tensors; save torchvision's {network} state dict there"
        ) from error
    if not isinstance(state, Mapping):
        raise ModelError(f"{uri} holds a {type(state).__name__}; save torchvision's {network} state dict there")
    return state, hashlib.sha256(content).hexdigest()
