"""What operators see of a run: Debian's Prometheus scrapes one, and the dashboard asks for just what arrives."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import LONG_ARGUMENTS, ROOT, descendants, folder_for_ray, start, wait_for, wait_until
from servers import free_port

from scfegan_ray.data.feed_pool import NUM_SLOTS
from scfegan_ray.training.timing import GAUGES

EXPORTED = {f"ray_scfegan_{name}" for name in GAUGES}


def test_dashboard_and_manual_name_what_is_exported_and_nothing_else() -> None:
    dashboard = (ROOT / "cluster" / "grafana.json").read_text()
    queries = [target["expr"] for panel in json.loads(dashboard)["panels"] for target in panel["targets"]]
    assert {query.partition("{")[0] for query in queries} == EXPORTED
    assert set(re.findall(r"\w*scfegan_(?!ray)\w+", dashboard)) == EXPORTED, "variables, too"
    manual = (ROOT / "cluster" / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", manual, re.MULTILINE)) & {*re.findall(r"ray_\w+", manual)} == EXPORTED
    assert set(re.findall(r"ray_scfegan_\w+", manual)) == EXPORTED


class Prometheus:
    """Debian's, over the targets that a Ray session writes down.

    Args:
        targets: file of the session.
        folder: for its data and log.
    """

    def __init__(self, targets: Path, folder: Path) -> None:
        self._folder, self._uri = folder, f"http://127.0.0.1:{free_port()}"
        scraping = {"job_name": "ray", "file_sd_configs": [{"files": [str(targets)]}]}
        settings = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": [scraping]}
        (folder / "prometheus.yml").write_text(json.dumps(settings))

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the present samples of an expression; none as long as the server does not answer."""
        question = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self._uri}/api/v1/query?{question}", timeout=5) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except (urllib.error.URLError, OSError):
            return []
        return found

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with (self._folder / "log").open("w") as log:
            server = subprocess.Popen(
                [
                    *("prometheus", f"--config.file={self._folder}/prometheus.yml"),
                    *(f"--storage.tsdb.path={self._folder}/data", f"--web.listen-address={self._uri[7:]}"),
                ],
                stdout=log,
                stderr=log,
            )
        try:
            yield
        finally:
            server.kill()
            server.wait(30)


@pytest.mark.ray
@pytest.mark.skipif(not shutil.which("prometheus"), reason="no Prometheus here (Debian: apt-get install prometheus)")
def test_prometheus_scrapes_each_rank_of_a_run(tiny_dataset: str, tmp_path: Path) -> None:
    arguments = ("--data.prepared", tiny_dataset, "--train.images", "1000000", "--run-name", "observed")
    log, place = tmp_path / "log", tmp_path / "prometheus"
    place.mkdir()
    found: dict[str, dict[str, float]] = {}

    def arrived() -> bool:
        for name in EXPORTED:
            samples = prometheus.query(f'{name}{{run="observed"}}')
            found[name] = {sample["metric"]["rank"]: float(sample["value"][1]) for sample in samples}
        is_whole = all(set(by_rank) == {"0", "1"} for by_rank in found.values())
        return is_whole and min(found["ray_scfegan_images_seen"].values()) >= 40  # an interval, not the first update

    with folder_for_ray() as folder:
        job = start("train", *LONG_ARGUMENTS, *arguments, cwd=tmp_path, environment={"RAY_TMPDIR": folder}, log=log)
        try:
            wait_for(lambda: re.search(r"train \d+/1000000 images", log.read_text()), job, log)
            [targets] = Path(folder).glob("ray/session_2*/prom_metrics_service_discovery.json")
            prometheus = Prometheus(targets, place)
            with prometheus.running():
                wait_for(arrived, job, log)
        finally:
            processes = descendants(job.pid)
            job.send_signal(signal.SIGINT)
            with job:
                job.communicate(timeout=120)
        wait_until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
    for name, by_rank in found.items():
        assert all(math.isfinite(value) and value >= 0 for value in by_rank.values()), name
    speed = {name: found[f"ray_scfegan_{name}"]["0"] for name in GAUGES}
    assert speed["images_seen"] in range(40, 1_000_000, 4)
    assert all(speed[name] > 0 for name in ("images_per_second", "step_seconds", "checkpoint_seconds"))
    for by_rank in (found["ray_scfegan_step_seconds"], found["ray_scfegan_compute_seconds"]):
        assert all(0 < seconds < 10 for seconds in by_rank.values()), "each rank says its own"
    assert max(found["ray_scfegan_feed_ready_batches"].values()) <= NUM_SLOTS
    assert speed["skipped_batches"] == speed["rollbacks"] == 0
