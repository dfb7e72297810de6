"""Measure models on a protocol's images with Ray Data; go on where it was stopped; leave numbers, pictures and a page.

Images are measured in parts of a fixed size, each by one actor on one thread, and each part's numbers are a file that
is written whole or not at all. So the digits do not depend on how many actors there are, nor on whether the evaluation
was interrupted.

| stage | reads columns | gives columns |
| --- | --- | --- |
| `_MeasurePart` | part: int64 | part, images: int64; error, message: string |

| path under `<storage.path>/evaluations/<name>` | holds |
| --- | --- |
| `parts/part-NNNNN.parquet` | what `measure.measure` gives of 16 images |
| `images.parquet` | a row per candidate and image, without embeddings |
| `report.html` | tables, plots and pictures, for people |
| `result.json` | every number with its interval, and what it belongs to; written last |
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data.read_api import from_blocks
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize

from scfegan_ray import errors, locks, nodes, places, precision, registry, storage, tracking
from scfegan_ray.allocation import KEEP_MEMORY
from scfegan_ray.config import Config, ModelConfig
from scfegan_ray.data import prepare, sources
from scfegan_ray.data.dataset import (
    DIGEST,
    DatasetInfo,
    fingerprint,
    is_test_key,
    read_parquet,
    settle_identity_pattern,
    shard_name,
    to_parquet,
    trains_on,
)
from scfegan_ray.data.prepare import assigned_device, num_cores
from scfegan_ray.data.rows import PreparedDataset
from scfegan_ray.errors import ConfigError, DataError, ScFeganError
from scfegan_ray.evaluation import measure, networks, references, report, summary
from scfegan_ray.evaluation.networks import Given
from scfegan_ray.evaluation.options import AS_USUAL, MeasuringConfig
from scfegan_ray.evaluation.protocol import Protocol, check_holes
from scfegan_ray.models.generator import Generator
from scfegan_ray.progress import Progress
from scfegan_ray.provenance import source_sha256
from scfegan_ray.serving import loading
from scfegan_ray.training.state import digest_of
from scfegan_ray.weights import SFACE_WEIGHTS

logger = logging.getLogger(__name__)

_RESULT, _REPORT, _IMAGES = "result.json", "report.html", "images.parquet"
_BY_AREA = ("hole_psnr", "ssim", "hole_ssim", "hole_flip", "seam", "sketch_f1", "guided_gain")

PART_IMAGES = 16
"""The digits of networks depend on how many images pass through them at a time, so this never changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationResult:
    """What was found.

    Attributes:
        protocol: the name of every number.
        metrics: by `candidate/metric`; means over the images.
        report: URI of the page.
        result: URI of the JSON file.
        num_images: that were measured.
        images_per_second: of this session; 0 where nothing was left to do.
    """

    protocol: str
    metrics: dict[str, float]
    report: str
    result: str
    num_images: int
    images_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What each process must know, but for weights.

    Attributes:
        place: URI of the evaluation's folder.
        protocol: of all numbers.
        dataset: URI of the prepared dataset.
        info: its description.
        rows: positions of its images, in the order of their keys.
        models: name, shapes, and size of training of each.
        has_identity: faces are told apart.
        use_gpu: each process has a GPU.
        retry_seconds: for how long storage may fail.
    """

    place: str
    protocol: Protocol
    dataset: str
    info: DatasetInfo
    rows: list[int]
    models: list[tuple[str, ModelConfig, int]]
    has_identity: bool
    use_gpu: bool
    retry_seconds: float

    @property
    def num_parts(self) -> int:
        """How many parts there are."""
        return -(-len(self.rows) // PART_IMAGES)

    def positions(self, number: int) -> range:
        """Return which of the rows a part measures."""
        return range(number * PART_IMAGES, min((number + 1) * PART_IMAGES, len(self.rows)))

    def part_place(self, number: int) -> str:
        """Return the URI of a part's file."""
        return storage.join(self.place, "parts", shard_name(number))


def evaluate(
    config: Config,
    models: Sequence[str],
    measuring: MeasuringConfig = AS_USUAL,
    *,
    max_images: int | None = None,
    session: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> EvaluationResult:
    """Measure models and references side by side.

    Args:
        config: `data.prepared` names a prepared dataset, whose held-back images are taken; else `data.source`
            photographs, all of which are taken; where it is `embedded`, what the first model held back of what it
            learnt from. `data.size_px` is the size of photographs. The result goes under `storage.path`.
        models: URIs as `loading.load_generator` takes them.
        measuring: what is measured, and by how many.
        max_images: take no more, the first by key. Default: all.
        session: Ray must run within it; entered only where something is left to do.

    Raises:
        ConfigError: no model is given, two have one name, none has the size of the images, or there is no GPU.
        DataError: there are no images to measure on.
        ModelError: a model or weights cannot be had.
        CheckpointError: a folder is no model.
        StorageError: storage or tracking cannot be used.
        BusyError: another process does the same evaluation.
    """
    config = places.settle(config)
    if not models:
        raise ConfigError("no model to evaluate; give --model, such as models:/scfegan-generator/1")
    loaded = [loading.load_generator(uri, tracking_uri=tracking.tracking_uri(config)) for uri in models]
    names = [model.name for model in loaded]
    for name in names:
        if names.count(name) > 1 or name in references.REFERENCES:
            raise ConfigError(f"two rows of the result would be called {name}; give each --model once")
    wanted = _wanted(config, loaded[0])
    _check_sizes(loaded, wanted.data.size_px)
    check_holes(measuring.holes)
    given = networks.read(measuring.lpips, measuring.inception)
    tracking.check_usable(config)  # numbers of hours deserve a place
    with nodes.lasting(functools.partial(_cluster, config, session)) as cluster:
        dataset_uri = prepare.ensure_prepared(wanted, session=cluster)
        work, facts = _plan(config, loaded, dataset_uri, measuring, given, max_images)
        rate = 0.0
        with locks.held(work.place, f"the evaluation {work.place}"):
            if not storage.exists(storage.join(work.place, _RESULT)):
                weights = [serialize(dict(model.generator.state_dict())) for model in loaded]
                with cluster():
                    rate = _measure(work, weights, given, measuring.num_workers)
                    _finish(config, work, weights, facts)
    result = json.loads(storage.read_bytes(storage.join(work.place, _RESULT)))
    return EvaluationResult(
        protocol=work.protocol.name,
        metrics=flat(result),
        report=storage.join(work.place, _REPORT),
        result=storage.join(work.place, _RESULT),
        num_images=len(work.rows),
        images_per_second=rate,
    )


@contextlib.contextmanager
def _cluster(config: Config, session: Callable[[], contextlib.AbstractContextManager[object]]) -> Iterator[None]:
    """Enter a session of Ray whose cluster has what measures."""
    with session():
        if config.train.use_gpu:
            cure = "give --train.no-use-gpu"
            nodes.require({"GPU": 1}, "each process that measures needs", cure, may_wait=config.train.wait_for_nodes)
        yield


def flat(result: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a `result.json` by `candidate/metric`, without their intervals."""
    return {
        f"{name}/{metric}": summary.mean_of(value)
        for name, numbers in result["candidates"].items()
        for metric, value in numbers.items()
    }


def _wanted(config: Config, first: loading.LoadedModel) -> Config:
    """Return a config that names the prepared dataset to measure on, or its source."""
    if config.data.prepared is None and config.data.source == sources.EMBEDDED:
        data = replace(first.config.data, gpus_per_actor=config.data.gpus_per_actor)
        if data.prepared is not None and DatasetInfo.read(data.prepared) is None:
            data = replace(data, prepared=None)  # to be made anew, here
        return replace(config, data=data, seed=first.config.seed)
    if config.data.prepared is None:
        # All of them; with lines that are the same on every kind of machine.
        exact = replace(config.data.sketch, precision="float32")
        return replace(config, data=replace(config.data, test_fraction=1.0, sketch=exact))
    there = DatasetInfo.read(config.data.prepared)
    return config if there is None else replace(config, data=replace(config.data, size_px=there.size_px))


def _plan(
    config: Config,
    models: list[loading.LoadedModel],
    dataset_uri: str,
    measuring: MeasuringConfig,
    given: Mapping[str, Given],
    max_images: int | None,
) -> tuple[Work, dict[str, Any]]:
    """Choose the images; return what is to be done, and all that its numbers belong to."""
    info = DatasetInfo.read(dataset_uri)
    assert info is not None, "it was just prepared"
    protocol = Protocol(images=_images_of(info), size_px=info.size_px, holes=measuring.holes)
    dataset = PreparedDataset.open(dataset_uri, info=info)
    held_back = [int(row) for row in dataset.test_rows]
    rows = [
        row for row, area in zip(held_back, dataset.said("hair_area", held_back), strict=True) if protocol.takes(area)
    ][:max_images]
    if not rows:
        why = "none of its images is held back" if not held_back else "of none of its images the hair is known"
        raise DataError(
            f"nothing can be measured on {dataset_uri}: {why}; give photographs that no model was trained on, as "
            "--data.source"
        )
    keys = [dataset.key(row) for row in rows]
    digests = dataset.said("sha256", rows)
    trained_on = _trained_on(models, info, keys)
    for name, number in trained_on.items():
        if number is None:
            logger.warning(
                "whether %s was trained on some of these %d images is not known: what it learnt from cannot be read "
                "here, or has images of the same names", name, len(keys),
            )  # fmt: skip
        elif number:
            logger.warning(
                "%s was trained on %d of these %d images: its numbers say less about faces that it has not seen",
                name, number, len(keys),
            )  # fmt: skip
    has_identity = networks.has_embedder(measuring.identity)
    facts = {
        "protocol": protocol.name,
        "images": {
            "num_images": len(rows),
            "fingerprint": fingerprint(
                pa.table({"key": keys, "sha256": pa.array(map(bytes.fromhex, digests), DIGEST)})
            ),
            "source": info.source,
            "license": info.license,
            "sketch_detector": info.sketch_detector,
            "sketch_precision": info.sketch_precision,
        },
        "models": {
            model.name: {
                "uri": model.uri,
                "weights_sha256": digest_of({"generator": model.generator.state_dict()}),
                "size_px": model.config.data.size_px,
                "trained_on": trained_on[model.name],
            }
            for model in models
        },
        "made_by": {
            "source_sha256": source_sha256(),
            "torch": torch.__version__,
            "opencv": cv2.__version__,
            "device": "cuda" if config.train.use_gpu else "cpu",
            "identity": SFACE_WEIGHTS.member_sha256 if has_identity else None,
        }
        | {name: one.sha256 for name, one in given.items()},
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
    work = Work(
        place=storage.join(storage.absolute(config.storage.path), "evaluations", f"{protocol.name}-{digest}"),
        protocol=protocol,
        dataset=dataset_uri,
        info=info,
        rows=rows,
        models=[(model.name, model.config.model, model.config.data.size_px) for model in models],
        has_identity=has_identity,
        use_gpu=config.train.use_gpu,
        retry_seconds=config.storage.retry_seconds,
    )
    return work, facts


def _images_of(info: DatasetInfo) -> str:
    """Name a dataset's images as protocols do."""
    if info.source == sources.EMBEDDED:
        return "drawn"
    return "celebahq" if info.license == sources.CELEBAMASK_HQ_LICENSE else "faces"


def _check_sizes(models: Sequence[loading.LoadedModel], size_px: int) -> None:
    """Refuse images of a size that no model was trained at, or that one cannot take.

    Raises:
        ConfigError: they are.
    """
    sizes = {model.config.data.size_px for model in models}
    if size_px not in sizes:
        known = " and ".join(str(size) for size in sorted(sizes))
        raise ConfigError(
            f"the models were trained at {known} px, the images have {size_px}; give --data.size-px {min(sizes)}, or "
            "the preset of their training"
        )
    for model in models:
        divisor = 2**model.config.model.num_downsamples
        if size_px % divisor:
            raise ConfigError(f"{model.name} takes sides divisible by {divisor}, the images have {size_px}")
        if model.config.data.size_px != size_px:
            logger.warning("%s was trained at %d px, not at %d", model.name, model.config.data.size_px, size_px)


def _trained_on(models: Sequence[loading.LoadedModel], info: DatasetInfo, keys: Sequence[str]) -> dict[str, int | None]:
    """Count the images that each model was trained on; None where nobody knows.

    Args:
        models: whose configs name what they learnt from.
        info: describes the dataset that the images are of.
        keys: of the images.
    """
    of_dataset = functools.cache(lambda uri: _in_dataset(uri, info, keys))  # which several models may share
    return {
        model.name: of_dataset(uri) if (uri := model.config.data.prepared) else _in_source(model.config, info, keys)
        for model in models
    }


def _in_dataset(uri: str, info: DatasetInfo, keys: Sequence[str]) -> int | None:
    """Count the images that a dataset trains on, which may be the one that they are of, or another one."""
    try:
        learnt = DatasetInfo.read(uri)
        if learnt is None:
            return None
        number = trains_on(uri, learnt, keys)
    except ScFeganError:
        return None
    # From elsewhere an image of the same name may be the same photograph, or another one.
    return number if not number or learnt.source == info.source else None


def _in_source(config: Config, info: DatasetInfo, keys: Sequence[str]) -> int | None:
    """Count them by what the config of an older model says, which names no dataset, but where its images came from."""
    data = config.data
    if data.source != sources.EMBEDDED and storage.absolute(data.source) != info.source:
        return None
    known = set(keys)
    if data.source == sources.EMBEDDED:
        known &= set(sources.EmbeddedFaces.list_keys(data.num_embedded, config.seed).to_pylist())
    pattern = settle_identity_pattern(data.identity_pattern, keys)
    return sum(not is_test_key(key, data.test_fraction, pattern) for key in known)


def _measure(work: Work, weights: Sequence[bytes], given: Mapping[str, Given], num_workers: int) -> float:
    """Measure the parts that lack; return images per second."""
    there = set(storage.list_files(storage.join(work.place, "parts")))
    missing = [number for number in range(work.num_parts) if shard_name(number) not in there]
    if not missing:
        return 0.0
    if there:
        logger.info("going on with the %d of %d parts that are there", work.num_parts - len(missing), work.num_parts)
    total = sum(len(work.positions(number)) for number in missing)
    logger.info("measuring %d models and references on %d images, as %s", len(work.models), total, work.protocol.name)
    done, rate = _make_parts(work, weights, given, missing, total, num_workers)
    if done != total:
        raise DataError(f"{total - done} of {total} images got lost in the evaluation; run it again")
    return rate


def _make_parts(
    work: Work,
    weights: Sequence[bytes],
    given: Mapping[str, Given],
    missing: Sequence[int],
    total: int,
    num_workers: int,
) -> tuple[int, float]:
    """Make parts on the cluster; return how many images they hold, and how many a second were measured."""
    number = num_workers or (int(ray.cluster_resources().get("GPU", 1)) if work.use_gpu else num_cores())
    pool = ray.data.ActorPoolStrategy(size=max(1, min(number, len(missing))), enable_true_multi_threading=True)
    dataset = from_blocks([pa.table({"part": pa.array([one], pa.int64())}) for one in missing])
    progress: Progress | None = None
    done, first, began = 0, 0, time.monotonic()
    with nodes.seen_by_all({"storage.path": work.place}, {"data.prepared": work.dataset}) as landmarks:
        measured = dataset.map_batches(
            _MeasurePart,
            fn_constructor_args=[work, [ray.put(one) for one in weights], [ray.put(given)], landmarks],
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=1,
            num_gpus=1 if work.use_gpu else 0,
            runtime_env={"env_vars": KEEP_MEMORY},
        )
        for block in measured.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in block.to_pylist():
                if row["error"]:
                    raise getattr(errors, row["error"])(row["message"])
                done += row["images"]
            if progress is None:  # the rate counts from the first part, when the actors have started
                progress = Progress("evaluate", total=total, start=done, log=logger.info)
                first, began = done, time.monotonic()
            progress.update(done)
    return done, (done - first) / max(time.monotonic() - began, 1e-9)


class _MeasurePart:
    """Ray Data stage: the number of a part to its file."""

    def __init__(
        self, work: Work, weights: list[ray.ObjectRef], given: list[ray.ObjectRef], landmarks: nodes.Landmarks
    ) -> None:
        self._work, self._weights, self._given, self._landmarks = work, weights, given, landmarks
        self._device = assigned_device()
        self._bench: Bench | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """Measure one part; see the module's docstring."""
        number, count, error, message = block.column("part")[0].as_py(), 0, "", ""
        try:
            if self._bench is None:
                self._landmarks.check()
                self._bench = Bench(self._work, ray.get(self._weights), ray.get(self._given)[0], self._device)
            count = self._bench.make(number)
        except ScFeganError as raised:
            error, message = type(raised).__name__, str(raised)
        return pa.Table.from_pylist([{"part": number, "images": count, "error": error, "message": message}])


class Bench:
    """Measures parts, one after the other, in one process.

    Args:
        work: what to measure.
        weights: of each model, as safetensors.
        given: of networks that measure.
        device: where networks compute.
    """

    def __init__(self, work: Work, weights: Sequence[bytes], given: Mapping[str, Given], device: torch.device) -> None:
        # More threads would add up the same numbers in another order.
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        precision.check_available(device, "give --train.no-use-gpu")
        precision.set_up(device)
        torch.backends.cudnn.benchmark = False  # which would let chance choose an algorithm
        self._work = work
        self._dataset = PreparedDataset.open(work.dataset, info=work.info)
        self._networks = networks.build(given, has_faces=work.has_identity, device=device)
        self.candidates: dict[str, measure.Candidate] = {}
        for (name, shapes, size_px), content in zip(work.models, weights, strict=True):
            generator = Generator(shapes)
            generator.load_state_dict(deserialize(content))
            generator.silence_untrained_taps(size_px)
            self.candidates[name] = measure.model_candidate(generator, device)
        for name, fill in references.REFERENCES.items():
            self.candidates[name] = measure.reference_candidate(fill)

    def make(self, number: int) -> int:
        """Measure one part and write its file, so that readers see all of it or nothing; return its images."""
        at = self._work.positions(number)
        rows, others = zip(*(self.read(one) for one in at), strict=True)
        found = measure.measure(self.candidates, rows, others, self._work.protocol, self._networks)
        place, content = self._work.part_place(number), to_parquet(found)
        storage.retrying(lambda: storage.write_bytes(place, content), self._work.retry_seconds, logger.warning)
        return len(at)

    def read(self, at: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return an image by its position among those of the evaluation, and the one whose lines it is given."""
        rows = self._work.rows
        other = (at + max(1, len(rows) // 2)) % len(rows)
        return self._dataset.row(rows[at]), self._dataset.row(rows[other])


def _finish(config: Config, work: Work, weights: Sequence[bytes], facts: dict[str, Any]) -> None:
    """Add up all parts, draw, record, and write what lies beside the parts, the result last."""
    everything = pa.concat_tables([read_parquet(work.part_place(number)) for number in range(work.num_parts)])
    table = summary.Table(everything)
    names = [name for name, _, _ in work.models]
    candidates = {
        name: {metric: asdict(interval) for metric, interval in intervals.items()} | table.others(name)
        for name, intervals in table.means().items()
    }
    compared = [name for name in table.candidates if name != summary.PHOTOGRAPH]  # models come first
    differences = [
        {
            "first": one,
            "second": other,
            "metrics": {metric: asdict(interval) for metric, interval in table.differences(one, other).items()},
        }
        for at, one in enumerate(names)
        for other in compared[at + 1 :]
    ]
    by_area = {
        metric: [{"holes": name, "num_images": count, "means": values} for name, count, values in table.by_area(metric)]
        for metric in _BY_AREA
    }
    result = facts | {"candidates": candidates, "differences": differences, "by_area": by_area}
    cases = report.choose(table, names[0])
    places = dict(zip(table.keys, range(len(table.keys)), strict=True))  # images are in the order of their keys
    sheets = _draw(work, weights, [places[case.key] for case in cases])
    files = {
        _IMAGES: to_parquet(everything.drop_columns(list(measure.FEATURES))),
        _REPORT: report.page(result, table, names, cases, sheets),
    }
    _record(config, work, result, files)
    for name, content in files.items():
        storage.write_bytes(storage.join(work.place, name), content)


def _draw(work: Work, weights: Sequence[bytes], at: Sequence[int]) -> dict[str, bytes]:
    """Draw pictures of some images, on a node that may compute."""
    remote = ray.remote(num_cpus=1, num_gpus=1 if work.use_gpu else 0)(_draw_here)
    sheets: dict[str, bytes] = ray.get(remote.remote(work, weights, at))
    return sheets


def _draw_here(work: Work, weights: Sequence[bytes], at: Sequence[int]) -> dict[str, bytes]:
    bench = Bench(work, weights, {}, assigned_device())
    rows, others = zip(*(bench.read(one) for one in at), strict=True)
    return report.draw(bench.candidates, [name for name, _, _ in work.models], rows, others, work.protocol)


def _record(config: Config, work: Work, result: dict[str, Any], files: dict[str, bytes]) -> None:
    """Record numbers and files in a run of MLflow's, and the numbers beside the versions that they are of.

    Args:
        config: names the server.
        work: what was measured.
        result: of it; where it is recorded is added.
        files: of it, by name; the result is added.
    """
    metrics = flat(result)
    tags = {"kind": "evaluation", "protocol": work.protocol.name, "images": result["images"]["fingerprint"]}
    run_id = tracking.start_run(config, work.protocol.name, tags=tags)
    try:
        result["tracking"] = {"run_id": run_id}
        files[_RESULT] = json.dumps(result, indent=2, allow_nan=False).encode()
        tracking.record(config, run_id, metrics, files)
        for name, model in result["models"].items():
            if model["uri"].startswith("models:"):
                own = {key.partition("/")[2]: value for key, value in metrics.items() if key.startswith(f"{name}/")}
                said = json.dumps({"run_id": run_id} | own)
                registry.tag_version(config, model["uri"], {f"evaluation.{work.protocol.name}": said})
    except BaseException:
        tracking.end_run(config, run_id, "FAILED")
        raise
    tracking.end_run(config, run_id, "FINISHED")
