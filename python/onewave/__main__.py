"""python -m onewave: see onewave._cli."""

import sys

from onewave._cli import main

sys.exit(main())
