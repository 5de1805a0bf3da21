"""Tests that hypothesis writes: sequences of whatever may happen, and input of any kind."""
