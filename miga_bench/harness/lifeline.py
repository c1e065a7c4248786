"""Ranks end by themselves when rank 0 is gone, which holds the run's lock and writes its records.

A rank is not told when another is killed until it next waits for it, which may be hours later, and nobody
ends it if whoever killed rank 0 killed what started the ranks too. So each keeps a connection to rank 0 on
which nothing is ever said: it breaks when rank 0's process ends, however it ends. The rank then stops as by
SIGTERM, with its video unfinished; if it has not ended after ``GRACE`` seconds, say because it hangs in the
driver, it is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from miga_bench.harness.ranks import agree

GRACE = 30.0
GONE = "process 0 of the run is gone, and this one ends: the same command makes what is missing"
LOCAL = "127.0.0.1"


class Lifeline:
    """This rank's connection to rank 0, set up by all ranks at once.

    Where none can be made, for example through a firewall, there is none, and a rank ends when it next
    waits for rank 0.

    Args:
        trainer: Lightning's, with its strategy set up.

    Attributes:
        torn: Whether rank 0 was gone before ``close``.
    """

    def __init__(self, trainer: Any) -> None:
        self.torn = False
        self._closed = False
        self._socket: socket.socket | None = None
        if trainer.world_size == 1:
            return
        here = trainer.num_nodes == 1
        port = agree(trainer, lambda: self._listen(LOCAL if here else "", trainer.world_size))
        if port is not None and not trainer.is_global_zero:
            address = LOCAL if here else trainer.strategy.cluster_environment.main_address
            with suppress(OSError):
                self._socket = socket.create_connection((address, port), timeout=10)
                _notice_dead_hosts(self._socket)
                threading.Thread(target=self._watch, daemon=True, name="lifeline").start()

    def _listen(self, address: str, ranks: int) -> int | None:
        """Return the port that others may connect to; nobody has to accept, the system answers."""
        try:
            self._socket = socket.create_server((address, 0), backlog=ranks)
        except OSError:
            return None
        port: int = self._socket.getsockname()[1]
        return port

    def _watch(self) -> None:
        assert self._socket is not None
        with suppress(OSError):
            self._socket.settimeout(None)
            self._socket.recv(1)
        if self._closed:
            return
        self.torn = True
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)  # a process that ends takes this thread along
        print(f"miga-bench: {GONE}", file=sys.stderr, flush=True)
        os._exit(1)

    def close(self) -> None:
        """Close the connection; rank 0 has to be the last to do so."""
        self._closed = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


def _notice_dead_hosts(connection: socket.socket) -> None:
    """Let the system ask every now and then whether the other machine is there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
