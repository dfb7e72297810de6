"""Networks that measure where their weights are given: LPIPS on AlexNet, and Inception's features."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scfegan_ray.errors import ModelError, StorageError
from scfegan_ray.evaluation import networks
from scfegan_ray.evaluation.networks import Lpips, Networks

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


def program(num_features: int = networks.INCEPTION_SIZE) -> bytes:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of TorchScript as a whole
        stream = io.BytesIO()
        torch.jit.save(torch.jit.script(Pixels(num_features)), stream)
    return stream.getvalue()


def test_lpips_is_that_of_its_authors_and_of_torchmetrics() -> None:
    """With these weights lpips 0.1.4 and torchmetrics 1.9.0 both give 0.16428280 and 0.16125612."""
    rng = np.random.default_rng(1)
    images, others = (rng.integers(0, 256, (2, 96, 80, 3), dtype=np.uint8) for _ in range(2))
    found = Networks(lpips=Lpips(alexnet())).distance(images, others // 2)
    np.testing.assert_allclose(found, [0.16428280, 0.16125612], rtol=1e-5)
    assert not Networks(lpips=Lpips(alexnet())).distance(images, images).any()


def test_weights_that_are_read_measure_as_those_that_were_written(tmp_path: Path) -> None:
    torch.save(alexnet(), tmp_path / "alexnet.pth")
    (tmp_path / "inception.pt").write_bytes(program())
    given = networks.read(str(tmp_path / "alexnet.pth"), str(tmp_path / "inception.pt"))
    assert len(given["lpips"].content) < (tmp_path / "alexnet.pth").stat().st_size, "convolutions alone are sent"
    built = networks.build(given, has_faces=False, device=torch.device("cpu"))
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    expected = Networks(lpips=Lpips(alexnet())).distance(image, image // 2)
    np.testing.assert_array_equal(built.distance(image, image // 2), expected)
    assert built.faces is None and built.inception is not None
    assert built.inception(image).shape == (1, networks.INCEPTION_SIZE)
    assert networks.read(None, None) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a file of torch tensors"),
        ([1, 2], "holds a list"),
        ({"features.0.weight": torch.zeros(1)}, r"no tensor features\.0\.weight of shape \(64, 3, 11, 11\)"),
    ],
)
def test_what_is_no_alexnet_is_refused(tmp_path: Path, content: object, said: str) -> None:
    place = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        place.write_bytes(content)
    else:
        torch.save(content, place)
    with pytest.raises(ModelError, match=said):
        networks.read(str(place), None)


def test_what_is_no_inception_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "inception.pt"
    for content in (b"", b"no program"):
        place.write_bytes(content)
        with pytest.raises(ModelError, match=r"no TorchScript program .* give inception-2015-12-05\.pt"):
            networks.read(None, str(place))
    place.write_bytes(program(10))
    with pytest.raises(ModelError, match="gives .*10.* features"):
        networks.read(None, str(place))
    with pytest.raises(StorageError, match=r"missing\.pt"):
        networks.read(None, str(tmp_path / "missing.pt"))
