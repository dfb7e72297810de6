"""What is said of a dataset: numbers that are those of its maps, pages that no name can break."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import matplotlib
import numpy as np
import pyarrow as pa
import pytest

from cluster import Cluster
from scfegan_ray import faces
from scfegan_ray.config import Config, MaskConfig
from scfegan_ray.data import prepare, report
from scfegan_ray.data.codecs import decode_png, decode_row, encode_png
from scfegan_ray.data.dataset import read_shard, shard_place
from scfegan_ray.errors import DataError, StorageError

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


def rows_of(made: prepare.Preparation) -> pa.Table:
    return pa.concat_tables(read_shard(shard_place(made.uri, at)).rows for at in range(made.info.num_shards))


def page_of(uri: str) -> Pages:
    return Pages(Path(uri, "report.html").read_text())


def test_report_holds_counts_settings_and_pictures(made: prepare.Preparation) -> None:
    page = page_of(made.uri)
    text = " ".join(page.text)
    assert f"12 of 32 px: {made.info.num_train} to train, {made.info.num_test} held back" in text
    assert made.info.fingerprint in text and "data.sketch.threshold" in text and "opencv, float32" in text
    for meaning in report._MEANING.values():
        assert meaning in text
    *charts, sheet = page.pictures
    assert cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_COLOR) is not None
    assert len(charts) == len(report._MEANING)
    for chart, meaning in zip(charts, report._MEANING.values(), strict=True):
        assert ElementTree.fromstring(chart).tag == "{http://www.w3.org/2000/svg}svg"
        assert f"<!-- {meaning} -->".encode() in chart, "its axis says what it counts in"


def test_page_needs_no_other_file_and_is_the_same_again(made: prepare.Preparation) -> None:
    page = Path(made.uri, "report.html").read_text()
    places = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(.{5})""", page)
    assert len(places) == 1 + len(report._MEANING) and set(places) == {"data:"}
    assert Pages(page).tags.isdisjoint({"script", "link", "iframe", "object"})
    report.write(made.uri, made.info, rows_of(made), [], MaskConfig())
    assert Path(made.uri, "report.html").read_text() == page


def test_charts_do_not_depend_on_the_users_style() -> None:
    values = np.linspace(0.0, 1.0, 50)
    expected = report._chart("hair_area", values, "hair", (300, 200), "svg")
    before = {"axes.facecolor": "red", "svg.fonttype": "none", "figure.dpi": 50.0, "text.usetex": True}
    with matplotlib.rc_context(before):
        assert report._chart("hair_area", values, "hair", (300, 200), "svg") == expected
        assert {name: matplotlib.rcParams[name] for name in before} == before
        assert len(report._chart("hair_area", values, "hair", (300, 200), "rgba")) == 200 * 300 * 4


def test_bars_hold_all_values_and_whole_numbers_evenly() -> None:
    assert report._edges("hair_area", np.full(3, 0.2)).tolist() == pytest.approx(np.linspace(0, 1, 41).tolist())
    assert report._edges("color_error", np.zeros(3))[-1] == 1.0
    numbers = np.arange(1.0, 151.0)
    edges = report._edges("num_colors", numbers)
    counts, _ = np.histogram(numbers, edges)
    assert counts.sum() == 150 and set(counts[1:-1].tolist()) == {4}
    far = np.append(np.full(999, 2.0), 500.0)
    assert report._edges("color_error", far)[-1] == pytest.approx(3.0)
    chart = report._chart("color_error", far, "", (300, 200), "svg")
    assert b"<!-- last bar: 2.92 and more -->" in chart
    assert b"last bar" not in report._chart("color_error", far[:-1], "", (300, 200), "svg")


def test_preview_shows_maps_and_hole_areas(made: prepare.Preparation) -> None:
    preview = decode_png(Path(made.uri, "preview.png").read_bytes())
    rows, bars = 12, report._STRIP_PX
    assert preview.shape == (18 + rows * 130 + 2 + bars, 7 * 130 + 2, 3)
    first = preview[18:146, 2:130]
    sample = report._sample(made.uri, made.info.num_shards)[0]
    image = decode_row(sample)["image"]
    assert np.array_equal(first, cv2.resize(image, (128, 128), interpolation=cv2.INTER_NEAREST))
    assert (preview[-bars:] == (0x46, 0x6E, 0xA0)).all(-1).sum() > 1000, "a histogram is drawn"


def test_sample_is_spread_over_the_shards(made: prepare.Preparation) -> None:
    keys = [row["key"] for row in report._sample(made.uri, made.info.num_shards)]
    assert [int(key[-2:]) for key in keys[:4]] == [0, 4, 8, 1]
    assert len(keys) == 12


def test_inspect_tells_what_is_there(made: prepare.Preparation, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="scfegan_ray"):
        found = report.inspect(made.uri, MaskConfig())
    assert (found["finished"], found["num_images"], found["fingerprint"]) == (True, 12, made.info.fingerprint)
    rows = rows_of(made).to_pylist()
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


HOSTILE = (
    EVIL,
    "'\"><img src=x onerror=alert(1)>.png",
    "{{ 7 * 7 }}{% raw %}{# x #}.png",
    "no\udcff\udcfeutf.png",
    "\u202egnp.exe\n\x1b[31m\x7f.png",
    "x" * 100_000,
)


def test_no_key_reason_or_note_breaks_the_page(made: prepare.Preparation) -> None:
    tags = page_of(made.uri).tags
    rows = rows_of(made).slice(0, len(HOSTILE)).drop_columns("key")
    rows = rows.append_column("key", [[name.encode("utf-8", "backslashreplace").decode() for name in HOSTILE]])
    texts = [(name, name) for name in HOSTILE]
    info = replace(made.info, source=EVIL, license=EVIL, preparation=dict(texts))
    report.write(made.uri, info, rows, texts * 20, MaskConfig(), texts)
    page = page_of(made.uri)
    assert page.tags - tags <= {"bdi"} and len(page.pictures) == 1 + len(report._MEANING)
    assert all(data.startswith((b"<?xml", b"RIFF")) for data in page.pictures)
    for name in HOSTILE:
        shown = name.encode("utf-8", "backslashreplace").decode()
        assert page.text.count(shown) >= 2 * 16 + 2 + 3, (
            "twice each in the first 100 and in a setting, thrice in the notes"
        )
    assert "Left out: 120" in page.text and "the first 100" in page.text


def test_squares_are_shown_beside_what_was_cut_out(
    tiny: Config, cluster: Cluster, groups: Path, finder: object, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(tiny, data=replace(tiny.data, source=str(groups), align="celeba_hq", shard_images=3))
    made = prepare.prepare(config)
    page = page_of(made.uri)
    *_, sheet, _ = page.pictures
    found = cv2.imdecode(np.frombuffer(sheet, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    # Of a, b, d, f and g; c was aligned, and in e there is no face.
    side, gap = report.ALIGNED_SIDE_PX, 2
    assert found.shape == (18 + 5 * (side + gap) + gap, 5 * (side + gap) + gap, 3)
    greens = (np.abs(found.astype(int) - (0, 255, 0)) < 90).all(2)
    assert greens[:, :side].sum() > 20 * greens[:, side + 4 :].sum()
    text = " ".join(page.text)
    assert "Faces found" in text and "turned, cropped and resized as in CelebA-HQ" in text
    assert "face blurred" in text and "no face found" in text


def test_photograph_that_is_gone_is_not_shown(tiny: Config, caplog: pytest.LogCaptureFixture) -> None:
    def gone(key: str) -> np.ndarray:
        raise StorageError(f"cannot read {key}")

    square = {"center_x": 1.0, "center_y": 1.0, "side_px": 2.0, "angle": 0.0}
    assert report._draw_aligned([{"key": "a.png#1", "square": square}], gone) is None
    assert "a.png is not shown in the report: cannot read a.png" in caplog.text


def test_without_faces_that_were_found_nothing_is_said_of_them(made: prepare.Preparation) -> None:
    text = " ".join(page_of(made.uri).text)
    assert "Faces found" not in text and "of each the central square" in text
