"""Trunkline: one key in front, every vendor behind, one file between."""

__version__ = "0.1.0"
