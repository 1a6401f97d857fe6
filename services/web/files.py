"""Serves the dashboard's built files and the documentation of the REST interface."""

import asyncio
import html
import re
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from libs.words import WORDS
from services.web import policy

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
"""One name, never a path: nothing outside the folder can be asked for."""

DOCS = Path(__file__).parent / "docs"
NOT_BUILT = """<!doctype html><html lang="en"><title>Tradeloom</title>
<h1>The dashboard is not built</h1>
<p>The platform runs and answers gRPC, gRPC-Web, Connect and REST on this port.
<p>Build its page with <code>make up</code>, or <code>python -m services.web.build</code>, and load this address again.
<p><a href="/docs">The interface's documentation</a>"""


def application(dist: Path, openapi: Path) -> web.Application:
    """`dist` is looked into with each request, so a page built later is served without a restart."""
    app = web.Application(middlewares=[with_headers])
    pages = Pages(dist, openapi)
    for path in ("/", "/app", "/app/{page:.*}"):
        app.router.add_get(path, pages.page)
    app.router.add_get("/assets/{name}", pages.asset)
    app.router.add_get("/favicon.svg", pages.favicon)
    app.router.add_get("/docs", pages.docs)
    app.router.add_get("/docs/", pages.docs)
    app.router.add_get("/docs/{name}", pages.docs_file)
    return app


class Pages:
    def __init__(self, dist: Path, openapi: Path) -> None:
        self._dist = dist
        self._openapi = openapi

    async def page(self, _: web.Request) -> web.Response:
        """The one page behind every address under /app; which view it shows it finds out itself."""
        try:
            text = await asyncio.to_thread((self._dist / "index.html").read_text, "utf-8")
        except FileNotFoundError:
            return web.Response(status=503, text=NOT_BUILT, content_type="text/html", headers={"Retry-After": "5"})
        nonce = secrets.token_urlsafe(16)
        return web.Response(
            text=text.replace(policy.NONCE_PLACEHOLDER, nonce),
            content_type="text/html",
            headers={"Content-Security-Policy": policy.page(nonce), "Cache-Control": policy.ASK_EVERY_TIME},
        )

    async def asset(self, request: web.Request) -> web.StreamResponse:
        """A file whose name holds its contents' hash; a compressed copy beside it is sent to whoever takes one."""
        return file(self._dist / "assets", request.match_info["name"], policy.FOREVER)

    async def favicon(self, _: web.Request) -> web.StreamResponse:
        return file(self._dist, "favicon.svg", policy.AN_HOUR)

    async def docs(self, _: web.Request) -> web.StreamResponse:
        if (self._dist / "docs" / "swagger-ui-bundle.js").is_file():
            response = file(DOCS, "index.html", policy.ASK_EVERY_TIME)
            response.headers["Content-Security-Policy"] = policy.DOCS
            return response
        links = "".join(
            f'<li><a href="/docs/{name}">{html.escape(name)}</a>' for name in await asyncio.to_thread(self._documents)
        )
        text = (
            f'<!doctype html><html lang="en"><title>Tradeloom</title><h1>The interface, as OpenAPI</h1><ul>{links}</ul>'
        )
        return web.Response(text=text, content_type="text/html")

    async def docs_file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name == "documents.json":
            return web.json_response(await asyncio.to_thread(self._listed))
        for folder in (self._openapi, DOCS, self._dist / "docs"):
            if FILE_NAME.fullmatch(name) and (folder / name).is_file():
                return file(folder, name, policy.ASK_EVERY_TIME)
        raise web.HTTPNotFound

    def _documents(self) -> list[str]:
        """The document of the whole interface first."""
        names = [path.name for path in self._openapi.glob("*.json")] if self._openapi.is_dir() else []
        return sorted(names, key=lambda name: (name != "tradeloom.json", name))

    def _listed(self) -> list[dict[str, object]]:
        """With the port on which a service answers by itself on this machine, whose document is shown there first."""
        return [
            {"name": stem, "url": f"/docs/{name}", "port": WORDS[stem].alias_port if stem in WORDS else None}
            for name in self._documents()
            for stem in [name.removesuffix(".json")]
        ]


def file(folder: Path, name: str, cache_control: str) -> web.FileResponse:
    if not FILE_NAME.fullmatch(name) or not (folder / name).is_file():
        raise web.HTTPNotFound
    return web.FileResponse(folder / name, headers={"Cache-Control": cache_control})


@web.middleware
async def with_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as refused:
        response = web.Response(status=refused.status, text=refused.reason, headers=refused.headers)
    for name, value in policy.EVERYWHERE.items():
        response.headers.setdefault(name, value)
    return response
