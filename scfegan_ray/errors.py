"""Every error this package raises on purpose.

```
Exception
└── ScFeganError                 print it as one line: it names the thing and the cure
    ├── ConfigError (ValueError)     a setting is wrong, or does not fit the run being resumed
    ├── DataError (ValueError)       a source, an image or a prepared dataset cannot be used
    ├── CheckpointError              a checkpoint is missing, damaged or of another model
    ├── DivergenceError              training does not get anywhere, however often it goes back
    ├── StorageError (OSError)       a place cannot be read or written
    ├── BusyError                    another process is at work on the same run or dataset
    ├── FeedError                    a process that makes training images died
    └── ModelError                   weights or a registered model cannot be had or do not fit
```
"""


class ScFeganError(Exception):
    """Base of every deliberate error; jobs print its text as one line and exit with 1."""


class ConfigError(ScFeganError, ValueError):
    """A setting is out of range, contradicts another, or contradicts the run it resumes."""


class DataError(ScFeganError, ValueError):
    """A source of faces, one image, or a prepared dataset cannot be used."""


class CheckpointError(ScFeganError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class DivergenceError(ScFeganError):
    """Losses or gradients are not finite or explode, and going back to an earlier checkpoint does not help."""


class StorageError(ScFeganError, OSError):
    """A local folder or an object store cannot be read or written."""


class BusyError(ScFeganError):
    """Another process is at work on the same run or dataset."""


class FeedError(ScFeganError):
    """A process that makes training images died, as where memory runs out."""


class ModelError(ScFeganError):
    """Weights or a registered model cannot be fetched, read, or do not fit."""


def deliberate_cause(error: BaseException | None) -> ScFeganError | None:
    """Find our own error under the wrappers that Ray puts around what a worker raised; None where there is none."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        at = waiting.pop(0)
        if at is None or id(at) in seen:
            continue
        seen.add(id(at))
        if isinstance(at, ScFeganError):
            # Ray's own subclass prints the worker's whole traceback, so make the plain one again.
            kind = next(cls for cls in type(at).__mro__ if cls.__module__ == __name__)
            found: ScFeganError = kind(str(getattr(at, "cause", at)))
            return found
        waiting += [getattr(at, "cause", None), at.__cause__, at.__context__]
        waiting += list(getattr(at, "worker_failures", {}).values())
    return None
