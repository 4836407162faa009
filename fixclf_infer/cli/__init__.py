"""The `fixclf` command. A command is one file that adds itself to `app`."""

from . import codebook as codebook
from . import export as export
from . import verify as verify
from .app import app

__all__ = ["app"]
