"""A viser server that asks who is there before it answers.

viser 1.1 has no authentication. It serves its page and its websocket through one function of the library websockets,
which offers a hook that sees every request, plain or upgrading to a websocket, before anything else does. viser uses
that hook for its page; here a gate is put in front of it, and whether it is there is checked before anything is shown.
So there is no second port, as there would be behind a proxy, that other accounts of this machine could reach.
"""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

import viser
import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from hardnet_sfm.errors import HardnetSfmError, UsageError

ProcessRequest = Callable[[ServerConnection, Request], Any]

_LOCAL_NAMES = ("localhost", "ip6-localhost")
_HIDDEN_TOKEN = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


@dataclass
class Gate:
    """Which requests are answered.

    With a token: those that bring it, in the address (`?token=`, answered by a cookie and the address without it) or in
    that cookie. Without: those that name this machine in their Host header, so that no web page can reach the viewer
    through a name of its own that it makes point here (DNS rebinding). Either way a websocket that a page of another
    origin opens is refused: browsers let any page open one to any address.

    Attributes:
        token: None where it is not asked for.
        used: whether a server asks here.
    """

    token: str | None
    used: bool = False

    def answer(self, request: Request) -> Response | None:
        """The refusal or the redirection of a request; None lets it pass."""
        headers = request.headers
        host = headers.get("Host", "")
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refusal("Pages of other origins may not look at this.")
        if self.token is None:
            if _is_of_this_machine(host):
                return None
            return _refusal("Open the viewer by the address that it said when it started.")
        # Cookies are sent to all ports of a host: another viewer's must not be overwritten.
        name = f"hardnet-sfm-{urlsplit(f'//{host}').port or 80}"
        if self._is_right(_cookie(headers, name)):
            return None
        if headers.get("Upgrade") is None and self._is_right(_token(request.path)):
            cookie = f"{name}={self.token}; Path=/; HttpOnly; SameSite=Lax"
            leave = Headers({"Location": "/", "Set-Cookie": cookie, "Content-Length": "0", **_HIDDEN_TOKEN})
            return Response(HTTPStatus.SEE_OTHER, "See Other", leave)
        return _refusal("A token is needed: open the viewer by the address that it said when it started.")

    def _is_right(self, given: str) -> bool:
        assert self.token is not None
        return secrets.compare_digest(given.encode(), self.token.encode())

    def before(self, process_request: ProcessRequest | None) -> ProcessRequest:
        """The gate in front of what else looks at requests."""
        self.used = True

        def ask(connection: ServerConnection, request: Request) -> Any:
            refused = self.answer(request)
            if refused is not None or process_request is None:
                return refused
            return process_request(connection, request)

        return ask


def _refusal(why: str) -> Response:
    body = f"{why}\n".encode()
    headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}
    return Response(HTTPStatus.FORBIDDEN, "Forbidden", Headers(headers), body)


def _token(path: str) -> str:
    """The token in an address; empty where there is none."""
    return parse_qs(urlsplit(path).query).get("token", [""])[0]


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("Cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _is_of_this_machine(host: str) -> bool:
    """Whether a Host header, a name or an address with or without a port, means this machine and no other."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in _LOCAL_NAMES or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Server(viser.ViserServer):
    def request_share_url(self, verbose: bool = True) -> None:
        """Never: any page that is connected could ask viser for a tunnel that opens it to the internet."""


@dataclass(frozen=True)
class Served:
    """A running server, and where it is.

    Attributes:
        viser: the server.
        address: to open on this machine, with the token where there is one.
        elsewhere: to open on others, if they may.
    """

    viser: viser.ViserServer
    address: str
    elsewhere: str | None


@contextmanager
def serving(host: str, port: int, *, token: bool, label: str) -> Iterator[Served]:
    """Runs a guarded server, empty yet, while the block runs.

    Args:
        host: address or name to listen on.
        port: 0 for any that is free.
        token: whether to ask for one on this machine too; elsewhere one is asked for in any case.
        label: title of the page's panel.

    Raises:
        UsageError: there is no such host, or port.
        HardnetSfmError: the port is taken, or may not be listened on.
    """
    local = _check_free(host, port)
    gate = Gate(secrets.token_urlsafe(16) if token or not local else None)
    with _quiet(), _asked_first(gate):
        server = _Server(host, port, label=label, verbose=False)
    try:
        if not gate.used:  # another version of viser, which listens in another way
            raise HardnetSfmError(
                f"viser {viser.__version__} cannot be guarded", "Install another: pip install 'hardnet-sfm[view]'"
            )
        if port not in (0, server.get_port()):  # taken in the meantime: viser goes on to the next
            raise _taken(host, port)
        end = f":{server.get_port()}/" + (f"?token={gate.token}" if gate.token else "")
        here = _in_address("127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host)
        yield Served(server, f"http://{here}{end}", None if local else f"http://{_name_for_others(host)}{end}")
    finally:
        with _quiet():
            server.stop()


def _check_free(host: str, port: int) -> bool:
    """Whether a host is this machine alone. Where viser cannot bind it tries a thousand ports, then waits for ever."""
    if not 0 <= port < 65536:
        raise UsageError(f"--port {port}: not a port", "It is from 1 to 65535, or 0 for any that is free.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE) if host else []
    except (socket.gaierror, UnicodeError):
        found = []
    if not found:
        raise UsageError(
            f"--host {host}: no such host", "127.0.0.1 is this machine alone, 0.0.0.0 is all of its addresses."
        )
    for family, _, _, _, at in found:
        try:
            socket.create_server(at[:2], family=family).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _taken(host, port) from error
            raise HardnetSfmError(
                f"cannot listen on {host} port {port}: {error.strerror}", "Choose another --host or --port."
            ) from error
    return all(ipaddress.ip_address(str(at[0]).partition("%")[0]).is_loopback for *_, at in found)


def _taken(host: str, port: int) -> HardnetSfmError:
    return HardnetSfmError(
        f"port {port} of {host} is in use",
        "Another viewer may run there. Choose another --port; 0 takes one that is free.",
    )


@contextmanager
def _asked_first(gate: Gate) -> Iterator[None]:
    """While the block runs, servers of the library websockets that are made ask the gate first."""
    plain = websockets.asyncio.server.serve

    class Guarded(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, process_request: ProcessRequest | None = None, **options: Any) -> None:
            super().__init__(*args, process_request=gate.before(process_request), **options)

    setattr(websockets.asyncio.server, "serve", Guarded)  # noqa: B010
    try:
        yield
    finally:
        setattr(websockets.asyncio.server, "serve", plain)  # noqa: B010


@contextmanager
def _quiet() -> Iterator[None]:
    """viser says where it is, without the token, and that it stops."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _name_for_others(host: str) -> str:
    return socket.gethostname() if host in ("0.0.0.0", "::") else _in_address(host)
