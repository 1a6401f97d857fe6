"""Copies the third-party .proto files our contract imports into third_party/, which git ignores.

google/* lies in an installed package; buf/validate only in a source package on PyPI.
"""

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

THIRD_PARTY = Path("third_party")
GOOGLE = [
    "google/api/annotations.proto",
    "google/api/http.proto",
    "google/api/httpbody.proto",  # requests that are taken as they come
    "google/rpc/error_details.proto",  # refusals, as the dashboard reads them
    "google/rpc/status.proto",  # a refusal of one of several
]
VALIDATE = "buf/validate/validate.proto"
VALIDATE_PACKAGE = "protovalidate==1.2.0"


def main() -> None:
    spec = importlib.util.find_spec("google.api")
    assert spec is not None, "googleapis-common-protos is a dependency"
    assert spec.submodule_search_locations is not None
    site = Path(next(iter(spec.submodule_search_locations))).parents[1]
    for name in GOOGLE:
        target = THIRD_PARTY / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(site / name, target)
    if not (THIRD_PARTY / VALIDATE).exists():
        copy_validate(THIRD_PARTY / VALIDATE)


def copy_validate(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*download, "--dest", folder, VALIDATE_PACKAGE], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            member = next(m for m in archive.getmembers() if m.name.endswith(f"upstream/proto/{VALIDATE}"))
            content = archive.extractfile(member)
            assert content is not None
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.read())


if __name__ == "__main__":
    main()
