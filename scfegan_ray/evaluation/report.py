"""What an evaluation looks like: a page with tables, plots, and pictures of the best, median and worst cases."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scfegan_ray import images, pages
from scfegan_ray.data.codecs import encode_webp
from scfegan_ray.data.examples import Example
from scfegan_ray.evaluation.measure import METRICS, Candidate, all_conditions
from scfegan_ray.evaluation.protocol import Protocol
from scfegan_ray.evaluation.summary import PHOTOGRAPH, Table, mean_of

SHEET_SIDE_PX = 128

_CASES = 4
_CHART_PX = (560, 280)
_SHOWN_REFERENCES = ("painted_color", "telea")
_PLOTTED = ("hole_psnr", "ssim", "seam", "sketch_f1")
_OBEYING = ("guided", "sketch_only", "color_only", "blind")
_CHANGED = ("foreign_sketch", "shifted_sketch", "recolored")
_LINE, _UNKNOWN = np.uint8(0), np.uint8(160)


@dataclass(frozen=True, slots=True)
class Case:
    """An image to be shown.

    Attributes:
        why: "best", "median", "worst" or "worst seam".
        key: of the image.
        values: of the first model.
    """

    why: str
    key: str
    values: dict[str, float]


def choose(table: Table, candidate: str) -> list[Case]:
    """Choose what is shown: by `hole_psnr` of a candidate, and by its seam."""
    by_psnr = np.argsort(table.values(candidate, "hole_psnr"), kind="stable")[::-1]
    seams = table.values(candidate, "seam")
    by_seam = np.argsort(np.where(np.isfinite(seams), seams, -np.inf), kind="stable")[::-1]
    middle = max(0, (len(by_psnr) - _CASES) // 2)
    chosen = {
        "best": by_psnr[:_CASES],
        "median": by_psnr[middle : middle + _CASES],
        "worst": by_psnr[-_CASES:][::-1],
        "worst seam": by_seam[:_CASES] if np.isfinite(seams).any() else by_seam[:0],
    }
    shown = ("hole_psnr", "ssim", "seam", "sketch_f1")
    return [
        Case(why, table.keys[at], {name: float(table.values(candidate, name)[at]) for name in shown})
        for why, places in chosen.items()
        for at in places
    ]


def draw(
    candidates: Mapping[str, Candidate],
    models: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    protocol: Protocol,
) -> dict[str, bytes]:
    """Draw sheets of some images.

    Args:
        candidates: by name.
        models: which of them are models.
        rows: as of `measure.all_conditions`.
        others: as of `measure.all_conditions`.
        protocol: as of `measure.all_conditions`.

    Returns:
        WebP files: "side by side", all models and some references; and for each model, by its name, what it makes
        of each condition.
    """
    batches = all_conditions(rows, others, protocol)
    given = {name: list(_given(batches[name])) for name in ("guided", *_CHANGED)}
    photographs = [row["image"] for row in rows]

    def sheet(columns: Mapping[str, Sequence[NDArray[np.uint8]]]) -> bytes:
        side = max(SHEET_SIDE_PX, min(protocol.size_px, 2 * SHEET_SIDE_PX))
        pictures = [list(row) for row in zip(*columns.values(), strict=True)]
        return encode_webp(images.contact_sheet(pictures, list(columns), side))

    shown = [*models, *(name for name in _SHOWN_REFERENCES if name in candidates)]
    sheets = {
        "side by side": sheet(
            {"photograph": photographs, "given": given["guided"]}
            | {name: list(candidates[name](batches["guided"])) for name in shown}
        )
    }
    for name in models:
        columns: dict[str, Sequence[NDArray[np.uint8]]] = {"photograph": photographs, "given": given["guided"]}
        columns |= {condition: list(candidates[name](batches[condition])) for condition in _OBEYING}
        for condition in _CHANGED:
            columns |= {f"given ({condition})": given[condition], condition: list(candidates[name](batches[condition]))}
        sheets[name] = sheet(columns)
    return sheets


def _given(batch: Example) -> NDArray[np.uint8]:
    """Show what a network is given: images with a gray hole, its paint, and its lines in black."""
    hole, lines, color = batch["mask"] > 0, batch["sketch"] > 0, batch["color"]
    shown = np.where(hole, _UNKNOWN, batch["image"])
    shown = np.where(color.any(axis=-1, keepdims=True), color, shown)
    return np.where(lines, _LINE, shown)


def page(
    result: Mapping[str, Any], table: Table, models: Sequence[str], cases: Sequence[Case], sheets: Mapping[str, bytes]
) -> bytes:
    """Return a page that needs no other file.

    Args:
        result: as `result.json` has it.
        table: values of all images.
        models: which candidates are models.
        cases: what the sheets show, a row each.
        sheets: WebP files by name.
    """
    known = result["images"]
    facts = {
        "images": f"{known['num_images']} of {known['source']}, fingerprint {known['fingerprint']}",
        "license": known["license"],
        "sketches": f"{known['sketch_detector']}, {known['sketch_precision']}",
    }
    for name, model in result["models"].items():
        seen = model["trained_on"]
        known_to_it = "perhaps on some" if seen is None else f"on {seen}"
        facts[name] = f"{model['uri']}, trained at {model['size_px']} px, {known_to_it} of these images"
    return pages.render(
        "scfegan_ray.evaluation",
        "report.html.jinja",
        title=result["protocol"],
        facts=facts,
        candidates=table.candidates,
        metrics=_metric_rows(result, table.candidates, models),
        differences=[
            {"first": one["first"], "second": one["second"], "rows": _difference_rows(one["metrics"])}
            for one in result["differences"]
        ],
        charts=_charts(table),
        cases=cases,
        sheets={name: pages.data_uri("image/webp", content) for name, content in sheets.items()},
    )


def _metric_rows(result: Mapping[str, Any], candidates: Sequence[str], models: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each metric: name, meaning, and of each candidate the text and whether it is the best model."""
    found = []
    others = {name: None for numbers in result["candidates"].values() for name in numbers if name not in METRICS}
    for name in (*METRICS, *others):
        numbers = {one: result["candidates"][one][name] for one in candidates if name in result["candidates"][one]}
        if not numbers:
            continue
        means = {one: mean_of(value) for one, value in numbers.items()}
        better = METRICS[name].better if name in METRICS else -1
        own = [better * means[one] for one in models if one in means]
        best = max(own) if better and len(own) > 1 else None
        texts = []
        for one in candidates:
            value = numbers.get(one)
            spread = f" ± {(value['high'] - value['low']) / 2:.2g}" if isinstance(value, dict) else ""
            text = "" if value is None else f"{means[one]:.4g}{spread}"
            texts.append((text, best is not None and one in models and one in means and better * means[one] == best))
        meaning, unit = (METRICS[name].meaning, METRICS[name].unit) if name in METRICS else (_MEANING[name], "")
        arrow = {1: "↑", -1: "↓", 0: ""}[better]
        found.append(
            {"name": name, "meaning": f"{meaning}{f' ({unit})' if unit else ''}", "arrow": arrow, "texts": texts}
        )
    return found


_MEANING = {
    "sface_frechet": "Fréchet distance of SFace's features to all photographs'; no FID",
    "sface_kernel": "kernel distance of SFace's features to other photographs'; no KID",
    "sface_kernel_deviation": "its standard deviation over subsets",
    "fid": "Fréchet distance of Inception's features to all photographs' (FID)",
    "kid": "kernel distance of Inception's features to other photographs' (KID)",
    "kid_deviation": "its standard deviation over subsets",
    "seam_step_p90": "seam_step that the worst tenth exceeds",
}


def _difference_rows(metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "text": f"{value['mean']:+.3g}",
            "interval": f"{value['low']:+.3g} to {value['high']:+.3g}",
            "verdict": METRICS[name].verdict(value["low"], value["high"]),
        }
        for name, value in metrics.items()
    ]


def _charts(table: Table) -> list[tuple[str, str]]:
    """Draw metrics by the hole's size, and how many images are worse than what: (description, address)."""
    shown = [name for name in table.candidates if name != PHOTOGRAPH]
    found: list[tuple[str, str]] = []
    for metric in _PLOTTED:
        bins = table.by_area(metric)
        if not any(means for _, _, means in bins):
            continue
        with _axes(found, f"{metric} by the size of the hole") as axes:
            for name in shown:
                places = [at for at, (_, _, means) in enumerate(bins) if name in means]
                axes.plot(places, [bins[at][2][name] for at in places], marker="o", markersize=3, label=name)
            axes.set_xticks(range(len(bins)), [f"{name}\n{count}" for name, count, _ in bins])
            axes.set_ylabel(METRICS[metric].unit or metric)
    with _axes(found, "share of images with a hole_psnr below") as axes:
        for name in shown:
            values = np.sort(table.values(name, "hole_psnr"))
            if np.isfinite(values).all():
                axes.step(values, np.arange(1, len(values) + 1) / len(values), where="post", label=name)
        axes.set_xlabel("dB")
    return found


@contextlib.contextmanager
def _axes(charts: list[tuple[str, str]], title: str) -> Iterator[Any]:
    """Give the axes of a chart whose legend stands beside it; add the chart to others."""
    with pages.chart(_CHART_PX, title) as (figure, file):
        axes = figure.add_axes((0.09, 0.16, 0.62, 0.74))
        yield axes
        axes.set_title(title, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    charts.append((title, pages.data_uri("image/svg+xml", file.getvalue())))
