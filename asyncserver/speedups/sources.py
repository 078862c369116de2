"""Sources: which C code an extension is made of. `hatch_build.py` loads this file by itself."""

from __future__ import annotations

import pathlib
import zlib

HERE = pathlib.Path(__file__).parent


def stamp() -> str:
    """Tell the C code in this folder from any other; "" where there is none, as in a wheel."""
    checksum, sources = 0, sorted(HERE.glob("*.[ch]"))
    for source in sources:
        checksum = zlib.crc32(source.read_bytes(), checksum)
    return f"{checksum:08x}" if sources else ""
