"""What a prepared dataset looks like: statistics of its maps and of holes drawn over it, a preview, an HTML page."""

from __future__ import annotations

import base64
import html
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scfegan_ray import images, storage
from scfegan_ray.config import MaskConfig
from scfegan_ray.data import examples, masks
from scfegan_ray.data.codecs import decode_png, decode_row, encode_png, encode_webp
from scfegan_ray.data.dataset import (
    STATISTICS,
    DatasetInfo,
    fingerprint,
    read_rows,
    read_shards,
    shard_name,
)
from scfegan_ray.errors import DataError

logger = logging.getLogger(__name__)

PREVIEW_ROWS = 16
PREVIEW_SIDE_PX = 128

_SAMPLE_SHARDS = 8
_SAMPLE_ROWS = 64
_HOLES_PER_ROW = 4
_LISTED = 100
_PERCENTILES = (5, 25, 50, 75, 95)
_MEANING = {
    "hole_area": "share of the image that a training hole covers, hair included",
    "sketch_area": "share of pixels on a line of the sketch",
    "num_colors": "flat colors in the color map",
    "color_error": "mean difference of color map and photograph, in 8-bit levels",
    "hair_area": "share of the image that is hair",
}


def write(
    uri: str,
    info: DatasetInfo,
    rows: Sequence[Mapping[str, Any]],
    rejected: Sequence[tuple[str, str]],
    mask_config: MaskConfig,
    notes: Sequence[tuple[str, str]] = (),
) -> None:
    """Write `preview.png` and `report.html` of a dataset whose shards are all there.

    Args:
        uri: of the dataset.
        info: its description.
        rows: key and `STATISTICS` of each image.
        rejected: (key, reason) of each image that was left out.
        mask_config: how the sample holes are drawn.
        notes: (key, note) of each image whose file needed a guess.

    Raises:
        StorageError: the dataset cannot be read or written.
    """
    sample = _sample(uri, info.num_shards)
    values = _values(rows, sample, info.size_px, mask_config)
    preview = _draw_preview(sample, values["hole_area"], mask_config)
    storage.write_bytes(storage.join(uri, "preview.png"), encode_png(preview))
    page = _write_page(uri, info, rows, rejected, values, preview, mask_config, notes)
    storage.write_bytes(storage.join(uri, "report.html"), page.encode())


def inspect(uri: str, mask_config: MaskConfig) -> dict[str, Any]:
    """Say what a dataset holds, whole or begun, and prove that it holds what it says.

    Args:
        uri: of the dataset.
        mask_config: how the sample holes are drawn.

    Returns:
        The description's fields (without those settings that `preparation` holds, where the dataset is unfinished),
        `finished`, `num_bytes`, and `statistics`: mean and percentiles by name.

    Raises:
        DataError: there is no dataset, or it is damaged.
        StorageError: it cannot be read.
    """
    place = storage.absolute(uri)
    info = DatasetInfo.read(place)
    names = storage.list_files(storage.join(place, "data"))
    if not names:
        raise DataError(f"no prepared dataset at {place}; make one with jobs/prepare_data.py")
    parts = read_shards([storage.join(place, "data", name) for name in names])
    rows = [row for part in parts for row in part.rows]
    num_rejected = sum(len(part.refused) for part in parts)
    found: dict[str, Any] = {"dataset": place, "finished": info is not None}
    if info is None:
        counts = {"num_images": len(rows), "num_rejected": num_rejected, "num_shards": len(parts)}
        found |= counts | parts[0].settled | {"preparation": parts[0].settings}
    else:
        if fingerprint(rows) != info.fingerprint:
            raise DataError(
                f"{place} does not hold the {info.num_images} images that its dataset.json says, but {len(rows)}, or "
                "others; delete it and prepare anew"
            )
        found |= asdict(info)
    size_px = parts[0].settings["data.size_px"]
    values = _values(rows, _sample_of(place, names), size_px, mask_config)
    statistics = {name: _summary(of) for name, of in values.items()}
    found |= {"num_bytes": sum(part.num_bytes for part in parts), "statistics": statistics}
    _log(found)
    return found


def _sample(uri: str, num_shards: int) -> list[dict[str, Any]]:
    return _sample_of(uri, [shard_name(at) for at in range(num_shards)])


def _sample_of(uri: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Read rows of a few shards, spread evenly over all; of each shard in turn, so that the first ones are diverse."""
    chosen = sorted({round(at) for at in np.linspace(0, len(names) - 1, _SAMPLE_SHARDS)})
    found = [read_rows(storage.join(uri, "data", names[at]), _SAMPLE_ROWS) for at in chosen]
    return [part[at] for at in range(_SAMPLE_ROWS) for part in found if at < len(part)]


def _values(
    rows: Sequence[Mapping[str, Any]], sample: Sequence[dict[str, Any]], size_px: int, mask_config: MaskConfig
) -> dict[str, NDArray[np.float64]]:
    values = {"hole_area": _hole_areas(sample, size_px, mask_config)}
    for name in STATISTICS:
        known = [row[name] for row in rows if row[name] is not None]
        if known:
            values[name] = np.asarray(known, np.float64)
    return values


def _hole_areas(sample: Sequence[dict[str, Any]], size_px: int, mask_config: MaskConfig) -> NDArray[np.float64]:
    areas = []
    for number, row in enumerate(sample):
        hair = None if row["hair"] is None else decode_png(row["hair"]) // 255
        rng = np.random.default_rng(number)
        for _ in range(_HOLES_PER_ROW):
            mask = masks.draw_mask(size_px, np.asarray(row["eyes"], np.float32), hair, mask_config, rng)
            areas.append(cv2.countNonZero(mask) / mask.size)
    return np.asarray(areas, np.float64)


def _summary(values: NDArray[np.float64]) -> dict[str, float]:
    if not values.size:
        return {}
    percentiles = np.percentile(values, _PERCENTILES).tolist()
    named = zip((f"p{at}" for at in _PERCENTILES), percentiles, strict=True)
    return {"mean": float(values.mean())} | dict(named)


def _draw_preview(
    sample: Sequence[dict[str, Any]], hole_areas: NDArray[np.float64], mask_config: MaskConfig
) -> NDArray[np.uint8]:
    sheet = []
    for stored in sample[:PREVIEW_ROWS]:
        row = decode_row(stored)
        example = examples.evaluation_example(row, mask_config)
        keep = 1 - example["mask"]
        hair = np.zeros_like(row["sketch"]) if row["hair"] is None else row["hair"]
        sheet.append(
            [
                row["image"],
                255 - row["sketch"] * np.uint8(255),
                row["color"],
                hair * np.uint8(255),
                row["image"] * keep + (1 - keep) * np.uint8(128),
                255 - example["sketch"][..., 0] * np.uint8(255),
                example["color"],
            ]
        )
    titles = ["image", "sketch", "color", "hair", "incomplete", "sketch in hole", "brushed color"]
    picture = images.contact_sheet(sheet, titles, PREVIEW_SIDE_PX)
    bars = images.histogram(hole_areas, _title("hole_area", hole_areas), upper=1.0, width_px=picture.shape[1])
    return np.concatenate([picture, bars])


def _title(name: str, values: NDArray[np.float64]) -> str:
    numbers = _summary(values)
    return (
        f"{name}: mean {numbers['mean']:.3g}, 5 % below {numbers['p5']:.3g}, half below {numbers['p50']:.3g}, "
        f"5 % above {numbers['p95']:.3g}"
    )


def _log(found: Mapping[str, Any]) -> None:
    split = f" ({found['num_train']} to train, {found['num_test']} held back)" if found["finished"] else ""
    state = "" if found["finished"] else ", unfinished: the same command goes on with it"
    logger.info(
        "%s: %d images%s, %d left out, %d shards, %.1f MB%s",
        found["dataset"], found["num_images"], split, found["num_rejected"], found["num_shards"],
        found["num_bytes"] / 1e6, state,
    )  # fmt: skip
    logger.info("%-12s %8s %s", "", "mean", " ".join(f"{f'{at} %':>8}" for at in _PERCENTILES))
    for name, numbers in found["statistics"].items():
        logger.info("%-12s %s   %s", name, " ".join(f"{value:8.4g}" for value in numbers.values()), _MEANING[name])


def _write_page(
    uri: str,
    info: DatasetInfo,
    rows: Sequence[Mapping[str, Any]],
    rejected: Sequence[tuple[str, str]],
    values: Mapping[str, NDArray[np.float64]],
    preview: NDArray[np.uint8],
    mask_config: MaskConfig,
    notes: Sequence[tuple[str, str]],
) -> str:
    num_bald = sum(row["hair_area"] is None for row in rows)
    least, most = mask_config.min_hole_area, mask_config.max_hole_area
    in_range = ((values["hole_area"] >= least) & (values["hole_area"] <= most)).mean()
    facts = {
        "images": f"{info.num_images} of {info.size_px} px: {info.num_train} to train, {info.num_test} held back",
        "left out": str(info.num_rejected),
        "source": info.source,
        "license": info.license,
        "sketch": f"{info.sketch_detector}, {info.sketch_precision}",
        "color segments": info.color_segments,
        "eyes": info.eyes,
        "hair": info.hair if info.hair == "none" else f"{info.hair}, unknown in {num_bald} images",
        "holes": f"{in_range:.1%} of {len(values['hole_area'])} drawn here cover {least:.0%} to {most:.0%}; "
        f"hair, where it is known, is added to {mask_config.hair_probability:.0%}",
        "fingerprint": info.fingerprint,
    }
    statistics = []
    for name, of in values.items():
        bars = images.histogram(of, name, upper=_upper(name, of), width_px=420)
        cells = [f"{value:.3g}" for value in _summary(of).values()]
        statistics.append([_text(_MEANING[name]), *map(_text, cells), _embed(bars)])
    reasons = Counter(_kind(reason) for _, reason in rejected).most_common()
    sections = [
        f"<h1>{_text(uri)}</h1>",
        _table([], [[f"<b>{_text(name)}</b>", _text(value)] for name, value in facts.items()]),
        "<h2>Statistics</h2>",
        _table(["", "mean", *(f"{at} %" for at in _PERCENTILES), ""], statistics),
        "<h2>Look at these first</h2>",
        _table(["", "images"], [[_text(what), _text(", ".join(keys))] for what, keys in _odd(rows).items()]),
        f"<h2>Left out: {len(rejected)}</h2>",
        _table(["reason", "images"], [[_text(reason), str(count)] for reason, count in reasons]),
        _table([f"the first {_LISTED}", ""], [[_text(key), _text(reason)] for key, reason in rejected[:_LISTED]]),
        f"<h2>Guessed: {len(notes)}</h2>",
        _table(["note", "images"], [[_text(note), str(count)] for note, count in _counted(notes)]),
        _table([f"the first {_LISTED}", ""], [[_text(key), _text(note)] for key, note in notes[:_LISTED]]),
        "<h2>Preview</h2>",
        _embed(preview),
        "<h2>Settings</h2>",
        _table([], [[_text(name), _text(str(value))] for name, value in sorted(info.preparation.items())]),
    ]
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
        "table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .8rem .15rem 0;text-align:left;"
        "vertical-align:top;overflow-wrap:break-word}tr+tr{border-top:1px solid #ddd}img{max-width:100%}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{_text(uri)}</title><style>{style}</style>{''.join(sections)}</html>"
    )


def _odd(rows: Sequence[Mapping[str, Any]], count: int = 5) -> dict[str, list[str]]:
    """Return the keys of images whose maps differ most from the others."""
    chosen = {
        "emptiest sketches": ("sketch_area", False),
        "fullest sketches": ("sketch_area", True),
        "colors least like the photograph": ("color_error", True),
    }
    return {
        what: [row["key"] for row in sorted(rows, key=lambda row: row[name], reverse=most)[:count]]
        for what, (name, most) in chosen.items()
    }


def _upper(name: str, values: NDArray[np.float64]) -> float:
    return 1.0 if name in ("hole_area", "hair_area") else max(float(np.percentile(values, 99)), 1e-6)


def _counted(notes: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    return Counter(note for _, note in notes).most_common()


def _kind(reason: str) -> str:
    """Return a reason without what tells one image from the other."""
    return re.sub(r"\d+", "N", reason.partition(":")[0])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = ["<tr>" + "".join(f"<th>{_text(cell)}" for cell in head)] if head else []
    lines += ["<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _embed(picture: NDArray[np.uint8]) -> str:
    data = base64.b64encode(encode_webp(picture)).decode()
    return f'<img alt="" src="data:image/webp;base64,{data}">'


def _text(value: str) -> str:
    return html.escape(value)
