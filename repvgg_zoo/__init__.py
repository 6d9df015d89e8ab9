"""A model zoo registry for RepVGG in MegEngine: from a name to a verified checkpoint and a working network.

Public names are loaded at first use, so that importing this package imports no framework and touches no disk.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, List

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .checkpoints import load_checkpoint, save_checkpoint
    from .factory import create
    from .hub.named import fetch
    from .registry.plugins import Plugin
    from .registry.zoo import list_models, model_info, register
    from .reparam.convert import to_deploy
    from .reparam.report import compare_forms
    from .runtime.compile import CompiledModel, compile
    from .vision.predict import Prediction, predict
    from .vision.preprocess import preprocess

__all__ = [
    "CompiledModel",
    "Plugin",
    "Prediction",
    "compare_forms",
    "compile",
    "create",
    "fetch",
    "list_models",
    "load_checkpoint",
    "model_info",
    "predict",
    "preprocess",
    "register",
    "save_checkpoint",
    "to_deploy",
]

_HOMES = {
    "CompiledModel": "runtime.compile",
    "Plugin": "registry.plugins",
    "Prediction": "vision.predict",
    "compare_forms": "reparam.report",
    "compile": "runtime.compile",
    "create": "factory",
    "fetch": "hub.named",
    "list_models": "registry.zoo",
    "load_checkpoint": "checkpoints",
    "model_info": "registry.zoo",
    "predict": "vision.predict",
    "preprocess": "vision.preprocess",
    "register": "registry.zoo",
    "save_checkpoint": "checkpoints",
    "to_deploy": "reparam.convert",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{home}", __name__)
    except ImportError as error:
        if (error.name or "").split(".")[0] != "megengine":
            raise
        from .errors import DependencyError

        raise DependencyError(
            f"{name} needs MegEngine, which is not installed",
            expected="megengine 1.13",
            hint="pip install 'megengine>=1.13,<1.14' on CPython 3.8 to 3.10",
        ) from error
    return getattr(module, name)


def __dir__() -> List[str]:
    return sorted([*globals(), *__all__])
