"""What a prepared dataset looks like: statistics of its maps and of holes drawn over it, a preview, an HTML page."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scfegan_ray import images, pages, storage
from scfegan_ray.config import MaskConfig
from scfegan_ray.data import align, columns, examples, masks
from scfegan_ray.data.codecs import decode_png, decode_row, encode_png, encode_webp
from scfegan_ray.data.dataset import (
    STATISTICS,
    SUMMARY,
    DatasetInfo,
    Shard,
    fingerprint,
    photograph_of,
    read_rows,
    read_shards,
    shard_name,
)
from scfegan_ray.errors import DataError, StorageError

logger = logging.getLogger(__name__)

PREVIEW_ROWS = 16
PREVIEW_SIDE_PX = 128

ALIGNED_ROWS = 8
ALIGNED_SIDE_PX = 192

_SAMPLE_SHARDS = 8
_SAMPLE_ROWS = 64
_HOLES_PER_ROW = 4
_LISTED = 100
_NUM_BARS = 40
_CHART_PX = (380, 200)
_STRIP_PX = 180
_FACES_SHOWN = 4
_SQUARE_COLOR = (0, 255, 0)
_PERCENTILES = (5, 25, 50, 75, 95)
_MEANING = {
    "hole_area": "share of the image that a training hole covers, hair included",
    "sketch_area": "share of pixels on a line of the sketch",
    "num_colors": "flat colors in the color map",
    "color_error": "mean difference of color map and photograph, in 8-bit levels",
    "hair_area": "share of the image that is hair",
}
_CROPPED = {
    "none": "as the photographs have them, of each the central square",
    "celeba_hq": "found, and turned, cropped and resized as in CelebA-HQ, where a photograph was not so already",
}


def write(
    uri: str,
    info: DatasetInfo,
    rows: pa.Table,
    rejected: Sequence[tuple[str, str]],
    mask_config: MaskConfig,
    notes: Sequence[tuple[str, str]] = (),
    read_photograph: Callable[[str], NDArray[np.uint8]] | None = None,
) -> None:
    """Write `preview.png` and `report.html` of a dataset whose shards are all there.

    Args:
        uri: of the dataset.
        info: its description.
        rows: columns key and `dataset.STATISTICS`, one row per image.
        rejected: (key, reason) of each image that was left out.
        mask_config: how the sample holes are drawn.
        notes: (key, note) of each image whose file needed a guess.
        read_photograph: gives (H, W, 3) uint8 RGB by the key of a photograph, to show where faces were found in some;
            it may raise what `FaceSource.load` does. None where none were looked for.

    Raises:
        StorageError: the dataset cannot be read or written.
    """
    sample = _sample(uri, info.num_shards)
    sheet = _draw_sheet(sample, mask_config)
    areas, (_, width_px, _) = _hole_areas(sample, info.size_px, mask_config), sheet.shape
    chart = _chart("hole_area", areas, _title("hole_area", areas), (width_px, _STRIP_PX), "rgba")
    bars = np.frombuffer(chart, np.uint8).reshape(_STRIP_PX, width_px, 4)[..., :3]
    preview = np.concatenate([sheet, bars])
    storage.write_bytes(storage.join(uri, "preview.png"), encode_png(preview))
    aligned = _draw_aligned(sample, read_photograph) if read_photograph is not None else None
    page = _write_page(uri, info, rows, rejected, areas, sheet, mask_config, notes, aligned)
    storage.write_bytes(storage.join(uri, "report.html"), page)


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
    counts: Counter[str] = Counter()
    first: Shard | None = None

    def read() -> Iterator[pa.Table]:
        nonlocal first
        for part in read_shards([storage.join(place, "data", name) for name in names]):
            first = first or part
            counts.update(num_rejected=len(part.refused), num_bytes=part.num_bytes)
            yield part.rows

    rows = columns.gather(read(), SUMMARY)
    assert first is not None, "there is at least one"
    found: dict[str, Any] = {"dataset": place, "finished": info is not None}
    if info is None:
        found |= {"num_images": len(rows), "num_rejected": counts["num_rejected"], "num_shards": len(names)}
        found |= first.settled | {"preparation": first.settings}
    else:
        if fingerprint(rows) != info.fingerprint:
            raise DataError(
                f"{place} does not hold the {info.num_images} images that its dataset.json says, but {len(rows)}, or "
                "others; delete it and prepare anew"
            )
        found |= asdict(info)
    areas = _hole_areas(_sample_of(place, names), first.settings["data.size_px"], mask_config)
    statistics = {name: _summary(of) for name, of in _values(rows, areas)}
    found |= {"num_bytes": counts["num_bytes"], "statistics": statistics}
    _log(found)
    return found


def _sample(uri: str, num_shards: int) -> list[dict[str, Any]]:
    return _sample_of(uri, [shard_name(at) for at in range(num_shards)])


def _sample_of(uri: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Read rows of a few shards, spread evenly over all; of each shard in turn, so that the first ones are diverse."""
    chosen = sorted({round(at) for at in np.linspace(0, len(names) - 1, _SAMPLE_SHARDS)})
    found = [read_rows(storage.join(uri, "data", names[at]), _SAMPLE_ROWS) for at in chosen]
    return [part[at] for at in range(_SAMPLE_ROWS) for part in found if at < len(part)]


def _values(rows: pa.Table, areas: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Give the values of one statistic after the other, so that those of millions of images come one at a time."""
    yield "hole_area", areas
    for name in STATISTICS:
        known = rows.column(name).drop_null()
        if len(known):
            yield name, known.to_numpy()


def _hole_areas(sample: Sequence[dict[str, Any]], size_px: int, mask_config: MaskConfig) -> NDArray[np.float64]:
    areas = []
    for number, row in enumerate(sample):
        hair = None if row["hair"] is None else decode_png(row["hair"]) // 255
        rng = np.random.default_rng(number)
        for _ in range(_HOLES_PER_ROW):
            mask = masks.draw_mask(size_px, np.asarray(row["eyes"], np.float32), hair, mask_config, rng)
            areas.append(cv2.countNonZero(mask) / mask.size)
    return np.asarray(areas, np.float64)


def _summary(values: NDArray[Any]) -> dict[str, float]:
    if not values.size:
        return {}
    precise = values.astype(np.float64)
    mean = float(precise.mean())
    percentiles = np.percentile(precise, _PERCENTILES, overwrite_input=True).tolist()
    return {"mean": mean} | dict(zip((f"p{at}" for at in _PERCENTILES), percentiles, strict=True))


def _draw_sheet(sample: Sequence[dict[str, Any]], mask_config: MaskConfig) -> NDArray[np.uint8]:
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
    return images.contact_sheet(sheet, titles, PREVIEW_SIDE_PX)


def _draw_aligned(
    sample: Sequence[dict[str, Any]], read_photograph: Callable[[str], NDArray[np.uint8]]
) -> NDArray[np.uint8] | None:
    """Show some photographs, the squares that were found in them and what was cut out; None where none were."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sample:
        if row["square"] is not None:
            found.setdefault(photograph_of(row["key"]), []).append(row)
    sheet = []
    for key, rows in found.items():
        try:
            photograph = read_photograph(key)
        except (DataError, StorageError) as error:
            logger.warning("%s is not shown in the report: %s", key, error)
            continue
        blank = np.full((1, 1, 3), 255, np.uint8)
        crops = [decode_png(row["image"]) for row in rows[:_FACES_SHOWN]]
        squares = [align.Square(**row["square"]) for row in rows]
        sheet.append([_with_squares(photograph, squares), *crops, *[blank] * (_FACES_SHOWN - len(crops))])
        if len(sheet) == ALIGNED_ROWS:
            break
    titles = ["photograph", *(f"face {number}" for number in range(1, _FACES_SHOWN + 1))]
    return images.contact_sheet(sheet, titles, ALIGNED_SIDE_PX) if sheet else None


def _with_squares(photograph: NDArray[np.uint8], squares: Sequence[align.Square]) -> NDArray[np.uint8]:
    """Return a photograph in the middle of a white square, with squares drawn on it."""
    height, width = photograph.shape[:2]
    scale = ALIGNED_SIDE_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(photograph, size, interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR)
    left, top = ((ALIGNED_SIDE_PX - length) // 2 for length in size)
    shown = np.full((ALIGNED_SIDE_PX, ALIGNED_SIDE_PX, 3), 255, np.uint8)
    shown[top : top + size[1], left : left + size[0]] = small
    corners = [np.rint(square.corners() * scale + (left, top)).astype(np.int32) for square in squares]
    cv2.polylines(shown, corners, True, _SQUARE_COLOR, 1, cv2.LINE_AA)
    return shown


def _title(name: str, values: NDArray[Any]) -> str:
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
    rows: pa.Table,
    rejected: Sequence[tuple[str, str]],
    areas: NDArray[np.float64],
    sheet: NDArray[np.uint8],
    mask_config: MaskConfig,
    notes: Sequence[tuple[str, str]],
    aligned: NDArray[np.uint8] | None,
) -> bytes:
    """Return a page that needs no other file."""
    num_bald = rows.column("hair_area").null_count
    least, most = mask_config.min_hole_area, mask_config.max_hole_area
    in_range = ((areas >= least) & (areas <= most)).mean()
    facts = {
        "images": f"{info.num_images} of {info.size_px} px: {info.num_train} to train, {info.num_test} held back",
        "left out": info.num_rejected,
        "source": info.source,
        "license": info.license,
        "sketch": f"{info.sketch_detector}, {info.sketch_precision}",
        "color segments": info.color_segments,
        "eyes": info.eyes,
        "hair": info.hair if info.hair == "none" else f"{info.hair}, unknown in {num_bald} images",
        "holes": f"{in_range:.1%} of {len(areas)} drawn here cover {least:.0%} to {most:.0%}; "
        f"hair, where it is known, is added to {mask_config.hair_probability:.0%}",
        "faces": _CROPPED[info.align],
        "fingerprint": info.fingerprint,
    }
    statistics = [
        {
            "name": name,
            "meaning": _MEANING[name],
            "numbers": list(_summary(of).values()),
            "title": _title(name, of),
            "chart": pages.data_uri("image/svg+xml", _chart(name, of, name, _CHART_PX, "svg")),
        }
        for name, of in _values(rows, areas)
    ]
    return pages.render(
        "scfegan_ray.data",
        "report.html.jinja",
        title=uri,
        facts=facts,
        statistics=statistics,
        percentiles=_PERCENTILES,
        odd=_odd(rows),
        rejected=rejected,
        reasons=Counter(_kind(reason) for _, reason in rejected).most_common(),
        notes=notes,
        guesses=Counter(note for _, note in notes).most_common(),
        listed=_LISTED,
        aligned=None if aligned is None else pages.data_uri("image/webp", encode_webp(aligned)),
        preview=pages.data_uri("image/webp", encode_webp(sheet)),
        settings=sorted(info.preparation.items()),
    )


def _odd(rows: pa.Table, count: int = 5) -> dict[str, list[str]]:
    """Return the keys of images whose maps differ most from the others."""
    chosen = {
        "emptiest sketches": ("sketch_area", "ascending"),
        "fullest sketches": ("sketch_area", "descending"),
        "colors least like the photograph": ("color_error", "descending"),
    }
    return {
        what: rows.column("key").take(pc.select_k_unstable(rows, count, [by, ("key", "ascending")])).to_pylist()
        for what, by in chosen.items()
    }


def _kind(reason: str) -> str:
    """Return a reason without what tells one image from the other."""
    return re.sub(r"\d+", "N", reason.partition(":")[0])


def _chart(name: str, values: NDArray[Any], title: str, size_px: tuple[int, int], kind: str) -> bytes:
    """Draw how often values occur, whatever matplotlib's settings on this machine are.

    Args:
        name: of the statistic.
        values: any number of them but none.
        title: of the chart.
        size_px: its width and height.
        kind: "svg", or "rgba" for the pixels alone.

    Returns:
        The file, or (height, width, 4) uint8.
    """
    edges = _edges(name, values)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    width, height = size_px
    with pages.chart(size_px, name, kind) as (figure, file):
        # Margins that hold seven digits; to have the layout found takes as long as all the drawing.
        axes = figure.add_axes((70 / width, 42 / height, 1 - 86 / width, 1 - 68 / height))
        axes.stairs(counts, edges, fill=True, color="#466ea0")
        for value, style in zip(np.percentile(values, (5, 50, 95)), (":", "-", ":"), strict=True):
            axes.axvline(value, color="#c04000", linestyle=style, linewidth=1.0)
        axes.set_title(title, loc="left", y=1.0)
        if values.max() > edges[-1]:
            axes.set_title(f"last bar: {edges[-2]:.3g} and more", loc="right", y=1.0)
        axes.set(ylabel="holes" if name == "hole_area" else "images", xlim=(edges[0], edges[-1]))
        axes.locator_params(axis="x", nbins=6)
        axes.locator_params(axis="y", nbins=4, integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.supxlabel(_MEANING[name], fontsize="medium")
    return file.getvalue()


def _edges(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the bounds of a chart's bars, which leave out what lies far from all others."""
    if name in ("hole_area", "hair_area"):
        return np.linspace(0.0, 1.0, _NUM_BARS + 1)
    largest = float(values.max())
    most = min(largest, 1.5 * float(np.percentile(values, 99))) or largest or 1.0
    if name == "num_colors":  # a bar stands for the same number of whole numbers
        step = math.ceil((most + 1) / _NUM_BARS)
        return np.arange(0.0, most + 1 + step, step) - 0.5
    return np.linspace(0.0, most, _NUM_BARS + 1)
