"""An SMTP connection on which nothing takes longer than it was given, not even with a server that drips bytes."""

import queue
import smtplib
import socket
import ssl
import threading
import time
from typing import Any

MAX_REPLY_BYTES = 65_536
"""More than that in one reply is no SMTP server, and must not fill the memory."""

AddressInfo = tuple[Any, Any, int, str, tuple[Any, ...]]


class Deadline:
    """A moment on the monotonic clock after which waiting is over."""

    def __init__(self, seconds: float) -> None:
        self._moment = time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds left, more than 0; raises TimeoutError when none are."""
        seconds = self._moment - time.monotonic()
        if seconds <= 0:
            message = "it took too long"
            raise TimeoutError(message)
        return seconds

    def at_most(self, seconds: float) -> "Deadline":
        """Return the earlier of this deadline and one in so many seconds."""
        shorter = Deadline(seconds)
        shorter._moment = min(shorter._moment, self._moment)
        return shorter


class SmtpConnection(smtplib.SMTP):
    """smtplib's connection with a deadline over everything and a limit for every step.

    smtplib's own timeout starts afresh with each packet. Here the socket's timeout is set to what is left before every
    single read and write, name lookup and TLS handshake included. A step is connecting, a handshake, a command with its
    reply, or the body. Every failure is an OSError (smtplib's errors are).
    """

    def __init__(
        self, host: str, port: int, *, deadline: Deadline, step_seconds: float, implicit_tls: ssl.SSLContext | None
    ) -> None:
        self._deadline = deadline
        self._step_seconds = step_seconds
        self._step = deadline.at_most(step_seconds)
        self._implicit_tls = implicit_tls
        super().__init__(host, port, local_hostname=_client_name())
        self._server_name = host

    def allow(self, deadline: Deadline) -> None:
        """Set the deadline for what comes next, such as another message."""
        self._deadline = deadline
        self._step = deadline.at_most(self._step_seconds)

    @property
    def encrypted(self) -> bool:
        """Whether the connection runs over TLS."""
        return isinstance(self.sock, ssl.SSLSocket)

    def start_tls(self, context: ssl.SSLContext) -> tuple[int, bytes]:
        """Ask for TLS and, if the server agrees with 220, begin it; what was said before is forgotten (RFC 3207)."""
        code, text = self.docmd("STARTTLS")
        if code == 220:
            self.sock = self._wrap(self._open_socket(), context=context, host=self._server_name)
            self.file = self.ehlo_resp = self.helo_resp = None
            self.esmtp_features = {}
            self.does_esmtp = False
        return code, text

    def send_body(self, data: bytes) -> None:
        """Send the message, all but the line that ends it: until then no server may accept it."""
        self._step = self._deadline
        lines = b"\r\n".join(data.splitlines())
        self.send((b"." if lines.startswith(b".") else b"") + lines.replace(b"\r\n.", b"\r\n..") + b"\r\n")

    def early_reply(self) -> tuple[int, bytes] | None:
        """Return what the server said before it had the whole message, such as 421, without waiting; None: nothing.

        Raises OSError if it has hung up. Either way it cannot have accepted the message; asked after the final dot,
        nobody could tell.
        """
        self.file = self.file or _ReplyReader(self._open_socket())
        if not self.file.has_input():
            return None
        return self.getreply()

    def send_end(self, deadline: Deadline) -> None:
        """Send the final dot. If this fails the server cannot have it whole; once it returns, the outcome is open."""
        self._deadline = self._step = deadline
        self.send(b".\r\n")

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Send a command; the step for it and its reply begins."""
        self._step = self._deadline.at_most(self._step_seconds)
        super().putcmd(cmd, args)

    def send(self, s: Any) -> None:
        """Send all of it within the step."""
        sock = self._open_socket()
        left = memoryview(s.encode(self.command_encoding) if isinstance(s, str) else s)
        try:
            while left:
                sock.settimeout(self._step.remaining())
                left = left[sock.send(left) :]
        except OSError:
            self.close()
            raise

    def getreply(self) -> tuple[int, bytes]:
        """Read one reply within the step."""
        self.file = self.file or _ReplyReader(self._open_socket())
        self.file.begin(self._step)
        return super().getreply()

    def _open_socket(self) -> socket.socket:
        if self.sock is None:
            message = "the connection is closed"
            raise smtplib.SMTPServerDisconnected(message)
        return self.sock

    def _get_socket(self, host: str, port: int, timeout: object) -> socket.socket:
        """Connect to the first of the host's addresses that answers; called by smtplib."""
        del timeout  # the deadline decides
        failure: OSError = socket.gaierror("the name has no address")
        for family, kind, protocol, _, address in _look_up(host, port=port, deadline=self._step):
            connecting = socket.socket(family, kind, protocol)
            try:
                connecting.settimeout(self._deadline.at_most(self._step_seconds).remaining())
                connecting.connect(address)
                # The final dot is a packet of its own; it must not wait for the answer to the packet before.
                connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                connecting.close()
                failure = error
                continue
            if self._implicit_tls is not None:
                connecting = self._wrap(connecting, context=self._implicit_tls, host=host)
            self._step = self._deadline.at_most(self._step_seconds)
            return connecting
        raise failure

    def _wrap(self, plain: socket.socket, *, context: ssl.SSLContext, host: str) -> ssl.SSLSocket:
        try:
            plain.settimeout(self._deadline.at_most(self._step_seconds).remaining())
            return context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            self.close()
            raise


class _ReplyReader:
    """The file from which smtplib reads replies: line by line, within a step, and never without end."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""
        self._step = Deadline(0)
        self._read = 0

    def begin(self, step: Deadline) -> None:
        """Prepare for one more reply."""
        self._step = step
        self._read = 0

    def has_input(self) -> bool:
        """Whether the server has said anything that was not read yet; raises OSError if it has hung up."""
        if self._buffer:
            return True
        self._socket.settimeout(0)
        try:
            self._buffer = self._socket.recv(4096)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        if not self._buffer:
            message = "the server hung up"
            raise smtplib.SMTPServerDisconnected(message)
        return True

    def readline(self, limit: int) -> bytes:
        while b"\n" not in self._buffer and len(self._buffer) < limit:
            self._socket.settimeout(self._step.remaining())
            received = self._socket.recv(4096)
            if not received:
                break
            self._buffer += received
        end = self._buffer.find(b"\n") + 1 or len(self._buffer)
        line, self._buffer = self._buffer[: min(end, limit)], self._buffer[min(end, limit) :]
        self._read += len(line)
        if self._read > MAX_REPLY_BYTES:
            message = "the reply does not end"
            raise OSError(message)
        return line

    def close(self) -> None:
        """Nothing is held here; the connection closes its socket."""


def _client_name() -> str:
    """Return the name to greet with: this machine's own if it is a full one, else an address literal (RFC 5321, 4.1.4).

    No name lookup: it could take any time.
    """
    name = socket.gethostname()
    return (
        name if "." in name and name.replace(".", "").replace("-", "").isalnum() and name.isascii() else "[127.0.0.1]"
    )


def _look_up(host: str, *, port: int, deadline: Deadline) -> list[AddressInfo]:
    """Resolve a name within the deadline; the system's own lookup has none, so its thread may outlive this call."""
    found: queue.SimpleQueue[list[AddressInfo] | OSError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.put(error)
        except UnicodeError:
            found.put(socket.gaierror("the name is malformed"))

    threading.Thread(target=look_up, name="certjob-name-lookup", daemon=True).start()
    try:
        result = found.get(timeout=deadline.remaining())
    except queue.Empty:
        message = "the name lookup took too long"
        raise TimeoutError(message) from None
    if isinstance(result, OSError):
        raise result
    return result
