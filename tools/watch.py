"""Watch: the command mim-watch, from a clone."""

import sys

from mim_toolkit import run  # the folder beside this file

if __name__ == "__main__":
    sys.exit(run("watch"))
