"""The entries of this repository for megengine.hub: one for each variant in the registry.

megengine.hub executes this file without adding it to sys.modules and puts its folder on sys.path only while it runs. An
exception from here would leave the folder on sys.path, so problems are detected here and raised when an entry is used.
"""

from __future__ import annotations

import importlib.util as _util
import logging as _logging
import re as _re
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Sequence, Union

import repvgg_zoo as _zoo

if TYPE_CHECKING:
    from megengine.module import Module

# The modules that megengine.hub looks for before it runs an entry.
dependencies = [
    "megengine",
    "numpy",
    "cv2",
    "filelock",
    "llvmlite",
    "PIL",
    "yaml",
    "requests",
    "safetensors",
    "tqdm",
    "urllib3",
]


def __dir__() -> List[str]:
    """Return the canonical names of the shipped variants only: megengine.hub.list shows all callables listed here."""
    _check()
    from repvgg_zoo.registry.load import shipped_registry

    return [model.name for model in shipped_registry().models]


def __getattr__(name: str) -> Callable[..., Module]:
    """Return the entry called ``name``: a variant, ``variant.tag``, or any alias of the registry."""
    if name.startswith("__"):
        raise AttributeError(name)
    _check()
    from repvgg_zoo.errors import UnknownModelError

    try:
        return _entry(name)
    except UnknownModelError as error:
        # megengine.hub drops the text of an AttributeError and says only that the entry does not exist.
        _logging.getLogger("repvgg_zoo").warning("%s", error)
        raise AttributeError(str(error)) from error


def _entry(name: str) -> Callable[..., Module]:
    from repvgg_zoo.cli.describe import describe

    def entry(
        pretrained: Union[bool, str] = False,
        *,
        checkpoint: Union[str, _Path, None] = None,
        deploy: bool = False,
        num_classes: Optional[int] = None,
        in_chans: Optional[int] = None,
        features_only: bool = False,
        out_indices: Optional[Sequence[int]] = None,
        output_stride: int = 32,
        bn_eps: Optional[float] = None,
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
            output_stride=output_stride,
            bn_eps=bn_eps,
            progress=progress,
            **overrides,
        )

    entry.__doc__ = describe(_zoo.model_info(name))
    entry.__name__ = entry.__qualname__ = name
    return entry


def _check() -> None:
    """Raise ImportError if another version is imported, or if a requirement is not installed."""
    if _CONFLICT is not None:
        raise ImportError(_CONFLICT, name="repvgg_zoo")
    from repvgg_zoo._requirements import requirement

    missing = [str(requirement(module)) for module in dependencies if _util.find_spec(module) is None]
    if missing:
        arguments = " ".join(f"'{text}'" for text in missing)
        raise ImportError(f"RepVGG requires packages that are not installed\n  hint: pip install {arguments}")
    import megengine

    if megengine.__version__.split(".")[:2] != ["1", "13"]:
        raise ImportError(
            f"RepVGG requires MegEngine 1.13, and this is {megengine.__version__}\n"
            f"  hint: pip install '{requirement('megengine')}' on CPython 3.8 to 3.10",
            name="megengine",
        )


def _conflict() -> Optional[str]:
    """Return the error message if the imported package is of another version than the one beside this file, else None.

    Files that megengine.hub replaced under a running package (``use_cache=False``) are noticed by their version only.
    """
    beside = _Path(__file__).resolve().parent / "repvgg_zoo"
    imported = _Path(_zoo.__file__).resolve().parent if _zoo.__file__ else None
    version = _re.search(r'^__version__ = "(.*)"', (beside / "__init__.py").read_text(encoding="utf-8"), _re.M)
    if version is not None and version.group(1) == getattr(_zoo, "__version__", None):
        return None
    if imported == beside:
        return (
            f"megengine.hub replaced {beside} while the version before it is running in this process, and the two "
            "cannot be mixed\n  hint: start a new process to use the new one"
        )
    return (
        f"another repvgg_zoo is already imported in this process, from {imported}; megengine.hub downloaded another "
        f"version to {beside}, and the two cannot be mixed\n  hint: in a new process, call megengine.hub before "
        "anything imports repvgg_zoo and use one ref only, or use the package: "
        "repvgg_zoo.create(name, pretrained=True)"
    )


_CONFLICT = _conflict()
