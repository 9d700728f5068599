"""Store: the files of an object store, which fsspec reaches, with patience and with errors that say what to do."""

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from mim.data.decoding.names import printable_name
from mim.data.sources.retry import FIRST_PAUSE, LONGEST_PAUSE
from mim.errors import DataLost

LOG = logging.getLogger("mim")

T = TypeVar("T")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # not the letter of a disk of Windows
REQUESTS = 16  # at once, of a process
START_S = 5.0  # seconds that a start waits for a store, at most
NO_ANSWER_S = 60  # without a byte, after which an HTTP request counts as failed
EXTRAS = {"http": "remote", "https": "remote", "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "huggingface"}
VERSIONS = (  # of a file, by the names that stores give to what changes with it
    *("ETag", "etag", "generation", "blob_id", "Content-MD5", "Digest", "Last-Modified", "LastModified", "mtime"),
    "created",
)
WAIT = (408, 425, 429)  # HTTP: later is better; other codes from 400 to 499 stay

Range = tuple[str, int, int]  # a file's path in the store, its first byte, and the byte behind the last


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a store."""

    url: str
    path: str  # in the store; an HTTP address whole, with what signs it
    size: int  # bytes
    version: str  # another one where its content is another; empty where the store does not say


class StoreError(ValueError):
    """A file of a store that cannot be read, however often it is tried; the text says why, and what to do."""


class Store:
    """One store, for all processes that have a copy: each makes its own connections.

    All methods raise StoreError where a name, a permission or a package is missing, and DataLost where the store does
    not answer for `retry_s` seconds.

    Args:
        url: of a file or folder in it.
        retry_s: DATA.retry_s.
    """

    def __init__(self, url: str, retry_s: float):
        self._url, self.retry_s = url, retry_s
        self._process = 0
        self._fs: Any = None
        self._threads: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": 0, "_fs": None, "_threads": None}

    def expand(self, url: str, ending: str, below: bool = False) -> list[str]:
        """The paths of a pattern with `*`, or of the files in a folder, sorted; or the path itself.

        Args:
            url: of the files.
            ending: of their names.
            below: whether files in folders of the folder count.
        """
        fs, path = self.connect(), self.path(url)
        name = path.partition("?")[0]
        if "*" in name:
            return sorted(self._patiently(url, lambda: fs.glob(path)))
        if name.endswith(ending) or not self._patiently(url, lambda: fs.isdir(path)):
            return [path]
        pattern = f"{path.rstrip('/')}/{'**/' if below else ''}*{ending}"
        return sorted(self._patiently(url, lambda: fs.glob(pattern)))

    def files(self, paths: Sequence[str]) -> list[RemoteFile]:
        """The size and version of files. Raises StoreError where one does not exist."""
        return list(self.threads().map(self._file, paths))

    def read(self, path: str, start: int, stop: int) -> bytes:
        """A range of a file."""
        fs = self.connect()
        content = self._patiently(self.url(path), lambda: self._range(fs, path, start, stop))
        if len(content) > stop - start:
            raise StoreError(
                f"{self.url(path)}: the server gives {len(content):,} bytes where {stop - start:,} were asked for, as "
                "one without range requests does: copy the files to a disk, or to a store that has them"
            )
        return content

    def read_all(self, ranges: Sequence[Range]) -> list[bytes]:
        """Several ranges, 16 at once."""
        return list(self.threads().map(lambda part: self.read(*part), ranges))

    def path(self, url: str) -> str:
        """The path in the store of an address."""
        return str(self.connect()._strip_protocol(url))

    def url(self, path: str) -> str:
        """The address of a file, without what signs it."""
        return public(str(self.connect().unstrip_protocol(path)))

    def connect(self) -> Any:
        """The file system of fsspec, of this process."""
        if self._process != os.getpid():
            self._fs, self._threads, self._process = _connect(self._url), None, os.getpid()
        return self._fs

    def threads(self) -> ThreadPoolExecutor:
        """The threads of this process that wait for answers."""
        self.connect()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(REQUESTS, thread_name_prefix="mim-store")
        return self._threads

    def _file(self, path: str) -> RemoteFile:
        fs = self.connect()
        url = self.url(path)
        info = self._patiently(url, lambda: fs.info(path))
        if info.get("size") is None or info.get("type", "file") != "file":
            raise StoreError(f"{url} is no file, or the server does not tell its size: name a file")
        version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
        return RemoteFile(url, path, int(info["size"]), version)

    @staticmethod
    def _range(fs: Any, path: str, start: int, stop: int) -> bytes:
        content = fs.cat_file(path, start=start, end=stop)
        if len(content) < stop - start:
            raise ConnectionError(f"{len(content):,} of {stop - start:,} bytes came")
        return content

    def _patiently(self, url: str, request: Callable[[], T]) -> T:
        """What a request gives, which is made again where it fails for a reason that passes."""
        began, pause, reason = time.monotonic(), FIRST_PAUSE, ""
        while True:
            try:
                result = request()
            except Exception as error:  # each store has types of its own
                if lasting := _lasting(error):
                    raise StoreError(f"{printable_name(public(url))}{lasting}") from error
                reason = reason or f"{printable_name(public(url))}: {_short(error)}"
                waited = time.monotonic() - began
                if waited >= self.retry_s:
                    raise DataLost(
                        f"the images cannot be read: {reason}. Waited {waited:.1f} s (DATA.retry_s; at the start "
                        f"at most {START_S:g}). Bring the store back and start the same command again: a training run "
                        "goes on from its last checkpoint"
                    ) from error
                time.sleep(min(pause, self.retry_s - waited))
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            if reason and pause > 2 * FIRST_PAUSE:
                ended = time.monotonic()
                LOG.warning(
                    "the store could not be read for %.1f s (%s); it is back, and nothing was left out",
                    *(ended - began, reason),
                    extra={"outage": (began, ended)},
                )
            return result


def public(text: str) -> str:
    """A text without the secrets of addresses in it: what follows a `?`, and what stands before an `@`."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", re.sub(r"(://[^\s?]+)\?[^\s'\")]*", r"\1", text))


def is_remote(path: str) -> bool:
    """Whether a path is an address such as s3://bucket/folder."""
    return SCHEME.match(path) is not None


def _connect(url: str) -> Any:
    protocol = url.partition("://")[0].lower()
    try:
        import fsspec

        options: dict[str, Any] = {}
        if protocol in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=NO_ANSWER_S, sock_read=NO_ANSWER_S)
            options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
        fs = fsspec.filesystem(protocol, **options)
        fs.invalidate_cache()  # listings of earlier runs of this process
        return fs
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        way_out = f"pip install 'mim-toolkit[{extra}]'" if extra else "install it"
        raise StoreError(f"{printable_name(url)} needs a package ({error}): {way_out}") from error
    except ValueError as error:
        raise StoreError(
            f"{printable_name(url)}: {error}: use s3://, gs://, hf://, https://, or another protocol of fsspec"
        ) from error


def _lasting(error: Exception) -> str:
    """The end of a sentence about an error that stays however often the request is made; empty for others."""
    while isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # fsspec says so of all that goes wrong over HTTP
    code = _code(error)
    if isinstance(error, FileNotFoundError) or code == 404:
        return f" does not exist ({_short(error)}): name a bucket and a path that exist"
    if isinstance(error, PermissionError) or code in (401, 403) or "Credentials" in type(error).__name__:
        return f": access is denied ({_short(error)}): give credentials as docs/object-stores.md says, or ask its owner"
    if isinstance(error, ImportError):
        return f" needs a package: {error}"
    if isinstance(error, ValueError | TypeError | NotImplementedError) or (400 <= code < 500 and code not in WAIT):
        return f" cannot be read: {_short(error)}"
    return ""


def _code(error: Exception) -> int:
    """The HTTP status of an error; 0 where it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        code = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    else:
        code = getattr(response, "status_code", None) or getattr(error, "status", None) or getattr(error, "code", 0)
    return int(code) if str(code).isdigit() else 0


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {public(' '.join(str(error).split()))[:200]}"
