"""The model card of a version: what it is for, what it learnt from, how good it is, and what it must not be used for.

The order of its sections is that of Hugging Face's model cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scfegan_ray import registry
from scfegan_ray.config import Config
from scfegan_ray.evaluation.measure import METRICS
from scfegan_ray.evaluation.summary import PHOTOGRAPH, mean_of
from scfegan_ray.serving import loading

_SHOWN = (
    "hole_psnr", "ssim", "hole_flip", "seam", "seam_step_p90", "identity", "sketch_f1", "foreign_sketch_f1",
    "recolored_delta_e", "guided_gain",
)  # fmt: skip
_UNKNOWN = "unknown"


def write(config: Config, uri: str, result: Mapping[str, Any]) -> str:
    """Write the card of a version, in Markdown.

    Args:
        config: names the registry.
        uri: `models:/NAME/VERSION`.
        result: of an evaluation in which the version is a row, as `result.json` has it.
    """
    tags = registry.tags_of(config, uri)
    name = loading.name_of(uri)
    size = result["models"][name]["size_px"]
    license_tag = tags.get("data_license", _UNKNOWN)
    made = "published by its authors, imported by" if tags.get("kind") == "released" else "trained by"
    known, seen = result["images"], result["models"][name]["trained_on"]
    said = "whether it was trained on some is not known" if seen is None else f"it was trained on {seen or 'none'}"
    return f"""# {name}

Fills an erased region of a face photograph so that it obeys lines and colors that a person drew: SC-FEGAN (Jo & Park,
ICCV 2019), {made} scfegan_ray.

## Uses

Editing photographs of faces, {size} pixels wide and aligned as in training, with the consent of whom they show.

**Not for** deceiving anybody about what a person looked like, said or did; for telling who somebody is; or for any use
that the license of its training data forbids: {license_tag}.

## Bias, risks and limits

- It knows the faces that it learnt from; faces, hair, hats or poses that are rare there are filled worse.
- What it fills is invented: no evidence of what a photograph showed.
- Pixels outside the hole stay as they are; colors that faces do not have are obeyed less exactly (recolored_delta_e).

## Training

| | |
| --- | --- |
| images | {tags.get("data_source", _UNKNOWN)}, fingerprint {tags.get("data_fingerprint", _UNKNOWN)} |
| license of the images | {license_tag} |
| images seen | {tags.get("images_seen", _UNKNOWN)} |
| sketches | {tags.get("sketch_detector", _UNKNOWN)} |
| features of the losses | {tags.get("features", _UNKNOWN)} |
| precision | {tags.get("precision", _UNKNOWN)} |
| weights_sha256 | {tags.get("weights_sha256", _UNKNOWN)} |
| checkpoint | {tags.get("checkpoint", _UNKNOWN)} |
| code | {tags.get("git_revision", _UNKNOWN)}, source {tags.get("source_sha256", _UNKNOWN)} |

## Evaluation

`{result["protocol"]}` on {known["num_images"]} images ({known["source"]}, fingerprint {known["fingerprint"]}); of these
{said}. Means with intervals of 95 %. Pictures of the best, the median
and the worst cases: `report.html` of MLflow's run {result["tracking"]["run_id"]}.

{_table(result, name)}
"""


def _table(result: Mapping[str, Any], name: str) -> str:
    rows = [one for one in result["candidates"] if one != PHOTOGRAPH]
    rows.sort(key=lambda one: one != name)  # itself first
    lines = [f"| | {' | '.join(rows)} |", f"| --- |{' --- |' * len(rows)}"]
    for metric in _SHOWN:
        if metric not in result["candidates"][name]:
            continue
        unit = METRICS[metric].unit if metric in METRICS else ""
        cells = (_cell(result["candidates"][row].get(metric)) for row in rows)
        lines.append(f"| {metric}{f' ({unit})' if unit else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    spread = f" ({value['low']:.4g} to {value['high']:.4g})" if isinstance(value, dict) else ""
    return f"{mean_of(value):.4g}{spread}"
