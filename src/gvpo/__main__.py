"""`python -m gvpo` is the same as `gvpo`."""

import sys

from gvpo.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
