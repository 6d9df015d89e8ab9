"""Bilinear interpolation in NumPy gives OpenCV's pixels, to the last bit, whatever the sizes."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from repvgg_zoo.image.resize import resize_with_opencv

sides = st.integers(1, 300)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from([None, 1, 3, 4]), st.integers(0, 1 << 30))
@example(200, 100, 100, 50, 3, 0)  # half the size, for which OpenCV has code of its own
@example(200, 100, 100, 51, 3, 0)
@example(200, 100, 200, 100, 3, 0)
@example(1, 1, 224, 224, 3, 0)
@example(224, 224, 1, 1, None, 0)
@example(1200, 1600, 256, 341, 3, 0)
def test_the_pixels_are_opencvs(height, width, new_height, new_width, channels, seed):
    shape = (height, width) if channels is None else (height, width, channels)
    image = np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)
    expected = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    result = resize_with_opencv(image, (new_height, new_width), "bilinear")
    assert result.dtype == np.uint8
    assert result.shape == (new_height, new_width, *shape[2:])
    assert np.array_equal(result.reshape(expected.shape), expected)
