"""The generator with its packing around it, 8-bit maps in and an 8-bit picture out; and the files of a version.

| file | holds |
| --- | --- |
| `generator.pt2` | the exported program, which runs where this package is not installed; torch unpickles parts of it |
| `generator.safetensors` | the generator's weights, which this package reads instead |
| `config.json` | the config of its training |
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from scfegan_ray import images
from scfegan_ray.config import Config
from scfegan_ray.errors import ModelError
from scfegan_ray.models.generator import Generator

FORMAT_VERSION = 2
"""Of a version's files. 1 had no `generator.safetensors`."""

PROGRAM, WEIGHTS, CONFIG = "generator.pt2", "generator.safetensors", "config.json"
"""Names of a version's files."""

_MOST_CONFIG_BYTES = 1 << 20


class EditingModel(nn.Module):
    """What a registered model is: everything between what a person drew and the picture that comes back."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, image: Tensor, mask: Tensor, sketch: Tensor, color: Tensor, noise: Tensor) -> Tensor:
        """Fill the hole.

        Args:
            image: (N, H, W, 3) uint8 RGB.
            mask: (N, H, W, 1) uint8; non-zero marks pixels to fill.
            sketch: (N, H, W, 1) uint8; non-zero marks lines.
            color: (N, H, W, 3) uint8 RGB; black means unpainted.
            noise: (N, H, W, 1) uint8; non-zero marks noise.

        Returns:
            (N, H, W, 3) uint8 RGB; pixels outside the mask are those of `image`.
        """
        generated = images.to_uint8(self.generator(self.packed(image, mask, sketch, color, noise)))
        return torch.where(mask.ne(0), generated, image)

    def packed(self, image: Tensor, mask: Tensor, sketch: Tensor, color: Tensor, noise: Tensor) -> Tensor:
        """(N, 9, H, W): what the generator takes of these maps, which are as of `forward`."""
        hole, lines, dots = (plane.ne(0) for plane in (mask, sketch, noise))
        return images.Batch.from_uint8(image, hole, lines, color, dots).generator_input()


def export(generator: Generator, size_px: int) -> ExportedProgram:
    """Turn a generator into a program that needs no code of this package to run.

    Args:
        generator: on the CPU.
        size_px: side of the square images that the program takes; the number of images stays free.
    """
    model = EditingModel(generator).eval()
    image = torch.zeros(2, size_px, size_px, 3, dtype=torch.uint8)
    plane = image[..., :1].clone()
    number = Dim("number", min=1, max=1024)
    names = ("image", "mask", "sketch", "color", "noise")
    with torch.no_grad():
        return torch.export.export(
            model,
            (image, plane, plane.clone(), image.clone(), plane.clone()),
            dynamic_shapes={n: {0: number} for n in names},
        )


def write(generator: Generator, config: Config, folder: Path) -> None:
    """Write the files of a version.

    Args:
        generator: on the CPU.
        config: of its training.
        folder: an existing one.
    """
    torch.export.save(export(generator, config.data.size_px), folder / PROGRAM)
    write_weights(generator, config, folder)


def write_weights(generator: Generator, config: Config, folder: Path) -> None:
    """Write the files of a version that `read` wants, without the program.

    Args:
        generator: on the CPU.
        config: of its training.
        folder: an existing one.
    """
    save_file({name: tensor.contiguous() for name, tensor in generator.state_dict().items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config.to_dict(), indent=2))


def read(folder: Path) -> tuple[Generator, Config]:
    """Read the weights and the config of a version, whoever wrote them: nothing in them is executed.

    Args:
        folder: holds the files of a version; the program is not touched.

    Returns:
        The generator, ready to use, and the config of its training.

    Raises:
        ModelError: a file is missing or damaged, or the weights do not fit the config.
    """
    if not (folder / WEIGHTS).is_file():
        old = (folder / PROGRAM).is_file()
        why = (
            f"it was registered by version 0.1.0, whose weights are in a file that may run code ({PROGRAM}); run the "
            "same training command again, which registers it anew, or give a checkpoint's folder"
            if old
            else "register it anew"
        )
        raise ModelError(f"the model at {folder} has no {WEIGHTS}: {why}")
    try:
        with (folder / CONFIG).open("rb") as file:
            config = Config.from_dict(json.loads(file.read(_MOST_CONFIG_BYTES)))
        weights = deserialize((folder / WEIGHTS).read_bytes())
        # Without memory: what a config asks for is compared before it is taken.
        if len(config.model.dilations) > len(weights):
            raise ModelError(f"{len(weights)} tensors for {len(config.model.dilations)} dilations")
        with torch.device("meta"):
            generator = Generator(config.model)
        for name, tensor in generator.state_dict().items():
            if name in weights and weights[name].dtype != tensor.dtype:
                raise ModelError(f"{name} is {weights[name].dtype}, not {tensor.dtype}")
        generator.load_state_dict(weights, assign=True)
        generator.silence_untrained_taps(config.data.size_px)
    except Exception as error:  # a stranger's files make parsers and constructors raise nearly anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"the model at {folder} cannot be used: {reason}; register it anew") from error
    return generator.requires_grad_(False).eval(), config
