"""The `fixclf` command. A command is one file that adds itself to `app`."""

from . import codebook as codebook
from .app import app

__all__ = ["app"]
