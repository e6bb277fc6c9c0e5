"""Asks a server that speaks TLS for its health (grpc.health.v1), as a kubelet's own gRPC probe cannot.

It is the pod that asks itself, so no certificate is checked. One HTTP/2 request needs no library, whose import would
cost more than the call.

usage: python health.py PORT; exit code 0 where all services are ready.
"""

import socket
import ssl
import struct
import sys

SECONDS = 5
DATA, HEADERS, SETTINGS = 0, 1, 4
END_STREAM, END_HEADERS = 1, 4
SERVING = b"\0\0\0\0\2\x08\x01"
REQUEST = {
    ":method": "POST",
    ":scheme": "https",
    ":path": "/grpc.health.v1.Health/Check",
    ":authority": "localhost",
    "te": "trailers",
    "content-type": "application/grpc",
}


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers() -> bytes:
    """The request's fields, each a literal without index or Huffman code (RFC 7541, section 6.2.2)."""
    pairs = ((name.encode(), value.encode()) for name, value in REQUEST.items())
    return b"".join(b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in pairs)


def serving(port: int) -> bool:
    """Whether the server on this port says that all its services are ready."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), SECONDS) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
        connection.makefile("rb") as answers,
    ):
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + frame(SETTINGS, 0, 0)
            + frame(HEADERS, END_HEADERS, 1, headers())
            + frame(DATA, END_STREAM, 1, bytes(5))
        )
        while len(head := answers.read(9)) == 9:
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = answers.read(int.from_bytes(head[:3], "big"))
            if stream == 1 and kind == DATA:
                return payload == SERVING
            if stream == 1 and flags & END_STREAM:
                return False
    return False


if __name__ == "__main__":
    sys.exit(not serving(int(sys.argv[1])))
