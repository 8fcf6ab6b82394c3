"""Arguments of verbs that read their own."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a `ValueError`, shown like any other error of `l4k`."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)
