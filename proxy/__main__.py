"""`python -m proxy` is `trunkline`."""

import gc
import sys

from proxy.process.signals import be_patient

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        be_patient()
    gc.disable()
    from proxy.cli import main  # which takes a while: a signal must not end us meanwhile

    gc.freeze()  # what is imported stays
    gc.enable()
    raise SystemExit(main())
