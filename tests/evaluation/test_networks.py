"""Networks that measure where their weights are given: LPIPS on AlexNet, and Inception's features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pretrained import alexnet, program

from scfegan_ray.errors import ModelError, StorageError
from scfegan_ray.evaluation import networks
from scfegan_ray.evaluation.networks import Lpips, Networks


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
