"""The hub: from a file's description to a verified file on this machine.

It knows nothing about neural networks. ``fetch_file`` is the main function; ``cache_manager`` maintains a cache folder,
``bundle`` brings files to a machine without a network. A cache is a flat folder that can be moved, shared, or served as
a mirror.
"""

from .._settings import Settings, read_settings
from .cache import VerifiedFile
from .fetch import Services, fetch_file, fetch_verified
from .filenames import cache_filename

__all__ = [
    "Services",
    "Settings",
    "VerifiedFile",
    "cache_filename",
    "fetch_file",
    "fetch_verified",
    "read_settings",
]
