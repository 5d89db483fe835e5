"""Read W&B's offline files: a .wandb file is a LevelDB log of protobuf records."""

import json
import struct
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768
FULL, FIRST, LAST = 1, 2, 4


def records(path: Path, kind: str) -> list:
    """Return all records of a kind (run, history, artifact ...) in the file."""
    data, position, parts, found = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = BLOCK - position % BLOCK
        if left < 7:
            position += left
            continue
        _, size, part = struct.unpack("<IHB", data[position : position + 7])
        parts = (b"" if part in (FULL, FIRST) else parts) + data[position + 7 : position + 7 + size]
        position += 7 + size
        if part in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            if record.WhichOneof("record_type") == kind:
                found.append(getattr(record, kind))
    return found


def config_of(path: Path) -> dict:
    """Return the run's configuration as it is at the end."""
    updates = [item for record in records(path, "run") for item in record.config.update]
    updates += [item for record in records(path, "config") for item in record.update]
    return {item.key: json.loads(item.value_json) for item in updates}


def history_of(path: Path) -> dict[int, dict]:
    """Return the logged values by step; nested keys as "a.b"."""
    return {
        record.step.num: {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.item}
        for record in records(path, "history")
    }
