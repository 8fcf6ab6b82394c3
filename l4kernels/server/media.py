"""URLs of images."""

import base64
from typing import Any


class MediaError(ValueError):
    """Cannot be used."""


class Media:
    def __init__(self, **limits: Any):
        self._limits = limits

    def image(self, url: str) -> bytes:
        if not url.startswith("data:"):
            raise MediaError("remote images are not fetched")
        return base64.b64decode(url.partition(",")[2])
