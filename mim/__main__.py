"""`python -m mim COMMAND ...`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))  # of a clone, where nothing is installed

from mim_toolkit import main

if __name__ == "__main__":
    sys.exit(main())
