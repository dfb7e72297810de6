"""Weights that others published, as a version of the registry."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scfegan_ray import faces, places, registry, storage, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import ConfigError
from scfegan_ray.models import editing, released
from scfegan_ray.presets import preset
from scfegan_ray.training.state import digest_of

logger = logging.getLogger(__name__)

RELEASED_LICENSE = "CC BY-NC 4.0 (the weights, by their authors); non-commercial research only (CelebA-HQ)"
"""License tag of what the authors of SC-FEGAN published, and learnt it from."""


def import_released(config: Config, uri: str) -> str:
    """Register the generator that the authors of SC-FEGAN published, once.

    The version is one like any other: it edits, is evaluated and may be promoted. Its weights take and give RGB.

    Args:
        config: `tracking` and `storage` say where to; all else is as published.
        uri: of the weights, see `released.read_variables`.

    Returns:
        `models:/NAME/VERSION`; that of the same weights where they were imported before.

    Raises:
        ConfigError: no weights are named, or the registry cannot be used by the names that were given.
        ModelError: the file holds other weights, or is damaged.
        StorageError: it cannot be read, or the registry cannot be used.
    """
    if not uri:
        raise ConfigError("no weights to import; give --checkpoint SC-FEGAN.ckpt, or an .npz of its variables")
    config = places.settle(config)
    tracking.check_names(config)
    registry.check_names(config)
    variables = released.read_variables(uri)
    generator = released.load_variables(variables)
    place = storage.absolute(uri)
    published = preset("paper_512")
    config = replace(
        published,
        model=released.infer_config(variables),
        # What it learnt from is not here: no evaluation shall take it for drawn faces.
        data=replace(published.data, source=place, license=RELEASED_LICENSE),
        storage=config.storage,
        tracking=config.tracking,
    )
    digest = digest_of({"generator": generator.state_dict()})
    facts = {"kind": "released", "data_license": RELEASED_LICENSE, "data_source": "CelebA-HQ, by the authors"}
    tracking.check_usable(config)
    same = {"kind": "released", "weights_sha256": digest, "format_version": str(editing.FORMAT_VERSION)}
    there = registry.find_version(config, same)
    if there is not None:
        logger.info("%s holds these weights already", there)
        return there
    run_id = tracking.start_run(config, "released", tags=facts)
    status = "KILLED"
    try:
        registered = registry.register(
            generator,
            config,
            run_id,
            weights_sha256=digest,
            tags=facts | {"checkpoint": place, "precision": "float32"},
            example=_example(config.data.size_px),
        )
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        tracking.end_run(config, run_id, status)
    logger.info("registered %s", registered)
    return registered


def _example(size_px: int) -> dict[str, NDArray[np.uint8]]:
    """Return a drawn face with a hole in its middle, a line and a color: stacked uint8 maps."""
    image = faces.draw_face(0, 0, size_px).image[None]
    mask, sketch, color = np.zeros_like(image[..., :1]), np.zeros_like(image[..., :1]), np.zeros_like(image)
    middle = slice(3 * size_px // 8, 5 * size_px // 8)
    mask[:, middle, middle] = 1
    sketch[:, size_px // 2, middle] = 1
    color[:, middle, middle] = image[:, middle, middle].mean((1, 2), keepdims=True).astype(np.uint8)
    return {"image": image, "mask": mask, "sketch": sketch, "color": color}
