"""Processes: one that serves, several of them, and how they hand over to each other."""
