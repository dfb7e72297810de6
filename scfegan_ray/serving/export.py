"""A model as one ONNX file, for what is not Python: servers, desktops, phones, and browsers on WebGPU or WASM."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scfegan_ray import places, storage, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError, ModelError
from scfegan_ray.models.editing import EditingModel
from scfegan_ray.models.layers import shifted_sums
from scfegan_ray.serving import loading, runtimes

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Of the file: names, types and meaning of inputs, output and metadata."""

INPUTS = ("image", "mask", "sketch", "color", "noise")
OUTPUT = "picture"

OPSET = 18
"""What torch's exporter writes by itself. ONNX Runtime's WebGPU kernels are bound to versions of each operator: at this
one they take all of ours but the casts of bytes and the rounding at either end."""

INSTALL = "pip install 'scfegan-ray[onnx]'"

_LEAST_HALVED = 1024
"""Elements from which on a tensor is worth to be kept in 16 bits."""
_MOST_LEVELS = {False: 1, True: 4}
"""Of 255, by which results may differ from torch's, by whether weights are rounded to 16 bits."""


def export(
    config: Config, uri: str, out: str, *, size_px: int | None = None, float16_weights: bool = False
) -> dict[str, Any]:
    """Write a model as ONNX, once ONNX Runtime has given with it what torch gives.

    The file takes uint8 (1, S, S, C): `image`, `mask`, `sketch`, `color` and `noise`, and gives `picture`, all as
    `EditingModel` has them. Its metadata are `model_uri`, `size_px`, `noise_probability` (of the noise that a caller
    draws), `license` and `format_version`.

    Args:
        config: names the registry.
        uri: of the model, see `loading.load_generator`.
        out: path of the file, local or `s3://`; one that is there is replaced.
        size_px: side S of the images. Default: that of the model's training.
        float16_weights: keep weights in 16 bits, for half the size; what is computed stays float32.

    Returns:
        onnx: where it is; model_uri; size_px; bytes; max_difference: from torch's result, in levels of 255, on an image
        of noise with a hole; num_different: how many of the hole's values differ; num_values: of how many.

    Raises:
        ConfigError: no model or no file is named, the size does not fit, or a package is not installed.
        ModelError: there is no such model, or ONNX Runtime gives something else with it.
        CheckpointError: the folder is none of a model.
        StorageError: the model cannot be read, or the file not be written.
    """
    if not uri or not out:
        raise ConfigError("give the model, --model models:/NAME/VERSION, and the file to write, --out model.onnx")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _imported(package)
    config = places.settle(config)
    tracking_uri = tracking.tracking_uri(config)
    found = loading.load_generator(uri, tracking_uri=tracking_uri)
    size = found.config.data.size_px if size_px is None else size_px
    divisor = 2**found.config.model.num_downsamples
    if size <= 0 or size % divisor:
        raise ConfigError(f"--size-px is {size}; this model needs sides divisible by {divisor}")
    facts = {
        "model_uri": found.uri,
        "size_px": str(size),
        "noise_probability": repr(found.config.masks.noise_probability),
        "license": loading.license_of(found, config) or "unknown",
        "format_version": str(FORMAT_VERSION),
    }
    model = EditingModel(found.generator).eval()
    data = to_onnx(model, size, facts, float16_weights=float16_weights)
    checked = check(data, model, size, most=_MOST_LEVELS[float16_weights])
    place = storage.absolute(out)
    storage.write_bytes(place, data)
    logger.info(
        "wrote %s: %d operators of %d kinds, %.1f MB; %d of %d values differ from torch's, by %d of 255 at most",
        place,
        *_operators(data),
        len(data) / 1e6,
        checked["num_different"],
        checked["num_values"],
        checked["max_difference"],
    )
    return {"onnx": place, "model_uri": found.uri, "size_px": size, "bytes": len(data)} | checked


def to_onnx(model: EditingModel, size_px: int, facts: dict[str, str], *, float16_weights: bool = False) -> bytes:
    """Return a model as an ONNX file that holds its weights.

    Args:
        model: on the CPU, in evaluation mode.
        size_px: side of the square images.
        facts: metadata.
        float16_weights: see `export`.

    Raises:
        ConfigError: a package is not installed.
    """
    onnx = _imported("onnx")
    with torch.no_grad(), shifted_sums(), _quiet():
        program: Any = torch.onnx.export(
            model,
            tuple(torch.from_numpy(one) for one in runtimes.sample(size_px)),
            input_names=INPUTS,
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        proto = program.model_proto
    # The exporter notes where each operator comes from, with paths of this machine.
    graph = proto.graph
    for noted in (proto, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del noted.metadata_props[:]
        noted.doc_string = ""
    if float16_weights:
        _halve(graph, onnx)
    for name, value in facts.items():
        proto.metadata_props.add(key=name, value=value)
    onnx.checker.check_model(proto)
    data: bytes = proto.SerializeToString()
    return data


def facts_of(file: Path) -> dict[str, str]:
    """Return the metadata of an ONNX file, see `export`."""
    return {fact.key: fact.value for fact in _imported("onnx").load(str(file)).metadata_props}


def check(data: bytes, model: EditingModel, size_px: int, *, most: int = 1) -> dict[str, int]:
    """Compare what ONNX Runtime gives with what torch gives.

    Args:
        data: the file.
        model: what it was made of.
        size_px: side of its images.
        most: levels of 255 by which values in the hole may differ.

    Returns:
        max_difference, num_different and num_values, see `export`.

    Raises:
        ConfigError: ONNX Runtime is not installed.
        ModelError: the difference is larger, or the image itself was changed.
    """
    runtime = _imported("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    maps = runtimes.sample(size_px)
    given: NDArray[np.uint8] = session.run([OUTPUT], dict(zip(INPUTS, maps, strict=True)))[0]
    with torch.no_grad():
        expected = model(*(torch.from_numpy(one) for one in maps)).numpy()
    image, mask = maps[:2]
    hole = np.broadcast_to(mask != 0, image.shape)
    difference = np.abs(given.astype(int) - expected.astype(int))
    if difference.max() > most or not np.array_equal(given[~hole], image[~hole]):
        raise ModelError(
            f"ONNX Runtime {runtime.__version__} differs from torch by {difference.max()} of 255, and {most} is "
            f"rounding; nothing was written: {INSTALL}, which has the version that was tried"
        )
    return {
        "max_difference": int(difference.max()),
        "num_different": int((difference > 0).sum()),
        "num_values": int(hole.sum()),
    }


def _halve(graph: Any, onnx: Any) -> None:
    """Keep the large float32 tensors of a graph in 16 bits, each with a cast back, which runtimes make once."""
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= _LEAST_HALVED:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.float16"))
            casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _operators(data: bytes) -> tuple[int, int]:
    """Count the operators of a file, and their kinds."""
    kinds = [node.op_type for node in _imported("onnx").load_from_string(data).graph.node]
    return len(kinds), len(set(kinds))


def _imported(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(f"{package} is not installed; {INSTALL}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch's exporter says of packages that are not needed, and of its own classes."""
    said = logging.getLogger("torch.onnx")
    before = said.level
    said.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        said.setLevel(before)
