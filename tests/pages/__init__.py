"""Helpers for `tests/test_pages.py`: a browser that is driven, and a proxy in front of the proxy."""
