"""The C core, ``_shm``, or nothing where it cannot be had.

The package imports everywhere; opening a table is what needs the core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

missing: ImportError | None = None
"""Why there is no core."""

if TYPE_CHECKING:
    from . import _shm as shm
    from ._shm import Follow, Lead, Table, give_back
else:
    try:
        import uniflight_mp._shm as shm

        from ._shm import Follow, Lead, Table, give_back
    except ImportError as error:
        shm, missing = None, error
        Follow = Lead = Table = type("NotBuilt", (), {})
        give_back = None

__all__ = ["Follow", "Lead", "Table", "give_back", "is_built", "missing", "shm", "why_missing"]


def is_built() -> bool:
    """Tell whether there is a core."""
    return shm is not None


def why_missing() -> str:
    """Say why there is none, and what to do; ``missing`` is the cause."""
    if isinstance(missing, ModuleNotFoundError):
        return (
            "tables need Linux with glibc, and the compiled core, which is missing "
            "in this installation: install a C compiler and reinstall uniflight-mp there"
        )
    return f"the compiled core cannot be loaded: {missing}"
