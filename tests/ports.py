"""Ports for servers that are told theirs, as tests beside each other need them."""

import random
import socket
from contextlib import suppress


def free_port():
    """Return a port nobody listens on, below those a system hands out by itself.

    One that was handed out and given back may be handed out to another process before the server has it.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
