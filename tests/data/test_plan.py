"""Which dataset is meant, and whether what is there is the same; shards are made in this process instead of on Ray."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import content

from cluster import Cluster
from scfegan_ray import faces, storage
from scfegan_ray.config import Config, DataConfig
from scfegan_ray.data import align, dataset, prepare, sketches
from scfegan_ray.data.codecs import encode_png
from scfegan_ray.data.dataset import DatasetInfo, shard_place
from scfegan_ray.data.plan import Plan, make_plan
from scfegan_ray.errors import DataError, ModelError


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size_px": 64}, "with data.size_px = 32, now it is 64"),
        ({"shard_images": 3}, "with data.shard_images = 4, now it is 3"),
        ({"num_embedded": 13}, "from other photographs than the source holds now|data.num_embedded = 12, now it is 13"),
        ({"test_fraction": 0.5}, "with data.test_fraction = 0.25, now it is 0.5"),
    ],
)
def test_other_settings_are_refused(
    config: Config, cluster: Cluster, finished: bool, change: dict[str, object], said: str
) -> None:
    cluster.stop_after = None if finished else 1
    with contextlib.suppress(KeyboardInterrupt):
        prepare.prepare(config)
    before = content(str(config.data.prepared))
    with pytest.raises(DataError, match=f"({said}); choose another --data.prepared or delete that folder"):
        prepare.prepare(replace(config, data=replace(config.data, **change)))  # type: ignore[arg-type]
    assert content(str(config.data.prepared)) == before


def test_masks_license_and_resources_do_not_shape_a_dataset(config: Config, cluster: Cluster) -> None:
    prepare.prepare(config)
    other = replace(
        config,
        masks=replace(config.masks, max_lines=2),
        data=replace(config.data, license="mine", gpus_per_actor=0.0),
    )
    prepare.prepare(other)
    assert len(cluster.made) == 3


def test_settings_name_the_default_place(tiny: Config, cluster: Cluster) -> None:
    places = {
        prepare.prepare(replace(tiny, data=replace(tiny.data, **change))).uri  # type: ignore[arg-type]
        for change in ({}, {"size_px": 64}, {"num_embedded": 5}, {"sketch": replace(tiny.data.sketch, threshold=0.5)})
    }
    assert len(places) == 4
    assert all("/runs/prepared/embedded-" in place for place in places)


def test_photographs_that_changed_are_refused(config: Config, cluster: Cluster, photographs: Path) -> None:
    config = replace(config, data=replace(config.data, source=str(photographs)))
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config)
    shutil.copy(photographs / "0.png", photographs / "new.png")
    with pytest.raises(DataError, match="begun from other photographs than the source holds now"):
        prepare.prepare(config)


def test_photograph_that_changed_is_noticed(config: Config, cluster: Cluster, photographs: Path) -> None:
    config = replace(config, data=replace(config.data, source=str(photographs)))
    prepare.prepare(config)
    (photographs / "3.png").write_bytes(encode_png(faces.draw_face(1, 3, 48).image) + b"longer")
    with pytest.raises(DataError, match="was prepared from other photographs than the source holds now"):
        prepare.prepare(config)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("default_place", [True, False])
def test_address_of_a_source_does_not_matter(
    config: Config, cluster: Cluster, photographs: Path, tmp_path: Path, finished: bool, default_place: bool
) -> None:
    def at(source: object) -> Config:
        place = None if default_place else config.data.prepared
        return replace(config, data=replace(config.data, source=str(source), prepared=place, shard_images=3))

    cluster.stop_after = None if finished else 1
    with contextlib.suppress(KeyboardInterrupt):
        prepare.prepare(at(photographs))
    cluster.stop_after = None
    (tmp_path / "link").symlink_to(photographs)
    moved = tmp_path / "moved"
    for source in (f"file://{photographs}/", f"{photographs}/", "photographs", tmp_path / "link"):
        assert prepare.prepare(at(source)).info.num_images == 6
    photographs.rename(moved)
    made = prepare.prepare(at(moved))
    assert cluster.made == [0, 1], "no shard is made twice"
    assert made.info.source in (f"file://{photographs}/", str(photographs), f"{photographs}/")
    assert not any("photographs" in str(value) for value in made.info.preparation.values())


def test_source_with_the_storage_path_in_it(config: Config, cluster: Cluster, photographs: Path) -> None:
    config = replace(config, data=replace(config.data, source=".", prepared=None))
    for _ in range(2):
        made = prepare.prepare(config)
    assert Path(made.uri, "preview.png").is_relative_to(photographs.parent)
    assert (made.info.num_images, made.info.num_rejected) == (6, 0)
    assert cluster.made == [0, 1]


def test_zip_of_prepared_photographs_is_the_same(
    config: Config, cluster: Cluster, photographs: Path, tmp_path: Path
) -> None:
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", photographs)
    for source in (str(photographs), archive):
        prepare.prepare(replace(config, data=replace(config.data, source=source)))
    assert cluster.made == [0, 1]
    (photographs / "0.png").write_bytes((photographs / "0.png").read_bytes()[::-1])
    other = shutil.make_archive(str(tmp_path / "other"), "zip", photographs)
    first = replace(config, data=replace(config.data, source=archive, prepared=str(tmp_path / "of zip")))
    prepare.prepare(first)
    with pytest.raises(DataError, match="from other photographs than the source holds now"):
        prepare.prepare(replace(first, data=replace(first.data, source=other)))


def test_object_of_the_same_size_that_changed_is_noticed(
    config: Config, cluster: Cluster, photographs: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    source = "s3://lab/changed"
    for path in photographs.iterdir():
        storage.write_bytes(f"{source}/{path.name}", path.read_bytes())
    local = replace(config, data=replace(config.data, source=str(photographs)))
    remote = replace(config, data=replace(config.data, source=f"{source}/"))
    prepare.prepare(remote)
    assert prepare.prepare(local).info == prepare.prepare(remote).info
    storage.write_bytes(f"{source}/0.png", (photographs / "0.png").read_bytes()[::-1])
    with pytest.raises(DataError, match="was prepared from other photographs than the source holds now"):
        prepare.prepare(remote)


def test_parquet_that_changed_is_noticed(config: Config, cluster: Cluster, photographs: Path, tmp_path: Path) -> None:
    def pack(names: list[str]) -> None:
        pq.write_table(pa.table({"image": [(photographs / name).read_bytes() for name in names]}), table)

    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "a.parquet"
    pack(["0.png", "1.png"])
    config = replace(config, data=replace(config.data, source=str(table.parent)))
    prepare.prepare(config)
    table.parent.rename(tmp_path / "moved")
    prepare.prepare(replace(config, data=replace(config.data, source=str(tmp_path / "moved"))))
    assert cluster.made == [0]
    table.parent.mkdir()
    pack(["0.png", "2.png"])
    with pytest.raises(DataError, match="from other photographs than the source holds now"):
        prepare.prepare(config)


def test_changed_part_mask_is_noticed(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    hq = tmp_path / "hq"
    mask = hq / "CelebAMask-HQ-mask-anno" / "0" / "00000_hair.png"
    mask.parent.mkdir(parents=True)
    (hq / "CelebA-HQ-img").mkdir()
    drawn = faces.draw_face(0, 0, 48)
    (hq / "CelebA-HQ-img" / "0.png").write_bytes(encode_png(drawn.image))
    mask.write_bytes(encode_png(np.where(drawn.labels == 13, 255, 0).astype(np.uint8)))
    config = replace(config, data=replace(config.data, source=str(hq)))
    prepare.prepare(config)
    mask.write_bytes(encode_png(np.eye(48, dtype=np.uint8) * np.uint8(255)))
    with pytest.raises(DataError, match="from other photographs than the source holds now"):
        prepare.prepare(config)


GOLDEN = Path(__file__).parents[1] / "golden" / "version_0_1"


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("kind", ["folder", "embedded"])
def test_datasets_of_version_0_1_are_recognized(
    config: Config, cluster: Cluster, tmp_path: Path, kind: str, finished: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = tmp_path / "made"
    shutil.copytree(GOLDEN / kind, made)
    if not finished:
        (made / "dataset.json").unlink()
        (made / "data" / "part-00001.parquet").unlink()
    source = "embedded" if kind == "embedded" else str(GOLDEN / "photographs")
    sketch = replace(config.data.sketch, detector="opencv")
    data = DataConfig(
        source=source, num_embedded=6, size_px=32, shard_images=4, test_fraction=0.25, prepared=str(made), sketch=sketch
    )
    config = replace(config, data=data)
    if not finished:
        # What is left would be decoded or drawn otherwise than what is there.
        named = {"folder": "decoding", "embedded": "drawing"}[kind]
        with pytest.raises(DataError, match=f"was begun with data.{named}_version = None, now it is 2; choose another"):
            prepare.prepare(config)
        return
    result = prepare.prepare(config)
    before = DatasetInfo.read(str(GOLDEN / kind))
    assert before is not None and result.info.fingerprint == before.fingerprint
    assert cluster.made == []
    said = {"folder": "before color profiles", "embedded": "as an earlier version drew them"}[kind]
    assert said in caplog.text


def test_default_place_of_version_0_1_is_found(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    source = tmp_path / "photographs"
    shutil.copytree(GOLDEN / "photographs", source)
    sketch = replace(config.data.sketch, detector="opencv")
    data = DataConfig(source=str(source), size_px=32, shard_images=4, test_fraction=0.25, sketch=sketch)
    config = replace(config, data=data)
    said = (GOLDEN / "folder" / "dataset.json").read_text().replace("/tmp/photographs", str(source))
    settings = json.loads(said)["preparation"]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    old = Path(config.storage.path, "prepared", f"folder-32-{digest}")
    shutil.copytree(GOLDEN / "folder", old)
    (old / "dataset.json").write_text(said)
    assert prepare.prepare(config).uri == str(old)
    assert cluster.made == []


@pytest.mark.parametrize("finished", [True, False])
def test_dataset_of_the_older_decoding(
    config: Config, cluster: Cluster, photographs: Path, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, data=replace(config.data, source=str(photographs)))

    def older(config: Config) -> Plan:
        plan = make_plan(config)
        return replace(plan, settings={key: plan.settings[key] for key in plan.settings if "decoding" not in key})

    monkeypatch.setattr(prepare, "make_plan", older)
    cluster.stop_after = None if finished else 1
    with contextlib.suppress(KeyboardInterrupt):
        prepare.prepare(config)
    monkeypatch.setattr(prepare, "make_plan", make_plan)
    cluster.stop_after = None
    if finished:
        made = len(cluster.made)
        assert prepare.prepare(config).info.num_images == 6
        assert len(cluster.made) == made
    else:
        with pytest.raises(DataError, match="begun with data.decoding_version = None, now it is 2; choose another"):
            prepare.prepare(config)


def test_aligning_shapes_a_dataset_of_photographs_alone(config: Config, photographs: Path) -> None:
    def settings(source: str, align: str) -> dict[str, object]:
        return make_plan(replace(config, data=replace(config.data, source=source, align=align))).settings

    plain = settings(str(photographs), "none")
    assert not [name for name in plain if "align" in name], "what was prepared before is the same"
    for asked in ("auto", "celeba_hq"):
        found = settings(str(photographs), asked)
        assert found == plain | {"data.align": "auto", "data.align_version": 1}
        assert settings("embedded", asked) == settings("embedded", "none")


def test_central_squares_are_no_faces_that_were_found(
    config: Config, cluster: Cluster, groups: Path, monkeypatch: pytest.MonkeyPatch, finder: object
) -> None:
    def offline() -> bytes:
        raise ModelError("no network")

    def wanting(asked: str) -> Config:
        return replace(config, data=replace(config.data, source=str(groups), align=asked))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "yunet_onnx", offline)
        with pytest.raises(ModelError, match="give --data.align none"):
            prepare.prepare(wanting("celeba_hq"))
        cluster.stop_after = 1
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(wanting("auto"))
    cluster.stop_after = None
    with pytest.raises(DataError, match="holds the central squares of photographs, now data.align is celeba_hq; give"):
        prepare.prepare(wanting("celeba_hq"))
    made = prepare.prepare(wanting("auto"))
    assert made.info.align == "none", "what is there decides for the rest"
    with pytest.raises(DataError, match="holds the central squares of photographs, now data.align is celeba_hq; give"):
        prepare.prepare(wanting("celeba_hq"))
    assert prepare.prepare(wanting("auto")).info == made.info
    with pytest.raises(DataError, match="was prepared with data.align = auto, now it is None; choose another"):
        prepare.prepare(wanting("none"))


def test_people_shape_the_split_and_what_was_prepared_without_them_is_used(
    config: Config,
    cluster: Cluster,
    photographs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(dataset, "_FEWEST_PEOPLE", 2)
    for number, path in enumerate(sorted(photographs.iterdir())):
        path.rename(path.with_name(f"{number // 2}_{number}{path.suffix}"))
    whole = replace(config, data=replace(config.data, source=str(photographs), test_fraction=0.5))
    alone = prepare.prepare(replace(whole, data=replace(whole.data, identity_pattern="")))
    assert alone.info.identity_pattern is None
    assert "data.identity_pattern" not in alone.info.preparation
    # Where nobody asked for it by name, what is there is taken as it is.
    assert prepare.prepare(whole).info == alone.info
    assert "one person's pictures may be trained on and held back" in caplog.text
    asked = replace(whole, data=replace(whole.data, identity_pattern="^([0-9]+)_"))
    with pytest.raises(DataError, match=r"with data.identity_pattern = None, now it is \^\(\[0-9\]\+\)_"):
        prepare.prepare(asked)
    anew = prepare.prepare(replace(whole, data=replace(whole.data, prepared=str(photographs.with_name("anew")))))
    info = anew.info
    assert info.identity_pattern == dataset.NUMBERED_PEOPLE == info.preparation["data.identity_pattern"]
    assert DatasetInfo.read(anew.uri) == info
    held_back = [
        row["key"] for row in dataset.read_rows(dataset.shard_place(anew.uri, 0), 9) if info.holds_back(row["key"])
    ]
    people = {key.partition("_")[0] for key in held_back}
    assert 2 * len(people) >= len(held_back)


def test_empty_source(config: Config, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"no images \(\.avif .*\) under .*nothing; check --data.source"):
        prepare.prepare(replace(config, data=replace(config.data, source=str(tmp_path / "nothing"))))


def test_place_that_holds_something_else(config: Config, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds other files \(thesis\.tex\); choose an empty --data.prepared"):
        prepare.prepare(config)


def test_damaged_shard_of_an_interrupted_preparation(config: Config, cluster: Cluster, tmp_path: Path) -> None:
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config)
    (tmp_path / "made" / "data" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-00000\.parquet is no shard of a prepared dataset .*; delete"):
        prepare.prepare(config)


def test_two_detectors_are_not_mixed(config: Config, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(config)
    first = shard_place(str(config.data.prepared), 0)
    table = pq.read_table(first)
    said = table.schema.metadata[b"scfegan_ray"].replace(b'"detector": "opencv"', b'"detector": "hed"')
    pq.write_table(table.replace_schema_metadata({b"scfegan_ray": said}), first)
    cluster.stop_after = None
    seen: list[str] = []

    def spy(plan: Plan, data: DataConfig, missing: list[int]) -> tuple[float, int]:
        seen.append(data.sketch.detector)
        return cluster.run(plan, replace(data, sketch=replace(data.sketch, detector="opencv")), missing)

    monkeypatch.setattr(prepare, "_run", spy)
    for _ in range(2):
        with pytest.raises(DataError, match="chose different edge detectors"):
            prepare.prepare(config)
    assert seen == ["hed"], "what is there decides for the rest"


def test_dataset_of_auto_is_one_of_what_auto_was_settled_to(config: Config, cluster: Cluster) -> None:
    def wanting(detector: str) -> Config:
        sketch = replace(config.data.sketch, detector=detector)
        return replace(config, data=replace(config.data, sketch=sketch))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketches, "hed_arrays", lambda: (_ for _ in ()).throw(ModelError("no network")))
        made = prepare.prepare(wanting("auto"), session=cluster.session)
    assert made.info.sketch_detector == "opencv"
    for way in (prepare.prepare, prepare.ensure_prepared):
        with pytest.raises(DataError, match="were drawn with opencv, now data.sketch.detector is hed; give --data.sk"):
            way(wanting("hed"))
    description = Path(made.uri, "dataset.json")
    # As it would have been with HED; before, the name was part of what a dataset was compared by.
    for named in ("auto", "hed"):
        text = description.read_text().replace('"sketch_detector": "opencv"', '"sketch_detector": "hed"')
        values = json.loads(text)
        values["preparation"]["data.sketch.detector"] = named
        description.write_text(json.dumps(values))
        for detector in ("auto", "hed"):
            assert prepare.prepare(wanting(detector)).info.sketch_detector == "hed"
            assert prepare.ensure_prepared(wanting(detector)) == made.uri
