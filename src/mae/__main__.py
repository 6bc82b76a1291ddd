"""Entry point for `python -m mae` and `torchrun -m mae`."""

import sys

from mae.cli.main import main

sys.exit(main())
