"""Comparisons with real model servers: scripts, run by hand, never collected."""
