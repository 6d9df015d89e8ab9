"""The hub loader: from a file's description to a verified file on this machine.

It knows nothing of neural networks. ``fetch_file`` is the one door; ``manage`` looks after a cache folder, ``bundle``
carries files to a machine without internet. A cache is a flat folder that can be moved, shared, or served as a mirror.
"""

from .._settings import Settings, read_settings
from .cache import Stamp
from .fetch import Services, fetch_file
from .filenames import cache_filename

__all__ = ["Settings", "Stamp", "Services", "fetch_file", "read_settings", "cache_filename"]
