"""What a server allows, and how it is asked to."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerOptions:
    """Limits and settings of a server; the defaults are those of `l4k serve`.

    >>> ServerOptions("scout").max_image_pixels
    20000000
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    """One of them has to come with each request; none: nobody is asked."""
    max_body_bytes: int = 32 << 20
    max_bodies_bytes: int = 1 << 30
    """Of all requests together, from their first byte to the end of their answers. Parsed and
    decoded they take about three times as much memory."""
    body_seconds: float = 60.0
    """For a body to arrive."""
    max_image_pixels: int = 20_000_000
    max_images: int = 32
    """Of one request, frames of videos among them."""
    video_frames: int = 8
    media_hosts: tuple[str, ...] = ()
    """Hosts from which images and videos are fetched; none: only data URIs are read."""
    max_waiting: int = 256
    """Samples that wait for a slot of the engine, beyond which requests are told to come later."""
    max_samples: int = 64
    """Of one request: its prompts times `n`."""
    max_output_tokens: int = 16_384
    request_seconds: float = 600.0
    stall_seconds: float = 30.0
    """For a client to read, once the connection's buffer is full."""
    heartbeat_seconds: float = 15.0
    """Between two signs of life of a stream that has nothing to say."""
    drain_seconds: float = 30.0
    """For requests that are running when the server is asked to end."""
