"""Python imports this at start-up: in a rank it brings about the fault that MAE_CHAOS names."""

import os
import sys

if os.environ.get("RANK", "none") in os.environ.get("MAE_CHAOS_RANKS", "").split(","):
    sys.path.insert(0, os.environ["MAE_CHAOS_ROOT"])
    from tests.chaos import faults

    eval(os.environ["MAE_CHAOS"], {"faults": faults})
