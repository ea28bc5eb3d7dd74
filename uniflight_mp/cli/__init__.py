"""The command line. click and rich are imported in this package only."""

from .commands import main

__all__ = ["main"]
