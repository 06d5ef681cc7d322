"""`python -m layerzoo` is the command line."""

import sys

from layerzoo.cli import main

sys.exit(main())
