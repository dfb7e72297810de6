"""Errors that come back from workers are unwrapped to the one line that was meant."""

from __future__ import annotations

import inspect

from scfegan_ray import errors
from scfegan_ray.errors import DataError, ScFeganError, StorageError, deliberate_cause


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert all(issubclass(c, ScFeganError) for c in classes)
    assert errors.__doc__ is not None
    assert all(c.__name__ in errors.__doc__ for c in classes)


def test_cause_is_found_under_wrappers() -> None:
    outer = RuntimeError("wrapper")
    outer.__cause__ = ValueError("another")
    outer.__cause__.__context__ = DataError("the message")
    found = deliberate_cause(outer)
    assert type(found) is DataError
    assert str(found) == "the message"


def test_subclass_made_by_ray_becomes_the_plain_class() -> None:
    class RayTaskError(StorageError):
        cause = StorageError("disk is full")

    found = deliberate_cause(RayTaskError("worker traceback"))
    assert type(found) is StorageError
    assert str(found) == "disk is full"


def test_worker_failures_are_searched() -> None:
    group = RuntimeError("training failed")
    group.worker_failures = {0: KeyError("x"), 1: DataError("bad")}  # type: ignore[attr-defined]
    assert str(deliberate_cause(group)) == "bad"


def test_nothing_of_ours_gives_none() -> None:
    loop = RuntimeError("a")
    loop.__cause__ = loop
    assert deliberate_cause(loop) is None
    assert deliberate_cause(None) is None
