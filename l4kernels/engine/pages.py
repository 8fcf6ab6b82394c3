"""Pages of the KV cache: who uses them, which are free, which hold a known prefix."""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

NO_PAGE = -1


def chain(parent: bytes, tokens: Sequence[int], content: bytes = b"") -> bytes:
    """What names a full page: its tokens, all before them, and what its images show.

    Keys and values depend on every token before theirs, also those of layers that look back only
    inside their chunk: what they are made of has been through the other layers.

    >>> chain(b"", [1, 2]) == chain(b"", [1, 2]) != chain(chain(b"", [3, 4]), [1, 2])
    True
    """
    return hashlib.blake2b(parent + array("q", tokens).tobytes() + content, digest_size=16).digest()


def root(salt: bytes) -> bytes:
    """The parent of a first page: a name that no page has, whatever the salt.

    >>> len(root(b"")), root(chain(b"", [1])) == chain(b"", [1])
    (16, False)
    """
    return hashlib.blake2b(salt, digest_size=16, person=b"cache salt").digest()


class PagePool:
    """The pages of one kind of layers.

    A page is free, in use by one or more sequences, or cached: nobody's, but its name is known, so
    that a sequence with the same prefix may take it up again. Cached pages are given away when no
    free one is left, the least recently used first.

    >>> pool = PagePool(2)
    >>> page = pool.allocate()
    >>> pool.name(page, b"prefix")
    >>> pool.release(page)
    >>> pool.available, pool.find(b"prefix") == page
    (2, True)
    """

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._users = [0] * num_pages
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Pages that `allocate` can give."""
        return len(self._free) + len(self._cached)

    @property
    def in_use(self) -> int:
        return self.num_pages - self.available

    @property
    def cached(self) -> int:
        return len(self._cached)

    def allocate(self) -> int:
        """A page of the caller's own; the caller has seen that there is one."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            del self._named[self._names.pop(page)]
        self._users[page] = 1
        return page

    def find(self, name: bytes) -> int | None:
        return self._named.get(name)

    def take(self, page: int) -> None:
        """One user more of a page that was found."""
        self._users[page] += 1
        self._cached.pop(page, None)

    def release(self, page: int) -> None:
        """One user less."""
        self._users[page] -= 1
        if self._users[page]:
            return
        if page in self._names:
            self._cached[page] = None
        else:
            self._free.append(page)

    def name(self, page: int, name: bytes) -> None:
        """Says what a page in use holds from now on, unless another page holds the same."""
        if name not in self._named and page not in self._names:
            self._named[name], self._names[page] = page, name

    def forget(self) -> None:
        """Cached pages become free, and what is in use is no longer found."""
        self._free += self._cached
        self._cached.clear()
        self._names.clear()
        self._named.clear()
