"""The sockets of the offline Binance: what they are asked, and how events are told on them."""

import json
from typing import Any

from aiohttp import web

from tests.venues.streams import Socket
from tests.venues.streams import Streams as AnyStreams


class Streams(AnyStreams):
    """All sockets, by what they follow."""

    def publish(self, stream: str, event: dict[str, Any]) -> None:
        if self.is_followed(stream):
            self.tell(stream, json.dumps(event, separators=(",", ":")), event.get("e", ""))

    # What a socket of market streams is asked.

    async def of_market(self, request: web.Request) -> Any:
        combined = request.path.startswith("/stream")
        named = request.query.get("streams", "") if combined else request.match_info.get("streams", "")

        def heard(socket: Socket, asked: dict[str, Any]) -> None:
            socket.send(json.dumps(self._market_answer(socket, asked, combined=combined)))

        streams = {name: combined_wrap(name) if combined else "" for name in named.split("/") if name}
        return await self.serve(request, heard, streams)

    def _market_answer(self, socket: Socket, asked: dict[str, Any], *, combined: bool) -> dict[str, Any]:
        streams = asked.get("params") or []
        match asked.get("method"):
            case "SUBSCRIBE":
                for stream in streams:
                    self.follow(socket, stream, combined_wrap(stream) if combined else "")
            case "UNSUBSCRIBE":
                for stream in streams:
                    self.leave(socket, stream)
            case "LIST_SUBSCRIPTIONS":
                return {"result": list(socket.wraps), "id": asked.get("id")}
            case method:
                said = f"Invalid request: unknown variant `{method}`, expected one of `SUBSCRIBE`, `UNSUBSCRIBE`"
                return {"error": {"code": 2, "msg": said}, "id": asked.get("id")}
        return {"result": None, "id": asked.get("id")}


def combined_wrap(stream: str) -> str:
    return f'{{"stream":"{stream}","data":'


def subscription_wrap(subscription_id: int) -> str:
    """For the events of a user, on the WebSocket API."""
    return f'{{"subscriptionId":{subscription_id},"event":'
