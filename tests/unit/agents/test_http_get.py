"""http_get reaches what it may, and nothing else, whatever servers and resolvers do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from argosy_services.agents.tools.base import ToolResult, call
from argosy_services.agents.tools.http_get import MAX_BODY_BYTES, HttpGet, is_public

Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await handler(head, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def here(host: str, port: int) -> Sequence[str]:
    return ["127.0.0.1"]


def tool(
    port: int, *, loopback: bool = True, resolver: Callable[[str, int], Awaitable[Sequence[str]]] = here
) -> HttpGet:
    allows = (lambda address: address == "127.0.0.1" or is_public(address)) if loopback else None
    return HttpGet(["good.test", "*.wide.test"], resolver=resolver, allows=allows, ports=(port, 80, 443))


async def get(http: HttpGet, url: str, seconds: float = 5.0) -> ToolResult:
    return await asyncio.wait_for(call(http, {"url": url}, at_most_s=seconds), 20)


def says(answer: bytes) -> Handler:
    async def handler(_head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return handler


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", "HTTP 200\nhello"),
        (OK + b"\r\nuntil the end", "HTTP 200\nuntil the end"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", "HTTP 200\nabcde"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\nno", "HTTP 404\nno"),
    ],
)
async def test_answers(answer: bytes, text: str) -> None:
    async with serving(says(answer)) as port:
        result = await get(tool(port), f"http://good.test:{port}/a?b=c")
    assert (result.status, result.text) == ("ok", text)


async def test_what_is_asked() -> None:
    heads: list[str] = []

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        writer.write(OK + b"\r\n")

    async with serving(handler) as port:
        await get(tool(port), f"http://a.wide.test:{port}/a?b=c#d")
    assert heads[0].startswith("GET /a?b=c HTTP/1.1\r\n")
    assert f"Host: a.wide.test:{port}\r\n" in heads[0]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://evil.test/", "not on the list"),
        ("http://good.test.evil.test/", "not on the list"),
        ("http://wide.test/", "not on the list"),
        ("http://xwide.test/", "not on the list"),
        ("http://good.test@evil.test/", "user or a password"),
        ("http://evil.test#@good.test/", "not on the list"),
        ("http://127.0.0.1/", "not on the list"),
        ("http://[::1]/", "not on the list"),
        ("http://2130706433/", "not on the list"),
        ("http://good.test:22/", "port 22 is not allowed"),
        ("file:///etc/passwd", "only http"),
        ("gopher://good.test/", "only http"),
        ("http://good.test/\r\nX-Evil: 1", "blanks or control"),
        ("http://good.test/a b", "blanks or control"),
        ("http://good.test:99999/", "no URL"),
        ("http://\u0261ood.test/", "only http"),
    ],
)
async def test_refused_urls(url: str, said: str) -> None:
    result = await get(tool(80), url)
    assert result.status == "error"
    assert said in result.text


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1"),
        *("::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "ff02::1", "not an address"),
    ],
)
async def test_private_addresses(address: str) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return ["93.184.216.34", address]

    assert not is_public(address)
    result = await get(tool(80, loopback=False, resolver=resolver), "http://good.test/")
    assert (result.status, "not public" in result.text) == ("error", True)


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "http://evil.test/", "file:///etc/passwd", "//evil.test/"]
)
async def test_redirects_are_checked(target: str) -> None:
    answer = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n\r\n".encode()
    async with serving(says(answer)) as port:
        result = await get(tool(port), f"http://good.test:{port}/")
    assert result.status == "error"
    assert "not on the list" in result.text or "only http" in result.text


async def test_redirects_end() -> None:
    asked = []

    async def handler(head: str, writer: asyncio.StreamWriter) -> None:
        asked.append(head.split(" ")[1])
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n")

    async with serving(handler) as port:
        result = await get(tool(port), f"http://good.test:{port}/")
    assert "redirects" in result.text
    assert asked == ["/", *["/again"] * 4]


async def test_a_name_that_changes_its_meaning() -> None:
    """DNS rebinding: the first look-up is public, later ones lead inside. There is one look-up for each request, and
    the redirected request is refused.
    """
    answers = [["127.0.0.1"], ["10.0.0.1"], ["10.0.0.1"]]

    async def resolver(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async with serving(says(b"HTTP/1.1 302 Found\r\nLocation: /inside\r\n\r\n")) as port:
        result = await get(tool(port, resolver=resolver), f"http://good.test:{port}/")
    assert "not public" in result.text
    assert len(answers) == 1, "one look-up a request, used for the check and for the connection"


@pytest.mark.parametrize(
    "head", [b"Content-Length: 1000000000\r\n\r\n", b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n40000000\r\n"]
)
async def test_endless_answers_are_cut(head: bytes) -> None:
    sent = 0

    async def handler(_head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(OK + head)
        while sent < 1_000_000_000:
            writer.write(b"x" * 65_536)
            sent += 65_536
            await writer.drain()

    async with serving(handler) as port:
        result = await get(tool(port), f"http://good.test:{port}/")
    assert result.status == "ok"
    assert result.text.startswith("HTTP 200 (cut)\nx")
    assert sent < 64 * MAX_BODY_BYTES


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\n", OK + b"\r\n"])
async def test_answers_that_drip(begin: bytes) -> None:
    async def handler(_head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        for _ in range(500):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(handler) as port:
        result = await get(tool(port), f"http://good.test:{port}/", 0.3)
    assert (result.status, result.seconds < 3) == ("timeout", True)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"Content-Length: -5x\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n\x89PNG",
    ],
)
async def test_answers_that_are_none(answer: bytes) -> None:
    async with serving(says(answer)) as port:
        result = await get(tool(port), f"http://good.test:{port}/")
    assert result.status == "error", result.text


async def test_without_hosts_nothing_is_fetched() -> None:
    assert "allowed: none" in (await get(HttpGet([]), "http://example.org/")).text
