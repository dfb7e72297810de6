"""An edit's document carried out on a photograph: the same bytes from the page, from a script and from a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from scfegan_ray import storage, tracking
from scfegan_ray.config import Config
from scfegan_ray.errors import DataError
from scfegan_ray.serving import current, edits, loading
from scfegan_ray.serving.editor import FaceEditor
from scfegan_ray.serving.photograph import FileFormat, Filling, Photograph

FORMATS: dict[str, FileFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}
"""Of a file by the end of its name."""

ResultT = TypeVar("ResultT")


def fill(editor: FaceEditor, crop: NDArray[np.uint8], face: edits.FaceEdit) -> Filling:
    """Carry out what was drawn on one face.

    Args:
        editor: with its model.
        crop: (S, S, 3) uint8 sRGB: the face at the model's size.
        face: what was drawn.

    Raises:
        DataError: the crop does not fit the model.
    """
    maps = edits.rasterize(face, len(crop))
    editor.set_image(crop)
    return Filling(face.square, editor.edit(maps.mask, maps.sketch, maps.color, face.seed), maps.mask)


def edit_photograph(editor: FaceEditor, photograph: Photograph, edit: edits.Edit, file_format: FileFormat) -> bytes:
    """Carry out a document.

    Each face is taken from the photograph as it was, so that their order does not matter where they do not overlap.

    Returns:
        The edited photograph as a file, see `Photograph.encode`.
    """
    size_px = editor.config.data.size_px
    fillings = [fill(editor, photograph.crop(face.square, size_px), face) for face in edit.faces]
    return photograph.encode(fillings, file_format)


def replay(
    config: Config, edit: str, photograph: str, target: str, *, model: str = "", device: str = "cpu"
) -> dict[str, str]:
    """Carry out a saved document on a file, in float32.

    Args:
        config: names the registry.
        edit: the document, a file, local or `s3://`.
        photograph: as well.
        target: file to write, .png or .jpg, as well; one that is there is replaced.
        model: as in `current.choose`; empty for the version that the document names.
        device: where to compute.

    Returns:
        picture: absolute URI of what was written; model_uri: what edited.

    Raises:
        DataError: the document or the photograph cannot be used, or the name of `target` says no format.
        ModelError: there is no such model.
        StorageError: a file cannot be read or written.
    """
    place = storage.absolute(target)
    file_format = format_of(place)
    document = _of_file(edit, edits.parse_edit, edits.MAX_BYTES + 1)
    opened = _of_file(photograph, lambda data: Photograph.decode(data, max_megapixels=config.data.max_megapixels), None)
    loaded = loading.load_generator(
        current.choose(config, model or document.model), tracking_uri=tracking.tracking_uri(config)
    )
    editor = FaceEditor(loaded.generator, loaded.config, device)
    storage.write_bytes(place, edit_photograph(editor, opened, document, file_format))
    return {"picture": place, "model_uri": loaded.uri}


def _of_file(uri: str, read: Callable[[bytes], ResultT], limit: int | None) -> ResultT:
    try:
        return read(storage.read_bytes(uri, limit=limit))
    except DataError as error:
        raise DataError(f"{uri}: {error}") from error


def format_of(name: str) -> FileFormat:
    """Return the format of a file by the end of its name.

    Raises:
        DataError: it is none that can be written.
    """
    for end, file_format in FORMATS.items():
        if name.lower().endswith(end):
            return file_format
    raise DataError(f"{name} names no format; end it with one of {', '.join(FORMATS)}")
