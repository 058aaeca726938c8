"""What the tests of training share: small runs, and what to compare."""

import hashlib
import pathlib


def digests(directory: pathlib.Path) -> dict[str, str]:
    """File -> hash of its contents, of everything in a directory."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
