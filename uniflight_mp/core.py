"""The C core, ``_shm``, or nothing where it could not be built.

The package imports everywhere; opening a shared table is what needs the core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import _shm as shm
    from ._shm import Follow, Lead, Table, give_back
else:
    try:
        from . import _shm as shm
        from ._shm import Follow, Lead, Table, give_back
    except ImportError:
        shm = None
        Follow = Lead = Table = type("NotBuilt", (), {})
        give_back = None

__all__ = ["Follow", "Lead", "Table", "give_back", "is_built", "shm"]


def is_built() -> bool:
    """Tell whether the core was compiled for this platform."""
    return shm is not None
