"""`python -m mim COMMAND ...`."""

import sys

from mim_toolkit import main

if __name__ == "__main__":
    sys.exit(main())
