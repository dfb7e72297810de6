"""Do fills, as a set, look like photographs: distances between two sets of features, by torchmetrics.

The features are given; numbers are named by the network that they come from. `frechet` of Inception's features is the
FID, of any others it is not.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

_SUBSETS = 100
_LARGEST_SUBSET = 1000


class _AsGiven(nn.Module):
    """Stands for a feature network where features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: NDArray[np.float32], filled: NDArray[np.float32]) -> float:
    """Return the Fréchet distance of two sets of features (Heusel et al. 2017); too large where they are few.

    Args:
        real: (N, F) of photographs.
        filled: (N, F) of results.

    Returns:
        0 and more; NaN for fewer than two.
    """
    if len(real) < 2:
        return float("nan")
    metric = FrechetInceptionDistance(feature=_AsGiven(real.shape[1]))
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(filled).double(), real=False)
    return max(0.0, float(metric.compute()))


def kernel_distance(real: NDArray[np.float32], filled: NDArray[np.float32], scale: float) -> tuple[float, float]:
    """Return the squared kernel distance of two sets (Bińkowski et al. 2018), unbiased for any number of them.

    Results are held against photographs of other faces than their own: a face is always like itself.

    Args:
        real: (N, F) of photographs.
        filled: (N, F) of results, in the same order.
        scale: of the kernel's product of two features: one over its usual size.

    Returns:
        Mean and standard deviation over 100 subsets of at most 1,000, a quarter of the images where they are fewer than
        4,000; NaN for fewer than eight images.
    """
    size = min(_LARGEST_SUBSET, len(real) // 4)
    if size < 2:
        return float("nan"), float("nan")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        torch.manual_seed(0)  # of the subsets
        metric = KernelInceptionDistance(
            feature=_AsGiven(real.shape[1]), subsets=_SUBSETS, subset_size=size, gamma=scale
        )
        metric.update(torch.from_numpy(real[0::2]).double(), real=True)
        metric.update(torch.from_numpy(filled[1::2]).double(), real=False)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)
