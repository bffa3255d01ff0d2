"""What other processes do with a folder in a bucket; imports little, so that they start quickly."""

import hashlib
import json
import multiprocessing
import os
import sys
import threading
from pathlib import Path

from infra.folders.contract import Folder
from infra.folders.opening import open_folder
from infra.s3 import client, uploading


def digest(folder: Folder, name: str) -> tuple[int, str]:
    """Read a file of the folder; returns this process's id and the SHA-256 of the bytes."""
    folder.put(f"by-{os.getpid()}", b"")
    return os.getpid(), hashlib.sha256(folder.read(name)).hexdigest()


def made_here() -> bool:
    """Tell whether this process has a client already."""
    return client.connection().endpoint is not None


def upload(uri: str, path: str) -> None:
    """Upload a file in small parts, one after the other."""
    uploading.PART, uploading.THREADS = 5 << 20, 1
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    open_folder(uri).put_file("large", Path(path), sha256)


def start(method: str, uri: str) -> None:
    """Start processes that read the file `name`, while a thread of this one does so too.

    Not with `fork`: OpenSSL has locks of its own, for hashes and for TLS, and a process that is
    forked while another thread holds one waits for it for ever.

    Prints this process's id, whether a new one had a client, and what `digest` returned, as JSON.
    """
    folder, stop = open_folder(uri), threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            folder.read("name")

    busy = threading.Thread(target=keep_busy)
    if method == "fork":
        folder.read("name")  # the client is used before, and not meanwhile
        stop.set()
    busy.start()
    try:
        with multiprocessing.get_context(method).Pool(2) as pool:
            had = pool.apply(made_here)
            found = pool.starmap(digest, [(folder, "name")] * 4, chunksize=1)
    finally:
        stop.set()
        busy.join()
    sys.stdout.write(json.dumps([os.getpid(), had, found]))


if __name__ == "__main__":
    {"upload": upload, "start": start}[sys.argv[1]](*sys.argv[2:])
