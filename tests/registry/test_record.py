"""A record is a frozen dataclass to all who look at it, and imports neither `dataclasses` nor `inspect` for it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from types import MappingProxyType
from typing import Mapping, Optional, Tuple, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_zoo.registry.record import record, replace


@record(frozen=True)
class Ours:
    """A class with every kind of field."""

    name: str
    sizes: Tuple[int, ...]
    note: Optional[str] = None
    scale: float = 1.0

    @property
    def total(self) -> int:
        return sum(self.sizes)


@dataclasses.dataclass(frozen=True)
class Theirs:
    name: str
    sizes: Tuple[int, ...]
    note: Optional[str] = None
    scale: float = 1.0


@record(frozen=True, eq=False)
class Same:
    """Equal to itself alone."""

    names: Mapping[str, int] = MappingProxyType({})


words = st.text(max_size=3)
values = st.fixed_dictionaries(
    {"name": words, "sizes": st.lists(st.integers(0, 9), max_size=2).map(tuple)},
    optional={"note": st.none() | words, "scale": st.sampled_from([1.0, 2.5])},
)


@given(values, values)
def test_it_compares_hashes_prints_and_lists_its_fields_as_a_dataclass_does(first, second):
    ours, theirs = Ours(**first), Theirs(**first)
    assert (ours == Ours(**second)) == (theirs == Theirs(**second))
    assert hash(ours) == hash(theirs)
    assert repr(ours) == repr(theirs).replace("Theirs", "Ours")
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    assert list(dataclasses.asdict(ours)) == [field.name for field in dataclasses.fields(Theirs)]
    assert ours != theirs


@given(values, st.sampled_from(["note", "name"]))
def test_replace_gives_a_copy_with_other_values_and_leaves_the_first(first, field):
    ours = Ours(**first)
    expected = Ours(**{**first, field: "other"})
    assert replace(ours, **{field: "other"}) == dataclasses.replace(ours, **{field: "other"}) == expected
    assert ours == Ours(**first)


# (positional arguments, named ones)
CALLS = [
    ((), {}),
    (("a",), {}),
    ((), {"name": "a"}),
    (("a", (1,)), {}),
    (("a",), {"sizes": (1,)}),
    (("a", (1,), "n", 2.0), {}),
    (("a", (1,), "n", 2.0, 5), {}),
    (("a", (1,)), {"name": "b"}),
    ((), {"name": "a", "sizes": (1,), "nose": "n"}),
    ((), {"name": "a", "note": "n", "nose": (1,)}),
    ((), {"sizes": (1,), "name": "a", "scale": 3.0}),
]


@pytest.mark.parametrize(("positional", "named"), CALLS)
def test_it_takes_and_refuses_the_arguments_that_a_dataclass_does(positional, named):
    try:
        theirs = Theirs(*positional, **named)
    except TypeError:
        with pytest.raises(TypeError, match="argument"):
            Ours(*positional, **named)
    else:
        assert dataclasses.asdict(Ours(*positional, **named)) == dataclasses.asdict(theirs)


def test_it_cannot_be_changed_and_survives_copies_and_processes():
    ours = Ours("a", (1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError, match="name"):
        ours.name = "b"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="name"):
        del ours.name
    assert ours == Ours("a", (1, 2)) == copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours))
    assert ours.total == 3


def test_without_equality_it_is_equal_to_itself_alone_and_can_be_a_key():
    assert Same() != Same()
    assert len({Same(), Same()}) == 2
    assert Same().names == {}


def test_its_signature_is_a_dataclass_s():
    ours, theirs = (inspect.signature(kind).parameters for kind in (Ours, Theirs))
    for name, parameter in theirs.items():  # whose annotations are the text of this file
        assert ours[name] == parameter.replace(annotation=get_type_hints(Theirs)[name])
    assert list(ours) == list(theirs)
    assert list(inspect.signature(Same).parameters) == ["names"]
    assert dataclasses.is_dataclass(Ours)


def test_to_define_and_to_use_one_imports_neither_dataclasses_nor_inspect():
    code = (
        "import sys\n"
        "from repvgg_zoo.registry.specs import Cost\n"
        "assert Cost(train=2, deploy=1) == Cost(deploy=1, train=2) and repr(Cost(train=2, deploy=1))\n"
        "print([name for name in ('dataclasses', 'inspect') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
