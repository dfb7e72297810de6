"""What is said of a dataset: numbers that are those of its maps, pages that no name can break."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from cluster import Cluster
from scfegan_ray import faces
from scfegan_ray.config import Config, MaskConfig
from scfegan_ray.data import prepare, report
from scfegan_ray.data.codecs import decode_png, decode_row, encode_png
from scfegan_ray.data.dataset import read_shard, shard_place
from scfegan_ray.errors import DataError

EVIL = "<script>alert(1)</script> & 'x'.png"


@pytest.fixture
def made(tiny: Config, cluster: Cluster) -> prepare.Preparation:
    return prepare.prepare(tiny)


class Pages(HTMLParser):
    """Collects what a page holds; notes elements that a name smuggled in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.pictures: list[bytes] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        source = dict(attrs).get("src")
        if source:
            self.pictures.append(base64.b64decode(source.partition("base64,")[2]))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(uri: str) -> Pages:
    return Pages(Path(uri, "report.html").read_text())


def test_report_holds_counts_settings_and_pictures(made: prepare.Preparation) -> None:
    page = page_of(made.uri)
    text = " ".join(page.text)
    assert f"12 of 32 px: {made.info.num_train} to train, {made.info.num_test} held back" in text
    assert made.info.fingerprint in text and "data.sketch.threshold" in text and "opencv, float32" in text
    for meaning in report._MEANING.values():
        assert meaning in text
    pictures = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in page.pictures]
    assert all(picture is not None for picture in pictures)
    assert len(pictures) == 1 + len(report._MEANING)


def test_preview_shows_maps_and_hole_areas(made: prepare.Preparation) -> None:
    preview = decode_png(Path(made.uri, "preview.png").read_bytes())
    rows, bars = 12, 120
    assert preview.shape == (18 + rows * 130 + 2 + bars, 7 * 130 + 2, 3)
    first = preview[18:146, 2:130]
    sample = report._sample(made.uri, made.info.num_shards)[0]
    image = decode_row(sample)["image"]
    assert np.array_equal(first, cv2.resize(image, (128, 128), interpolation=cv2.INTER_NEAREST))
    assert (preview[-bars:] != 255).any(), "a histogram is drawn"


def test_sample_is_spread_over_the_shards(made: prepare.Preparation) -> None:
    keys = [row["key"] for row in report._sample(made.uri, made.info.num_shards)]
    assert [int(key[-2:]) for key in keys[:4]] == [0, 4, 8, 1]
    assert len(keys) == 12


def test_inspect_tells_what_is_there(made: prepare.Preparation, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="scfegan_ray"):
        found = report.inspect(made.uri, MaskConfig())
    assert (found["finished"], found["num_images"], found["fingerprint"]) == (True, 12, made.info.fingerprint)
    rows = [row for at in range(3) for row in read_shard(shard_place(made.uri, at)).rows]
    statistics = found["statistics"]
    assert statistics["sketch_area"]["mean"] == pytest.approx(np.mean([row["sketch_area"] for row in rows]))
    assert statistics["num_colors"]["p50"] == pytest.approx(np.median([row["num_colors"] for row in rows]))
    assert statistics["hair_area"]["p95"] == pytest.approx(np.percentile([row["hair_area"] for row in rows], 95))
    assert found["num_bytes"] == sum(path.stat().st_size for path in Path(made.uri, "data").iterdir())
    assert "12 images" in caplog.text and "share of pixels on a line" in caplog.text


def test_hole_areas_follow_the_mask_settings(made: prepare.Preparation) -> None:
    small = report.inspect(made.uri, MaskConfig(min_hole_area=0.05, max_hole_area=0.1, hair_probability=0.0))
    large = report.inspect(made.uri, MaskConfig(min_hole_area=0.4, max_hole_area=0.5, hair_probability=0.0))
    assert 0.05 <= small["statistics"]["hole_area"]["p5"] <= small["statistics"]["hole_area"]["p95"] <= 0.1
    assert 0.4 <= large["statistics"]["hole_area"]["p5"] <= large["statistics"]["hole_area"]["p95"] <= 0.5


def test_inspect_of_an_unfinished_dataset(made: prepare.Preparation) -> None:
    Path(made.uri, "dataset.json").unlink()
    Path(made.uri, "data", "part-00001.parquet").unlink()
    found = report.inspect(made.uri, MaskConfig())
    assert (found["finished"], found["num_images"], found["num_shards"]) == (False, 8, 2)
    assert found["detector"] == "opencv" and found["preparation"]["data.size_px"] == 32


def test_inspect_finds_damage(made: prepare.Preparation, tmp_path: Path) -> None:
    Path(made.uri, "data", "part-00001.parquet").unlink()
    with pytest.raises(DataError, match="does not hold the 12 images that its dataset.json says, but 8, or others"):
        report.inspect(made.uri, MaskConfig())
    with pytest.raises(DataError, match="no prepared dataset at .*; make one with jobs/prepare_data.py"):
        report.inspect(str(tmp_path / "nothing"), MaskConfig())


def test_no_name_breaks_the_page(tiny: Config, cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    image = encode_png(faces.draw_face(0, 0, 48).image)
    (folder / EVIL.replace("/", "∕")).write_bytes(image)
    for at in range(3):
        (folder / f"<b>{at}.png").write_bytes(b"no")
    made = prepare.prepare(replace(tiny, data=replace(tiny.data, source=str(folder))))
    page = page_of(made.uri)
    assert page.tags.isdisjoint({"script", "b>"})
    text = "".join(page.text)
    assert "<b>2.png" in text and EVIL.replace("/", "∕") in text
    assert "Left out: 3" in text and re.search("not a readable image.*3", text)
    assert "hair_area" not in report.inspect(made.uri, MaskConfig())["statistics"], "nobody labelled it"
