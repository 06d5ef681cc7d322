"""Files from strangers' servers: https alone, capped in size and in time, asked for again after faults of the transport alone."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TypeVar
from urllib.error import HTTPError

from layerzoo.errors import DataRefused, Refusal, bad_value

CHECK = "Check the address, or try again later."
_TIMEOUT = 30.0  # seconds without a byte
_SLOWEST = 10_000  # bytes per second over a whole file
_PAUSES = (0.5, 2.0)  # seconds before the second and the third time that a file is asked for
_CHUNK = 2**20
_ADDRESS = re.compile(r"(https://[\w.-]+|http://(localhost|127\.0\.0\.1|\[::1\]))(:\d+)?(/[!-~]*)?", re.ASCII)
_Result = TypeVar("_Result")


class _Interrupted(DataRefused):
    """A fault of the transport, after which the same request may be answered."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        check_address(newurl, DataRefused)
        if newurl.split(":")[0] != req.type:
            expected, do = f"an address of {req.type}", "A server may not send its clients elsewhere."
            raise bad_value("redirect", got=repr(newurl), expected=expected, do=do, kind=DataRefused)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def check_address(address: str, kind: type[Refusal] = Refusal) -> None:
    """Raise `kind` for anything but https://, or http:// to this machine, of plain signs."""
    if not _ADDRESS.fullmatch(address):
        do = "Only these are pulled from, also after a redirect."
        raise bad_value("address", got=repr(address), expected="https:// or hf://", do=do, kind=kind)


def download(url: str, largest: int, expected: str, take: Callable[[Iterator[bytes]], _Result]) -> _Result:
    """What `take` makes of the body in pieces. After a fault of the transport it is given the pieces anew, twice at most.

    Args:
        url: an address that `check_address` has seen.
        largest: bytes; not more than one piece beyond is read, and nothing of an answer that announces more.
        expected: what has at most that many, for messages.
        take: takes the whole body, or the part of it that came before a fault.
    Warns:
        UserWarning: at the first fault after which the file is asked for again.
    Raises:
        DataRefused: for an answer that is too large or too slow, fails, or leads elsewhere.
    """
    deadline = time.monotonic() + _TIMEOUT + largest / _SLOWEST
    for again, pause in enumerate((*_PAUSES, None)):
        try:
            with closing(_pieces(url, largest, expected, deadline)) as pieces:
                return take(pieces)
        except _Interrupted as error:
            if pause is None or time.monotonic() + pause > deadline:
                raise
            if not again:
                warnings.warn(f"{error} It is asked for again, {len(_PAUSES)} times at most.", stacklevel=2)
            time.sleep(pause)


def _pieces(url: str, largest: int, expected: str, deadline: float) -> Iterator[bytes]:
    left = largest
    try:
        with _opener(deadline) as opener, opener.open(url, timeout=_TIMEOUT) as response:
            while (response.length or 0) <= left and (piece := response.read1(_CHUNK)):
                left -= len(piece)
                yield piece
            if (response.length or 0) > left:
                raise bad_value(url, got=f"more than {largest} bytes", expected=expected, do=CHECK, kind=DataRefused)
            if response.length:
                raise ConnectionError(f"an answer that ends {response.length} bytes early")
            if time.monotonic() > deadline:
                raise TimeoutError
    except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: a name that no host can have
        late = time.monotonic() > deadline
        got = f"less than {_SLOWEST} bytes per second" if late else str(error)
        kind = _Interrupted if _may_pass(error) and not late else DataRefused
        raise bad_value(url, got=got, expected="a file of a checkpoint", do=CHECK, kind=kind) from error


def _may_pass(error: Exception) -> bool:
    if isinstance(error, HTTPError):
        return error.code >= 500 or error.code in (408, 425, 429)
    return not isinstance(error, UnicodeError) and not isinstance(getattr(error, "reason", None), ssl.SSLError)


@contextmanager
def _opener(deadline: float) -> Iterator[urllib.request.OpenerDirector]:
    """Opens connections that end at the deadline, also while their server drips a handshake or headers."""
    opened = []

    class Connection(HTTPConnection):
        def connect(self):
            super().connect()
            opened.append(self.sock.dup())  # the socket itself moves into the one that encrypts

    class SecureConnection(HTTPSConnection, Connection):
        pass

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req):
            return self.do_open(Connection, req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req):
            return self.do_open(SecureConnection, req)

    def end() -> None:
        for connection in opened:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(deadline - time.monotonic(), 0), end)
    timer.daemon = True
    timer.start()
    try:
        yield urllib.request.build_opener(_Redirects, Http, Https)
    finally:
        timer.cancel()
        timer.join()
        for connection in opened:
            connection.close()
