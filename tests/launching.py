"""Several processes that compute together on the CPU, as `torchrun` would start them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable

import torch


def launched(target: Callable[..., None], *arguments: object, count: int = 2, timeout: float = 200) -> None:
    """Run `target` in `count` processes that know of each other, one thread each; fails if one of them does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.editing"])  # what takes long to import
    running = [context.Process(target=_run, args=(rank, count, port, target, arguments)) for rank in range(count)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout)
    ended = [process.exitcode for process in running]
    for process in running:
        process.kill()
    assert ended == [0] * count


def _run(rank: int, count: int, port: int, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ["OMP_NUM_THREADS"] = "1"  # else accelerate sets torch's threads anew
    torch.set_num_threads(1)
    target(*arguments)
