"""Fixtures of the runtime's tests."""

from pathlib import Path

import pytest

from tests import mesh
from tests.mesh import Installation, ServedProcess
from tests.servers import PostgresServer, ValkeyServer


@pytest.fixture
def place(
    postgres: PostgresServer, valkey_server: ValkeyServer, shared_auth: ServedProcess, pki: Path, tmp_path: Path
) -> Installation:
    """Certificates and the run's auth, for services that keep nothing."""
    installation = Installation(postgres, "mesh_auth", valkey_server.url, pki, tmp_path)
    return mesh.with_auth(installation, shared_auth.served)
