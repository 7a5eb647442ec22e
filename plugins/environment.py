"""Choices among ways to compute that are made in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from divprune.runtime.errors import OptionError

__all__ = ["read_choice"]


def read_choice(
    variable: str, choices: Sequence[str], environment: Mapping[str, str] = os.environ
) -> str:
    """What a variable says; the first of the choices where it is not set.

    Raises:
        OptionError: if it says something else.
    """
    choice = environment.get(variable, choices[0])
    if choice not in choices:
        raise OptionError(
            f"{variable} has a value that nothing stands for",
            expected=" or ".join(choices),
            found=choice,
            fix=f"{variable}={choices[0]}, or leave it out",
        )
    return choice
