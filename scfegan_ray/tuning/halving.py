"""Successive halving (ASHA) that remembers, when a search goes on, how good trials were that ended before."""

from __future__ import annotations

import pickle
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from scfegan_ray import storage


def first_scores(place: str) -> dict[str, float]:
    """Return what each trial reached when it was compared for the first time, as all of them were, by its id."""
    found: dict[str, float] = pickle.loads(storage.read_bytes(place))["first"]
    return found


class RememberingASHA(ASHAScheduler):  # type: ignore[misc]
    """Keeps what trials reached beside them: what Tune restores a search from does not hold it.

    Attributes:
        first: what each trial reached when it was compared for the first time, by its id.

    Args:
        place: URI of the file; what it holds is taken over where the search begins.
        options: of ASHA.
    """

    def __init__(self, place: str, **options: Any) -> None:
        super().__init__(**options)
        self._place = place
        self.first: dict[str, float] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Take over what is known; Tune calls it once, before any trial."""
        is_taken: bool = super().set_search_properties(metric, mode, **spec)
        if storage.exists(self._place):
            self.__dict__.update(pickle.loads(storage.read_bytes(self._place)))  # as `restore` does from a local file
        return is_taken

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on, and keep what it reached."""
        action: str = super().on_trial_result(controller, trial, result)
        if result[self._time_attr] > 0:
            self.first.setdefault(trial.trial_id, result[self._metric])
        storage.write_bytes(self._place, pickle.dumps(self.__dict__))  # as `save` does to a local file
        return action
