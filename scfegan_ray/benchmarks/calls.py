"""How many calls of ATen one update takes, and whether the host ever waits in it: counted, so that no GPU is needed.

A GPU is given its work call by call, so an update takes at least as long as making its calls. Counted is what reaches
torch's dispatcher once autograd and autocast have said what they want, in forwards, backwards and optimizers:

- a call is any operator of ATen that is no view. A view is what returns an alias of what it was given without writing
  to it (`view`, `narrow`, `expand`, `detach`, `split`, `chunk`, `unbind` and the like), and the few that are views but
  for their schema (`_unsafe_view`, `unsafe_split`);
- a synchronization is an operator whose result depends on values, for which the host must wait: `_local_scalar_dense`
  (of `item` and `float`), `equal`, `nonzero`, indexing by a mask, and the like;
- a copy between devices is a `_to_copy` or `copy_` from one to another, or what brings the host's numbers to a device
  (`lift_fresh` of `torch.tensor`).

What happens within an operator is not seen, nor is `tolist` of a tensor that the host can read; of one without memory,
as `count_update` has them, and of a GPU's it is.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from scfegan_ray.config import Config
from scfegan_ray.images import Batch
from scfegan_ray.models.features import Features, vgg_random
from scfegan_ray.training.hooks import Means
from scfegan_ray.training.sentinel import Sentinel
from scfegan_ray.training.state import TrainingState
from scfegan_ray.training.step import Pass, train_step

_VIEWS_BUT_FOR_THEIR_SCHEMA = {"_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"}
_COPYING = {"_to_copy", "copy_", "_foreach_copy_"}
_BRINGING = {"lift", "lift_fresh"}
_WAITING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is called while it is entered.

    Attributes:
        by_name: calls by the operator's name.
        synchronizations: those of them for which a host would wait.
        copies: those of them that bring something from one device to another.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_name: Counter[str] = Counter()
        self.synchronizations = 0
        self.copies = 0

    @property
    def total(self) -> int:
        """All calls."""
        return self.by_name.total()

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count a call, and make it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not _is_view(func):
            self.by_name[name] += 1
            self.synchronizations += any(tag in func.tags for tag in _WAITING)
            self.copies += name in _COPYING and len(_devices((args, kwargs, result))) > 1
        self.copies += name in _BRINGING
        return result


def _is_view(func: OpOverload) -> bool:
    aliases = [argument.alias_info for argument in func._schema.arguments if argument.alias_info is not None]
    is_alias = bool(aliases) and not any(alias.is_write for alias in aliases)
    return is_alias or func.overloadpacket.__name__ in _VIEWS_BUT_FOR_THEIR_SCHEMA


def _devices(values: Any) -> set[torch.device]:
    return {leaf.device for leaf in tree_leaves(values) if isinstance(leaf, Tensor)}


def ordinary_update(
    state: TrainingState,
    passes: Sequence[Pass],
    features: Features,
    config: Config,
    means: Means,
    precision: torch.dtype,
) -> None:
    """Make one update as `training.loop` does, on one rank: with the sentinel, the moving average and the means.

    Args:
        state: to be updated.
        passes: this rank's images.
        features: frozen VGG-16.
        config: of the run.
        means: to which the losses are added.
        precision: as of `train_step`.
    """
    values = train_step(
        state,
        passes,
        features,
        config.losses,
        generator=state.generator,
        discriminator=state.discriminator,
        precision=precision,
        allow_tf32=config.train.tf32,
        keep_graph=len(passes) == 1,
        refuses=state.sentinel.refuses,
    )
    accepted, _ = state.sentinel.conclude()
    state.images_seen += config.train.batch_size
    state.update_ema(config.optimization.ema_half_life_images, config.train.batch_size, accepted)
    means.add(values, accepted)


def count_update(config: Config, precision: torch.dtype, updates: int = 1) -> Calls:
    """Count ordinary updates of one rank on a CPU, with tensors that have shapes but no memory.

    Args:
        config: of a run; one rank's share of the batch is `train.batch_size` over `train.num_workers`, in passes of
            `train.max_images_per_pass`.
        precision: in which networks compute.
        updates: how many to count, after one that does not count because the first makes the optimizers' moments.

    Raises:
        DataDependentOutputException: an update asks for a value, which such tensors do not have.
    """
    with _updating_nothing(config, precision) as update:
        calls = Calls()
        with calls:
            for _ in range(updates):
                update()
    return calls


def count_work(config: Config, precision: torch.dtype) -> tuple[int, int]:
    """Return the calls and the FLOPs of one ordinary update, both counted as in `count_update`."""
    with _updating_nothing(config, precision) as update:
        # One after the other: to count FLOPs takes some calls apart.
        with Calls() as calls:
            update()
        with FlopCounterMode(display=False) as counter:
            update()
    return calls.total, counter.get_total_flops()


@contextlib.contextmanager
def _updating_nothing(config: Config, precision: torch.dtype) -> Iterator[Callable[[], None]]:
    """Give what makes an ordinary update of one rank without memory, after one that made the optimizers' moments."""
    share = -(-config.train.batch_size // config.train.num_workers)
    largest = config.train.max_images_per_pass or share
    sizes = [min(largest, share - at) for at in range(0, share, largest)]
    with torch.device("meta"):
        state, features = TrainingState.build(config, "meta"), vgg_random()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in (*state.networks().values(), features):
            network.to_empty(device="cpu")
        for network, optimizer in (
            (state.generator, state.generator_optimizer),
            (state.discriminator, state.discriminator_optimizer),
        ):
            optimizer.param_groups[0]["params"] = list(network.parameters())
        state.sentinel = Sentinel(config.sentinel)
        means, passes = Means(), [_empty_pass(size, config.data.size_px) for size in sizes]

        def update() -> None:
            ordinary_update(state, passes, features, config, means, precision)

        update()
        yield update


def _empty_pass(number: int, side: int) -> Pass:
    image, color = (torch.empty(number, 3, side, side) for _ in range(2))
    mask, sketch, noise = (torch.empty(number, 1, side, side) for _ in range(3))
    return Pass(Batch(image, mask, sketch, color, noise), torch.empty(number))
