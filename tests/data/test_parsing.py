from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from scfegan_ray import storage
from scfegan_ray.config import DataConfig, ParserConfig
from scfegan_ray.data.parsing import (
    HAIR,
    LABELS,
    PAINT_ORDER,
    FaceParser,
    canonical_eyes,
    eye_positions,
    hair_region,
    has_face,
    load_parser,
    merge_parts,
    resize_labels,
)
from scfegan_ray.errors import DataError, ModelError, StorageError

SIZE = 64
PLAIN = ParserConfig(classes="skin,hair", size_px=SIZE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SKIN, BLUE = LABELS.index("skin"), (0, 0, 255)
PALETTE = np.array([(r, g, b) for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)], np.uint8)


def color_parser(
    colors: Sequence[Sequence[int]],
    then: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[str] = ("scores",),
    *,
    config: ParserConfig = PLAIN,
    inputs: Sequence[str] = ("image",),
    input_shape: Sequence[int | str] = (1, 3, SIZE, SIZE),
) -> bytes:
    """Write a network whose class i scores highest where a pixel is nearest to the i-th RGB color."""
    seen = (np.array(colors, np.float32) / 255)[:, :: -1 if config.channel_order == "bgr" else 1]
    seen = (seen - np.float32(config.mean)) / np.float32(config.std)
    bias = -(seen**2).sum(1)
    graph = helper.make_graph(
        [helper.make_node("Conv", [inputs[0], "weight", "bias"], ["scores"]), *then],
        "parser",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, input_shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "c", "h", "w"]) for name in outputs],
        [
            numpy_helper.from_array((2 * seen)[:, :, None, None].astype(np.float32), "weight"),
            numpy_helper.from_array(bias.astype(np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def _halves(size: int, border: int) -> np.ndarray:
    """Draw red up to a column, blue from there on."""
    image = np.zeros((size, size, 3), np.uint8)
    image[:, :border] = (255, 0, 0)
    image[:, border:] = BLUE
    return image


RED_BLUE = ((255, 0, 0), BLUE)


def _box(size: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    part = np.zeros((size, size), np.uint8)
    part[top:bottom, left:right] = 255
    return part


def test_names() -> None:
    assert len(LABELS) == len(set(LABELS)) == 19
    assert set(PAINT_ORDER) == set(LABELS) - {"background"}
    assert LABELS[HAIR] == "hair"


def test_later_parts_hide_earlier_ones_whatever_their_order_in_the_mapping() -> None:
    skin, hair = _box(8, 0, 8, 0, 8), _box(8, 0, 4, 0, 8)
    labels = merge_parts({"hair": hair, "skin": skin > 0}, 8)
    assert labels.dtype == np.uint8
    assert (labels[:4] == HAIR).all()
    assert (labels[4:] == LABELS.index("skin")).all()
    np.testing.assert_array_equal(hair_region(labels), hair // 255)


def test_resizing_leaves_no_gap_and_makes_no_new_class() -> None:
    labels = merge_parts({"skin": _box(33, 0, 33, 0, 17), "hair": _box(33, 0, 33, 17, 33)}, 16)
    assert labels.shape == (16, 16)
    assert set(np.unique(labels)) == {LABELS.index("skin"), HAIR}


def test_no_parts_is_background() -> None:
    assert not merge_parts({}, 4).any()


def test_bad_parts() -> None:
    with pytest.raises(DataError, match="tail"):
        merge_parts({"tail": _box(4, 0, 1, 0, 1)}, 4)
    with pytest.raises(DataError, match="different shapes"):
        merge_parts({"skin": _box(4, 0, 1, 0, 1), "hair": _box(8, 0, 1, 0, 1)}, 4)
    with pytest.raises(DataError, match="single-channel"):
        merge_parts({"skin": np.zeros((4, 4, 3), np.uint8)}, 4)


def test_eyes_are_sorted_as_in_the_image() -> None:
    labels = merge_parts({"l_eye": _box(32, 14, 17, 20, 25), "r_eye": _box(32, 10, 13, 4, 9)}, 32)
    np.testing.assert_allclose(eye_positions(labels), [6, 11, 22, 15])


def test_eyes_with_exchanged_names_are_told_apart_by_their_place() -> None:
    labels = merge_parts({"r_eye": _box(32, 14, 17, 20, 25), "l_eye": _box(32, 10, 13, 4, 9)}, 32)
    np.testing.assert_allclose(eye_positions(labels), [6, 11, 22, 15])
    alone = merge_parts({"r_eye": _box(32, 14, 17, 20, 25)}, 32)
    np.testing.assert_allclose(eye_positions(alone), [*canonical_eyes(32)[:2], 22, 15])


def test_glasses_stand_in_for_both_eyes() -> None:
    labels = merge_parts({"eye_g": _box(32, 10, 13, 6, 26)}, 32)
    np.testing.assert_allclose(eye_positions(labels), [10.5, 11, 20.5, 11])


def test_glasses_stand_in_for_a_missing_eye() -> None:
    labels = merge_parts({"l_eye": _box(32, 14, 17, 20, 25), "eye_g": _box(32, 10, 11, 4, 14)}, 32)
    np.testing.assert_allclose(eye_positions(labels), [6, 10, 22, 15])


def test_no_labels_give_canonical_eyes() -> None:
    eyes = eye_positions(np.zeros((64, 64), np.uint8))
    assert eyes.dtype == np.float32
    np.testing.assert_array_equal(eyes, canonical_eyes(64))
    assert eyes[0] < 32 < eyes[2]
    # The same place of the image at any size; pixel centers are half a pixel in.
    np.testing.assert_allclose((canonical_eyes(512) + 0.5) / 512, (eyes + 0.5) / 64, rtol=1e-5)


def test_eyes_of_other_alignments() -> None:
    fractions = (0.3, 0.4, 0.7, 0.5)
    np.testing.assert_allclose(canonical_eyes(10, fractions), [2.5, 3.5, 6.5, 4.5], rtol=1e-6)
    labels = merge_parts({"l_eye": _box(32, 14, 17, 20, 25)}, 32)
    np.testing.assert_allclose(eye_positions(labels, fractions), [9.1, 12.3, 22, 15], rtol=1e-6)
    np.testing.assert_array_equal(canonical_eyes(64, DataConfig().eyes), canonical_eyes(64))


def test_labels_keep_their_array_where_the_size_is_right() -> None:
    labels = merge_parts({"hair": _box(8, 0, 4, 0, 8)}, 8)
    assert resize_labels(labels, 8) is labels
    np.testing.assert_array_equal(resize_labels(labels, 4), merge_parts({"hair": _box(4, 0, 2, 0, 4)}, 4))


def test_a_face_has_skin() -> None:
    assert not has_face(merge_parts({"hair": _box(50, 0, 50, 0, 50), "skin": _box(50, 0, 7, 0, 7)}, 50)[::-1])
    assert not has_face(merge_parts({"skin": _box(50, 0, 7, 0, 7)}, 50))
    assert has_face(merge_parts({"skin": _box(50, 0, 7, 0, 8)}, 50))


@pytest.mark.parametrize(
    ("classes", "order"),
    [
        ("celebamask", LABELS),
        ("bisenet", ("background", *PAINT_ORDER)),
        ("hair, ,skin,background,hair", ("hair", "background", "skin", "background", "hair")),
    ],
)
@pytest.mark.parametrize("channel_order", ["rgb", "bgr"])
def test_each_class_of_the_network_becomes_its_label(classes: str, order: Sequence[str], channel_order: str) -> None:
    config = ParserConfig(classes=classes, size_px=SIZE, channel_order=channel_order)  # type: ignore[arg-type]
    parser = FaceParser(color_parser(PALETTE[: len(order)], config=config), config)
    image = PALETTE[np.arange(SIZE) % len(order)][None].repeat(SIZE, 0)
    labels = parser(image)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[LABELS.index(order[x % len(order)]) for x in range(SIZE)]] * SIZE)
    np.testing.assert_array_equal(parser(image), labels)


def test_known_orders() -> None:
    # Spelled out, since nothing else would notice a change of them.
    wanted = "skin l_brow r_brow l_eye r_eye eye_g l_ear r_ear ear_r nose mouth u_lip l_lip neck neck_l cloth hair hat"
    names = ("background", *wanted.split())
    config = ParserConfig(classes="bisenet", size_px=SIZE)
    model = color_parser(PALETTE[:19], config=config)
    image = PALETTE[np.arange(SIZE) % 19][None].repeat(SIZE, 0)
    spelled = dataclasses.replace(config, classes=",".join(names))
    np.testing.assert_array_equal(FaceParser(model, config)(image), FaceParser(model, spelled)(image))


@pytest.mark.parametrize("size", [16, 32, SIZE, 96, 256])
def test_labels_have_the_size_of_the_image(size: int) -> None:
    labels = FaceParser(color_parser(RED_BLUE), PLAIN)(_halves(size, size // 4))
    assert labels.shape == (size, size)
    assert (labels[:, : size // 4] == SKIN).all()
    assert (labels[:, size // 4 :] == HAIR).all()


def test_free_dimensions_of_the_input() -> None:
    model = color_parser(RED_BLUE, input_shape=("batch", 3, "height", "width"))
    assert (
        FaceParser(model, PLAIN)(_halves(SIZE, 9)) == FaceParser(color_parser(RED_BLUE), PLAIN)(_halves(SIZE, 9))
    ).all()


def test_scores_of_a_quarter_of_the_size_are_blended() -> None:
    pool = helper.make_node("AveragePool", ["scores"], ["small"], kernel_shape=[4, 4], strides=[4, 4])
    parser = FaceParser(color_parser(RED_BLUE, [pool], ["small"]), PLAIN)
    # Column 42 is in the middle of a score's cell: nearest scores could not say so.
    labels = parser(_halves(SIZE, 42))
    assert (labels[:, :42] == SKIN).all()
    assert (labels[:, 42:] == HAIR).all()


@pytest.mark.parametrize("outputs", [("negated", "scores"), ("scores", "negated", "shifted")])
def test_the_first_output_counts_even_where_others_lie_on_the_way(outputs: tuple[str, ...]) -> None:
    then = [helper.make_node("Neg", ["scores"], ["negated"]), helper.make_node("Neg", ["negated"], ["shifted"])]
    parser = FaceParser(color_parser(RED_BLUE, then, outputs), PLAIN)
    left, right = (SKIN, HAIR) if outputs[0] == "scores" else (HAIR, SKIN)
    labels = parser(_halves(SIZE, 20))
    assert (labels[:, :20] == left).all()
    assert (labels[:, 20:] == right).all()


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.FLOAT])
def test_class_ids(keepdims: int, dtype: int) -> None:
    then = [
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=keepdims),
        helper.make_node("Cast", ["best"], ["ids"], to=dtype),
    ]
    labels = FaceParser(color_parser(RED_BLUE, then, ["ids"]), PLAIN)(_halves(2 * SIZE, 40))
    assert labels.shape == (2 * SIZE, 2 * SIZE)
    assert (labels[:, :40] == SKIN).all()
    assert (labels[:, 40:] == HAIR).all()


def test_parser_is_loaded_with_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "parser.onnx"
    path.write_bytes(color_parser(RED_BLUE))
    parser = load_parser(dataclasses.replace(PLAIN, model=str(path)))
    assert parser.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (parser(_halves(SIZE, 0)) == HAIR).all()


def test_storage_that_fails_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "parser.onnx"
    path.write_bytes(color_parser(RED_BLUE))
    answers: list[bytes | StorageError] = [StorageError("cannot read: connection reset"), path.read_bytes()]

    def read_bytes(uri: str) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert load_parser(dataclasses.replace(PLAIN, model=str(path)), retry_seconds=60.0).digest
    assert not answers


def test_missing_file_is_named() -> None:
    with pytest.raises(ModelError, match=r"no face parser: cannot read /nowhere/parser\.onnx.*check the path"):
        load_parser(dataclasses.replace(PLAIN, model="/nowhere/parser.onnx"))


@pytest.mark.parametrize(
    "data", [b"", b"no network at all", b"\x89PNG\r\n\x1a\n" + bytes(64), color_parser(RED_BLUE)[:-40]]
)
def test_file_that_is_no_onnx(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"mine\.onnx cannot be read as an ONNX network .*check --data.parser.model"):
        FaceParser(data, dataclasses.replace(PLAIN, model="mine.onnx"))


def test_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    model = onnx.load_from_string(color_parser(RED_BLUE))
    onnx.save(model, tmp_path / "parser.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(ModelError, match="keeps its weights in another file; export it as one file"):
        load_parser(dataclasses.replace(PLAIN, model=str(tmp_path / "parser.onnx")))


UNKNOWN = [helper.make_node("NoSuchOperator", ["scores"], ["out"])]
FLAT = [helper.make_node("Flatten", ["scores"], ["out"])]
CHANNELS_LAST = [helper.make_node("Transpose", ["scores"], ["out"], perm=[0, 2, 3, 1])]
ONE_CHANNEL = [helper.make_node("ReduceMax", ["scores"], ["out"], axes=[1], keepdims=1)]
NOT_A_NUMBER = [helper.make_node("Neg", ["scores"], ["minus"]), helper.make_node("Sqrt", ["minus"], ["root"])] + [
    helper.make_node("Neg", ["root"], ["below"]),
    helper.make_node("Sqrt", ["below"], ["out"]),
]
SUM = [helper.make_node("Add", ["scores", "other"], ["out"])]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (color_parser(RED_BLUE, UNKNOWN, ["out"]), "has operators that OpenCV"),
        (color_parser(RED_BLUE, FLAT, ["out"]), r"gives \(1, 8192\); with the 2 classes"),
        (color_parser(RED_BLUE, CHANNELS_LAST, ["out"]), r"gives \(1, 64, 64, 2\).*or export it channels first"),
        (color_parser(PALETTE[:19]), r"gives \(1, 19, 64, 64\); with the 2 classes .* name each of its classes"),
        (color_parser(RED_BLUE, ONE_CHANNEL, ["out"]), r"in one channel, which are no ids of the 2 classes"),
        (color_parser(RED_BLUE, NOT_A_NUMBER, ["out"]), "scores that are no numbers; export it in float32"),
        (color_parser(RED_BLUE, input_shape=(1, 3, 32, 32)), r"takes \(1 x 3 x 32 x 32\).*set --data.parser.size-px"),
        (
            color_parser(RED_BLUE, input_shape=(1, SIZE, SIZE, 3)),
            r"takes \(1 x 64 x 64 x 3\).*export it channels first",
        ),
        (color_parser(RED_BLUE, input_shape=(4, 3, SIZE, SIZE)), r"takes \(4 x .*for one image at a time"),
        (
            color_parser(RED_BLUE, SUM, ["out"], inputs=("image", "other")),
            r"takes \(1 x .*\) and \(1 x .*not one input",
        ),
    ],
)
def test_network_that_does_not_fit(model: bytes, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        FaceParser(model, PLAIN)


def test_free_dimensions_that_are_not_really_free() -> None:
    shape = numpy_helper.from_array(np.array([1, 2, 32 * 32], np.int64))
    then = [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("Reshape", ["scores", "shape"], ["out"]),
    ]
    model = color_parser(RED_BLUE, then, ["out"], input_shape=(1, 3, "height", "width"))
    with pytest.raises(ModelError, match="cannot be run at 64 pixels .*the size that it was exported for"):
        FaceParser(model, PLAIN)


def test_more_class_ids_than_names() -> None:
    ids = [helper.make_node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=0)]
    parser = FaceParser(color_parser((*RED_BLUE, (0, 255, 0)), ids, ["ids"]), PLAIN)
    with pytest.raises(ModelError, match="values from 2 to 2 in one channel"):
        parser(np.full((SIZE, SIZE, 3), (0, 255, 0), np.uint8))


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ("segformer", "unknown class 'segformer' .* give celebamask, bisenet, or names of background, skin"),
        ("skin,beard", "unknown class 'beard'"),
        ("background,hair", "is skin, by which a face is known"),
    ],
)
def test_class_names_are_checked(classes: str, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        FaceParser(color_parser(RED_BLUE), dataclasses.replace(PLAIN, classes=classes))
