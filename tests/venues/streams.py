"""The sockets of an offline venue: who follows which stream, and what of it reaches them under the script of faults."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from tests.venues.faults import Faults, Mishap

WAITING_MAX = 20_000
"""Messages for one socket; whoever reads no faster is disconnected."""
PONG_SECONDS_MAX = 60.0

Heard = Callable[["Socket", dict[str, Any]], None]
"""Answers what a socket was asked."""


@dataclass(frozen=True)
class Cut:
    close_frame: bool


class Socket:
    """One connection. What is sent to it waits in a queue, so that nobody who sends waits for it."""

    def __init__(self, ws: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        self._ws, self._transport = ws, transport
        self._waiting: asyncio.Queue[str | Cut] = asyncio.Queue()
        self.wraps: dict[str, str] = {}
        """By the streams that it follows: what stands before an event of it, as far as the event's own place."""
        self.pongs = 0

    def send(self, text: str) -> None:
        self._waiting.put_nowait(text)
        if self._waiting.qsize() > WAITING_MAX:
            self._transport.abort()

    def cut(self, *, close_frame: bool) -> None:
        """What was sent before is still delivered."""
        self._waiting.put_nowait(Cut(close_frame))

    async def write(self) -> None:
        while isinstance(text := await self._waiting.get(), str):
            await self._ws.send_str(text)
        if text.close_frame:
            await self._ws.close(code=WSCloseCode.GOING_AWAY, message=b"disconnected", drain=False)
        self._transport.abort()

    async def ping(self, seconds: Callable[[], float]) -> None:
        loop = asyncio.get_running_loop()
        heard_at, pongs = loop.time(), self.pongs
        while True:
            await self._ws.ping()
            await asyncio.sleep(seconds())
            if self.pongs != pongs:
                heard_at, pongs = loop.time(), self.pongs
            elif loop.time() - heard_at > PONG_SECONDS_MAX:
                self._transport.abort()

    async def read(self, heard: Heard) -> None:
        async for message in self._ws:
            if message.type is WSMsgType.PING:
                await self._ws.pong(message.data)
            elif message.type is WSMsgType.PONG:
                self.pongs += 1
            elif message.type is WSMsgType.TEXT:
                heard(self, json.loads(message.data))


class Streams:
    """All sockets, by what they follow."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.sockets: list[Socket] = []
        self.ping_seconds = 20.0
        self._followers: defaultdict[str, dict[Socket, None]] = defaultdict(dict)
        self._held: dict[str, tuple[str, str]] = {}
        """By stream, the event that goes out after the next, or after the next of that kind."""

    def follow(self, socket: Socket, stream: str, wrap: str = "") -> None:
        socket.wraps[stream] = wrap
        self._followers[stream][socket] = None

    def leave(self, socket: Socket, stream: str) -> None:
        socket.wraps.pop(stream, None)
        self._followers[stream].pop(socket, None)

    def followed(self) -> list[str]:
        return [stream for stream, sockets in self._followers.items() if sockets]

    def is_followed(self, stream: str) -> bool:
        return bool(self._followers.get(stream))

    def tell(self, stream: str, text: str, event: str = "") -> None:
        """Sends it to whoever follows the stream; faults may be for that kind of event alone."""
        if not self.is_followed(stream):
            return
        fault = self._faults.of_message(stream, event)
        mishap = fault.mishap if fault else None
        if fault and mishap is Mishap.OUT_OF_ORDER:
            self._held[stream] = text, fault.behind
            return
        if fault and mishap is Mishap.DISCONNECT:
            self.cut(stream, close_frame=fault.close_frame)
            return
        if fault and mishap is Mishap.LYING:
            text = fault.lie(text)
        copies = {Mishap.MISSING: 0, Mishap.DUPLICATE: 2}.get(mishap, 1) if mishap else 1
        for _ in range(copies):
            self._send(stream, text[: len(text) // 2] if mishap is Mishap.MALFORMED else text)
        held, behind = self._held.get(stream, ("", ""))
        if held and behind in {"", event}:
            del self._held[stream]
            self._send(stream, held)

    def _send(self, stream: str, text: str) -> None:
        for socket in list(self._followers[stream]):
            wrap = socket.wraps[stream]
            socket.send(f"{wrap}{text}}}" if wrap else text)

    def cut(self, stream: str = "", *, close_frame: bool = True) -> None:
        """Disconnects all who follow a stream whose name holds that text; everybody, without one."""
        for socket in list(self.sockets):
            if not stream or any(stream in name for name in socket.wraps):
                self._forget(socket)
                socket.cut(close_frame=close_frame)

    def _forget(self, socket: Socket) -> None:
        for stream in list(socket.wraps):
            self.leave(socket, stream)
        if socket in self.sockets:
            self.sockets.remove(socket)

    async def serve(self, request: web.Request, heard: Heard, streams: Mapping[str, str], greeting: str = "") -> Any:
        """A connection from its handshake to its end. It begins by following those streams, which are given with their wraps."""
        ws = web.WebSocketResponse(autoping=False, timeout=1.0)
        await ws.prepare(request)
        assert request.transport is not None
        socket = Socket(ws, request.transport)
        self.sockets.append(socket)
        for stream, wrap in streams.items():
            self.follow(socket, stream, wrap)
        if greeting:
            socket.send(greeting)
        beside = [asyncio.ensure_future(socket.write()), asyncio.ensure_future(socket.ping(lambda: self.ping_seconds))]
        try:
            await socket.read(heard)
        finally:
            self._forget(socket)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        return ws
