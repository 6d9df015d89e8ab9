"""Arguments and lookups that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from ..errors import UnverifiedError
from ..hub import VerifiedFile, fetch_verified
from ..registry.api import full_registry
from ..registry.names import find_checkpoint
from ..registry.specs import CheckpointSpec, FileSpec, ModelSpec
from .errors import explain, to_dict


def add_checkpoint_names(parser: argparse.ArgumentParser) -> None:
    """Add NAME..., and the options of commands that fetch."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a variant (its default checkpoint) or NAME.TAG")
    add_fetch_options(parser)


def add_fetch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that fetch."""
    parser.add_argument("--offline", action="store_true", default=None, help="do not use the network")
    parser.add_argument(
        "--allow-unverified",
        action="store_true",
        default=None,
        help="accept files whose publisher states no digest; it is recorded, and checked from then on",
    )


def fetch(file: FileSpec, args: argparse.Namespace) -> Path:
    """Return the path of a checkpoint's file, fetched with the command's options."""
    return fetch_with_digest(file, args).path


def fetch_model(target: Union[Path, Tuple[ModelSpec, Optional[str]]], args: argparse.Namespace) -> Union[Path, str]:
    """Return the file that ``find_model_or_file`` returned, or the name of the checkpoint, which is then in the cache.

    It is fetched with the command's options, which the function that gets the name does not have.
    """
    if isinstance(target, Path):
        return target
    checkpoint = find_checkpoint(*target)
    fetch(checkpoint.file, args)
    return checkpoint.name


def fetch_with_digest(file: FileSpec, args: argparse.Namespace) -> VerifiedFile:
    """Return a checkpoint's file and its digest, fetched with the command's options."""
    try:
        return fetch_verified(file, offline=args.offline, allow_unverified=args.allow_unverified)
    except UnverifiedError as error:
        error.hint = "add --allow-unverified to accept it; its digest is then recorded and checked from then on"
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; run the same command again to resume") from None


def try_each(
    names: Sequence[str], function: Callable[[str], Any], *, done: Callable[[Any], None] = lambda result: None
) -> Tuple[List[Any], List[BaseException]]:
    """Return what the function returns for each name, and the errors; one name's error does not stop the others.

    In the results a failed name has a row with its error. A single name's error is raised. ``done`` gets each result
    as soon as it is there. Ctrl-C ends the work, and is an error of its own if there are results by then.
    """
    results: List[Any] = []
    failures: List[BaseException] = []
    for name in names:
        try:
            results.append(function(name))
        except KeyboardInterrupt as error:
            if not results:
                raise
            return results, [*failures, error]
        except Exception as error:
            if len(names) == 1:
                raise
            explained = explain(error)
            failures.append(explained)
            results.append({"name": name, "error": to_dict(explained)})
        else:
            done(results[-1])
    return results, failures


def count_arrays(arrays: Mapping[str, Any]) -> Dict[str, Any]:
    """Return how many arrays and numbers a checkpoint has, and their dtypes."""
    return {
        "arrays": len(arrays),
        "numbers": sum(int(array.size) for array in arrays.values()),
        "dtypes": sorted({array.dtype.name for array in arrays.values()}),
    }


def load_network(path: Path, *, deploy: Optional[bool] = None) -> Any:
    """Return the network of a checkpoint file, by default in the form of the file."""
    from ..builder import create
    from ..checkpoints import load_checkpoint
    from ..checkpoints.publisher import variant_of

    checkpoint = load_checkpoint(path)
    form = checkpoint.form == "deploy" if deploy is None else deploy
    return create(variant_of(checkpoint).name, checkpoint=checkpoint, deploy=form)


def all_checkpoints() -> List[CheckpointSpec]:
    """Return every checkpoint of the registry."""
    return [checkpoint for model in full_registry().models for checkpoint in model.checkpoints]
