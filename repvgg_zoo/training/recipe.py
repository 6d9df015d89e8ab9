"""Recipe: the settings of a fine-tuning run, checked, and how two of them differ."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from .._arguments import check_choice, check_flag, check_float, check_int
from ..errors import ArgumentError

MODES = ("full", "probe")
BN_MODES = ("frozen", "train")
STAGES = ("stage0", "stage1", "stage2", "stage3", "stage4")
DEFAULT_LR = {"frozen": 0.005, "train": 0.02}  # by ``bn``: without the batch's statistics, large steps diverge


class Recipe(NamedTuple):
    """What decides on the weights of a run, beside the checkpoint that it starts from and the images.

    ``lr`` is the highest learning rate, after ``warmup_epochs`` epochs in which it rises; it then falls to 0 as a
    cosine. ``ema`` is the decay of the averaged weights, 0 for none. ``min_crop`` is the smallest share of an image's
    area that a crop has, 1 for no crops. ``flip`` is None until the classes are known.
    """

    mode: str = "full"
    bn: str = "frozen"
    freeze_until: Optional[str] = None
    epochs: int = 10
    lr: float = DEFAULT_LR["frozen"]
    batch_size: int = 32
    warmup_epochs: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    custom_l2: bool = False
    label_smoothing: float = 0.1
    min_crop: float = 0.5
    flip: Optional[bool] = None
    ema: float = 0.0
    seed: int = 0


def check_recipe(**values: Any) -> Recipe:
    """Return a recipe of the values, with defaults for those that are None; raise ArgumentError that names one."""
    values = {name: value for name, value in values.items() if value is not None}
    recipe = Recipe(**{name: CHECKS[name](value) for name, value in values.items()})
    if "lr" not in values:
        recipe = recipe._replace(lr=DEFAULT_LR[recipe.bn])
    if recipe.mode == "full" and recipe.warmup_epochs >= recipe.epochs:
        if "warmup_epochs" in values:
            raise ArgumentError(
                f"{recipe.warmup_epochs:g} epochs of warm-up in {recipe.epochs} epochs",
                expected=f"less than {recipe.epochs}",
                actual=recipe.warmup_epochs,
                hint="raise epochs, or lower warmup_epochs",
            )
        recipe = recipe._replace(warmup_epochs=recipe.epochs / 4)
    return recipe


def differences(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str] = ()) -> List[str]:
    """Return a text for each setting that differs, such as "lr (0.1 before, 0.01 now)"."""
    keys = list(names) or [*new, *(name for name in old if name not in new)]
    return [
        f"{name} ({old.get(name)!r} before, {new.get(name)!r} now)" for name in keys if old.get(name) != new.get(name)
    ]


def _share(name: str, *, zero: bool, one: bool) -> Callable[[Any], float]:
    """Return a check for a number between 0 and 1, with or without each of the two."""
    expected = f"a number {'from' if zero else 'above'} 0 {'to' if one else 'to below'} 1"

    def check(value: Any) -> float:
        number = check_float(name, value)
        if number < 0 or number > 1 or (number == 0 and not zero) or (number == 1 and not one):
            raise ArgumentError(f"{name} is {number:g}", expected=expected, actual=value, hint=f"pass {expected}")
        return number

    return check


def _at_least_0(name: str) -> Callable[[Any], float]:
    def check(value: Any) -> float:
        number = check_float(name, value)
        if number < 0:
            raise ArgumentError(f"{name} is {number:g}", expected="at least 0", actual=value, hint="pass 0 or more")
        return number

    return check


def _seed(value: Any) -> int:
    seed = check_int("seed", value, minimum=0)
    if seed >= 1 << 32:
        raise ArgumentError(f"seed is {seed}", expected="less than 2**32", actual=value, hint="pass a smaller number")
    return seed


CHECKS: Dict[str, Callable[[Any], Any]] = {
    "mode": lambda value: check_choice("mode", value, MODES),
    "bn": lambda value: check_choice("bn", value, BN_MODES),
    "freeze_until": lambda value: check_choice("freeze_until", value, STAGES),
    "epochs": lambda value: check_int("epochs", value, minimum=1),
    "lr": lambda value: check_float("lr", value, above=0),
    "batch_size": lambda value: check_int("batch_size", value, minimum=1),
    "warmup_epochs": _at_least_0("warmup_epochs"),
    "momentum": _share("momentum", zero=False, one=False),
    "weight_decay": _at_least_0("weight_decay"),
    "custom_l2": lambda value: check_flag("custom_l2", value),
    "label_smoothing": _share("label_smoothing", zero=True, one=False),
    "min_crop": _share("min_crop", zero=False, one=True),
    "flip": lambda value: check_flag("flip", value),
    "ema": _share("ema", zero=True, one=False),
    "seed": _seed,
}
