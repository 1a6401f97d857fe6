"""Files of checksums, as `sha256sum` writes them and vendors such as Binance put beside what they offer."""

import re

ENDINGS = (".checksum", ".sha256")
BYTES_MAX = 64 * 1024
"""Of such a file; of a longer one, the lines up to here."""
LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:.*/)?([^/]+)")


def sums_of(content: bytes) -> dict[str, bytes]:
    """SHA-256 by the name of the file that it is of; lines of any other form say nothing."""
    lines = content[:BYTES_MAX].decode("utf-8", "replace").splitlines()
    found = (LINE.fullmatch(line.strip()) for line in lines)
    return {line[2]: bytes.fromhex(line[1]) for line in found if line}
