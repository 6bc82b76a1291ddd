"""The command as a module: python -m mae, or torchrun -m mae."""

import sys

from mae.cli import main

sys.exit(main())
