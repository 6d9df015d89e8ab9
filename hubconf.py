"""What megengine.hub sees of this repository: one entry for each variant, made from the registry.

megengine.hub runs this file under no name in sys.modules, with its folder first on sys.path; both are over when the
file ends. An exception from here would leave that path behind, so what is wrong is found here and told when an entry is
asked for.
"""

from __future__ import annotations

import hashlib as _hashlib
import importlib.util as _util
import logging as _logging
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Sequence, Union

import repvgg_zoo as _zoo

if TYPE_CHECKING:
    from megengine.module import Module

# The modules that megengine.hub looks for before it runs an entry.
dependencies = ["megengine", "numpy", "cv2", "filelock", "llvmlite", "PIL", "yaml", "requests", "safetensors"]


def __dir__() -> List[str]:
    """The shipped variants' canonical names and nothing else: megengine.hub.list shows all callables named here."""
    _check()
    from repvgg_zoo.registry.api import shipped_registry

    return [model.name for model in shipped_registry().models]


def __getattr__(name: str) -> Callable[..., Module]:
    """The entry called ``name``: a variant, ``variant.tag``, or any other name that the registry knows."""
    if name.startswith("__"):
        raise AttributeError(name)
    _check()
    from repvgg_zoo.errors import UnknownModelError

    try:
        return _entry(name)
    except UnknownModelError as error:
        # megengine.hub drops the text of an AttributeError and says only that there is no such entry.
        _logging.getLogger("repvgg_zoo").warning("%s", error)
        raise AttributeError(str(error)) from error


def _entry(name: str) -> Callable[..., Module]:
    from repvgg_zoo.cli.describe import page

    def entry(
        pretrained: Union[bool, str] = False,
        *,
        checkpoint: Union[str, _Path, None] = None,
        deploy: bool = False,
        num_classes: Optional[int] = None,
        in_chans: Optional[int] = None,
        features_only: bool = False,
        out_indices: Optional[Sequence[int]] = None,
        progress: Optional[bool] = None,
        **overrides: Any,
    ) -> Module:
        return _zoo.create(
            name,
            pretrained=pretrained,
            checkpoint=checkpoint,
            deploy=deploy,
            num_classes=num_classes,
            in_chans=in_chans,
            features_only=features_only,
            out_indices=out_indices,
            progress=progress,
            **overrides,
        )

    entry.__doc__ = page(_zoo.model_info(name))
    entry.__name__ = entry.__qualname__ = name
    return entry


def _check() -> None:
    """Raises ImportError where an entry would run other code than that beside this file, or lacks what it needs."""
    if _CONFLICT is not None:
        raise ImportError(_CONFLICT, name="repvgg_zoo")
    from repvgg_zoo._requirements import requirement

    missing = [str(requirement(module)) for module in dependencies if _util.find_spec(module) is None]
    if missing:
        arguments = " ".join(f"'{text}'" for text in missing)
        raise ImportError(f"RepVGG needs packages that are not installed\n  hint: pip install {arguments}")
    import megengine

    if megengine.__version__.split(".")[:2] != ["1", "13"]:
        raise ImportError(
            f"RepVGG needs MegEngine 1.13, and this is {megengine.__version__}\n"
            f"  hint: pip install '{requirement('megengine')}' on CPython 3.8 to 3.10",
            name="megengine",
        )


def _conflict() -> Optional[str]:
    """What to tell where the package that this process has imported is not the one beside this file, or None.

    A copy elsewhere with the same content is as good. The fingerprint is kept on the package, because megengine.hub
    with ``use_cache=False`` replaces the files under a package that is running.
    """
    ours = _Path(__file__).resolve().parent / "repvgg_zoo"
    theirs = _Path(_zoo.__file__).resolve().parent if _zoo.__file__ else None
    running = getattr(_zoo, "_hub_fingerprint", None)
    if running is None and theirs is not None:
        running = _zoo._hub_fingerprint = _fingerprint(theirs)
    if running == _fingerprint(ours):
        return None
    if theirs == ours:
        return (
            f"megengine.hub replaced {ours} while the version before it is running in this process, and the two cannot "
            "be mixed\n  hint: start a new process to use the new one"
        )
    return (
        f"another repvgg_zoo is already imported in this process, from {theirs}; the one that megengine.hub fetched "
        f"lies in {ours}, and the two cannot be mixed\n  hint: in a new process, call megengine.hub before anything "
        "imports repvgg_zoo and keep to one ref, or do without the hub: repvgg_zoo.create(name, pretrained=True)"
    )


def _fingerprint(package: _Path) -> str:
    """A digest of all code of a copy of repvgg_zoo and of its registry, which a wheel has inside the package."""
    registry = package / "data" / "registry.yaml"
    files = [(path.relative_to(package).as_posix(), path) for path in package.rglob("*.py")]
    files.append(("registry.yaml", registry if registry.is_file() else package.parent / "registry.yaml"))
    digest = _hashlib.sha256()
    for name, path in sorted(files):
        digest.update(name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b"") + b"\0")
    return digest.hexdigest()


_CONFLICT = _conflict()
