"""Asking a server, once, whether it is there."""

import asyncio
import struct

from libs.stack.ports import HOST

PROBE_TIMEOUT_SECONDS = 2.0
ANSWER_BYTES_MAX = 16_384


async def http_ok(port: int, path: str = "/health") -> bool:
    status, _ = await http_get(port, path)
    return status == 200


async def http_get(port: int, path: str) -> tuple[int, str]:
    """Status and body (its first 16 KiB); status 0 with the reason when nobody answers."""
    request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
    try:
        answer = await exchange(port, request.encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body.decode(errors="replace")
    except (OSError, TimeoutError, ValueError, IndexError) as error:
        return 0, str(error) or type(error).__name__


async def valkey_answers(port: int, user: str, password: str) -> bool:
    """True once it takes commands; while it loads its file it refuses them."""
    try:
        answer = await exchange(port, f"AUTH {user} {password}\r\nPING\r\nQUIT\r\n".encode())
    except (OSError, TimeoutError):
        return False
    return b"+PONG" in answer


async def exchange(port: int, request: bytes) -> bytes:
    async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            writer.write(request)
            return await read_to_end(reader)
        finally:
            writer.close()


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    answer = b""
    while len(answer) < ANSWER_BYTES_MAX and (data := await reader.read(ANSWER_BYTES_MAX)):
        answer += data
    return answer


async def postgres_answers(port: int) -> bool:
    """As pg_isready: it asks for a password; while it starts, recovers or stops it answers with an error instead."""
    fields = b"user\0postgres\0database\0postgres\0\0"
    version_3 = 196_608
    packet = struct.pack("!ii", 8 + len(fields), version_3) + fields
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(packet)
                return await reader.read(1) == b"R"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
