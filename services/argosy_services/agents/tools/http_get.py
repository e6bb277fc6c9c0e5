"""Pages of the web, from hosts that the operator allows.

A name is resolved once, every address is checked, and the connection goes to the checked address: what the name means a
moment later does not matter. Each redirect is a new request with the same checks. Time and size are bounded in all,
also for an answer that comes a byte at a time or never ends.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from pydantic import Field

from argosy_services.agents.tools.base import Arguments, BuiltInTool, ToolError

MAX_BODY_BYTES = 256 << 10
MAX_HEAD_BYTES = 32 << 10
MAX_REDIRECTS = 4

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TEXTS = ("text/", "application/json", "application/xml", "application/xhtml+xml")


class HttpArguments(Arguments):
    url: str = Field(min_length=8, max_length=1_000, description="An http or https URL.")


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, proto=6)
    return [str(entry[4][0]) for entry in found]


class HttpGet(BuiltInTool):
    """Fetches text by HTTP GET, without cookies, credentials or proxies."""

    name = "http_get"
    description = "Fetches a page of the web and gives its text."
    arguments = HttpArguments
    timeout_s = 15.0
    per_minute = 60
    trusted = False

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        resolver: Resolver = resolve,
        allows: Callable[[str], bool] | None = None,
        ports: Sequence[int] = (80, 443),
    ) -> None:
        """`hosts` may be fetched from: names, and `*.name` for all below one. `allows` decides on addresses; by default
        those that are public.
        """
        self._hosts = [host.lower().rstrip(".") for host in hosts]
        self._resolver = resolver
        self._allows = allows or is_public
        self._ports = tuple(ports)

    async def run(self, arguments: HttpArguments) -> str:
        """The status and the text. Raises ToolError for what may not or cannot be fetched."""
        url = arguments.url
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._get(self._checked(url))
            target = answer.headers.get("location")
            if answer.status not in _REDIRECTS or target is None:
                return _shown(answer)
            url = urljoin(url, target)
        raise ToolError(f"there were more than {MAX_REDIRECTS} redirects")

    def _checked(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise ToolError(f"that is no URL: {error}") from error
        host = (parts.hostname or "").lower().rstrip(".")
        if parts.scheme not in _PORTS or not host or not host.isascii():
            raise ToolError("only http and https URLs with a host can be fetched")
        if parts.username is not None or parts.password is not None:
            raise ToolError("URLs with a user or a password are not fetched")
        if port not in self._ports:
            raise ToolError(f"port {port} is not allowed")
        if not any(host == allowed or _is_below(host, allowed) for allowed in self._hosts):
            raise ToolError(f"{host} is not on the list of hosts; allowed: {', '.join(self._hosts) or 'none'}")
        if any(ord(char) <= 32 or ord(char) == 127 for char in url):
            raise ToolError("the URL holds blanks or control characters")
        return parts

    async def _get(self, parts: SplitResult) -> _Answer:
        host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
        address = await self._address(host, port)
        encrypted = ssl.create_default_context() if parts.scheme == "https" else None
        try:
            reader, writer = await asyncio.open_connection(
                address, port, ssl=encrypted, server_hostname=host if encrypted else None, limit=MAX_HEAD_BYTES
            )
        except OSError as error:
            raise ToolError(f"{host} cannot be reached: {error}") from error
        try:
            writer.write(_request(parts, host))
            return await _read(reader)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise ToolError(f"{host} answered with what is no HTTP: {type(error).__name__}") from error
        finally:
            writer.transport.abort()

    async def _address(self, host: str, port: int) -> str:
        try:
            addresses = await self._resolver(host, port)
        except (OSError, UnicodeError) as error:
            raise ToolError(f"there is no host {host}") from error
        # All of them: a name that also leads inside is not to be trusted.
        refused = [address for address in addresses if not self._allows(address)]
        if refused or not addresses:
            raise ToolError(f"{host} has an address that is not public")
        return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, also when it is written as IPv4 within IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]
        # 64:ff9b::/96 leads to IPv4 through a gateway (RFC 6052).
        if inner is not None or parsed in ipaddress.ip_network("64:ff9b::/96"):
            return False
    return parsed.is_global and not parsed.is_multicast


def _is_below(host: str, allowed: str) -> bool:
    return allowed.startswith("*.") and host.endswith(allowed[1:]) and len(host) > len(allowed) - 1


def _request(parts: SplitResult, host: str) -> bytes:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    name = f"[{host}]" if ":" in host else host
    shown = name if parts.port is None else f"{name}:{parts.port}"
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {shown}",
        "User-Agent: argosy-agent",
        "Accept: text/*, application/json",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii", errors="strict")


async def _read(reader: asyncio.StreamReader) -> _Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, status, *_ = head[0].split(" ", 2)
    if not version.startswith("HTTP/1.") or not status.isdecimal():
        raise ValueError("no status line")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    if int(status) in _REDIRECTS:
        return _Answer(int(status), headers, b"", cut=False)
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = await _read_chunks(reader)
    else:
        declared = headers.get("content-length", "")
        wanted = min(int(declared), MAX_BODY_BYTES + 1) if declared else MAX_BODY_BYTES + 1
        body = await _read_up_to(reader, wanted)
    return _Answer(int(status), headers, body[:MAX_BODY_BYTES], cut=len(body) > MAX_BODY_BYTES)


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while len(body) <= MAX_BODY_BYTES:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        if size <= 0:
            break
        body += await _read_up_to(reader, min(size, MAX_BODY_BYTES + 1 - len(body)))
        if size > MAX_BODY_BYTES:
            break
        await reader.readuntil(b"\r\n")
    return body


async def _read_up_to(reader: asyncio.StreamReader, most: int) -> bytes:
    parts: list[bytes] = []
    left = most
    while left > 0 and (part := await reader.read(min(left, 64 << 10))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _shown(answer: _Answer) -> str:
    kind = answer.headers.get("content-type", "text/plain").lower()
    if not kind.startswith(_TEXTS):
        raise ToolError(f"the answer is no text but {kind.split(';')[0][:60]}")
    text = answer.body.decode("utf-8", errors="replace")
    return f"HTTP {answer.status}{' (cut)' if answer.cut else ''}\n{text}"
