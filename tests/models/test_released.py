from pathlib import Path

import numpy as np
import pytest
import torch
from published import SMALL, draw_variables

from scfegan_ray import images
from scfegan_ray.config import ModelConfig
from scfegan_ray.errors import ModelError
from scfegan_ray.models.released import expected_variables, infer_config, load_variables, read_variables

GOLDEN = Path(__file__).parent.parent / "golden" / "parity_128.npz"


@pytest.fixture(scope="module")
def variables():
    return draw_variables(SMALL)


@pytest.mark.parametrize("bgr", [False, True], ids=["as published", "as RGB"])
def test_matches_the_released_graph(bgr):
    """In the graph's own channel order: of weights that were turned to RGB, images and colors are turned, too."""
    with np.load(GOLDEN) as arrays:
        golden = {name: torch.from_numpy(arrays[name]).permute(0, 3, 1, 2) for name in arrays.files}
    if bgr:
        golden |= {name: golden[name].flip(1) for name in ("images", "color", "output")}
    generator = load_variables(draw_variables(ModelConfig()), bgr=bgr)
    ground_truth, mask = golden["images"], golden["masks"]
    packed = images.pack_input(ground_truth * (1 - mask), golden["sketches"], golden["color"], mask, golden["noises"])
    with torch.no_grad():
        composite = images.composite(generator(packed), ground_truth, mask)
    assert (composite - golden["output"]).abs().max() < 1e-5


def test_expected_variables_are_the_released_ones():
    shapes = expected_variables(ModelConfig())
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 92_884_113
    assert shapes["generator/gconv1_ds/kernel:0"] == (7, 7, 9, 64)
    assert shapes["generator/co_conv4_dlt_g/bias:0"] == (512,)
    assert shapes["generator/deconv4/w:0"] == (5, 5, 256, 512)
    assert shapes["generator/gconv14/kernel:0"] == (3, 3, 12, 3)
    assert not any("biases2" in name for name in shapes)


def test_shapes_tell_the_config(variables):
    config = infer_config(variables)
    assert (config.base_channels, config.num_downsamples, config.dilations) == (4, 3, (2, 4))


def test_bgr_weights_become_an_rgb_generator(variables):
    packed = torch.rand(2, 9, 32, 32) * 2 - 1
    packed_bgr = packed[:, [2, 1, 0, 3, 6, 5, 4, 7, 8]]
    as_published, as_rgb = load_variables(variables, bgr=False), load_variables(variables)
    with torch.no_grad():
        torch.testing.assert_close(as_rgb(packed), as_published(packed_bgr).flip(1))
        assert not torch.allclose(as_rgb(packed), as_published(packed))


def test_the_dead_twin_is_ignored(variables):
    extra = {**variables, "generator/deconv1/biases2:0": np.zeros(16, np.float32)}
    packed = torch.rand(1, 9, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_variables(extra)(packed), load_variables(variables)(packed))


def test_loading_leaves_the_global_generator_alone_and_the_weights_trainable(variables):
    state = torch.get_rng_state()
    generator = load_variables(variables)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in generator.parameters())
    assert not generator.training


@pytest.mark.parametrize(
    "name",
    [
        "generator/gconv1_ds/kernel:0",
        "generator/gconv2_ds_g/bias:0",
        "generator/deconv3/w:0",
        "generator/gconv6/bias:0",
    ],
)
def test_missing_and_misshapen_variables_are_named(variables, name):
    with pytest.raises(ModelError, match=name):
        load_variables({key: value for key, value in variables.items() if key != name})
    with pytest.raises(ModelError, match=name):
        load_variables({**variables, name: np.zeros((2, 2), np.float32)})


def test_variables_that_hold_no_numbers_are_named(variables):
    name = "generator/gconv6/bias:0"
    for values in (np.full_like(variables[name], np.nan), variables[name].astype(np.int32)):
        with pytest.raises(ModelError, match=f"{name} holds what is no number"):
            load_variables({**variables, name: values})


@pytest.mark.parametrize("suffix", [":0", ""])
def test_variables_of_an_archive(tmp_path, variables, suffix):
    others = {"discriminator/conv1/kernel": np.zeros(3), "generator/gconv1_ds/kernel/Adam": np.zeros(3)}
    named = {f"{name.removesuffix(':0')}{suffix}": values for name, values in variables.items()}
    np.savez(tmp_path / "x.npz", **named, **others)
    found = read_variables(str(tmp_path / "x.npz"))
    assert found.keys() == variables.keys()
    assert all(np.array_equal(found[name], values) for name, values in variables.items())


def test_archives_that_are_none_are_refused(tmp_path, variables):
    place = tmp_path / "x.npz"
    np.savez(place, **variables)
    whole = place.read_bytes()
    header = b"\x93NUMPY\x01\x00" + len(
        text := b"{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 60,), }"
    ).to_bytes(2, "little")
    for data in (b"", b"text", whole[:5000], whole.replace(b"PK\x03\x04", b"PK\x03\x05"), header + text):
        place.write_bytes(data)
        with pytest.raises(ModelError, match=r"x.npz is no NumPy archive of arrays, or damaged: .*copy it again"):
            read_variables(str(place))
    np.savez(place, **{"generator/gconv1_ds/kernel": np.array([{}], dtype=object)})
    with pytest.raises(ModelError, match="allow_pickle"):
        read_variables(str(place))
