"""The command as a module: python -m mae, or torchrun -m mae."""

import sys

from mae.cli.main import main

sys.exit(main())
