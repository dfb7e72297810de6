"""Pretrained networks that measure fills; no loss uses one of them.

SFace is fetched (`weights`); the weights of AlexNet and Inception come in no package, so they are measured with where a
file of them is given.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor, nn

from scfegan_ray import storage
from scfegan_ray.errors import ModelError
from scfegan_ray.evaluation.identity import FaceEmbedder
from scfegan_ray.evaluation.options import Identity
from scfegan_ray.images import to_model
from scfegan_ray.models.features import read_state

logger = logging.getLogger(__name__)

INCEPTION_SIZE = 2048
"""Features of an image."""

_LPIPS, _INCEPTION = "lpips", "inception"


class _Conv(NamedTuple):
    position: int
    """In torchvision's `alexnet().features`."""
    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    padding: int
    after_pooling: bool


_CONVS = (
    _Conv(0, 3, 64, 11, 4, 2, False),
    _Conv(3, 64, 192, 5, 1, 2, True),
    _Conv(6, 192, 384, 3, 1, 1, True),
    _Conv(8, 384, 256, 3, 1, 1, False),
    _Conv(10, 256, 256, 3, 1, 1, False),
)


class Lpips(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al., CVPR 2018), version 0.1 on AlexNet.

    The weights of its features' differences are those of the authors, which torchmetrics carries.

    Args:
        state: torchvision's AlexNet, of which the convolutions are read.

    Raises:
        ModelError: one of them is missing or of another shape.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Take copies of the weights."""
        super().__init__()
        for conv in _CONVS:
            shapes = {
                "weight": (conv.out_channels, conv.in_channels, conv.kernel, conv.kernel),
                "bias": (conv.out_channels,),
            }
            for kind, shape in shapes.items():
                key = f"features.{conv.position}.{kind}"
                found = state.get(key)
                if not isinstance(found, Tensor) or tuple(found.shape) != shape:
                    raise ModelError(
                        f"the AlexNet weights have no tensor {key} of shape {shape}; give torchvision's alexnet"
                    )
                self.register_buffer(key.replace(".", "_"), found.detach().to(torch.float32, copy=True))
        carried = importlib.resources.files("torchmetrics") / "functional" / "image" / "lpips_models" / "alex.pth"
        linear = torch.load(io.BytesIO(carried.read_bytes()), weights_only=True, map_location="cpu")
        for at in range(len(_CONVS)):
            self.register_buffer(f"linear_{at}", linear[f"lin{at}.model.1.weight"])
        # ImageNet's mean and deviation, of colors from -1 to 1.
        self.register_buffer("shift", torch.tensor((-0.030, -0.088, -0.188)).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor((0.458, 0.448, 0.450)).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """Return how different images look.

        Args:
            images: (N, 3, H, W) float32, RGB in [-1, 1]; H and W at least 31.
            others: (N, 3, H, W).

        Returns:
            (N,) float32, 0 and more.
        """
        total = torch.zeros(len(images), device=images.device)
        for at, (one, other) in enumerate(zip(self._features(images), self._features(others), strict=True)):
            by_pixel = F.conv2d((one - other) ** 2, self.get_buffer(f"linear_{at}"))
            total = total + by_pixel.mean(dim=(1, 2, 3))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return the activations of each convolution, of length 1 at each place."""
        x = (images - self.shift) / self.scale
        found = []
        for conv in _CONVS:
            weight, bias = (self.get_buffer(f"features_{conv.position}_{kind}") for kind in ("weight", "bias"))
            if conv.after_pooling:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(F.conv2d(x, weight, bias, stride=conv.stride, padding=conv.padding))
            found.append(x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found


class Inception:
    """Inception v3 as the FID was defined with it (Heusel et al. 2017): a TorchScript program that resizes by itself.

    Args:
        content: of the file.
        device: where to compute.

    Raises:
        ModelError: it is no such program.
    """

    def __init__(self, content: bytes, device: torch.device) -> None:
        self._device = device
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=DeprecationWarning)  # of TorchScript as a whole
                self._program: Any = torch.jit.load(io.BytesIO(content), device).eval()  # type: ignore[no-untyped-call]
            found = self(np.zeros((1, 64, 64, 3), np.uint8))
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(
                "the Inception file is no TorchScript program that takes images and return_features; give "
                f"inception-2015-12-05.pt: {str(error).strip().splitlines()[-1]}"
            ) from error
        if found.shape != (1, INCEPTION_SIZE):
            raise ModelError(
                f"the Inception program gives {found.shape[1:]} features of an image, not {INCEPTION_SIZE}"
            )

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (N, 2048) features of (N, H, W, 3) RGB images."""
        with torch.no_grad():
            found = self._program(torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device), return_features=True)
        return np.asarray(found.float().cpu().numpy())


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """What is at hand.

    Attributes:
        faces: tells faces apart.
        lpips: compares two images.
        inception: gives the features of FID and KID.
    """

    faces: FaceEmbedder | None = None
    lpips: Lpips | None = None
    inception: Inception | None = None

    def distance(self, images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return (N,) how different (N, H, W, 3) RGB images look, by LPIPS."""
        assert self.lpips is not None
        device = self.lpips.shift.device
        pair = (to_model(torch.from_numpy(one).to(device)) for one in (images, others))
        with torch.no_grad():
            return np.asarray(self.lpips(*pair).double().cpu().numpy())


class Given(NamedTuple):
    """A network's weights, as they are sent to the processes that measure."""

    content: bytes
    sha256: str
    """Of the file that they come from."""


def read(lpips: str | None, inception: str | None) -> dict[str, Given]:
    """Read the files that are given, so that what is wrong with one is said before anything is measured.

    Args:
        lpips: path or URI of torchvision's AlexNet.
        inception: path or URI of an Inception program.

    Raises:
        ModelError: a file is not what it should be.
        StorageError: a file cannot be read.
    """
    found: dict[str, Given] = {}
    if lpips is not None:
        state, sha256 = read_state(lpips, "alexnet")
        Lpips(state)
        own = {key: value.contiguous() for key, value in state.items() if key.startswith("features.")}
        found[_LPIPS] = Given(serialize(own), sha256)
    if inception is not None:
        content = storage.read_bytes(inception)
        Inception(content, torch.device("cpu"))
        found[_INCEPTION] = Given(content, hashlib.sha256(content).hexdigest())
    return found


def has_embedder(identity: Identity) -> bool:
    """Tell whether faces are to be told apart, and can be.

    Raises:
        ModelError: they are to be, and cannot.
    """
    if identity == "none":
        return False
    try:
        FaceEmbedder()
    except ModelError as error:
        if identity == "sface":
            raise
        logger.warning("identity, and how far sets of faces are apart, is not measured: %s", error)
        return False
    return True


def build(given: Mapping[str, Given], *, has_faces: bool, device: torch.device) -> Networks:
    """Build what was read, in a process that measures.

    Args:
        given: as `read` returns it.
        has_faces: faces are told apart, too.
        device: where to compute; SFace always does on the CPU.
    """
    return Networks(
        faces=FaceEmbedder() if has_faces else None,
        lpips=Lpips(deserialize(given[_LPIPS].content)).eval().to(device) if _LPIPS in given else None,
        inception=Inception(given[_INCEPTION].content, device) if _INCEPTION in given else None,
    )
