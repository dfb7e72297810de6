"""Stand-ins for networks whose weights nobody may ship: AlexNet with drawn ones, Inception as a program of pixels."""

from __future__ import annotations

import io
import math
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from scfegan_ray.evaluation.networks import INCEPTION_SIZE

_CONVS = ((0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3))


def alexnet() -> dict[str, Tensor]:
    """Return AlexNet's convolutions with drawn weights, and one of its other tensors."""
    rng = np.random.default_rng(0)
    state = {"classifier.6.bias": torch.zeros(1000)}
    for at, inputs, outputs, side in _CONVS:
        drawn = rng.standard_normal((outputs, inputs, side, side)) * math.sqrt(2 / (inputs * side**2))
        state[f"features.{at}.weight"] = torch.from_numpy(drawn.astype(np.float32))
        bias = rng.standard_normal(outputs).astype(np.float32) * np.float32(0.1)
        state[f"features.{at}.bias"] = torch.from_numpy(bias)
    return state


class Pixels(nn.Module):
    """Is called as Inception's program is; its features are the pixels of a small image."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        small = nn.functional.adaptive_avg_pool2d(images.float(), (32, 32)).flatten(1)
        return small[:, : self.num_features] if return_features else small[:, :1]


def program(num_features: int = INCEPTION_SIZE) -> bytes:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of TorchScript as a whole
        stream = io.BytesIO()
        torch.jit.save(torch.jit.script(Pixels(num_features)), stream)
    return stream.getvalue()
