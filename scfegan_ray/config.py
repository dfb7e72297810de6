"""What can be set, with the reason for each default.

Every section is a frozen dataclass; the docstring under a field is its `--help`. Values marked
*published* are the paper's; the others were never published and are ours to choose.
`__post_init__` only checks. Standard library only, so that `--help` costs no heavy import.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from scfegan_ray.errors import ConfigError


def _check(condition: object, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_fraction(name: str, value: float) -> None:
    _check(0.0 <= value <= 1.0, f"{name} is {value}; it is a fraction: give a value from 0 to 1")


def _check_not_blank(name: str, value: str | None, cure: str) -> None:
    _check(value is None or value.strip(), f"{name} is empty; {cure}")


def check_positive(name: str, value: float) -> None:
    """Refuse a setting, which the text names, that is not above 0, by a `ConfigError`."""
    _check(value > 0, f"{name} is {value}; give a value above 0")


def check_not_negative(name: str, value: float) -> None:
    """Refuse a setting, which the text names, that is below 0, by a `ConfigError`."""
    _check(value >= 0, f"{name} is {value}; give 0 or more")


def _check_choice(name: str, value: object, choices: Collection[object]) -> None:
    _check(value in choices, f"{name} is {value!r}; give one of {', '.join(map(str, choices))}")


def _check_pattern(name: str, value: str | None) -> None:
    try:
        re.compile(value or "")
    except re.error as error:
        raise ConfigError(f"{name} is {value!r}, no regular expression ({error}); mend it, or leave it out") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class SketchConfig:
    """How a photograph becomes a line drawing."""

    detector: Literal["auto", "hed", "opencv"] = "auto"
    """hed: the HED network (all presets but `quickstart`); opencv: plain gradients; auto: hed, or opencv with a warning
    when its weights cannot be had."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the HED network. bfloat16 is several times as fast where the hardware has it, and moves 2 sketch pixels in
    1,000. auto: bfloat16, on all workers, where the machine that starts the preparation computes it natively."""
    working_size_px: int = 0
    """Side at which edges are detected, before the lines are brought to the data's size; 0 takes 128 more than the
    data's size, at most 384 (HED misses the eyes of very small faces; beyond 384 it costs more than it shows)."""
    clahe_clip: float = 2.0
    """Contrast limit of the histogram equalization on luminance; 0 turns it off."""
    clahe_tiles: int = 8
    """Tiles per side of the histogram equalization."""
    threshold: float = 0.4
    """Edge probability from which a ridge is a line; it is followed on down to a little more than half of this."""
    smoothing_sigma: float = 1.0
    """Gaussian sigma along each curve, in pixels at a size of 256; 0 leaves the curves as thinned."""
    min_component_px: float = 12.0
    """Shortest line kept, in pixels at a size of 256."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, choices in (("detector", ("auto", "hed", "opencv")), ("precision", ("auto", "float32", "bfloat16"))):
            _check_choice(f"data.sketch.{name}", getattr(self, name), choices)
        _check_fraction("data.sketch.threshold", self.threshold)
        check_positive("data.sketch.clahe_tiles", self.clahe_tiles)
        for name in ("clahe_clip", "smoothing_sigma", "min_component_px"):
            check_not_negative(f"data.sketch.{name}", getattr(self, name))
        _check(
            self.working_size_px == 0 or (self.working_size_px >= 32 and self.working_size_px % 16 == 0),
            f"data.sketch.working_size_px is {self.working_size_px}; give 0, or a multiple of 16 of at least 32",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ColorConfig:
    """How a photograph becomes a color map."""

    median_px: int = 3
    """Side of the median filter (published)."""
    bilateral_passes: int = 2
    """Number of bilateral filters after the median filter."""
    bilateral_sigma_color: float = 30.0
    """Bilateral filter: how far apart two colors may be and still blend, in 8-bit levels."""
    bilateral_sigma_space: float = 6.0
    """Bilateral filter: reach in pixels at a size of 256; the window of one pass ends 3 pixels away."""
    num_superpixels: int = 120
    """Superpixels per image, for images without labels and for `split_parts`."""
    split_parts: tuple[str, ...] = ("background", "cloth")
    """Labeled parts that have no single color and are cut by superpixels; the others take one color per piece."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(self.median_px % 2 == 1, f"data.color.median_px is {self.median_px}; give an odd number")
        check_positive("data.color.num_superpixels", self.num_superpixels)


CELEBA_HQ_EYES = (0.3796, 0.4780, 0.6216, 0.4790)
"""Mean centers of both eyes over 580 faces of CelebAMask-HQ with both labeled: left x, left y, right x, right y as seen
in the image, as fractions of the side; their spread is 0.008 across and 0.005 down."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParserConfig:
    """A network that labels photographs which nobody labeled."""

    model: str | None = None
    """ONNX file of a face parser, weights inside; local path or s3:// URI. Default: none; such photographs get no hair
    and the eyes of `data.eyes`."""
    classes: str = "celebamask"
    """What the network's classes are, in its own order. celebamask: the ids of CelebAMask-HQ (background skin nose
    eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip hair hat ear_r neck_l neck cloth), as SegFormer
    parsers have them; bisenet: the order of zllrunning's BiSeNet and its ports (background skin l_brow r_brow l_eye
    r_eye eye_g l_ear r_ear ear_r nose mouth u_lip l_lip neck neck_l cloth hair hat). Or all names, separated by commas;
    `background` or nothing stands for a class to be ignored, and a name may come twice. `l_` is the subject's left."""
    size_px: int = 512
    """Side at which the network sees a photograph."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the network's input channels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from each input channel, in `channel_order`, where a photograph spans 0 to 1 (default: ImageNet's)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """What each channel is then divided by; 0.00392157 with a mean of 0 makes the input span 0 to 255."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_not_blank("data.parser.model", self.model, "give an ONNX file, or leave it out for no parser")
        _check(
            self.classes.strip(),
            "data.parser.classes is empty; give celebamask, bisenet, or the network's class names separated by commas",
        )
        _check(self.size_px >= 32, f"data.parser.size_px is {self.size_px}; give at least 32")
        for name in ("mean", "std"):
            values = getattr(self, name)
            _check(len(values) == 3, f"data.parser.{name} has {len(values)} values; give 3, one for each channel")
        for value in self.std:
            check_positive("a value of data.parser.std", value)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where raw faces come from and how they are prepared."""

    source: str = "embedded"
    """Raw faces: `embedded` (portraits drawn by this package), a folder of images, a folder in the official
    CelebAMask-HQ layout, a .zip of either, or a .parquet file or folder of them with an image column; local path or
    s3:// URI."""
    image_column: str = "image"
    """Column of encoded images in a Parquet source: bytes, or a struct with a field `bytes`."""
    align: Literal["auto", "celeba_hq", "none"] = "none"
    """What is taken of each photograph. none: its central square. celeba_hq: each of its faces, turned, cropped and
    resized as those of CelebA-HQ were; a square photograph that is aligned already is taken as it is; several faces of
    one become NAME#1, NAME#2 and so on, the largest first; what is too small (its square is less than half of
    `size_px`, or 64 pixels), turned away or blurred is left out, and so is a photograph without a face. auto:
    celeba_hq, or none with a warning when the weights that find faces cannot be had. The drawn portraits and the
    official CelebAMask-HQ layout are aligned already, whatever is said here. Default: none, which wants no weights and
    leaves out no picture, such as a painting, for the sake of a face that was not found in it."""
    max_megapixels: float = 100.0
    """Photographs of more pixels are refused before they are decoded, which takes 3 to 8 bytes a pixel."""
    max_images: int | None = None
    """Take no more than this many photographs of the source, the first ones by name. Default: all."""
    num_embedded: int = 256
    """How many faces to draw when the source is `embedded`."""
    prepared: str | None = None
    """Prepared dataset. Default: under the storage path, made from the source when it is not there yet."""
    size_px: int = 512
    """Side of the prepared square images (published: 512)."""
    test_fraction: float = 1 / 30
    """Share of images held back from training; which ones is a pure function of the key (published: 1,000 of
    30,000). 0 on purpose: nothing is measured then, and no checkpoint is kept for being the best."""
    identity_pattern: str | None = None
    """Regular expression that finds in an image's name who it shows: its first group, or all that it matches. All
    pictures of one person are then held back, or none is, so that nobody who is measured was trained on. Empty: each
    image stands for itself. Default: so, too, but where all names are two numbers as in 10000_087915.jpg and a hundred
    first ones differ, the first one is the person."""
    license: str | None = None
    """License tag of the photographs, carried to the registered model. Default: what the source says of itself."""
    shard_images: int = 64
    """Photographs per Parquet file; an interrupted preparation does at most this many per worker again."""
    gpus_per_actor: float | None = None
    """Share of a GPU that each actor takes which detects edges: 0.5 puts two on a GPU, and as many on each GPU that
    joins later; all cores of all nodes do the rest. 0: cores do all of it. Default: 0.5 where HED detects and each node
    that has GPUs sees them when the preparation starts, else 0; the log says which, and why."""
    feed: Literal["auto", "local", "ray"] = "auto"
    """Where training examples are made. local: by processes beside each worker, from this machine's copy of the
    dataset, or, with `train.window_images`, of the shards that it is about to need; ray: by Ray Data, on whatever CPUs
    of the cluster no worker takes, and sent to the workers; auto: ray where workers lack cores that other nodes have,
    or disk space for the copy, else local, and says so. Examples are the same bytes either way, and a run may be
    resumed with the other one."""
    sketch: SketchConfig = field(default_factory=SketchConfig)
    color: ColorConfig = field(default_factory=ColorConfig)
    parser: ParserConfig = field(default_factory=ParserConfig)
    eyes: tuple[float, float, float, float] = CELEBA_HQ_EYES
    """Where the eyes are in aligned faces without labels, as fractions of the side: x and y of the eye at the image's
    left, then of the one at its right (default: the mean of CelebA-HQ)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_not_blank(
            "data.source", self.source, "give a folder, a .zip or .parquet, or `embedded` for the drawn portraits"
        )
        _check_not_blank("data.prepared", self.prepared, "give a folder, or leave it out for one under storage.path")
        _check_fraction("data.test_fraction", self.test_fraction)
        _check(
            len(self.eyes) == 4,
            f"data.eyes has {len(self.eyes)} values; give 4: x and y of the left eye, then of the right one",
        )
        _check_choice("data.feed", self.feed, ("auto", "local", "ray"))
        _check_choice("data.align", self.align, ("auto", "celeba_hq", "none"))
        for value in self.eyes:
            _check_fraction("a value of data.eyes", value)
        _check(
            self.eyes[0] < self.eyes[2],
            f"data.eyes has its left eye at x = {self.eyes[0]} and its right one at {self.eyes[2]}; "
            "left and right are the image's: swap them",
        )
        _check_pattern("data.identity_pattern", self.identity_pattern)
        check_positive("data.num_embedded", self.num_embedded)
        _check(self.max_images is None or self.max_images > 0, f"data.max_images is {self.max_images}; give 1 or more")
        check_positive("data.shard_images", self.shard_images)
        _check(
            0 < self.max_megapixels <= 170,
            f"data.max_megapixels is {self.max_megapixels}; give a value above 0, up to 170 (what Pillow takes)",
        )
        _check(
            self.gpus_per_actor is None or 0 <= self.gpus_per_actor <= 1,
            f"data.gpus_per_actor is {self.gpus_per_actor}; give a share of one GPU, from 0 to 1",
        )
        _check(self.size_px >= 16, f"data.size_px is {self.size_px}; give at least 16")


@dataclass(frozen=True, kw_only=True, slots=True)
class StrokeConfig:
    """How strokes miss the photograph's own lines and colors, as a person's do (ours; the paper's do not miss them).

    Each image draws how much of all that it gets, evenly from nothing to what is said here. Lengths are fractions of
    the image side.
    """

    sketch_absent_probability: float = 0.0
    """Probability that no line is drawn at all, as when a user only paints."""
    wobble: float = 0.0
    """How far lines stray: standard deviation, alike within about an eighth of the side."""
    missing: float = 0.0
    """Share of all lines that is missing, in pieces of about an eighth of the side."""
    added_lines: float = 0.0
    """Mean number of short lines that are drawn where the photograph has none."""
    thickness: float = 0.0
    """By how much lines are thicker than the photograph's."""
    color_shift: float = 0.0
    """How far each color is off: standard deviation of each channel, in 8-bit levels."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("sketch_absent_probability", "wobble", "missing", "thickness"):
            _check_fraction(f"masks.strokes.{name}", getattr(self, name))
        for name in ("added_lines", "color_shift"):
            check_not_negative(f"masks.strokes.{name}", getattr(self, name))


WOBBLY = StrokeConfig(wobble=0.02, missing=0.3, added_lines=2.0, thickness=0.02, color_shift=12.0)
"""Of the protocol `wobbly`, and of training for it; whoever changes this gives protocols another version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskConfig:
    """Algorithm 1 of the paper (free-form holes) and the color brush; lengths are fractions of the image side.

    The maxima were never published. These give, over 2,000 holes without hair, the same area at every size from 64
    to 512: mean 0.22 of the image; percentiles 5, 25, 50, 75, 95: 0.07, 0.14, 0.22, 0.30, 0.39. The color brush
    paints 0.60 of the hole on average: nothing of one hole in ten, all of another one in ten, and anything between.
    """

    max_lines: int = 6
    """maxDraw: most polylines per hole."""
    max_vertices: int = 12
    """maxLine: most vertices per polyline."""
    max_angle_degrees: float = 60.0
    """maxAngle: largest turn at a vertex."""
    max_length: float = 0.35
    """maxLength: longest segment."""
    min_brush: float = 0.03
    """Thinnest brush."""
    max_brush: float = 0.13
    """Thickest brush."""
    min_hole_area: float = 0.05
    """Smallest share of the image that a hole covers; a hole outside the range is drawn anew."""
    max_hole_area: float = 0.5
    """Largest share of the image that a hole covers."""
    eye_line_probability: float = 1.0
    """Probability that a polyline is followed by one that starts at an eye: 1 in Algorithm 1, 0 for holes that know
    nothing of eyes."""
    hair_probability: float = 0.1
    """Probability that the hair region is added to the hole, where the dataset has one."""
    color_coverage: float = 0.6
    """Mean share of the hole that the color brush paints (the published figure shows about 0.6)."""
    color_absent_probability: float = 0.1
    """Probability that nothing of the hole is painted, as when a user only sketches."""
    noise_probability: float = 0.159
    """Probability of a 1 in the noise map (the published demo's integer-cast Gaussian)."""
    strokes: StrokeConfig = field(default_factory=StrokeConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in (
            "eye_line_probability",
            "hair_probability",
            "color_coverage",
            "color_absent_probability",
            "noise_probability",
            "min_hole_area",
            "max_hole_area",
        ):
            _check_fraction(f"masks.{name}", getattr(self, name))
        for name in ("max_lines", "max_vertices", "max_length", "min_brush"):
            check_positive(f"masks.{name}", getattr(self, name))
        _check(
            self.min_brush <= self.max_brush,
            f"masks.min_brush {self.min_brush} exceeds masks.max_brush {self.max_brush}; swap them",
        )
        _check(
            self.min_hole_area < self.max_hole_area,
            f"masks.min_hole_area {self.min_hole_area} is not below masks.max_hole_area {self.max_hole_area}; "
            "widen the range",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shapes of the generator and the discriminator; the defaults are the published ones."""

    base_channels: int = 64
    """Width of the generator's first layer; later layers grow to 8 times that."""
    num_downsamples: int = 7
    """Halvings of the generator's encoder; the image side must be divisible by 2 to this power."""
    dilations: tuple[int, ...] = (2, 4, 8, 16)
    """Dilations of the bottleneck's convolutions."""
    output: Literal["direct", "residual"] = "direct"
    """What the generator's last layer gives. direct: the image (published); residual: what is to be added to a smooth
    fill of the hole from the known pixels around it and the paint in it, so that the fill meets the photograph from
    the start."""
    stages: int = 1
    """Generators in a row (published: 1). 2: a first one of the same shape fills the hole, and a second one is given
    its fill in place of an empty hole, as in DeepFillv2, whose first one has a loss of its own."""
    discriminator_base_channels: int = 64
    """Width of the discriminator's first layer; later layers grow to 4 times that."""
    discriminator_num_layers: int = 6
    """Convolutions of the discriminator, each of stride 2."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("base_channels", "num_downsamples", "discriminator_base_channels", "discriminator_num_layers"):
            check_positive(f"model.{name}", getattr(self, name))
        _check(self.stages in (1, 2), f"model.stages is {self.stages}; give 1 or 2")
        _check(self.output in ("direct", "residual"), f"model.output is {self.output!r}; give direct or residual")
        _check(self.num_downsamples <= 16, f"model.num_downsamples is {self.num_downsamples}; give at most 16")
        for dilation in self.dilations:
            check_positive("one of model.dilations", dilation)


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights of the loss terms and the choices the paper leaves open."""

    hole: float = 6.0
    """alpha: weight of the hole within per_pixel, where the known region has 1 (unpublished)."""
    border: float = 0.0
    """Additional weight, within per_pixel, of the hole's pixels along its border, where a fill meets the photograph:
    all at the border, half from a 64th of the side on, none from a 32nd on (ours; the paper has none)."""
    perceptual: float = 0.05
    """sigma (published)."""
    style: float = 120.0
    """gamma: weight of style_generated + style_composite (published)."""
    total_variation: float = 0.1
    """upsilon (published)."""
    adversarial: float = 0.001
    """beta (published)."""
    real_score_penalty: float = 0.001
    """epsilon: weight of E[D(ground truth)^2] (published)."""
    gradient_penalty: float = 10.0
    """theta (published)."""
    real_score_penalty_in: Literal["discriminator", "generator"] = "discriminator"
    """Which loss holds the epsilon term. The paper prints it in the generator's, where its gradient is zero."""
    gradient_penalty_reduction: Literal["mean", "root", "sum"] = "mean"
    """How the grid of n scores becomes one number per image before the penalty's gradient is taken (unpublished): their
    mean, their sum over the root of n, or their sum."""
    total_variation_region: Literal["dilated_hole", "hole", "image"] = "dilated_hole"
    """Where total variation is taken (unpublished). dilated_hole: the hole and one pixel around it, which smooths its
    seam, as in partial convolution; hole: within it only; image: everywhere."""
    feature_scale: Literal["imagenet", "caffe"] = "imagenet"
    """Input scale of VGG-16, to which its activations are proportional (unpublished). imagenet: mean and deviation
    1, to which the published weights belong; caffe: 0 to 255, at which perceptual weighs 57 times and style 3,292
    times as much."""
    features: str = "hed"
    """VGG-16 for perceptual and style: a path or URI of torchvision's state dict; `hed`: the trunk of the HED
    weights; `random`: seeded random filters; `auto` (in `quickstart`): hed, or random with a warning when it cannot be
    had. Settled when a run starts, and kept."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, float):
                _check(value >= 0, f"losses.{f.name} is {value}; a weight is 0 or more")
            choices = typing.get_args(typing.get_type_hints(type(self))[f.name])
            if choices:
                _check_choice(f"losses.{f.name}", value, choices)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizationConfig:
    """Adam for both networks, and the moving average of the generator."""

    generator_learning_rate: float = 1e-4
    """Peak rate of the generator."""
    discriminator_learning_rate: float = 4e-4
    """Peak rate of the discriminator."""
    beta1: float = 0.5
    """Adam's first moment decay."""
    beta2: float = 0.9
    """Adam's second moment decay."""
    warmup_images: int = 0
    """Images over which both rates rise from 0 to their peak."""
    final_rate_fraction: float = 1.0
    """Both rates fall along a half cosine to this share of their peak at `train.images`; 1 keeps them."""
    ema_half_life_images: float = 10_000.0
    """Images after which a past generator counts half in the moving average; 0 turns averaging off. Early in
    training the half-life is capped at a twentieth of the images seen."""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_positive("optimization.generator_learning_rate", self.generator_learning_rate)
        check_positive("optimization.discriminator_learning_rate", self.discriminator_learning_rate)
        _check_fraction("optimization.final_rate_fraction", self.final_rate_fraction)
        check_not_negative("optimization.warmup_images", self.warmup_images)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How long to train, on what, and how often to report."""

    num_workers: int = 2
    """Ray Train workers (DDP ranks); one GPU each when `use_gpu`."""
    min_workers: int = 0
    """Go on with as few workers as this where more cannot be had, as after the loss of a node, and with more again
    when they come back. 0: never with fewer than `num_workers`."""
    use_gpu: bool = False
    """Give each worker a GPU and use NCCL; otherwise gloo on CPUs."""
    cpus_per_worker: float = 0.5
    """CPUs that Ray reserves per worker. Half a CPU lets two workers fit beside other tasks on a 2-core machine."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the convolutions of the generator, the frozen features and the discriminator in training, forward and
    backward; weights, the gradient penalty, the spectral norm, Gram matrices and every sum of a loss stay float32.
    auto: bfloat16 where all nodes that can hold a worker compute it natively, else float32; settled when a run starts,
    and kept. A worker whose hardware lacks bfloat16 ends a run that computes in it."""
    tf32: Literal["off", "networks", "all"] = "off"
    """Where GPUs may round what goes into float32 arithmetic to the 10 bits of TF32, which is several times as fast.
    off: nowhere; networks: in the convolutions of the generator's update, forward and backward, but not in the
    discriminator's update, whose gradient penalty suffers from it, nor in the Gram matrices; all: there, too.
    Held-back images are always measured without."""
    compile: bool = False
    """Let `torch.compile` fuse the generator and the feature network. It takes a minute and a C++ compiler, pays where
    memory traffic is the limit, as on GPUs; on CPUs, where convolutions are most of the work, it made an update
    at 64 px a tenth slower."""
    gradient_compression: Literal["off", "bfloat16"] = "off"
    """How gradients travel between workers. bfloat16: rounded, which halves what is sent and is lost in the noise of a
    batch; it pays where the network between nodes is the limit (`--benchmark step` prints the bytes of an update), and
    costs two casts where it is not."""
    wait_for_nodes: bool = False
    """Let the workers wait for nodes that an autoscaling cluster will add, or for what others use, as long as it takes,
    instead of refusing to start."""
    threads_per_worker: int = 0
    """torch threads per worker; 0 shares the machine's cores among its workers."""
    loader_processes: int = 1
    """Processes per worker that decode images and draw masks ahead of the step; 0: in the worker itself. On one core
    of a server one makes 150 images a second at 512 px, 900 at 128, and takes 100 MB."""
    batch_size: int = 16
    """Global batch: images per update over all workers; it does not change with their number."""
    window_images: int | None = None
    """Images within which an epoch is shuffled: the dataset's shards come in random order, and so many images after one
    another are mixed, so that whoever makes examples reads shards one after the other and keeps two windows of them. 0:
    an epoch is a permutation of all images, for which each machine that makes examples copies the whole dataset.
    Default: 0, but 4096 where the dataset is large (200 GB at 2 bytes a pixel: 380,000 images at 512 px). Settled when
    a run starts, and kept."""
    max_images_per_pass: int = 0
    """Most images that a worker takes through the networks at once, for the sake of memory; a larger share of the
    batch takes several passes, whose gradients add up to the same. 0: the whole share."""
    images: int = 1_000_000
    """When to stop, in images seen."""
    log_every_images: int = 320
    """How often loss parts, rates and throughput go to the tracker, and a progress line to the log."""
    gradient_norms_every_images: int = 16_000
    """How often to measure how strongly each weighted term of the loss pulls at the generated image, which costs
    about one more update; 0 for never."""
    checkpoint_every_images: int = 50_000
    """How often to evaluate, write a grid of fixed examples, and checkpoint."""
    checkpoint_every_seconds: float = 600.0
    """Longest time without a checkpoint. Together with how long writing one takes, which happens beside training,
    this bounds what the death of a worker, of the job or of the machine can cost."""
    checkpoints_to_keep: int = 2
    """Newest checkpoints kept; the one with the best `objective_db` on held-back images is kept besides."""
    reference_curve: str | None = None
    """File that says how such runs usually go, as `jobs/tune.py --grid seeds` writes it (`reference_curve.json`): the
    log then tells whether losses are within the usual range. Default: that of this package, where there is one for
    these very settings, as for `quickstart`."""
    max_failures: int = 2
    """Restarts from the last checkpoint after a worker dies."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, choices in (
            ("precision", ("auto", "float32", "bfloat16")),
            ("tf32", ("off", "networks", "all")),
            ("gradient_compression", ("off", "bfloat16")),
        ):
            _check_choice(f"train.{name}", getattr(self, name), choices)
        for name in (
            "num_workers",
            "batch_size",
            "images",
            "log_every_images",
            "checkpoint_every_images",
            "checkpoint_every_seconds",
            "checkpoints_to_keep",
            "cpus_per_worker",
        ):
            check_positive(f"train.{name}", getattr(self, name))
        for name in (
            "max_images_per_pass",
            "gradient_norms_every_images",
            "max_failures",
            "threads_per_worker",
            "loader_processes",
        ):
            check_not_negative(f"train.{name}", getattr(self, name))
        _check(
            self.window_images is None or self.window_images >= 0,
            f"train.window_images is {self.window_images}; give 0 or more",
        )
        _check(
            self.batch_size >= self.num_workers,
            f"train.batch_size {self.batch_size} cannot be shared by train.num_workers {self.num_workers}; "
            "give at least one image per worker",
        )
        _check(
            0 <= self.min_workers <= self.num_workers,
            f"train.min_workers is {self.min_workers}; give 0 to train.num_workers = {self.num_workers}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SentinelConfig:
    """What is done about updates that would ruin the networks."""

    explosion_factor: float = 20.0
    """A batch whose loss is not finite, or whose size exceeds its usual one (and 1) this many times, or whose
    gradient is not finite, is skipped."""
    max_skipped: int = 5
    """After so many skipped batches in a row, training goes back to the last checkpoint."""
    rate_fraction: float = 0.5
    """Going back, both learning rates are multiplied by this, and what is left of the epoch comes in another order
    and with other holes."""
    max_rollbacks: int = 3
    """Training gives up where it would have to go back once more."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check(
            self.explosion_factor > 1,
            f"sentinel.explosion_factor is {self.explosion_factor}; give a value above 1",
        )
        check_positive("sentinel.max_skipped", self.max_skipped)
        _check(0 < self.rate_fraction <= 1, f"sentinel.rate_fraction is {self.rate_fraction}; give up to 1, above 0")
        check_not_negative("sentinel.max_rollbacks", self.max_rollbacks)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """What is measured on held-back images, always with the same masks."""

    num_images: int = 64
    """Held-back images per evaluation (fewer when the dataset has fewer)."""
    grid_images: int = 8
    """Held-back images shown in the grid."""
    batch_size: int = 8
    """Images per evaluation batch."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for f in dataclasses.fields(self):
            check_positive(f"evaluation.{f.name}", getattr(self, f.name))


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """Search over the loss weights."""

    sampler: Literal["random", "optuna"] = "random"
    """What draws the weights of trials. optuna: its tree-structured Parzen estimator, which learns from the trials that
    have ended (`pip install 'scfegan-ray[optuna]'`); it pays from some ten trials on."""
    num_trials: int = 8
    """Trials, the first of which has the configured (by default the paper's) weights."""
    max_concurrent_trials: int = 0
    """Trials at a time; 0 takes as many as fit the cluster."""
    reports: int = 4
    """Times each trial is compared over its length; a weak one is stopped at any but the last."""
    reduction_factor: int = 2
    """ASHA: one in this many trials survives each comparison."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_choice("tune.sampler", self.sampler, ("random", "optuna"))
        check_positive("tune.num_trials", self.num_trials)
        check_positive("tune.reports", self.reports)
        _check(
            self.reduction_factor >= 2,
            f"tune.reduction_factor is {self.reduction_factor}; give 2 or more",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageConfig:
    """Where runs, checkpoints and prepared data live."""

    path: str = "./runs"
    """Folder or s3:// prefix; on a cluster of several nodes it must be one that all of them reach."""
    retry_seconds: float = 300.0
    """How long storage that fails is tried again before the job does: photographs, shards and listings of a
    preparation, and checkpoints, for which training goes on meanwhile. A full disk and missing permissions are not
    tried again."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_not_blank("storage.path", self.path, "give a folder or s3:// prefix, or leave it out for ./runs")
        check_not_negative("storage.retry_seconds", self.retry_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """MLflow."""

    uri: str | None = None
    """Tracking and registry server. Default: MLFLOW_TRACKING_URI, else a SQLite file under the storage path."""
    experiment: str = "scfegan"
    """Experiment that runs are filed under."""
    model_name: str = "scfegan-generator"
    """Registered model that gets a new version at the end of a run."""
    patience_seconds: float = 60.0
    """How long the end of training waits for records that the server has not taken yet; until then they are kept and
    tried again."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _check_not_blank("tracking.uri", self.uri, "give a server's URI, or leave it out for the default")
        check_not_negative("tracking.patience_seconds", self.patience_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One run, whole: what a checkpoint and a registered model carry."""

    run_name: str | None = None
    """Name of the run; the same name resumes it. Letters, digits, dot, dash and underscore. Default: the preset's
    name and the time."""
    seed: int = 0
    """Fixes weights, order of images, masks, brushes and noise."""
    data: DataConfig = field(default_factory=DataConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sentinel: SentinelConfig = field(default_factory=SentinelConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        """Check what concerns several sections."""
        check_not_negative("seed", self.seed)
        name = self.run_name
        _check(
            name is None or (re.fullmatch(r"\w[\w.-]*", name, re.ASCII) and name not in ("prepared", "mlartifacts")),
            f"run_name is {name!r}; use letters, digits, dot, dash and underscore, and not `prepared` or `mlartifacts`",
        )
        divisor = 2**self.model.num_downsamples
        _check(
            self.data.size_px % divisor == 0,
            f"data.size_px {self.data.size_px} is not divisible by 2^model.num_downsamples = {divisor}; "
            f"give a multiple of {divisor} or fewer downsamples",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts, ready for JSON."""
        result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return result

    def changed(self, settings: Mapping[str, Any]) -> Config:
        """Return a config with some settings changed.

        Args:
            settings: by dotted name, as `flatten` gives them.

        Raises:
            ConfigError: a name is unknown, or a value is refused.
        """
        values = self.to_dict()
        for name, value in settings.items():
            *sections, last = name.split(".")
            place: Any = values
            for section in sections:
                place = place.get(section) if isinstance(place, dict) else None
            _check(
                isinstance(place, dict) and last in place, f"unknown setting {name}; see --help for those that exist"
            )
            place[last] = value
        return Config.from_dict(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Build from nested dicts such as `to_dict` returns.

        Raises:
            ConfigError: a key is unknown, or a value is refused by a section's check.
        """
        return _build(cls, values, "")


T = typing.TypeVar("T")

_RETIRED = frozenset({"train.loader_threads"})
"""Settings of earlier versions that checkpoints and runs still hold, and that mean nothing any more."""


def _build(cls: type[T], values: dict[str, Any], prefix: str) -> T:
    hints = typing.get_type_hints(cls)
    values = {name: value for name, value in values.items() if f"{prefix}{name}" not in _RETIRED}
    unknown = sorted(set(values) - set(hints))
    _check(not unknown, f"unknown setting {prefix}{unknown[0] if unknown else ''}; see --help for those that exist")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            _check(isinstance(value, dict), f"{prefix}{name} is {value!r}; it is a section: give a mapping")
            arguments[name] = _build(typing.cast("type[Any]", hint), value, f"{prefix}{name}.")
        elif typing.get_origin(hint) is tuple:
            arguments[name] = tuple(value)
        else:
            arguments[name] = value
    return cls(**arguments)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested dicts into one with dotted names, as the command line spells them."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(before: Config, now: Config, free: Collection[str]) -> Iterator[tuple[str, Any, Any]]:
    """Give the settings in which two configs differ: dotted name and both values.

    Args:
        before: the one.
        now: the other.
        free: settings, or sections, that may differ.
    """
    old, new = flatten(before.to_dict()), flatten(now.to_dict())
    for name in sorted(old):
        is_free = any(name == one or name.startswith(f"{one}.") for one in free)
        if not is_free and old[name] != new[name]:
            yield name, old[name], new[name]
