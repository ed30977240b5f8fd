"""Bare limits: the time that OpenSSL, the JSON parser, the disk and the network alone need for the same work."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import orjson
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

CORES: Final = 2
MESSAGE: Final = b"x" * 1000
VERIFY: Final = ec.ECDSA(hashes.SHA384())
SIGN: Final = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)

_KEY = ec.generate_private_key(ec.SECP384R1())
_PUBLIC = _KEY.public_key()
_SIGNATURE = _KEY.sign(MESSAGE, SIGN)


def verify() -> None:
    """Verify one P-384 signature."""
    _PUBLIC.verify(_SIGNATURE, MESSAGE, VERIFY)


def sign() -> None:
    """Make one P-384 signature."""
    _KEY.sign(MESSAGE, SIGN)


def cpu_seconds(call: Callable[[], object], times: int = 1) -> float:
    """Return the processor time of one call."""
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times


def seconds(call: Callable[[], object], times: int = 1) -> float:
    """Return the elapsed time of one call."""
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times


def seconds_on_all_cores(call: Callable[[], object], times: int) -> float:
    """Return the time of that many calls, spread over `CORES` threads."""

    def lane(count: int) -> None:
        for _ in range(count):
            call()

    with ThreadPoolExecutor(CORES) as pool:
        began = time.perf_counter()
        list(pool.map(lane, [times // CORES + (number < times % CORES) for number in range(CORES)]))
        return time.perf_counter() - began


def parse(lines: Sequence[bytes]) -> None:
    """Parse lines of JSON, one at a time."""
    for line in lines:
        orjson.loads(line)


def parse_and_digest(body: bytes) -> None:
    """Parse a body and hash it."""
    orjson.loads(body)
    hashlib.sha256(body).digest()


def append(file: Path, line: bytes) -> None:
    """Append to a file, and wait until the data are on the disk."""
    with file.open("ab") as out:
        out.write(line)
        out.flush()
        os.fsync(out.fileno())


def cpu_seconds_to_send(data: bytes, copies: int) -> float:
    """Return the processor time of sending bytes through that many sockets, without that of reading them."""

    def drain(far: socket.socket) -> None:
        while far.recv(1 << 20):
            pass

    used = 0.0
    for _ in range(copies):
        near, far = socket.socketpair()
        with far:
            reader = threading.Thread(target=drain, args=(far,))
            reader.start()
            with near:
                began = time.thread_time()
                near.sendall(data)
                used += time.thread_time() - began
            reader.join()
    return used


def send(data: bytes) -> float:
    """Return how long it takes to send bytes through a socket and read them at the other end."""
    near, far = socket.socketpair()
    with near, far:
        began = time.perf_counter()
        sender = threading.Thread(target=near.sendall, args=(data,))
        sender.start()
        left = len(data)
        while left > 0:
            left -= len(far.recv(1 << 20))
        sender.join()
        return time.perf_counter() - began
