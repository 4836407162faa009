"""Modules with a fixed classifier head."""

from .classifier import FixedClassifier

__all__ = ["FixedClassifier"]
