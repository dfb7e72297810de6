"""Which files of a source are photographs, told by the names and sizes of all of them; no file is read.

Three kinds of images are none: part masks of the official CelebAMask-HQ layout, which are read as labels; label files
of any other layout, for which a source is refused; and what this package wrote itself, which is left out.
"""

from __future__ import annotations

import functools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scfegan_ray.data import columns, parsing
from scfegan_ray.storage import File

PHOTOGRAPHS = "CelebA-HQ-img"
PART_MASKS = "CelebAMask-HQ-mask-anno"

_OUTPUT_RECORDS = ("dataset.json", "run.json")
_ARTIFACT_FOLDERS = ("mlartifacts", "mlruns")

_PART_MASK = re.compile(rf"((?:.*/)?)({PART_MASKS}/(?:.*/)?([0-9]{{1,18}}))_(\w+)(\.png)", re.IGNORECASE)

_PARTS = "|".join(sorted((part for part in parsing.LABELS if part != "background"), key=len, reverse=True))
_PART_STEM = re.compile(rf"(.*[^\W_])[\W_]+({_PARTS})", re.IGNORECASE)
_LABEL_WORD = re.compile(
    r"(?:\w*mask|\w*label|lbl|anno|annot|annotation|seg|segm|semseg|\w*segmap|segment|segmentation|pars(?:e|ed|ing)"
    r"|parsemap|matte|matting|trimap)s?|labelids"
)
_PHOTOGRAPH_WORDS = frozenset(
    ("img", "image", "images", "photo", "photograph", "picture", "pic", "face", "rgb", "input", "orig", "original")
)
_MAYBE_LABEL = re.compile(
    rf"mask|label|lbl|anno|seg|pars(?:e|ing)|matt|trimap|[\W_](?:{_PARTS})(?:\.\w+)?$", re.IGNORECASE
)
_NAME_OF_DATASET = re.compile(r"celebamask[-_ ]?(?:hq)?", re.IGNORECASE)
_LOSSLESS = (".png", ".bmp", ".gif", ".tif", ".tiff")
_SAMPLED = 64
_TINY_BYTES = 2048


class PartMask(NamedTuple):
    """One file of the official annotations.

    Attributes:
        root: path of the layout that it belongs to: empty, or ending with a slash.
        start: its path within the layout up to the number.
        number: of the photograph.
        part: name of the class.
        suffix: the end of its name, from the dot on.
    """

    root: str
    start: str
    number: int
    part: str
    suffix: str


def part_mask(name: str) -> PartMask | None:
    """Take the path of an official part mask apart; None for any other file."""
    found = _PART_MASK.fullmatch(name)
    if found is None or found[4] not in parsing.LABELS:
        return None
    return PartMask(found[1], found[2], int(found[3]), found[4], found[5])


def roots_of_photographs(names: Iterable[str]) -> dict[str, str]:
    """Find folders of official photographs: root of the layout -> the folder's own name, both ending with a slash."""
    roots: dict[str, str] = {}
    for folder in {name.rpartition("/")[0] for name in names}:
        parts = folder.split("/")
        for at, part in enumerate(parts):
            if part.lower() == PHOTOGRAPHS.lower():
                roots["".join(f"{above}/" for above in parts[:at])] = f"{part}/"
    return roots


def leave_out_outputs(files: columns.Files, places: Iterable[str]) -> tuple[columns.Files, Counter[str]]:
    """Tell what this package and MLflow wrote from what others did.

    Args:
        files: of a source.
        places: folders within it that are known to be ours.

    Returns:
        The files of others; and for each outermost folder that is ours how many files lie there. A folder is ours
        where it is one of the places, holds the record of a dataset or run, or is one of MLflow's for artifacts.
    """
    ours = set(places)
    for path in columns.values_of(files.names):
        folder, _, name = path.rpartition("/")
        if name in _OUTPUT_RECORDS and folder:
            ours.add(folder)

    @functools.lru_cache(maxsize=1 << 16)
    def outermost(folder: str) -> str | None:
        at = 0
        while at >= 0 and folder:
            at = folder.find("/", at + 1)
            above = folder if at < 0 else folder[:at]
            if above in ours or above.rpartition("/")[2] in _ARTIFACT_FOLDERS:
                return above
        return None

    left_out: Counter[str] = Counter()

    def is_of_others(path: str) -> bool:
        output = outermost(path.rpartition("/")[0])
        if output is not None:
            left_out[output] += 1
        return output is None

    return files.where(is_of_others), left_out


@dataclass(frozen=True, slots=True)
class LabelFiles:
    """Images that are labels of other images by all that their names tell.

    Attributes:
        count: how many there are.
        example: the path of one.
        photographs: folder that holds photographs and none of them; None where there is no such folder.
    """

    count: int
    example: str
    photographs: str | None


@dataclass(slots=True)
class _Group:
    """Files of one folder whose names end in the same kind of word."""

    count: int = 0
    samples: list[File] = field(default_factory=list)
    parts: set[str] = field(default_factory=set)


def find_label_files(images: Sequence[File]) -> LabelFiles | None:
    """Find label files among the images of a source.

    A word such as `mask` or `labels` in a name proves nothing. Files are labels where such a word tells them from
    others of the same stem, and they are not as large as photographs are; or where they are called as the parts of
    CelebAMask-HQ: `00012_hair.png`.

    Args:
        images: of a source, with paths within it.
    """
    groups: dict[tuple[str, str], _Group] = defaultdict(_Group)
    for file in images:
        if _MAYBE_LABEL.search(file.name):
            folder, _, stem, _ = _split(file.name)
            marker = _marker(stem)
            if marker or _has_label_word(folder):
                group = groups[folder, marker]
                group.count += 1
                if marker == "part":
                    group.parts.add(stem.lower())
                if len(group.samples) < _SAMPLED:
                    group.samples.append(file)
    if not groups:
        return None
    wanted = {_core(_split(file.name)[2]) for group in groups.values() for file in group.samples}
    same_core: dict[str, list[tuple[str, str, File]]] = defaultdict(list)
    for file in images:
        folder, _, stem, _ = _split(file.name)
        core = _core(stem)
        if core in wanted:
            same_core[core].append((folder, _marker(stem), file))
    labels: dict[tuple[str, str], _Group] = {}
    folders: set[str] = set()
    for (folder, marker), group in groups.items():
        pairs: list[tuple[File, File]] = []
        beside: set[str] = set()
        for file in group.samples:
            others = [
                (there, other)
                for there, its_marker, other in same_core[_core(_split(file.name)[2])]
                if _is_told_by_label_word((folder, marker), (there, its_marker))
            ]
            if others:
                pairs.append((file, others[0][1]))
                beside.update(there for there, _ in others)
        is_paired = 2 * len(pairs) >= len(group.samples) and not _are_photographs(pairs)
        if is_paired or (marker == "part" and not pairs and _are_parts(group)):
            labels[folder, marker] = group
            folders |= beside
    if not labels:
        return None
    if not folders:
        candidates = ((folder, _marker(stem)) for folder, _, stem, _ in (_split(file.name) for file in images))
        folders = {folder for folder, marker in candidates if (folder, marker) not in labels}
    first = min(labels)
    total = sum(group.count for group in labels.values())
    return LabelFiles(total, labels[first].samples[0].name, _common_folder(folders, {folder for folder, _ in labels}))


def _split(name: str) -> tuple[str, str, str, str]:
    """Return folder, file name, stem and lower suffix of a path whose separator may be a backslash."""
    folder, _, base = name.replace("\\", "/").rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return folder, base, stem, f"{dot}{suffix}".lower()


def _words(text: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", _NAME_OF_DATASET.sub(" ", text))
    return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]


def _is_label_word(word: str) -> bool:
    return _LABEL_WORD.fullmatch(word.strip("0123456789")) is not None


@functools.lru_cache(maxsize=1 << 16)
def _has_label_word(path: str) -> bool:
    return any(_is_label_word(word) for word in _words(path))


def _marker(stem: str) -> str:
    """Return what a file's own name says that it is: "part", "label", or nothing."""
    if _PART_STEM.fullmatch(stem):
        return "part"
    return "label" if any(_is_label_word(word) for word in _words(stem)) else ""


def _core(stem: str) -> str:
    """Return what a photograph's stem and its label's have in common."""
    found = _PART_STEM.fullmatch(stem)
    words = _words(found[1] if found else stem)
    kept = [word for word in words if not _is_label_word(word) and word not in _PHOTOGRAPH_WORDS]
    return "_".join(word.lstrip("0") or "0" if word.isascii() and word.isdigit() else word for word in kept or words)


def _is_told_by_label_word(label: tuple[str, str], photograph: tuple[str, str]) -> bool:
    """Tell whether two places differ by a word for labels that only the first one's has."""
    (folder, marker), (other, other_marker) = label, photograph
    if other_marker and other_marker == marker:
        marker = other_marker = ""
    if other_marker:
        return False
    parts, others = folder.split("/"), other.split("/")
    same = len(os.path.commonprefix([parts, others]))
    if any(_has_label_word(part) for part in others[same:]):
        return False
    return bool(marker) or any(_has_label_word(part) for part in parts[same:])


def _are_photographs(pairs: Sequence[tuple[File, File]]) -> bool:
    """Tell whether the first files of pairs are about as large as the photographs that they would label."""
    size = sum(file.size for file, _ in pairs)
    other = sum(file.size for _, file in pairs)
    suffixes = [(_split(file.name)[3], _split(photograph.name)[3]) for file, photograph in pairs]
    if not all(suffix in _LOSSLESS for suffix, _ in suffixes):
        return 2 * size >= other
    # A PNG of a photograph is several times as large as its JPEG; one of a label map is not.
    factor = 1 if all(suffix in _LOSSLESS for _, suffix in suffixes) else 4
    return 2 * size >= factor * other and size >= _TINY_BYTES * len(pairs)


def _are_parts(group: _Group) -> bool:
    """Tell whether files that end in a part's name and label nothing that is there are part masks all the same."""
    if not all(_split(file.name)[3] in _LOSSLESS for file in group.samples):
        return False
    bases = Counter(found[1] for stem in group.parts if (found := _PART_STEM.fullmatch(stem)))
    return max(bases.values()) > 1 or all(re.fullmatch("[0-9]{4,}", base) for base in bases)


def _common_folder(folders: set[str], of_labels: set[str]) -> str | None:
    def holds_labels(folder: str) -> bool:
        return not folder or any(f"{label}/".startswith(f"{folder}/") for label in of_labels)

    if not folders or "" in folders:
        return None
    common = os.path.commonpath(sorted(folders))
    if not holds_labels(common):
        return common
    return next((folder for folder in sorted(folders) if not holds_labels(folder)), None)
