"""A Kraken of the tests' own, on loopback: it checks nonce and signature, and says no as Kraken does, under status 200."""

import base64
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from tests.venues.serving import HOST, serving


@dataclass
class Key:
    """The secret half is base64, as Kraken gives it."""

    secret: str
    permissions: tuple[str, ...] = ("query-funds", "query-open-trades", "modify-trades", "close-trades")
    last_nonce: int = 0


@dataclass
class Kraken:
    keys: dict[str, Key] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    """What is answered to every request instead, if there is any."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/0/private/GetApiKeyInfo", self.key_info)]

    async def key_info(self, request: web.Request) -> web.Response:
        found = self.errors or await self._verify(request)
        if isinstance(found, list):
            return web.json_response({"error": found})
        result: dict[str, Any] = {
            "apiKeyName": "my-api-key",
            "apiKey": request.headers["API-Key"],
            "nonce": str(found.last_nonce),
            "nonceWindow": 0,
            "permissions": list(found.permissions),
            "validUntil": "0",
            "queryFrom": "0",
            "queryTo": "0",
            "createdTime": "1772542900",
            "modifiedTime": "1772543095",
            "ipAllowlist": [],
            "lastUsed": "1772627061",
        }
        return web.json_response({"error": [], "result": result})

    async def _verify(self, request: web.Request) -> "Key | list[str]":
        key = self.keys.get(request.headers.get("API-Key", ""))
        if key is None:
            return ["EAPI:Invalid key"]
        body = await request.text()
        nonce = dict(parse_qsl(body)).get("nonce", "")
        if not nonce.isdigit() or int(nonce) <= key.last_nonce:
            return ["EAPI:Invalid nonce"]
        content = request.path.encode() + hashlib.sha256((nonce + body).encode()).digest()
        expected = hmac.new(base64.b64decode(key.secret), content, hashlib.sha512).digest()
        if not hmac.compare_digest(base64.b64encode(expected).decode(), request.headers.get("API-Sign", "")):
            return ["EAPI:Invalid signature"]
        key.last_nonce = int(nonce)
        return key


@asynccontextmanager
async def kraken(keys: dict[str, Key]) -> AsyncIterator[Kraken]:
    venue = Kraken(keys)
    async with serving(venue):
        yield venue
