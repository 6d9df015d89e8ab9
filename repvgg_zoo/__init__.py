"""A model zoo registry for RepVGG in MegEngine: from a name to a verified checkpoint and a working network.

Public names are imported at first use, so that importing this package imports no framework and touches no disk.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, List

from . import errors

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .builder import create
    from .checkpoints import load_checkpoint, save_checkpoint
    from .costs import cost
    from .data.evaluation import evaluate
    from .data.evaluation_report import EvaluationReport
    from .data.runner import RunReport, run
    from .data.sources import open_images
    from .exporters.api import export
    from .exporters.report import ExportReport
    from .hub.fetch import fetch
    from .image.predict import Prediction, predict
    from .image.preprocess import preprocess
    from .inference.api import compile
    from .inference.compiled_model import CompiledModel
    from .inference.quantize import quantize
    from .inference.quantized_network import QuantizedNetwork
    from .models import Network
    from .registry.api import list_models, model_info
    from .registry.cost import NetworkCost
    from .registry.plugins import Plugin
    from .registry.registered import register, unregister
    from .reparam.equivalence import compare_forms
    from .reparam.to_deploy import to_deploy
    from .training.finetuning import finetune
    from .training.report import FinetuneReport

__all__ = [
    "CompiledModel",
    "EvaluationReport",
    "ExportReport",
    "FinetuneReport",
    "Network",
    "NetworkCost",
    "Plugin",
    "Prediction",
    "QuantizedNetwork",
    "RunReport",
    "compare_forms",
    "compile",
    "cost",
    "create",
    "evaluate",
    "export",
    "fetch",
    "finetune",
    "list_models",
    "load_checkpoint",
    "model_info",
    "open_images",
    "predict",
    "preprocess",
    "quantize",
    "register",
    "run",
    "save_checkpoint",
    "to_deploy",
    "unregister",
]

_LAZY_EXPORTS = {
    "CompiledModel": "inference.compiled_model",
    "EvaluationReport": "data.evaluation_report",
    "ExportReport": "exporters.report",
    "FinetuneReport": "training.report",
    "Network": "models",
    "NetworkCost": "registry.cost",
    "Plugin": "registry.plugins",
    "Prediction": "image.predict",
    "QuantizedNetwork": "inference.quantized_network",
    "RunReport": "data.runner",
    "compare_forms": "reparam.equivalence",
    "compile": "inference.api",
    "cost": "costs",
    "create": "builder",
    "evaluate": "data.evaluation",
    "export": "exporters.api",
    "fetch": "hub.fetch",
    "finetune": "training.finetuning",
    "list_models": "registry.api",
    "load_checkpoint": "checkpoints",
    "model_info": "registry.api",
    "open_images": "data.sources",
    "predict": "image.predict",
    "preprocess": "image.preprocess",
    "quantize": "inference.quantize",
    "register": "registry.registered",
    "run": "data.runner",
    "save_checkpoint": "checkpoints",
    "to_deploy": "reparam.to_deploy",
    "unregister": "registry.registered",
}


def __getattr__(name: str) -> Any:
    module_name = _LAZY_EXPORTS.get(name)
    if module_name is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{module_name}", __name__)
    except ImportError as error:
        from ._requirements import dependency_error  # here, as importing this package should take no time

        explained = error if isinstance(error, errors.DependencyError) else dependency_error(error, name)
        if explained is None:
            raise
        # `from repvgg_zoo import create` is hasattr() in importlib first, and after an AttributeError there, Python
        # says no more than "cannot import name". Everyone else gets the AttributeError that hasattr() relies on.
        if sys._getframe(1).f_globals.get("__name__") == "importlib._bootstrap":
            raise explained from error
        raise errors.UnavailableError(
            explained.message, hint=explained.hint, expected=explained.expected, actual=explained.actual
        ) from explained
    return getattr(module, name)


def __dir__() -> List[str]:
    return sorted([*__all__, "__version__", "errors"])
