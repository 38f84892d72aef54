"""zstd on the files of a folder: bytes, and median seconds of coding and decoding all of them.

Seconds are of the processor.

run_zstandard.py FOLDER ROUNDS LEVEL,LEVEL,...
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median

import zstandard


def main() -> None:
    folder, rounds, levels = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    contents = [path.read_bytes() for path in sorted(folder.iterdir())]
    decoder = zstandard.ZstdDecompressor()
    found = {}
    for level in levels:
        coder = zstandard.ZstdCompressor(level=int(level))
        coded = [coder.compress(content) for content in contents]
        encode, decode = [], []
        for _ in range(rounds):
            start = time.process_time()
            for content in contents:
                coder.compress(content)
            middle = time.process_time()
            for one in coded:
                decoder.decompress(one)
            encode.append(middle - start)
            decode.append(time.process_time() - middle)
        found[level] = {
            "bytes": sum(map(len, coded)),
            "encode": median(encode),
            "decode": median(decode),
        }
    print(json.dumps(found))


main()
