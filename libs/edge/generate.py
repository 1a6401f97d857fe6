"""Writes gen/edge: the contract's descriptors and one configuration for each place to run in."""

import json
import sys
from pathlib import Path

import yaml

from libs.edge import config, contract, secrets
from libs.edge.target import Target, embedded, kubernetes

HEADER = "# Made from the contract by `make gen`; never edited.\n"
DESCRIPTORS = "tradeloom.binpb"


def targets() -> list[Target]:
    """The embedded one with the usual ports and folders; the stack renders its own with those it found."""
    return [
        embedded(
            tls_folder=".tradeloom/tls",
            secrets_folder=".tradeloom/edge",
            descriptors_file=f"gen/edge/{DESCRIPTORS}",
        ),
        kubernetes(),
    ]


def main(folder: Path = Path("gen/edge")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTORS).write_bytes(contract.descriptor_set())
    for target in targets():
        text = yaml.dump(config.render(target), Dumper=Plain, sort_keys=False, width=120, allow_unicode=True)
        (folder / f"envoy.{target.name}.yaml").write_text(HEADER + text)
    for name, content in secrets.files(kubernetes()).items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


class Plain(yaml.SafeDumper):
    """Writes a thing that is used twice twice: anchors would only puzzle the reader."""

    def ignore_aliases(self, data: object) -> bool:
        return True


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
