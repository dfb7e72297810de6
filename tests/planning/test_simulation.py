"""The simulation against values computed by hand, from round figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from scfegan_ray.config import Config, DataConfig, EvaluationConfig, TrainConfig
from scfegan_ray.planning import simulation
from scfegan_ray.planning.costs import Counted, Figure, figures
from scfegan_ray.planning.options import ClusterConfig
from scfegan_ray.planning.simulation import Shape, Training

CONFIG = Config(
    data=DataConfig(source="/faces", gpus_per_actor=0.0),
    train=TrainConfig(
        use_gpu=True,
        num_workers=8,
        loader_processes=2,
        batch_size=64,
        images=640_000,
        checkpoint_every_images=6_400,
        checkpoint_every_seconds=1e9,
    ),
    evaluation=EvaluationConfig(num_images=64),
)
CLUSTER = ClusterConfig(workers_per_node=4, cpus_per_worker=10)
COUNTED = Counted(flops=1e12, calls=1000, gradient_bytes=1e9, checkpoint_bytes=2e9, example_bytes=1_000_000)
ROUND = {
    "prepare: find faces": 0.0,
    "prepare: read, decode, resize, label": 10.0,
    "prepare: sketch": 100.0,
    "prepare: color": 50.0,
    "prepare: encode": 30.0,
    "prepare: write": 10.0,
    "prepare: share that Ray's pipeline reaches": 0.8,
    "prepare: wait for one object": 40.0,
    "row of the dataset": 1e6,
    "feed: decode, hole, brush, noise, stack": 10.0,
    "feed: example on its way": 1e6,
    "held back: measure one image": 100.0,
    "update: one image": 10.0,
    "update: calls": 1000.0,
    "update: one call": 0.02,
    "update: loop around it": 5.0,
    "update: share that a worker reaches": 1.0,
    "update: variation": 0.1,
    "gradients": 1000.0,
    "gradients: share of an update that hides them": 0.5,
    "gradients: share of the network's rate": 0.5,
    "network within a node": 1000.0,
    "network of a node": 100.0,
    "network: one message": 0.0,
    "storage of a node": 8.0,
    "checkpoint": 2000.0,
    "checkpoint: copied for it": 16.0,
    "start": 360.0,
    "price of a worker's hour": 2.0,
    "price of a CPU node's hour": 4.0,
    "price of a GB for a month": 0.02,
}


def known(changed: Mapping[str, float] = MappingProxyType({})) -> dict[str, Figure]:
    return {name: Figure(value, "", "assumed", "") for name, value in (ROUND | dict(changed)).items()}


def parts(
    shape: Shape,
    cluster: ClusterConfig = CLUSTER,
    changed: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, float]:
    return simulation.update_parts(CONFIG, cluster, known(changed), shape, 64)


def test_round_figures_are_all_that_a_plan_is_made_from() -> None:
    assert set(figures(CONFIG, CLUSTER, COUNTED)) == set(ROUND)


def test_nodes_are_filled_one_after_another() -> None:
    assert [Shape.of(number, CLUSTER).nodes for number in (1, 4, 5, 8)] == [1, 1, 2, 2]


def test_one_worker_waits_for_nobody() -> None:
    # 64 images of 10 ms, and 5 ms of loop; its feed makes 200 images a second, in 320 ms, meanwhile.
    found = parts(Shape(1, 1))
    assert found == pytest.approx(
        {"update": 0.64, "launching": 0.0, "slowest rank": 0.0, "gradients": 0.0, "loop": 0.005, "feed": 0.0}
    )


def test_gradients_go_around_a_ring_through_the_narrowest_place() -> None:
    # Within a node: 2 * 3/4 * 8 Gbit at 1000 Gbit/s. Between nodes: 2 * 7/8 * 8 Gbit at half of 100 Gbit/s.
    assert simulation.exchange_seconds(known(), Shape(4, 1)) == pytest.approx(0.012)
    assert simulation.exchange_seconds(known(), Shape(8, 2)) == pytest.approx(0.28)
    assert simulation.exchange_seconds(known(), Shape(1, 1)) == 0.0
    # 1 GB is 39 buckets of 25 MiB; with three small sums 42 messages, each with two hops to and fro for four nodes.
    seconds = [simulation.exchange_seconds(known({"network: one message": each}), Shape(16, 4)) for each in (0.0, 1.0)]
    assert seconds[1] - seconds[0] == pytest.approx(42 * 4 * 0.001)


def test_half_an_update_hides_gradients_but_for_the_last_bucket() -> None:
    # Eight images on each of 8 workers: 80 ms, half of which hides 40 of 280 ms.
    assert parts(Shape(8, 2))["gradients"] == pytest.approx(0.24)
    # At 100 times the rate all but the last bucket is hidden: 26.2 of 1000 MB.
    fast = parts(Shape(8, 2), changed={"network of a node": 1e4})
    assert fast["gradients"] == pytest.approx(0.0028 * 26.2144 / 1000)


def test_small_shares_wait_for_the_host_that_launches_them() -> None:
    # One image takes 10 ms, 1000 calls of 0.02 ms take 20.
    found = parts(Shape(64, 16))
    assert (found["update"], found["launching"]) == pytest.approx((0.01, 0.01))


def test_the_slowest_of_many_is_waited_for() -> None:
    assert simulation.expected_largest(1) == 0.0
    assert simulation.expected_largest(2) == pytest.approx(0.5642, abs=0.03), "1 / sqrt(pi)"
    assert simulation.expected_largest(64) == pytest.approx(2.37, abs=0.04)
    assert parts(Shape(8, 2))["slowest rank"] == pytest.approx(0.08 * 0.1 * simulation.expected_largest(8))


def test_a_feed_that_is_too_slow_is_waited_for_and_cpu_nodes_help() -> None:
    # Two processes at 100 ms an image make 20 images a second: 64 take 3.2 s, of which 0.645 pass anyway.
    slow = {"feed: decode, hole, brush, noise, stack": 100.0}
    assert parts(Shape(1, 1), changed=slow)["feed"] == pytest.approx(3.2 - 0.645)
    # With a node of 32 CPUs, of which 0.8 count, 276 images a second.
    helped = replace(CLUSTER, cpu_nodes=1)
    assert simulation.feed_rate(CONFIG, helped, known(slow), Shape(1, 1)) == pytest.approx(276.0)
    assert parts(Shape(1, 1), helped, slow)["feed"] == 0.0


def test_training_is_paid_with_its_start_its_copies_and_its_pauses() -> None:
    plan = simulation.train(CONFIG, CLUSTER, known(), 36_000, Shape(8, 2))
    update = 0.08 + 0.008 * simulation.expected_largest(8) + 0.24 + 0.005
    # Every 100 updates 2 GB are copied at 2 GB/s, and each rank measures 8 images of 100 ms.
    assert plan.parts["checkpoints, evaluations"] == pytest.approx((1.0 + 0.8) / 100)
    seconds = update + 0.018
    assert plan.images_per_second == pytest.approx(64 / seconds)
    assert plan.copy_hours == pytest.approx(0.01), "36 GB at 1 GB/s"
    assert plan.hours == pytest.approx(10_000 * seconds / 3600 + 0.01 + 0.1)
    assert plan.price == pytest.approx(8 * 2.0 * plan.hours)
    assert plan.efficiency == pytest.approx(0.645 / 8 / seconds)
    assert (plan.bottleneck, plan.loss) == ("gradients", "gradients")
    assert plan.feed_cpus == pytest.approx(plan.images_per_second / 100)


def test_storage_that_is_slower_than_checkpoints_holds_training_up() -> None:
    often = replace(CONFIG, train=replace(CONFIG.train, checkpoint_every_images=64))
    plan = simulation.train(often, CLUSTER, known(), 1, Shape(1, 1))
    # A checkpoint after each update of 0.645 s: copied in 1 s, written in 2, of which 0.645 pass meanwhile.
    assert plan.parts["checkpoints, evaluations"] == pytest.approx(1.0 + 2.0 - 0.645 + 6.4)


def test_batch_may_grow_with_the_workers() -> None:
    grown = replace(CLUSTER, images_per_worker=16)
    plan = simulation.train(CONFIG, grown, known(), 1, Shape(8, 2))
    assert plan.batch_size == 128
    assert plan.parts["update"] == pytest.approx(0.16)
    single = 16 / 0.165
    assert plan.efficiency == pytest.approx(plan.images_per_second / (8 * single))


def test_edges_take_longest_on_cpus_and_color_where_gpus_find_them() -> None:
    # 200 ms an image; 40 CPUs of four workers reach 0.8 of 200 images a second.
    plan = simulation.prepare(CONFIG, CLUSTER, known(), 576_000, Shape(4, 1))
    assert (plan.cpus, plan.bottleneck, plan.dataset_bytes) == (40, "edges", 576e9)
    assert plan.hours == pytest.approx(1.0 + 0.1)
    assert plan.price == pytest.approx(4 * 2.0 * 1.1)
    on_gpus = replace(CONFIG, data=replace(CONFIG.data, gpus_per_actor=0.25))
    plan = simulation.prepare(on_gpus, CLUSTER, known({"prepare: sketch": 1.0}), 576_000, Shape(4, 1))
    assert plan.hours == pytest.approx(0.5 + 0.1), "half of the work is left to the CPUs"
    assert plan.bottleneck == "color"
    plan = simulation.prepare(on_gpus, CLUSTER, known(), 576_000, Shape(4, 1))
    assert (plan.bottleneck, plan.hours) == ("edges", pytest.approx(4.0 + 0.1))


def test_faces_that_are_to_be_found_take_their_part() -> None:
    values = known({"prepare: find faces": 150.0})
    plan = simulation.prepare(CONFIG, CLUSTER, values, 576_000, Shape(4, 1))
    assert (plan.hours, plan.bottleneck) == (pytest.approx(1.75 + 0.1), "find faces")


def test_cpu_nodes_prepare_before_workers_are_paid_for() -> None:
    # 7,168 shards on 64 CPUs: 112 rounds of 64 images of 200 ms, of which 0.8 is reached.
    plan = simulation.prepare(CONFIG, replace(CLUSTER, cpu_nodes=2), known(), 458_752, Shape(4, 1))
    assert plan.cpus == 64 and plan.hours == pytest.approx(1792 / 3600 + 0.1)
    assert plan.price == pytest.approx(2 * 4.0 * plan.hours)


def test_a_shard_is_made_by_one_cpu() -> None:
    plan = simulation.prepare(CONFIG, CLUSTER, known(), 640, Shape(4, 1))
    assert (plan.bottleneck, plan.hours) == ("shards", pytest.approx(16 / 3600 + 0.1))


def test_many_small_objects_make_storage_the_bottleneck() -> None:
    stored = replace(CONFIG, data=replace(CONFIG.data, source="s3://bucket/faces"))
    many = replace(CLUSTER, objects_per_photograph=120)
    plan = simulation.prepare(stored, many, known(), 480_000, Shape(4, 1))
    assert plan.bottleneck == "storage"
    assert plan.hours == pytest.approx(1.0 + 0.1), "120 objects of 40 ms, 16 at a time: 300 ms on each of 40 CPUs"
    assert simulation.prepare(stored, CLUSTER, known(), 480_000, Shape(4, 1)).bottleneck == "edges"


def test_workers_on_cpus_feed_themselves() -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, use_gpu=False, cpus_per_worker=2.0))
    values = known({"update: share that a worker reaches": 0.8, "update: calls": 0.0, "update: loop around it": 0.0})
    found = simulation.update_parts(config, CLUSTER, values, Shape(1, 1), 4)
    # Four images: 10 ms on one CPU, of whose two 0.8 are reached, and 10 ms to make each.
    assert found["update"] == pytest.approx(4 * (0.01 / 2 / 0.8 + 0.01 / 2))
    assert found["feed"] == 0.0


def test_it_bends_where_workers_first_reach_too_little() -> None:
    def plan(workers: int, efficiency: float) -> Training:
        return replace(
            simulation.train(CONFIG, CLUSTER, known(), 1, Shape(1, 1)), workers=workers, efficiency=efficiency
        )

    plans = [plan(64, 0.2), plan(1, 1.0), plan(8, 0.6)]
    assert simulation.bend(plans) == plans[2]
    assert simulation.bend(plans[1:2]) is None


def test_of_a_large_dataset_the_first_window_is_copied() -> None:
    large = simulation.train(CONFIG, CLUSTER, known(), 3_600_000, Shape(8, 2))
    assert large.copy_hours == pytest.approx(0.01 * 4096 / 36_000), "the default order of 3.6 million"
    whole = replace(CONFIG, train=replace(CONFIG.train, window_images=0))
    assert simulation.train(whole, CLUSTER, known(), 3_600_000, Shape(8, 2)).copy_hours == pytest.approx(1.0)
