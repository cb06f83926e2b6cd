"""A viser server that authenticates requests before it answers them.

viser 1.1 has no authentication. It serves its page and its websocket through one function of the library websockets.
That function has a hook that sees every request first, plain requests and upgrades to a websocket alike. viser uses
the hook for its page. This module puts a gate in front of viser's hook, and verifies that the gate is in use before
anything is shown. A proxy would need a second port for viser, which other accounts of this machine could reach.
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
    """Decides which requests are answered.

    With a token, a request must carry it in the address (`?token=`) or in a cookie. The reply to the address sets the
    cookie and redirects to the address without the token. Without a token, the Host header of a request must name this
    machine. Otherwise a web page could reach the viewer through its own domain name that resolves to this machine (DNS
    rebinding). In both cases, a websocket from a page of another origin is refused, because browsers let any page open
    a websocket to any address.

    Attributes:
        token: the required token; None if no token is needed.
        used: whether a server uses this gate.
    """

    token: str | None
    used: bool = False

    def answer(self, request: Request) -> Response | None:
        """Returns the refusal or the redirection of a request; None lets it pass."""
        headers = request.headers
        host = headers.get("Host", "")
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refusal("Pages of other origins may not look at this.")
        if self.token is None:
            if _is_of_this_machine(host):
                return None
            return _refusal("Open the viewer by the address that it said when it started.")
        # Browsers send cookies to all ports of a host. The port in the name keeps the cookies of viewers apart.
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
        """Puts the gate in front of another handler of requests."""
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
    """Reads the token from an address; empty if there is none."""
    return parse_qs(urlsplit(path).query).get("token", [""])[0]


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("Cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _is_of_this_machine(host: str) -> bool:
    """Tells whether a Host header means only this machine. It is a name or an address, with or without a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in _LOCAL_NAMES or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Server(viser.ViserServer):
    def request_share_url(self, verbose: bool = True) -> None:
        """Does nothing: otherwise any connected page could ask viser for a tunnel to the internet."""


@dataclass(frozen=True)
class Served:
    """A running server and its addresses.

    Attributes:
        viser: the server.
        address: address to open on this machine, with the token if there is one.
        elsewhere: address to open on other machines; None if they have no access.
    """

    viser: viser.ViserServer
    address: str
    elsewhere: str | None


@contextmanager
def serving(host: str, port: int, *, token: bool, label: str) -> Iterator[Served]:
    """Runs a guarded server without contents while the block runs.

    Args:
        host: address or name to listen on.
        port: port to listen on; 0 means any free port.
        token: require a token on this machine, too. If other machines have access, a token is always required.
        label: title of the page's panel.

    Raises:
        UsageError: there is no such host or port.
        HardnetSfmError: the port is taken or not permitted, or viser does not use the gate.
    """
    local = _check_free(host, port)
    gate = Gate(secrets.token_urlsafe(16) if token or not local else None)
    with _quiet(), _asked_first(gate):
        server = _Server(host, port, label=label, verbose=False)
    try:
        if not gate.used:  # another version of viser listens in another way
            raise HardnetSfmError(
                f"viser {viser.__version__} cannot be given a token",
                "Install another version: pip install 'hardnet-sfm[view]'",
            )
        if port not in (0, server.get_port()):  # the port was taken in the meantime, and viser chose the next one
            raise _taken(host, port)
        end = f":{server.get_port()}/" + (f"?token={gate.token}" if gate.token else "")
        here = _in_address("127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host)
        yield Served(server, f"http://{here}{end}", None if local else f"http://{_name_for_others(host)}{end}")
    finally:
        with _quiet():
            server.stop()


def _check_free(host: str, port: int) -> bool:
    """Checks that the port is free. Returns True if only this machine can reach the host.

    viser itself would try a thousand ports if it cannot bind one, and then wait for ever.
    """
    if not 0 <= port < 65536:
        raise UsageError(f"--port {port}: not a port", "Use a number from 1 to 65535, or 0 for a free port.")
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
        "Another viewer may run there. Choose another --port; 0 takes a free one.",
    )


@contextmanager
def _asked_first(gate: Gate) -> Iterator[None]:
    """Makes every server of the library websockets that is created in the block use the gate."""
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
    """Hides the messages of viser: they name its address without the token, and say that it stops."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _name_for_others(host: str) -> str:
    return socket.gethostname() if host in ("0.0.0.0", "::") else _in_address(host)
