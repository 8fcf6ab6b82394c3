"""URLs of chat parts to bytes: what is accepted, and that no client decides where to reach."""

import base64
import contextlib
import re
import socket
import ssl
import threading
import time

import pytest
import trustme

from l4kernels.server import media
from l4kernels.server.media import Media, MediaError, is_public
from tests.support import pictures
from tests.support.deadlines import cheaply, within
from tests.support.pictures import noise, saved
from tests.support.videos import numbered

PICTURE = saved(noise(8, 6))
HOST = "images.example.org"


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def lines(text: str) -> str:
    return "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76))


TEXT = base64.b64encode(PICTURE).decode()
GOOD_URIS = {
    "as RFC 2397 has it": data_uri(PICTURE),
    "of no type": data_uri(PICTURE, ""),
    "of another type": data_uri(PICTURE, "image/jpeg"),
    "with parameters": data_uri(PICTURE, "image/png;charset=utf-8;name=a.png"),
    "in capitals": "DATA:IMAGE/PNG;BASE64," + TEXT,
    "in the alphabet of URLs": "data:;base64," + base64.urlsafe_b64encode(PICTURE).decode(),
    "without padding": "data:;base64," + TEXT.rstrip("="),
    "in lines": "data:;base64," + lines(TEXT),
    "with percent escapes": "data:;base64," + TEXT.replace("+", "%2B").replace("/", "%2F"),
    "in escaped lines": "data:;base64," + lines(TEXT).replace("\r\n", "%0D%0a") + "%3d%3D",
    "behind a space": "data:;base64, " + TEXT + "\n",
}


@pytest.mark.parametrize("case", GOOD_URIS)
def test_data_uris(case):
    assert Media().image(GOOD_URIS[case]) == PICTURE


def test_every_format_of_images():
    for kind in pictures.IMAGE_FORMATS:
        content = saved(noise(8, 6), kind)
        assert Media().image(data_uri(content)) == content


BAD_URIS = {
    "no comma": ("data:image/png;base64", "expected a data: URI with base64"),
    "no base64": ("data:image/png,abc", "expected a data: URI with base64"),
    "only the word": ("data:base64,aGVsbG8=", "expected a data: URI with base64"),
    "base64 not last": ("data:;base64;x=y,aGVsbG8=", "expected a data: URI with base64"),
    "a comma far away": ("data:" + "x" * 5000 + ";base64,aGVsbG8=", "expected a data: URI"),
    "nothing": ("data:;base64,", "is empty"),
    "padding alone": ("data:;base64,====", "is empty"),
    "other characters": ("data:;base64,aGVs!bG8=", "not base64"),
    "a colon for an alphabet": ("data:;base64,aGVs:bG8=", "not base64"),
    "padding within": ("data:;base64,aGV=sbG8", "not base64"),
    "one character too many": ("data:;base64,aGVsb", "not base64"),
    "not ASCII": ("data:;base64,aGVsbG8é", "not base64"),
    "another escape": ("data:;base64,%61GVsbG8=", "not base64"),
    "half an escape": ("data:;base64,aGVsbG8%2", "not base64"),
    "a surrogate": ("data:;base64,aGVs\ud800", "not base64"),
    "no picture": (data_uri(b"hello"), "expected an image"),
    "a video": (data_uri(b"\0\0\0\x18ftypisom"), "expected an image"),
    "a page": (data_uri(b"<svg onload='x'>"), "expected an image"),
    "a damaged picture": (data_uri(PICTURE[:60]), "truncated or damaged"),
    "a flipped bit": (data_uri(PICTURE[:20] + b"x" + PICTURE[21:]), "truncated or damaged"),
    "many pixels": (data_uri(pictures.png_bomb(5000, 4001)), "5000 x 4001, more than the 20,000"),
    "a long side": (data_uri(pictures.png_bomb(40_000, 10)), "a side longer than"),
    "no pixels": (data_uri(pictures.png_header(0, 9) + pictures.chunk(b"IDAT", b"")), "pixels"),
}


@pytest.mark.parametrize("case", BAD_URIS)
def test_bad_data_uris(case):
    url, message = BAD_URIS[case]
    with pytest.raises(MediaError, match=re.escape(message)):
        Media().image(url)


def test_the_limit_of_bytes_comes_before_the_decoding(monkeypatch):
    exact = Media(max_bytes=len(PICTURE))
    for url in GOOD_URIS.values():
        assert exact.image(url) == PICTURE
    small = Media(max_bytes=len(PICTURE) - 1)
    for url in GOOD_URIS.values():
        with pytest.raises(MediaError, match=r"more than the .* bytes"):
            small.image(url)
    monkeypatch.setattr(media.base64, "b64decode", lambda *_: pytest.fail("decoded"))
    for filler in ("A", " ", "%41"):
        with pytest.raises(MediaError, match="more than the 1,000,000 bytes"):
            Media(max_bytes=1_000_000).image("data:;base64," + filler * 2_100_000)


def test_long_input_is_refused_quickly():
    def refused():
        for url in ("data:" + ";" * 10**7, "data:;base64," + "=" * 10**7, "x" * 10**7, "%" * 10**7):
            with pytest.raises(MediaError):
                Media(allowed_hosts=[HOST]).image(url)
        for url in ("https://" + "a" * 10**7, "data:;base64," + "%41" * 10**7):
            with pytest.raises(MediaError):
                Media(allowed_hosts=[HOST]).image(url)

    cheaply(1, refused)


def test_videos():
    content = numbered("webm vp9", 2)
    assert Media().video(data_uri(content, "video/mp4")) == content
    for bad in (PICTURE, b"#EXTM3U\n", b"hello"):
        with pytest.raises(MediaError, match="expected a video"):
            Media().video(data_uri(bad, "video/mp4"))


@pytest.mark.parametrize(
    "url",
    [
        *["file:///etc/passwd", "FILE:/etc/passwd", "/etc/passwd", "ftp://images.example.org/a"],
        *["gopher://x", "concat:a|b", "//images.example.org/a.png", "javascript:alert(1)", ""],
        *[" https://images.example.org/a", "https:/images.example.org/a", "blob:https://x/a"],
    ],
)
def test_other_schemes_are_refused(url):
    for allowed in ([], [HOST]):
        reader = Media(allowed_hosts=allowed, _resolve=lambda host: pytest.fail("resolved"))
        for read in (reader.image, reader.video):
            with pytest.raises(MediaError, match=r"^expected a data: URI with base64$"):
                read(url)


@pytest.mark.parametrize("url", [None, 5, b"data:;base64,aGVs", ["x"], {"url": "x"}])
def test_what_is_no_text_is_refused(url):
    with pytest.raises(MediaError, match="expected a URL as text"):
        Media().image(url)


def test_nothing_is_fetched_by_default():
    reader = Media(_resolve=lambda host: pytest.fail("resolved"))
    for url in ("https://images.example.org/a.png", "http://127.0.0.1/", "HTTPS://x"):
        with pytest.raises(MediaError, match=r"not fetched by this server.*--allow-media-host"):
            reader.image(url)


BAD_URLS = {
    "no TLS": f"http://{HOST}/a.png",
    "another port": f"https://{HOST}:8443/a.png",
    "port 0": f"https://{HOST}:0/a.png",
    "no number for a port": f"https://{HOST}:x/a.png",
    "a long port": f"https://{HOST}:99999999/a.png",
    "a user": f"https://me@{HOST}/a.png",
    "a password": f"https://me:secret@{HOST}/a.png",
    "an empty user": f"https://@{HOST}/a.png",
    "the host as a user": f"https://{HOST}@127.0.0.1/a.png",
    "the host before a backslash": f"https://{HOST}\\@127.0.0.1/a.png",
    "a sub-domain": f"https://a.{HOST}/a.png",
    "a parent domain": "https://example.org/a.png",
    "the host as a prefix": f"https://{HOST}.evil.example/a.png",
    "the host as a suffix": f"https://evil{HOST}/a.png",
    "two dots at the end": f"https://{HOST}../a.png",
    "an empty label": "https://images..example.org/a.png",
    "percent escapes in the host": "https://image%73.example.org/a.png",
    "an address": "https://127.0.0.1/a.png",
    "an address of IPv6": "https://[::1]/a.png",
    "a mapped address": "https://[::ffff:127.0.0.1]/a.png",
    "an address as a number": "https://2130706433/a.png",
    "an address in hex": "https://0x7f000001/a.png",
    "an octal address": "https://0177.0.0.1/a.png",
    "a short address": "https://127.1/a.png",
    "a broken bracket": "https://[::1/a.png",
    "no host": "https:///a.png",
    "a space": f"https://{HOST}/a b.png",
    "a line": f"https://{HOST}/a\r\nX: y",
    "a tab in the host": "https://images\t.example.org/a.png",
    "a zero": f"https://{HOST}/\0",
    "a path that is not ASCII": f"https://{HOST}/é.png",
    "a long URL": f"https://{HOST}/{'a' * 9000}",
    "a long host": f"https://{'a' * 300}.org/",
    "a long label": f"https://{'a' * 70}.org/",
    "letters that change the parts": f"https://{HOST}\u2100.evil.example/",
    "a name of two meanings": "https://straße.example/",
}


@pytest.mark.parametrize("case", BAD_URLS)
def test_bad_remote_urls(case):
    hosts = [HOST, "strasse.example"]
    reader = Media(allowed_hosts=hosts, _resolve=lambda host: pytest.fail("resolved"))
    with pytest.raises(MediaError) as caught:
        reader.image(BAD_URLS[case])
    assert "127.0.0.1" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "host",
    [
        *["127.0.0.1", "::1", "https://example.org", "example.org:443", "*.example.org", ".", ""],
        *["user@example.org", "example.org/path", "a..b", "a b", "straße.example", "10", "0x7f.1"],
    ],
)
def test_bad_hosts_of_the_operator(host):
    with pytest.raises(ValueError, match="--allow-media-host: expected the name of a host"):
        Media(allowed_hosts=[host])


PUBLIC = ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:830::200e"]
NOT_PUBLIC = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1",
    "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:1.1.1.1", "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::101:101", "64:ff9b:1::1", "100::1", "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1",
    "2001:db8::1", "2002:7f00:1::1", "2002:101:101::1", "3fff::1", "5f00::1", "fc00::1",
    "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1", "ff02::1",
    "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:7f00:1",
    "", "localhost", "127.1", "0x7f.0.0.1", "0177.0.0.1", "2130706433", "1.1.1.1 ", "1.1.1.1/8",
]  # fmt: skip


def test_public_addresses():
    assert [address for address in PUBLIC if not is_public(address)] == []
    assert [address for address in NOT_PUBLIC if is_public(address)] == []


@pytest.mark.parametrize("found", [[a] for a in NOT_PUBLIC] + [["1.1.1.1", "10.0.0.1"], []])
def test_no_connection_to_what_is_not_public(found, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("connected"))
    reader = Media(allowed_hosts=[HOST], _resolve=lambda host: found)
    with pytest.raises(MediaError, match=r"^the host of the URL cannot be reached$"):
        reader.image(f"https://{HOST}/a.png")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    made = trustme.CA()
    made.file = str(tmp_path_factory.mktemp("trust") / "ca.pem")
    made.cert_pem.write_to_path(made.file)
    return made


class Server:
    """A TLS server on 127.0.0.1 that says the same bytes to every client."""

    def __init__(self, authority, name: str = HOST) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(self.context)
        self.names: list[str | None] = []
        self.context.sni_callback = lambda _, name, __: self.names.append(name)
        self.requests: list[bytes] = []
        self.plain = socket.create_server(("127.0.0.1", 0))
        self.port = self.plain.getsockname()[1]
        self.answer = self.ok(PICTURE)
        self.pause = 0.0  # seconds before each byte
        self.shakes_hands = True
        threading.Thread(target=self.serve, daemon=True).start()

    @staticmethod
    def ok(content: bytes, *headers: str, length: int | None = None) -> bytes:
        length = len(content) if length is None else length
        lines = ["HTTP/1.1 200 OK", f"Content-Length: {length}", *headers]
        return "\r\n".join([*lines, "", ""]).encode() + content

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.plain.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                client.settimeout(10)
                if not self.shakes_hands:
                    client.recv(1 << 16)
                    client.recv(1)  # until the client gives up
                    continue
                with self.context.wrap_socket(client, server_side=True) as secure:
                    self.requests.append(secure.recv(1 << 16))
                    if self.pause:
                        for at in range(len(self.answer)):
                            secure.sendall(self.answer[at : at + 1])
                            time.sleep(self.pause)
                    else:
                        secure.sendall(self.answer)
                    secure.unwrap()


@pytest.fixture
def server(authority):
    made = Server(authority)
    yield made
    made.plain.close()


@pytest.fixture
def fetch(server, authority):
    """Fetches a picture from the server, as if it were a public host."""
    looked_up: list[str] = []

    def resolve(host):
        looked_up.append(host)
        return ["127.0.0.1"]

    def run(url=f"https://{HOST}/a.png", hosts=(HOST,), **options):
        hooks = {
            "_resolve": resolve,
            "_is_public": lambda address: True,
            "_port": server.port,
            "_trust": authority.file,
        }
        return within(10, lambda: Media(allowed_hosts=hosts, **hooks | options).image(url))

    run.looked_up = looked_up
    return run


@pytest.mark.parametrize(
    "url",
    [
        f"https://{HOST}/dir/a.png?b=c&d",
        f"https://{HOST}:443/dir/a.png?b=c&d#part",
        f"HTTPS://{HOST.upper()}./dir/a.png?b=c&d",
    ],
)
def test_an_allowed_host(fetch, server, url):
    assert fetch(url) == PICTURE
    assert fetch.looked_up == [HOST] and server.names == [HOST]
    head, *headers = server.requests[0].decode().split("\r\n")
    assert head == "GET /dir/a.png?b=c&d HTTP/1.1"
    assert f"Host: {HOST}" in headers and "Accept-Encoding: identity" in headers
    assert not any(h.lower().startswith(("cookie", "authorization", "referer")) for h in headers)


def test_a_host_in_another_script(fetch, server, authority):
    name = "bilder.müller.example"
    for url in (f"https://{name}/", "https://bilder.xn--mller-kva.example/"):
        with pytest.raises(MediaError, match="no valid certificate"):
            fetch(url, hosts=[name])
    assert server.names == fetch.looked_up == ["bilder.xn--mller-kva.example"] * 2


def test_proxies_of_the_environment_are_not_asked(fetch, monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch() == PICTURE


def test_the_second_address_if_the_first_does_not_answer(fetch):
    assert fetch(_resolve=lambda host: ["127.0.0.2", "127.0.0.1"], timeout=2) == PICTURE


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(fetch, server, status):
    server.answer = f"HTTP/1.1 {status} Moved\r\nLocation: https://{HOST}/b\r\n\r\n".encode()
    with pytest.raises(MediaError, match=f"status {status}; redirects are not followed"):
        fetch()
    assert len(server.requests) == 1


def test_an_answer_in_chunks(fetch, server):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [PICTURE[:10], PICTURE[10:], b""]
    server.answer = head + b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks)
    assert fetch() == PICTURE


BAD_ANSWERS = {
    "an error": (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
    "part of it": (b"HTTP/1.1 206 Partial\r\n\r\nabc", "status 206"),
    "nothing": (b"", "no valid answer"),
    "no HTTP": (b"hello", "no valid answer"),
    "another protocol": (b"SSH-2.0-OpenSSH\r\n", "no valid answer"),
    "an endless header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 99_999, "no valid answer"),
    "many headers": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 999 + b"\r\n", "no valid answer"),
    "a length that is too large": (Server.ok(b"", length=10**9), "more than the 1,000 bytes"),
    "a length that is a lie": (Server.ok(PICTURE, length=500), "ended its answer early"),
    "more than is allowed": (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 99_999, "more than the 1,000"),
    "large chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + b"x" * 99_999,
        "more than the 1,000 bytes",
    ),
    "chunks that end early": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "no valid answer",
    ),
    "a chunk of no size": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc",
        "no valid answer",
    ),
    "something compressed": (Server.ok(PICTURE, "Content-Encoding: gzip"), "compressed"),
    "no picture": (Server.ok(b"root:x:0:0"), "expected an image"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_bad_answers(fetch, server, case):
    server.answer, message = BAD_ANSWERS[case]
    with pytest.raises(MediaError, match=message) as caught:
        fetch(max_bytes=1000)
    assert "127.0.0.1" not in str(caught.value) and "root" not in str(caught.value)


@pytest.mark.parametrize("case", ["silent", "no handshake", "head", "body", "look-up"])
def test_the_time_limit_is_for_everything(fetch, server, case):
    options = {}
    if case == "no handshake":
        server.shakes_hands = False
    elif case == "look-up":
        options["_resolve"] = lambda host: time.sleep(3) or ["127.0.0.1"]
    else:
        server.pause = 3 if case == "silent" else 0.05
        if case == "body":
            server.answer = b"HTTP/1.0 200\r\n\r\n" + bytes(200)

    def waited_for():
        started = time.monotonic()
        with pytest.raises(MediaError, match=r"^the host of the URL took more than 1 s$"):
            fetch(timeout=1, **options)
        assert time.monotonic() - started > 0.9

    cheaply(1.5, waited_for, clock=time.monotonic)


def test_the_certificate_must_be_the_hosts(authority, fetch):
    other = Server(authority, "evil.example")
    with pytest.raises(MediaError, match="no valid certificate for its name"):
        fetch(_port=other.port)
    assert not other.requests
    with pytest.raises(MediaError, match="no valid certificate for its name"):
        fetch(_trust=None)


def test_a_host_that_refuses(fetch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(MediaError, match="cannot be reached") as caught:
        fetch(_port=port)
    assert caught.value.__cause__ is None and str(port) not in str(caught.value)


def test_a_name_that_is_not_found(fetch):
    def unknown(host):
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(MediaError, match="cannot be reached"):
        fetch(_resolve=unknown)


def test_connections_are_closed(fetch, server):
    import psutil

    before = psutil.Process().num_fds()
    for answer in (Server.ok(PICTURE), b"hello", Server.ok(b"x", length=10**9)):
        server.answer = answer
        with contextlib.suppress(MediaError):
            fetch()
    deadline = time.monotonic() + 2
    while psutil.Process().num_fds() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert psutil.Process().num_fds() <= before
