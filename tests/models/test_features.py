import hashlib
import io
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scfegan_ray import storage, weights
from scfegan_ray.errors import ModelError
from scfegan_ray.models.features import load_features, settle_features, vgg_from_hed, vgg_from_torchvision, vgg_random

WIDTHS = [3, 64, 64, 128, 128, 256, 256, 256]
INDICES = [0, 2, 5, 7, 10, 12, 14]
NAMES = ["conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"]


@pytest.fixture(scope="module")
def torchvision_state():
    rng = torch.Generator().manual_seed(1)
    state = {"classifier.0.weight": torch.zeros(1)}
    for i, index in enumerate(INDICES):
        fan_in = 9 * WIDTHS[i]
        state[f"features.{index}.weight"] = torch.randn(WIDTHS[i + 1], WIDTHS[i], 3, 3, generator=rng) * fan_in**-0.5
        state[f"features.{index}.bias"] = torch.randn(WIDTHS[i + 1], generator=rng) * 0.1
    return state


@pytest.fixture(scope="module")
def hed_arrays():
    rng = np.random.default_rng(1)
    arrays = {}
    for i, name in enumerate(NAMES):
        fan_in = 9 * WIDTHS[i]
        arrays[f"{name}/kernel"] = np.float32(rng.standard_normal((3, 3, WIDTHS[i], WIDTHS[i + 1])) * fan_in**-0.5)
        arrays[f"{name}/bias"] = np.float32(rng.standard_normal(WIDTHS[i + 1]) * 10)
    return arrays


def run_vgg(x, convs):
    features = []
    for i, (weight, bias) in enumerate(convs):
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
        if i in (1, 3, 6):
            x = F.max_pool2d(x, 2)
            features.append(x)
    return features


def test_gives_the_first_three_poolings():
    shapes = [tuple(f.shape) for f in vgg_random()(torch.zeros(2, 3, 32, 40))]
    assert shapes == [(2, 64, 16, 20), (2, 128, 8, 10), (2, 256, 4, 5)]


def test_is_frozen_and_stays_in_evaluation_mode():
    features = vgg_random()
    torch.nn.Sequential(features).train()
    assert not features.training
    assert not list(features.parameters())
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    sum(f.sum() for f in features(images)).backward()
    assert images.grad is not None
    assert all(not buffer.requires_grad for buffer in features.buffers())


def test_random_filters_depend_on_their_seed_alone():
    state = torch.get_rng_state()
    first, again, other = vgg_random(3), vgg_random(3), vgg_random(4)
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(first(images)[2], again(images)[2])
    assert not torch.equal(first(images)[2], other(images)[2])
    assert "random" in first.description


def test_torchvision_weights_see_imagenet_normalized_rgb(torchvision_state):
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    convs = [(torchvision_state[f"features.{i}.weight"], torchvision_state[f"features.{i}.bias"]) for i in INDICES]
    expected = run_vgg(((images + 1) / 2 - mean) / std, convs)
    for actual, wanted in zip(vgg_from_torchvision(torchvision_state)(images), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_hed_weights_see_caffe_bgr_on_torchvisions_scale(hed_arrays):
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    bgr = (images.flip(1) + 1) * 127.5 - torch.tensor([104.007, 116.669, 122.679]).reshape(1, 3, 1, 1)
    convs = [
        (
            torch.from_numpy(hed_arrays[f"{n}/kernel"].transpose(3, 2, 0, 1).copy()),
            torch.from_numpy(hed_arrays[f"{n}/bias"]),
        )
        for n in NAMES
    ]
    expected = [f / (255 * 0.225) for f in run_vgg(bgr, convs)]
    for actual, wanted in zip(vgg_from_hed(hed_arrays)(images), expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)


def test_missing_and_misshapen_weights_are_named(torchvision_state, hed_arrays):
    with pytest.raises(ModelError, match=r"features\.5\.bias"):
        vgg_from_torchvision({k: v for k, v in torchvision_state.items() if k != "features.5.bias"})
    with pytest.raises(ModelError, match=r"features\.0\.weight.*\(64, 3, 3, 3\)"):
        vgg_from_torchvision({**torchvision_state, "features.0.weight": torch.zeros(64, 3, 5, 5)})
    with pytest.raises(ModelError, match="conv3_3/kernel"):
        vgg_from_hed({k: v for k, v in hed_arrays.items() if k != "conv3_3/kernel"})
    with pytest.raises(ModelError, match="conv1_1/bias"):
        vgg_from_hed({**hed_arrays, "conv1_1/bias": np.zeros(3, np.float32)})


def test_load_features_takes_hed_where_it_can(monkeypatch, hed_arrays):
    monkeypatch.setattr(weights, "hed_arrays", lambda: hed_arrays)
    assert "HED" in load_features("auto").description
    assert "HED" in load_features("hed").description
    assert weights.HED_WEIGHTS.member_sha256 in load_features("hed").description
    assert "random" in load_features("random").description


def test_load_features_warns_where_it_cannot(monkeypatch, caplog):
    def fail():
        raise ModelError("no network")

    monkeypatch.setattr(weights, "hed_arrays", fail)
    with caplog.at_level(logging.WARNING):
        assert "random" in load_features("auto").description
    assert "no network" in caplog.text
    assert "realism" in caplog.text
    with pytest.raises(ModelError, match="no network"):
        load_features("hed")


def test_features_are_settled_to_what_can_be_had(monkeypatch, hed_arrays, tmp_path):
    monkeypatch.setattr(weights, "hed_arrays", lambda: hed_arrays)
    assert [settle_features(spec) for spec in ("auto", "hed", "random")] == ["hed", "hed", "random"]
    (tmp_path / "vgg16.pt").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert settle_features("vgg16.pt") == str(tmp_path / "vgg16.pt"), "workers have another working directory"
    with pytest.raises(ModelError, match=r"losses\.features is vgg\.pt, and there is no file .*; give one with"):
        settle_features("vgg.pt")

    def fail():
        raise ModelError("no network")

    monkeypatch.setattr(weights, "hed_arrays", fail)
    assert [settle_features(spec) for spec in ("auto", "random")] == ["random", "random"]
    with pytest.raises(ModelError, match=r"no network; or give --losses\.features a file of .*, or random"):
        settle_features("hed")


def test_load_features_reads_a_state_dict_through_storage(monkeypatch, torchvision_state):
    files = {}
    for name, content in (("good", torchvision_state), ("list", [1])):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files[f"s3://bucket/{name}.pt"] = buffer.getvalue()
    files["s3://bucket/noise.pt"] = b"not torch"
    monkeypatch.setattr(storage, "read_bytes", files.__getitem__)
    description = load_features("s3://bucket/good.pt").description
    assert description.endswith("s3://bucket/good.pt")
    assert hashlib.sha256(files["s3://bucket/good.pt"]).hexdigest() in description and "torchvision" in description
    with pytest.raises(ModelError, match="holds a list"):
        load_features("s3://bucket/list.pt")
    with pytest.raises(ModelError, match=r"noise\.pt is not a file"):
        load_features("s3://bucket/noise.pt")
