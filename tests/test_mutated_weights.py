"""Mutated weights, with tensors missing, doubled, renamed or of any shape, end in our error in both forms.

REPVGG_ZOO_FUZZ_SECONDS is the time for each variant (default 3).
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from typing import Dict

import numpy as np
import pytest
from safetensors.numpy import save_file

from repvgg_zoo.builder import create
from repvgg_zoo.errors import EquivalenceError, ZooError
from repvgg_zoo.registry.specs import SESpec

from .checkpoints.publishers import PUBLISHERS, SMALL, entries

VARIANTS = {
    "plain": ("RepVGG_B1", None),
    "g2": ("RepVGG_B1g2", None),
    "se": ("RepVGG_D2se", SESpec("before_relu", 4)),
    "plus": ("RepVGGplus_L2pse", SESpec("after_relu", 4)),
}
DEPTHS = (1, 2, 2, 1)
OPTIONS = [{}, {}, {"num_classes": 3}, {"in_chans": 1}, {"in_chans": 5}, {"features_only": True}]
MIN_TRIES = 20  # on a machine that is busy
SIZES = (0, 1, 2, 3, 4, 8, 16, 32)

State = Dict[str, np.ndarray]


def mutate(chance: random.Random, state: State) -> None:
    for _ in range(chance.randint(1, 3)):
        key, other = chance.choice(list(state)), chance.choice(list(state))
        change = chance.randrange(6)
        if change == 0 and len(state) > 1:
            del state[key]
        elif change == 1:
            state[other] = state[key]
        elif change == 2:
            shape = [chance.choice(SIZES) for _ in range(chance.randint(0, 6))]
            state[key] = np.ones(shape, chance.choice((np.float16, np.float32, np.float64)))
        elif change == 3 and state[key].ndim:
            state[key] = np.ascontiguousarray(np.moveaxis(state[key], 0, -1))
        elif change == 4:
            state[key.replace(chance.choice("0123"), chance.choice(("0", "1", "9", "99")))] = state.pop(key)
        elif change == 5:
            module = key.rpartition(".")[0]
            for inside in [name for name in state if name.startswith(module) and len(state) > 1]:
                del state[inside]


@pytest.mark.parametrize("kind", VARIANTS)
def test_mutated_weights_end_in_a_network_or_our_error_in_both_forms(tmp_path, kind):
    seed = int(os.environ.get("REPVGG_ZOO_FUZZ_SEED", time.time_ns()))
    print(f"REPVGG_ZOO_FUZZ_SEED={seed}")  # shown when it fails; the file itself stays in tmp_path
    chance = random.Random(seed)
    name, se = VARIANTS[kind]
    small = replace(SMALL[kind], depths=DEPTHS)
    build = {"num_blocks": DEPTHS, "width_multiplier": small.widths, **({"se": se} if se else {})}
    path = tmp_path / "weights.safetensors"
    end, tries, refused = time.monotonic() + float(os.environ.get("REPVGG_ZOO_FUZZ_SECONDS", "3")), 0, 0
    while time.monotonic() < end or tries < MIN_TRIES:
        tries += 1
        publisher = chance.choice(list(PUBLISHERS) if kind != "plus" else ["canonical", "official"])
        form = chance.choice(("train", "train", "deploy"))
        state = {
            row.publisher_key: np.ones(row.publisher_shape, np.float32) for row in entries(publisher, small, form, 10)
        }
        mutate(chance, state)
        save_file(state, path)
        options = chance.choice(OPTIONS)
        results = {}
        for deploy in (False, True):
            try:
                create(name, checkpoint=path, deploy=deploy, **build, **options)
                results[deploy] = None
            except ZooError as error:
                results[deploy] = error
                refused += 1
        if form == "train" and kind != "plus":  # auxiliary heads are a matter of the train form alone
            assert (results[False] is None) == (results[True] is None), (results, options)
        assert form == "train" or not isinstance(results[True], EquivalenceError)
    assert refused
