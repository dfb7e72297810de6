"""The figures of a plan: where each comes from, and that the pages say the same."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from running import ROOT

from scfegan_ray.config import Config, SketchConfig
from scfegan_ray.errors import ConfigError
from scfegan_ray.planning import costs
from scfegan_ray.planning.costs import Counted, at_size, figures
from scfegan_ray.planning.options import ClusterConfig
from scfegan_ray.presets import preset

PAPER, CLUSTER = preset("paper_512"), ClusterConfig()
COUNTED = Counted(flops=1.0273e12, calls=1100, gradient_bytes=380e6, checkpoint_bytes=1.5e9, example_bytes=2_359_360)


def of(config: Config, counted: Counted = COUNTED, cluster: ClusterConfig = CLUSTER) -> dict[str, costs.Figure]:
    return figures(config, cluster, counted)


def test_measured_stages_are_those_of_the_page() -> None:
    table = (ROOT / "cluster" / "README.md").read_text()
    assert set(costs.STAGES) - set(costs._STAGE_MS) == {"find faces"}
    for name in costs._STAGE_MS:
        row = re.search(rf"^\| {name} \| [\d.]+ \(([\d.]+)\) \| [\d.]+ \(([\d.]+)\) \|$", table, re.MULTILINE)
        assert row is not None, name
        for size, value in ((512, row[1]), (128, row[2])):
            one = of(replace(PAPER, data=replace(PAPER.data, size_px=size, gpus_per_actor=0.0)))[f"prepare: {name}"]
            assert (one.value, one.unit, one.basis) == (float(value), "ms", "measured")


def test_faces_are_found_where_the_config_says_so() -> None:
    assert of(PAPER)["prepare: find faces"].value == 0.0
    aligned = of(replace(PAPER, data=replace(PAPER.data, align="celeba_hq")))["prepare: find faces"]
    assert f"a photograph takes {aligned.value:.0f} ms on one core" in (ROOT / "jobs" / "README.md").read_text()
    assert aligned.basis == "measured"


def test_measured_updates_are_those_of_the_page() -> None:
    table = (ROOT / "cluster" / "README.md").read_text()
    assert "| `paper_512`, 8 images at 512 px | 0.565 s | 0.397 s (0.70) | | 0.082 s (0.15) |" in table
    one = of(PAPER)["update: one image"]
    assert (one.value, one.basis) == (pytest.approx(1000 * 0.082 / 8), "measured")
    exact = replace(PAPER, train=replace(PAPER.train, precision="float32"))
    assert of(exact)["update: one image"].value == pytest.approx(1000 * 0.397 / 8)
    twice = of(PAPER, replace(COUNTED, flops=2 * COUNTED.flops))["update: one image"]
    assert (twice.value, twice.basis) == (pytest.approx(1000 * 0.082 / 4), "assumed")
    # On CPUs it is of one core: two made 2 images at 256 px in 1.73 s.
    on_cpus = replace(PAPER, train=replace(PAPER.train, use_gpu=False))
    found = of(on_cpus, replace(COUNTED, flops=0.2567e12))["update: one image"]
    assert (found.value, found.basis) == (pytest.approx(1730.0), "measured")


def test_between_sizes_a_cost_grows_as_a_power_of_the_side_and_is_assumed() -> None:
    assert at_size({128: 1.0, 512: 16.0}, 256) == pytest.approx(4.0)
    assert at_size({128: 1.0, 256: 2.0, 512: 8.0}, 1024) == pytest.approx(32.0), "by the two nearest"
    at_256 = of(replace(PAPER, data=replace(PAPER.data, size_px=256)))
    assert at_256["prepare: color"].basis == "assumed"
    assert at_256["prepare: color"].value == pytest.approx((7.1 * 41.1) ** 0.5)
    assert at_256["row of the dataset"].basis == "measured"


def test_every_figure_says_where_it_comes_from() -> None:
    for config in (PAPER, preset("quickstart")):
        found = of(config)
        assert all(one.source and one.basis in ("measured", "counted", "assumed") for one in found.values())
        prices = [name for name in found if name.startswith("price")]
        assert len(prices) == 3 and all(found[name].basis == "assumed" for name in prices)
        measured = " ".join(one.source for one in found.values() if one.basis == "measured")
        assert "cluster/README.md" in measured
    assert set(of(PAPER)) == set(of(preset("quickstart")))


def test_what_people_say_takes_the_place_of_what_is_assumed() -> None:
    said = ClusterConfig(variation=0.3, price_per_worker_hour=1.5, network_gbps=3200.0, gpu_speed=0.5)
    found = of(PAPER, cluster=said)
    assert found["update: variation"].value == 0.3
    assert found["price of a worker's hour"].value == 1.5
    assert found["network of a node"].value == 3200.0
    slow, fast = (of(PAPER, cluster=one)["prepare: sketch"].value for one in (said, CLUSTER))
    assert slow == pytest.approx(2 * fast)


def test_gpus_find_edges_where_a_preparation_would_have_them_do_it() -> None:
    with_cpu_nodes, opencv = replace(CLUSTER, cpu_nodes=2), SketchConfig(detector="opencv")
    assert costs.gpus_find_edges(PAPER, CLUSTER)
    assert not costs.gpus_find_edges(PAPER, with_cpu_nodes), "they prepare before there are workers"
    assert not costs.gpus_find_edges(replace(PAPER, data=replace(PAPER.data, sketch=opencv)), CLUSTER)
    assert not costs.gpus_find_edges(replace(PAPER, train=replace(PAPER.train, use_gpu=False)), CLUSTER)
    for share, cluster in ((0.25, with_cpu_nodes), (0.0, CLUSTER)):
        said = replace(PAPER, data=replace(PAPER.data, gpus_per_actor=share))
        assert costs.gpus_find_edges(said, cluster) == (share > 0)


@pytest.mark.parametrize(("name", "value"), [("workers", (0,)), ("gpu_speed", 0.0), ("variation", -1.0)])
def test_impossible_clusters_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"cluster.{name}"):
        ClusterConfig(**{name: value})  # type: ignore[arg-type]
