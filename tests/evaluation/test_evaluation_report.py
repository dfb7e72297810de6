"""The page of an evaluation."""

from __future__ import annotations

import re
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from scfegan_ray.evaluation import report
from scfegan_ray.evaluation.measure import METRICS, SCHEMA
from scfegan_ray.evaluation.summary import Table

HOSTILE = "<script>alert('x')</script>\udcff&\".jpg"


@pytest.fixture(scope="module")
def table() -> Table:
    rng = np.random.default_rng(0)
    rows = [
        {"candidate": name, "key": key, "hole_area": 0.2, "embedding": None}
        | {metric: float(rng.random() + better) for metric in METRICS}
        for name, better in (("new", 1.0), ("old", 0.0), ("photograph", 2.0))
        for key in (HOSTILE.replace("\udcff", ""), *(f"{at}.jpg" for at in range(19)))
    ]
    return Table(pa.Table.from_pylist(rows, schema=SCHEMA))


def page(table: Table) -> str:
    means = table.means()
    result = {
        "protocol": "faces_64_freeform_v1",
        "images": {
            "num_images": 20, "fingerprint": "f", "source": HOSTILE, "license": HOSTILE, "sketch_detector": "hed",
            "sketch_precision": "float32",
        },
        "models": {
            name: {"uri": HOSTILE, "size_px": 64, "trained_on": known} for name, known in (("new", 3), ("old", None))
        },
        "candidates": {
            name: {metric: asdict(value) for metric, value in numbers.items()} | table.others(name)
            for name, numbers in means.items()
        },
        "differences": [
            {
                "first": "new",
                "second": "old",
                "metrics": {k: asdict(v) for k, v in table.differences("new", "old").items()},
            }
        ],
    }  # fmt: skip
    cases = report.choose(table, "new")
    return report.page(result, table, ["new", "old"], cases, {"side by side": b"webp", "new": b"webp"}).decode()


def test_page_needs_no_other_file_and_runs_nothing(table: Table) -> None:
    text = page(table)
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_page_is_the_same_again(table: Table) -> None:
    assert page(table) == page(table)


def test_best_model_stands_out_and_verdicts_follow_the_direction(table: Table) -> None:
    text = page(table)
    row = re.search(r"<th scope=\"row\">hole_psnr<.*?</?tr", text, re.DOTALL)
    assert row is not None
    new, old, photograph = re.findall(r'<td class="number">(.*?)(?=<td|\s*<tr|\n)', row[0])
    assert new.startswith("<b>") and not old.startswith("<b>") and not photograph.startswith("<b>")
    verdicts = dict(
        re.findall(r'<tr><th scope="row">(\w+)<td class="number">[^<]*<td class="number">[^<]*<td>(.*)', text)
    )
    assert verdicts["hole_psnr"] == "better"
    assert verdicts["hole_l1"] == "worse", "less is better, and it is more"
    assert verdicts["sensitivity"] == ""
    assert "on 3 of these images" in text
    assert "perhaps on some of these images" in text


def test_cases_are_the_best_the_median_and_the_worst(table: Table) -> None:
    cases = report.choose(table, "new")
    by_why: dict[str, list[float]] = {}
    for case in cases:
        by_why.setdefault(case.why, []).append(case.values["hole_psnr"])
    values = np.sort(table.values("new", "hole_psnr"))
    assert by_why["best"] == values[::-1][:4].tolist()
    assert by_why["worst"] == values[:4].tolist()
    assert by_why["median"] == values[8:12][::-1].tolist()
    seams = [case.values["seam"] for case in cases if case.why == "worst seam"]
    assert seams == np.sort(table.values("new", "seam"))[::-1][:4].tolist()


def test_few_images_are_each_shown(table: Table) -> None:
    rows = [
        {"candidate": "new", "key": key, "hole_area": 0.2, "embedding": None} | dict.fromkeys(METRICS, 1.0)
        for key in ("a", "b")
    ]
    cases = report.choose(Table(pa.Table.from_pylist(rows, schema=SCHEMA)), "new")
    assert {case.key for case in cases} == {"a", "b"}
