"""Checks of numbers in a config; errors name the key, the value and what is allowed."""


def at_least(section: str, least: float, **values: float) -> None:
    """Raises ValueError for the first value below `least`, as in `at_least("TRAIN", 1, epochs=epochs)`."""
    for key, value in values.items():
        if value < least:
            raise ValueError(f"{section}.{key} is {value}: it must be at least {least}")


def above_zero(section: str, **values: float) -> None:
    """Raises ValueError for the first value that is not above 0."""
    for key, value in values.items():
        if not value > 0:
            raise ValueError(f"{section}.{key} is {value}: it must be above 0")


def shares(section: str, **values: float) -> None:
    """Raises ValueError for the first value that is not above 0 and at most 1."""
    for key, value in values.items():
        if not 0 < value <= 1:
            raise ValueError(f"{section}.{key} is {value}: it is a share, above 0 and at most 1")
