"""Listening sockets whose failure says what to do."""

from __future__ import annotations

import socket

from understudy.errors import UnderstudyError

_BACKLOG = 2048


def listening(host: str, port: int, *, who: str, expected: str) -> socket.socket:
    """A TCP socket that listens; port 0 takes a free one.

    Args:
        who: what listens, for the error.
        expected: the mend, for the error.

    Raises:
        UnderstudyError: the address can't be had.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UnderstudyError(
            f"{who} can't listen on {host}:{port}: {error.strerror or error}", expected=expected
        ) from error
    return listener
