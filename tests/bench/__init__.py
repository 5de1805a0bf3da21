"""What Trunkline costs: measured as `docs/performance.md` says, by `scripts/bench` and `scripts/profile`.

It starts everything it measures itself, reaches nothing but this machine, and prints no figure that
says more about the load than about what was loaded.
"""
