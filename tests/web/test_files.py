"""The file server, asked over HTTP."""

import re
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from services.web.files import application

INDEX = '<meta property="csp-nonce" nonce="__CSP_NONCE__"><script type="module" src="/assets/index-a1.js"></script>'


@pytest.fixture
def dist(tmp_path):
    folder = tmp_path / "dist"
    (folder / "assets").mkdir(parents=True)
    (folder / "docs").mkdir()
    (folder / "index.html").write_text(INDEX)
    (folder / "assets" / "index-a1.js").write_text("1;" * 1000)
    (folder / "assets" / "index-a1.js.gz").write_bytes(b"compressed")
    (folder / "favicon.svg").write_text("<svg/>")
    (folder / "docs" / "swagger-ui-bundle.js").write_text("2;")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


@pytest.fixture
def openapi(tmp_path):
    folder = tmp_path / "openapi"
    folder.mkdir()
    for name in ("auth", "orders", "tradeloom"):
        (folder / f"{name}.json").write_text('{"openapi": "3.1.0"}')
    return folder


@pytest.fixture
async def client(dist, openapi):
    async with TestClient(TestServer(application(dist, openapi))) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/app", "/app/trade/SIM%3ABTCUSDT", "/app/sign-in"])
async def test_every_address_of_the_app_is_the_one_page(client, path):
    answer = await client.get(path)
    assert answer.status == 200
    assert answer.content_type == "text/html"
    assert answer.headers["Cache-Control"] == "no-cache"


async def test_the_page_runs_files_of_its_origin_only_and_each_answer_has_a_nonce_of_its_own(client):
    nonces = set()
    for _ in range(2):
        answer = await client.get("/")
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert policy["connect-src"] == "'self'"
        assert policy["img-src"] == "'self' data:"
        assert not [name for name, sources in policy.items() if "data:" in sources and name != "img-src"]
        assert policy["frame-ancestors"] == "'none'"
        found = re.search(r'nonce="([^"]+)"', await answer.text())
        assert found is not None
        assert f"'nonce-{found[1]}'" in policy["style-src"]
        nonces.add(found[1])
    assert len(nonces) == 2


@pytest.mark.parametrize("path", ["/", "/assets/index-a1.js", "/docs", "/docs/auth.json", "/nowhere", "/favicon.svg"])
async def test_every_answer_is_hardened(client, path):
    headers = (await client.get(path)).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Frame-Options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


async def test_files_named_by_their_contents_are_kept_for_ever_and_sent_compressed_to_whoever_takes_it(client):
    answer = await client.get("/assets/index-a1.js", headers={"Accept-Encoding": "identity"})
    assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert (await answer.text()).startswith("1;")
    async with client.session.get(
        client.make_url("/assets/index-a1.js"), headers={"Accept-Encoding": "gzip"}, auto_decompress=False
    ) as packed:
        assert packed.headers["Content-Encoding"] == "gzip"
        assert await packed.read() == b"compressed"


@pytest.mark.parametrize(
    "path",
    [
        "/assets/%2e%2e%2f%2e%2e%2fsecret.txt",
        "/assets/..%2fsecret.txt",
        "/docs/%2e%2e%2fsecret.txt",
        "/assets/.built",
        "/x",
    ],
)
async def test_nothing_outside_the_folders_is_served(client, path):
    answer = await client.get(path)
    assert answer.status == 404
    assert "secret" not in await answer.text()


async def test_a_page_that_is_not_built_says_how_to_build_it(tmp_path, openapi):
    async with TestClient(TestServer(application(tmp_path / "missing", openapi))) as client:
        answer = await client.get("/app/trade")
        assert answer.status == 503
        assert "make up" in await answer.text()
        docs = await client.get("/docs")
        assert docs.status == 200
        assert "/docs/auth.json" in await docs.text()


async def test_a_page_built_later_is_served_without_a_restart(tmp_path, openapi):
    async with TestClient(TestServer(application(tmp_path / "later", openapi))) as client:
        assert (await client.get("/")).status == 503
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "index.html").write_text(INDEX)
        assert (await client.get("/")).status == 200


async def test_the_documentation_lists_the_whole_interface_first_and_each_service_with_its_port(client):
    documents = await (await client.get("/docs/documents.json")).json()
    assert [document["name"] for document in documents] == ["tradeloom", "auth", "orders"]
    assert documents[1] == {"name": "auth", "url": "/docs/auth.json", "port": 8011}
    assert (await (await client.get("/docs/auth.json")).json())["openapi"] == "3.1.0"
    assert "swagger-ui-bundle.js" in await (await client.get("/docs")).text()


def test_the_page_has_no_inline_script():
    app = Path(__file__).parents[2] / "services" / "web"
    for page in (app / "app" / "index.html", app / "docs" / "index.html"):
        for script in re.findall(r"<script([^>]*)>(.*?)</script>", page.read_text(), re.DOTALL):
            assert "src=" in script[0]
            assert script[1] == ""
        assert not re.search(r"\son[a-z]+=", page.read_text())
