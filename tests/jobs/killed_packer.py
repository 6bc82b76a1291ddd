"""Kill processes that pack, again and again, until one is done. Run as a script.

    python killed_packer.py DATA OUT KILLS SEED SHARD_BYTES

Each kill comes when a random fraction of the images that are left is packed. The processes are
forked, so that torch is imported once. Prints one JSON object.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import mae.data.packing.writer
from mae.data.packing.writer import Packing
from mae.data.sources.open import open_source
from mae.jobs.data_pack import pack

POLL_S, PAUSE_S = 0.003, 0.002


def bytes_of(out: Path) -> int:
    """Count what lies in the shards, recorded or not."""
    sizes = 0
    for path in out.glob("shard-*.tar"):
        try:
            sizes += path.stat().st_size
        except FileNotFoundError:
            continue
    return sizes


def recorded(out: Path) -> int:
    record = out / ".packing" / "done.json"
    return json.loads(record.read_bytes())["rows"] if record.exists() else 0


def start(data: Path, out: Path, shard_bytes: int) -> int:
    child = os.fork()
    if child == 0:
        # Slow enough for the parent to see it at work.
        mae.data.packing.writer._COMMIT_SECONDS = 0.02
        add = Packing.add
        Packing.add = lambda *given, **named: (time.sleep(PAUSE_S), add(*given, **named))[1]
        pack(data, out, shard_bytes=shard_bytes, quiet=True)
        os._exit(0)
    return child


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    kills, seed, shard_bytes = (int(word) for word in sys.argv[3:6])
    source = open_source(data)
    total = sum(len(source.read(index)) for index in range(len(source)))
    draws = random.Random(seed)
    kept = []
    for number in range(kills):
        aim = bytes_of(out) + draws.uniform(0, 1 / (kills + 1 - number)) * (total - bytes_of(out))
        before, child = recorded(out), start(data, out, shard_bytes)
        while bytes_of(out) <= aim or recorded(out) <= before:
            time.sleep(POLL_S)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it was done before it was killed"
        assert not (out / "index.safetensors").exists()
        kept.append(recorded(out))
    assert os.waitpid(start(data, out, shard_bytes), 0)[1] == 0
    print(json.dumps({"kept": kept, "images": len(source)}))


if __name__ == "__main__":
    main()
