"""What is measured of an image, and measuring it: one fill of one hole after the other, in one process, without Ray.

A *candidate* is a model or a reference. Each fills the hole of each image under every condition of `conditions`; its
numbers make one row of the result, in the columns of `METRICS`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from scfegan_ray.data.examples import Example, stack
from scfegan_ray.evaluation import adherence, conditions, quality, references
from scfegan_ray.evaluation.networks import Networks
from scfegan_ray.evaluation.protocol import Protocol
from scfegan_ray.models.editing import EditingModel
from scfegan_ray.models.generator import Generator

_PAINTINGS = 3
"""Among the conditions: the photograph's color, none, another hue."""

Candidate = Callable[[Example], NDArray[np.uint8]]
"""Stacked examples to (N, S, S, 3) uint8 RGB, the images with their holes filled."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of each image.

    Attributes:
        meaning: for people.
        better: 1 where more is better, -1 where less is, 0 where neither.
        unit: for people.
    """

    meaning: str
    better: int
    unit: str = ""

    def verdict(self, low: float, high: float) -> str:
        """Say what an interval of a difference means: better, worse, no difference; nothing where no way is better."""
        if not self.better:
            return ""
        low, high = sorted((self.better * low, self.better * high))
        return "better" if low > 0 else "worse" if high < 0 else "no difference"


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "hole_psnr": Metric("peak signal-to-noise ratio in the hole", 1, "dB"),
        "psnr": Metric("peak signal-to-noise ratio of the image", 1, "dB"),
        "hole_l1": Metric("mean absolute difference in the hole", -1, "levels"),
        "l1": Metric("mean absolute difference of the image", -1, "levels"),
        "hole_ssim": Metric("structural similarity in the hole", 1),
        "ssim": Metric("structural similarity of the image", 1),
        "ms_ssim": Metric("multi-scale structural similarity of the image", 1),
        "hole_flip": Metric("perceived difference in the hole (FLIP)", -1),
        "lpips": Metric("learned perceptual similarity of the image (LPIPS, AlexNet)", -1),
        "seam": Metric("mean absolute difference along the hole's border", -1, "levels"),
        "seam_step": Metric("step across the hole's border, relative to the photograph's own", -1),
        "identity": Metric("cosine of SFace's embeddings of result and photograph", 1),
        "sketch_precision": Metric("share of the result's edges near a drawn line", 1),
        "sketch_recall": Metric("share of drawn lines near an edge of the result", 1),
        "sketch_f1": Metric("harmonic mean of both", 1),
        "color_delta_e": Metric("CIEDE2000 difference from the paint", -1),
        "foreign_sketch_precision": Metric("as sketch_precision, lines of another face", 1),
        "foreign_sketch_recall": Metric("as sketch_recall, lines of another face", 1),
        "foreign_sketch_f1": Metric("as sketch_f1, lines of another face", 1),
        "shifted_sketch_f1": Metric("as sketch_f1, lines a sixteenth of the side away", 1),
        "recolored_delta_e": Metric("as color_delta_e, paint of another hue", -1),
        "guided_gain": Metric("hole_psnr with strokes less that without", 1, "dB"),
        "sketch_only_hole_psnr": Metric("hole_psnr from lines alone", 1, "dB"),
        "sketch_only_ssim": Metric("ssim from lines alone", 1),
        "sketch_only_sketch_f1": Metric("sketch_f1 from lines alone", 1),
        "color_only_hole_psnr": Metric("hole_psnr from color alone", 1, "dB"),
        "color_only_ssim": Metric("ssim from color alone", 1),
        "color_only_color_delta_e": Metric("color_delta_e from color alone", -1),
        "blind_hole_psnr": Metric("hole_psnr from no strokes", 1, "dB"),
        "blind_ssim": Metric("ssim from no strokes", 1),
        "blind_sketch_f1": Metric("sketch_f1 of lines that were not shown", 0),
        "sensitivity": Metric("difference around a stroke that was moved", 0, "levels"),
        "outside": Metric("largest difference outside the hole", -1, "levels"),
    }
)
"""Columns of a result, in the order of its tables."""

FEATURES = ("embedding", "inception")
"""Of SFace, and of Inception: what distances of sets are taken of."""

SCHEMA = pa.schema(
    [("candidate", pa.string()), ("key", pa.string()), ("hole_area", pa.float64())]
    + [(name, pa.float64()) for name in METRICS]
    + [(name, pa.list_(pa.float32())) for name in FEATURES]
)
"""Of what is measured: a row per candidate and image. A value that there is none of is NaN, features null."""


def model_candidate(generator: Generator, device: torch.device) -> Candidate:
    """Return what a registered version computes, in float32.

    Args:
        generator: its weights.
        device: where to compute.
    """
    model = EditingModel(generator).requires_grad_(False).eval().to(device)

    def fill(batch: Example) -> NDArray[np.uint8]:
        maps = (batch[name] for name in ("image", "mask", "sketch", "color", "noise"))
        with torch.no_grad():
            filled = model(*(torch.from_numpy(one).to(device) for one in maps))
        return np.asarray(filled.cpu().numpy())

    return fill


def reference_candidate(fill: references.Fill) -> Candidate:
    """Return a reference as a candidate; as it sees no lines, what is painted alike is filled once."""
    known: OrderedDict[bytes, NDArray[np.uint8]] = OrderedDict()

    def fill_all(batch: Example) -> NDArray[np.uint8]:
        seen = [batch[name] for name in ("image", "mask", "color")]
        digest = hashlib.sha256(b"".join(one.tobytes() for one in seen)).digest()
        if digest not in known:
            image, hole, color = seen
            known[digest] = np.stack([fill(*one) for one in zip(image, hole[..., 0], color, strict=True)])
            if len(known) > _PAINTINGS:
                known.popitem(last=False)
        return known[digest]

    return fill_all


def all_conditions(
    rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], protocol: Protocol
) -> dict[str, Example]:
    """Draw the holes of some images, and all strokes that they are filled from.

    Args:
        rows: images as `codecs.decode_row` gives them, which the protocol takes.
        others: for each another one, whose lines are drawn into its hole.
        protocol: draws holes and strokes.

    Returns:
        Stacked examples by condition.
    """
    made = [
        conditions.make(protocol.example(row), row, other, protocol.rng(row["key"], purpose=1))
        for row, other in zip(rows, others, strict=True)
    ]
    return {name: stack([one[name] for one in made]) for name in conditions.CONDITIONS}


def measure(
    candidates: Mapping[str, Candidate],
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    protocol: Protocol,
    networks: Networks,
) -> pa.Table:
    """Fill the holes of some images in every way, and measure it.

    Args:
        candidates: by name.
        rows: as of `all_conditions`.
        others: as of `all_conditions`.
        protocol: as of `all_conditions`.
        networks: what is not among them is not measured.

    Returns:
        Columns of `SCHEMA`: for each candidate, and of it for each image, a row.
    """
    batches = all_conditions(rows, others, protocol)
    truth, areas = batches["guided"]["image"], batches["guided"]["mask"].mean(axis=(1, 2, 3))
    own = _features(truth, rows, networks)
    found: list[dict[str, Any]] = []
    for name, candidate in candidates.items():
        filled = {condition: candidate(batch) for condition, batch in batches.items()}
        columns = _columns(filled, batches)
        features = _features(filled["guided"], rows, networks)
        if networks.faces:
            pairs = zip(features["embedding"], own["embedding"], strict=True)
            columns["identity"] = np.array([np.dot(*pair) for pair in pairs])
        if networks.lpips:
            columns["lpips"] = networks.distance(filled["guided"], truth)
        for at, row in enumerate(rows):
            values = {metric: float(columns[metric][at]) if metric in columns else np.nan for metric in METRICS}
            found.append(
                {"candidate": name, "key": row["key"], "hole_area": float(areas[at])}
                | values
                | {kind: features[kind][at].tolist() if kind in features else None for kind in FEATURES}
            )
    return pa.Table.from_pylist(found, schema=SCHEMA)


def _features(
    images: NDArray[np.uint8], rows: Sequence[Mapping[str, Any]], networks: Networks
) -> dict[str, NDArray[np.float32]]:
    """Return (N, F) features of images by name, of those networks that are at hand."""
    found = {}
    if networks.faces:
        embedded = [networks.faces(one, row["eyes"]) for one, row in zip(images, rows, strict=True)]
        found["embedding"] = np.stack(embedded)
    if networks.inception:
        found["inception"] = networks.inception(images)
    return found


def _columns(filled: Mapping[str, NDArray[np.uint8]], batches: Mapping[str, Example]) -> dict[str, NDArray[np.float64]]:
    """Return the values of a candidate's fills, (N,) each, but for those of networks."""
    truth, hole = batches["guided"]["image"], batches["guided"]["mask"][..., 0] > 0
    guided = filled["guided"]
    found: dict[str, NDArray[np.float64]] = {
        "l1": quality.l1(guided, truth),
        "hole_l1": quality.hole_l1(guided, truth, hole),
        "psnr": quality.psnr(guided, truth),
        "hole_flip": quality.hole_flip(guided, truth, hole),
        "outside": np.max([quality.outside(one, truth, hole) for one in filled.values()], axis=0),
        "color_delta_e": _colors(guided, batches["guided"]),
        "recolored_delta_e": _colors(filled["recolored"], batches["recolored"]),
        "color_only_color_delta_e": _colors(filled["color_only"], batches["color_only"]),
        "sketch_only_sketch_f1": _lines(filled["sketch_only"], batches["sketch_only"], hole)[2],
        "shifted_sketch_f1": _lines(filled["shifted_sketch"], batches["shifted_sketch"], hole)[2],
        "blind_sketch_f1": _lines(filled["blind"], batches["guided"], hole)[2],
    }
    for prefix, condition in (("", "guided"), ("foreign_", "foreign_sketch")):
        parts = _lines(filled[condition], batches[condition], hole)
        for part, values in zip(("precision", "recall", "f1"), parts, strict=True):
            found[f"{prefix}sketch_{part}"] = values
    for prefix, condition in (("", "guided"), *((f"{name}_", name) for name in ("sketch_only", "color_only", "blind"))):
        found[f"{prefix}hole_psnr"] = quality.hole_psnr(filled[condition], truth, hole)
        found[f"{prefix}ssim"], in_hole = quality.ssim(filled[condition], truth, hole)
        if not prefix:
            found["hole_ssim"] = in_hole
    if truth.shape[1] >= quality.MS_SSIM_FROM_PX:
        found["ms_ssim"] = quality.ms_ssim(guided, truth)
    found["guided_gain"] = found["hole_psnr"] - found["blind_hole_psnr"]
    found["seam"], found["seam_step"] = quality.seam(guided, truth, hole)
    before, after = (batches[name]["sketch"][..., 0] for name in ("guided", "moved_stroke"))
    pairs = zip(guided, filled["moved_stroke"], before, after, strict=True)
    found["sensitivity"] = np.array([adherence.sensitivity(*one) for one in pairs])
    return found


def _lines(
    composite: NDArray[np.uint8], batch: Example, hole: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    found = zip(composite, batch["sketch"][..., 0], hole, strict=True)
    precision, recall, f1 = np.array([adherence.sketch_adherence(*one) for one in found]).reshape(-1, 3).T
    return precision, recall, f1


def _colors(composite: NDArray[np.uint8], batch: Example) -> NDArray[np.float64]:
    pairs = zip(composite, batch["color"], strict=True)
    return np.array([adherence.color_adherence(*one) for one in pairs])
