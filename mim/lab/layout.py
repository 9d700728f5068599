"""Names of runs as folders have them."""

import re


def slug(name: str) -> str:
    """A name as a folder's: small letters, digits and points, and a hyphen for anything else."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def seedless(folder: str) -> str:
    """A folder's name without its seed: `mae` of `mae-seed0`."""
    return re.sub(r"[-_. ]?seed[-_=. ]?\d+", "", folder, flags=re.IGNORECASE)
