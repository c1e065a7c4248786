"""Ranks end by themselves when rank 0 is gone, and rank 0 when it waits for one that is.

Rank 0 holds the run's lock and writes its records. A rank is not told when another is killed until it next
waits for it, which may be hours later, and nobody ends it if whoever killed rank 0 killed what started the
ranks too. Nor is anybody told at all when a machine vanishes, by a loss of power or network: gloo's
connections to it neither work nor end. So each rank keeps a connection to rank 0, which the system probes,
and on which nothing is said but who one is and, at an orderly end, goodbye. It breaks when the process at its
other end ends, however it ends, and a minute after a machine has vanished.

A rank that loses rank 0 so stops as by SIGTERM, with its video unfinished; if it has not ended after
``GRACE`` seconds, say because it hangs in the driver, it is killed. Rank 0 that loses another makes its own
videos all the same. It is killed, which ends the others, once it has waited for that one for ``GRACE`` seconds:
where a process was killed, its wait breaks long before. A wait in native code can be left in no other way.
"""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from miga_bench.harness import ranks
from miga_bench.harness.ranks import agree, current_wait

GRACE = 30.0
TICK = 1.0  # seconds between two looks of rank 0 at what it waits for
GONE = "process 0 of the run is gone, and this one ends: the same command makes what is missing"
LOCAL = "127.0.0.1"

GOODBYE = b"."
# What a rank says first: what only the run's ranks know, since ports are also tried by others, and who it is.
_SECRET, _RANK = 16, 4


class Lifeline:
    """This rank's connection to rank 0, or rank 0's to all others; set up by all ranks at once.

    Where none can be made, for example through a firewall, there is none, and a rank ends when it next
    waits for rank 0. Rank 0 then waits for a machine that has vanished.

    Args:
        trainer: Lightning's, with its strategy set up.

    Attributes:
        torn: Whether rank 0 was gone before ``close``.
        lost: On rank 0 the ranks that went without goodbye, and when, by ``time.monotonic``.
    """

    def __init__(self, trainer: Any) -> None:
        self.torn = False
        self.lost: dict[int, float] = {}
        self._closed = False
        self._door: socket.socket | None = None  # rank 0's
        self._line: socket.socket | None = None  # another rank's
        self._lines: dict[socket.socket, bytes] = {}  # rank 0's, with what was said on each
        self._thread: threading.Thread | None = None
        if trainer.world_size == 1:
            return
        here = trainer.num_nodes == 1
        told = agree(trainer, lambda: self._listen(LOCAL if here else "", trainer.world_size))
        if told is None:
            return
        port, self._secret = told
        if trainer.is_global_zero:
            self._start(self._watch_all)
            return
        address = LOCAL if here else trainer.strategy.cluster_environment.main_address
        with suppress(OSError):
            self._line = socket.create_connection((address, port), timeout=10)
            _notice_dead_hosts(self._line)
            self._line.sendall(self._secret + trainer.global_rank.to_bytes(_RANK, "big"))
            self._start(self._watch)

    @property
    def watching(self) -> bool:
        """Whether somebody watches this end."""
        return self._thread is not None and self._thread.is_alive()

    def _start(self, watch: Any) -> None:
        self._thread = threading.Thread(target=watch, daemon=True, name="lifeline")
        self._thread.start()

    def _listen(self, address: str, count: int) -> tuple[int, bytes] | None:
        """Return the port that others may connect to, and what they have to say there."""
        try:
            self._door = socket.create_server((address, 0), backlog=count)
        except OSError:
            return None
        return self._door.getsockname()[1], secrets.token_bytes(_SECRET)

    def _watch(self) -> None:
        """Wait for the end of rank 0, and follow it."""
        assert self._line is not None
        said = b""
        with suppress(OSError):
            self._line.settimeout(None)
            said = self._line.recv(1)
        if self._closed or said == GOODBYE:
            return
        self.torn = True
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)  # a process that ends takes this thread along
        _end(GONE)

    def _watch_all(self) -> None:
        """Hear of all other ranks, and end this one where it waits for one that is gone."""
        assert self._door is not None
        with selectors.DefaultSelector() as selector, self._door:
            self._door.setblocking(False)
            selector.register(self._door, selectors.EVENT_READ)
            while not self._closed:
                for key, _ in selector.select(TICK):
                    line: Any = key.fileobj
                    if line is self._door:
                        with suppress(OSError):  # whoever knocked is gone again
                            line, _ = self._door.accept()
                            line.setblocking(False)
                            _notice_dead_hosts(line)
                            self._lines[line] = b""
                            selector.register(line, selectors.EVENT_READ)
                    elif not self._hear(line):
                        selector.unregister(line)
                        line.close()
                if self._waits_in_vain():
                    _end(ranks.GONE)
                    return

    def _hear(self, line: socket.socket) -> bool:
        """Read what is said on a line; tell whether it goes on."""
        try:
            said = line.recv(64)
        except BlockingIOError:
            return True
        except OSError:  # the machine does not answer, for example
            said = b""
        whole = self._lines[line] + said
        if said and self._secret.startswith(whole[:_SECRET]):
            self._lines[line] = whole
            return True
        del self._lines[line]
        if whole.startswith(self._secret) and len(whole) == _SECRET + _RANK:  # and no goodbye
            self.lost[int.from_bytes(whole[_SECRET:], "big")] = time.monotonic()
        return False

    def _waits_in_vain(self) -> bool:
        wait = current_wait()
        if wait is None:
            return False
        gone = [when for rank, when in self.lost.items() if rank in wait.ranks]
        return bool(gone) and time.monotonic() > max(min(gone), wait.since) + GRACE

    def close(self) -> None:
        """Say goodbye and close; a rank that is done with all others does so, whichever is the first."""
        self._closed = True
        for line in [self._line, *self._lines]:
            if line is not None:
                with suppress(OSError):
                    line.sendall(GOODBYE)
                    line.shutdown(socket.SHUT_RDWR)

    def rest(self) -> None:
        """Watch no more; the other ends notice when this process ends."""
        self._closed = True


def _end(why: str) -> None:
    """End this process, whose main thread does not."""
    print(f"miga-bench: {why}", file=sys.stderr, flush=True)
    os._exit(1)


def _notice_dead_hosts(connection: socket.socket) -> None:
    """Let the system ask every now and then whether the other machine is there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
