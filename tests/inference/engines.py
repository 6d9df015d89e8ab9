"""Which tests need MegEngine Lite to run a network, which it cannot do on every machine."""

from __future__ import annotations

import pytest

from repvgg_zoo.inference.lite import obstacle

needs_lite = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))
# For what holds of networks of a user's however they are run.
by_lite_or_eagerly = pytest.mark.filterwarnings("ignore:MegEngine Lite")
