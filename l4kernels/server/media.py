"""Images and videos of chat parts: from their URLs to bytes, and no client chooses where to reach.

A `data:` URI is the way. Fetching is off unless the operator names hosts, and then goes to public
addresses of exactly these hosts, over TLS, once, within one time limit.
"""

import base64
import binascii
import http.client
import ipaddress
import queue
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

from l4kernels.inputs.files import shown
from l4kernels.prompt.image_files import IMAGE_FORMATS, Stripped, strip
from l4kernels.prompt.images import ImageError, check_size
from l4kernels.prompt.video import container_of

MAX_BYTES = 32 << 20
MAX_PIXELS = 20_000_000
MAX_HEADER = 1024  # characters of a data URI before its data
MAX_URL = 8192  # characters of a remote URL
MAX_ADDRESSES = 4  # of a host, that are tried
# Of what base64 may hold. No general function: one part for each escape of 64 MB fills the memory.
ESCAPES = tuple(
    (escape, bytes([byte]))
    for byte in b"+/= \n\r"
    for escape in sorted({b"%%%02X" % byte, b"%%%02x" % byte})
)
# What a host's name means depends on the version of IDNA; its other form is the same in both.
DEVIATIONS = frozenset("ßςẞ\u200c\u200d")
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# Addresses of IPv6 in which one of IPv4 hides, or that are nobody's: routes to them are tunnels.
REFUSED_6 = tuple(
    map(ipaddress.IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
)
UNICAST_6 = ipaddress.IPv6Network("2000::/3")
RELAYS_4 = ipaddress.IPv4Network("192.88.99.0/24")

Resolve = Callable[[str], list[str]]


class MediaError(ValueError):
    """An image or video of a request cannot be used; the message is meant for the client."""


class Media:
    """Turns the URLs of chat parts into bytes. Methods block: call them in worker threads.

    Args:
        allowed_hosts: names of hosts from which media is fetched, each exactly; none by default.
        max_bytes: of one image or video.
        max_pixels: of one image, as its header says; nothing is decoded here.
        timeout: seconds for one fetch, from the look-up of the host's name to the last byte.

    >>> Media().image("file:///etc/passwd")
    Traceback (most recent call last):
    l4kernels.server.media.MediaError: expected a data: URI with base64
    """

    def __init__(
        self,
        *,
        allowed_hosts: Sequence[str] = (),
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
        timeout: float = 5.0,
        _resolve: Resolve | None = None,
        _is_public: Callable[[str], bool] | None = None,
        _port: int = 443,
        _trust: str | None = None,
    ) -> None:
        self._hosts = frozenset(_allowed(host) for host in allowed_hosts)
        self._max_bytes, self._max_pixels, self._timeout = max_bytes, max_pixels, timeout
        # For tests alone: a resolver, an address and a certificate of their own.
        self._resolve, self._is_public = _resolve or _addresses, _is_public or is_public
        self._port, self._trust = _port, _trust

    def image(self, url: str) -> bytes:
        """The file that the URL of an image is or names, its size and header checked.

        Raises:
            MediaError: it is no image, damaged, too large, or cannot be had.
        """
        content = self._content(url)
        try:
            file = strip(content)
        except (ValueError, IndexError, struct.error):
            raise MediaError("the image is truncated or damaged") from None
        if file is None:
            raise MediaError(f"expected an image ({', '.join(IMAGE_FORMATS)}), got something else")
        self._check_pixels(file)
        return content

    def video(self, url: str) -> bytes:
        """The file that the URL of a video is or names, its size and first bytes checked.

        Raises:
            MediaError: it is no video, too large, or cannot be had.
        """
        content = self._content(url)
        if container_of(content[:16]) is None:
            raise MediaError("expected a video (MP4, QuickTime, WebM, Matroska, AVI, GIF)")
        return content

    def _check_pixels(self, file: Stripped) -> None:
        try:
            check_size(file.width, file.height)
        except ImageError as error:
            raise MediaError(str(error)) from None
        if file.width * file.height > self._max_pixels:
            raise MediaError(
                f"image: {file.width} x {file.height}, more than the {self._max_pixels:,} pixels "
                f"allowed; scale the image down first"
            )

    def _content(self, url: str) -> bytes:
        if not isinstance(url, str):
            raise MediaError("expected a URL as text")
        if url[:5].lower() == "data:":
            return decode_data_uri(url, self._max_bytes)
        if not re.match("https?://", url, re.IGNORECASE):
            raise MediaError("expected a data: URI with base64")
        if not self._hosts:
            raise MediaError(
                "remote images and videos are not fetched by this server: send a data: URI; the "
                "operator can allow hosts with --allow-media-host"
            )
        return self._fetch(url)

    def _fetch(self, url: str) -> bytes:
        deadline = time.monotonic() + self._timeout
        parts = _split(url)
        host = _ascii_host(parts.hostname or "")
        if host not in self._hosts:
            raise MediaError(
                "this server does not fetch from the host of the URL; send a data: URI"
            )
        with _as_media_error(self._timeout):
            addresses = _within(deadline, lambda: self._resolve(host))
            if not addresses or not all(self._is_public(address) for address in addresses):
                raise MediaError("the host of the URL cannot be reached")
            with self._connect(host, addresses[:MAX_ADDRESSES], deadline) as connection:
                return self._read(connection, host, parts)

    def _connect(self, host: str, addresses: list[str], deadline: float) -> "_Connection":
        """TLS to one of the addresses, for the name of the host; no name is looked up again."""
        context = ssl.create_default_context(cafile=self._trust)
        context.sslsocket_class = _Connection
        for number, address in enumerate(addresses):
            left = _left(deadline) / (len(addresses) - number)
            try:
                plain = socket.create_connection((address, self._port), timeout=left)
                break
            except OSError:
                if number + 1 == len(addresses):
                    raise
        with _closed_on_error(plain):
            plain.settimeout(_left(deadline))
            secure = context.wrap_socket(plain, server_hostname=host)
        assert isinstance(secure, _Connection)
        secure.deadline = deadline
        return secure

    def _read(self, connection: "_Connection", host: str, parts: SplitResult) -> bytes:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        client = http.client.HTTPConnection(host)
        client.auto_open, client.sock = 0, connection  # it must not connect by itself
        headers = {"User-Agent": "l4kernels", "Accept": "*/*", "Connection": "close"}
        client.request("GET", target, headers=headers | {"Accept-Encoding": "identity"})
        with client.getresponse() as answer:
            self._check_head(answer)
            content = bytearray()
            while part := answer.read1(1 << 16):
                content += part
                if len(content) > self._max_bytes:
                    raise _too_large(self._max_bytes)
            if answer.length:
                raise MediaError("the host of the URL ended its answer early")
            return bytes(content)

    def _check_head(self, answer: http.client.HTTPResponse) -> None:
        if answer.status != 200:
            moved = "; redirects are not followed" if 300 <= answer.status < 400 else ""
            raise MediaError(f"the host of the URL answered with status {answer.status}{moved}")
        if answer.getheader("Content-Encoding", "identity").strip().lower() != "identity":
            raise MediaError("the host of the URL sent a compressed answer, which is not read")
        if (answer.length or 0) > self._max_bytes:
            raise _too_large(self._max_bytes)


def decode_data_uri(url: str, max_bytes: int) -> bytes:
    """The content of a `data:` URI (RFC 2397) in base64, of at most `max_bytes`.

    Its media type has no effect. The alphabet may be the one for URLs, white space, percent
    escapes and missing padding are accepted, as clients send them.

    >>> decode_data_uri("data:image/png;base64,aGVs bG8", 100)
    b'hello'
    """
    comma = url.find(",", 5, 5 + MAX_HEADER)
    header = url[5:comma].lower().split(";") if comma >= 0 else []
    if len(header) < 2 or header[-1].strip() != "base64":
        raise MediaError("expected a data: URI with base64, as in data:image/png;base64,iVBORw0...")
    if len(url) - comma > 2 * max_bytes + MAX_HEADER:
        raise _too_large(max_bytes)
    try:
        data = url[comma + 1 :].encode("ascii")
    except UnicodeEncodeError:
        raise MediaError("the data: URI holds characters that are not base64") from None
    for escape, character in ESCAPES if b"%" in data else ():
        data = data.replace(escape, character)
    data = data.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n\f\v").rstrip(b"=")
    if len(data) * 3 // 4 > max_bytes:
        raise _too_large(max_bytes)
    try:
        content = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error:
        raise MediaError(
            "the data: URI holds characters that are not base64, or ends early"
        ) from None
    if not content:
        raise MediaError("the data: URI is empty")
    return content


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, and hides none that is not.

    >>> [is_public(a) for a in ("93.184.215.14", "10.0.0.1", "::ffff:93.184.215.14", "fe80::1")]
    [True, False, False, False]
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not found.is_global or found.is_multicast or found.is_reserved:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return found not in RELAYS_4
    isatap = int(found) >> 32 & 0xFDFFFFFF == 0x5EFE
    return (
        found in UNICAST_6
        and found.scope_id is None
        and not isatap
        and not any(found in network for network in REFUSED_6)
    )


class _Connection(ssl.SSLSocket):
    """Each read may take what is left of the whole time, however little comes at once."""

    deadline = 0.0

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        if self.deadline:
            self.settimeout(_left(self.deadline))
        return super().recv_into(*arguments, **options)


def _too_large(max_bytes: int) -> MediaError:
    return MediaError(f"more than the {max_bytes:,} bytes allowed for an image or video")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@contextmanager
def _as_media_error(timeout: float) -> Iterator[None]:
    """What a connection raises holds addresses; the client learns what it can change."""
    try:
        yield
    except MediaError:
        raise
    except TimeoutError:
        raise MediaError(f"the host of the URL took more than {timeout:g} s") from None
    except ssl.SSLCertVerificationError:
        raise MediaError("the host of the URL has no valid certificate for its name") from None
    except (OSError, http.client.HTTPException, ValueError):
        raise MediaError("the host of the URL cannot be reached, or gave no valid answer") from None


@contextmanager
def _closed_on_error(connection: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _split(url: str) -> SplitResult:
    """The parts of a remote URL. There is no second parser: what is fetched is made of these."""
    if len(url) > MAX_URL:
        raise MediaError(f"expected a URL of at most {MAX_URL:,} characters")
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise MediaError("expected a URL without spaces, control characters and backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise MediaError("expected a valid URL") from None
    if parts.scheme != "https":
        raise MediaError("expected an https: URL or a data: URI")
    if "@" in parts.netloc:
        raise MediaError("expected a URL without a user name and password")
    if port not in (None, 443):
        raise MediaError("expected a URL without a port, or with port 443")
    if not (parts.path + parts.query).isascii():
        raise MediaError("expected a URL whose path and query have percent escapes for non-ASCII")
    return parts


def _ascii_host(name: str) -> str:
    """A host's name as DNS has it, in lower case and without the dot at its end.

    Raises `MediaError` for an address, and for what no host is called.
    """
    name = name.removesuffix(".")
    if not name or len(name) > 253 or DEVIATIONS & set(name):
        raise MediaError("expected a URL with the name of a host, non-ASCII names as xn--")
    try:
        host = name.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise MediaError("expected a URL with the valid name of a host") from None
    labels = host.split(".")
    if not all(LABEL.fullmatch(label) for label in labels) or re.match(r"\d|0x", labels[-1]):
        raise MediaError("expected a URL with the name of a host, not its address")
    return host


def _allowed(name: str) -> str:
    try:
        return _ascii_host(name)
    except MediaError:
        raise ValueError(
            f"--allow-media-host: expected the name of a host, such as images.example.org, "
            f"got {shown(name)}"
        ) from None


def _addresses(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _within(deadline: float, look_up: Callable[[], list[str]]) -> list[str]:
    """What a look-up returns; it has no time limit of its own, so it gets a thread to wait in."""
    outcome: queue.SimpleQueue[list[str] | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put(look_up())
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        found = outcome.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise found
    return found
