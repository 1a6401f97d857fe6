"""One run of the stack, as far as it needs no servers."""

import asyncio
from contextlib import suppress
from datetime import timedelta

from cryptography import x509

from libs.stack import pki, run
from libs.stack.folder import DataFolder
from libs.stack.logs import Log
from libs.stack.options import Options
from libs.stack.run import Run


async def test_a_stack_that_is_up_renews_its_certificates_whatever_went_wrong_before(tmp_path, monkeypatch):
    folder = DataFolder.at(tmp_path / "data")
    folder.make()
    said: list[str] = []
    one = Run(Options(folder=folder), lambda _, event: said.append(event))
    one._log = Log(folder.log("supervisor"))
    assert {"edge", "operator", "orders"} <= set(await one._make_certificates())
    first = certificate(folder)

    publish, failures = pki.publish, [OSError("no space left on device")]

    def publish_at_last(*arguments) -> None:
        if failures:
            raise failures.pop()
        publish(*arguments)

    monkeypatch.setattr(pki, "publish", publish_at_last)
    monkeypatch.setattr(pki, "RENEW_BEFORE", pki.LEAF_LIFE + timedelta(days=1))
    monkeypatch.setattr(run, "RENEWAL_SECONDS", 0.01)
    renewing = asyncio.create_task(one._renew_certificates())
    async with asyncio.timeout(10):
        while len(said) < 2:
            await asyncio.sleep(0.01)
    renewing.cancel()
    with suppress(asyncio.CancelledError):
        await renewing
    assert said[0] == "cannot renew certificates, and will try again: no space left on device"
    assert said[1].startswith("renewed the certificates of auth")
    assert certificate(folder) != first


def certificate(folder: DataFolder) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder.tls / "edge.pem").read_bytes())
