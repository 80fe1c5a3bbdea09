"""A command on a terminal of its own, as a person has it."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import threading

from support.runs.cli import command, environment, wait_until


class Terminal:
    """A command that was started, what it has shown, and what is typed."""

    def __init__(self, *arguments: str, cwd: str | None = None) -> None:
        self._ours, its = pty.openpty()
        self._buffer = io.BytesIO()
        self.process = subprocess.Popen(
            command(*arguments),
            env=environment({"TERM": "xterm", "COLUMNS": "100"}),
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            cwd=cwd,
            text=True,
        )
        os.close(its)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:  # the terminal is closed
                return
            if not data:
                return
            self._buffer.write(data)

    def shown(self) -> str:
        if self.process.poll() is not None:
            self._thread.join(timeout=10)
        return self._buffer.getvalue().decode(errors="replace")

    def answer(self, question: str, line: str) -> None:
        """Type a line once a question is the last thing that is shown."""
        wait_until(lambda: self.shown().endswith(question), self.process)
        assert self.process.poll() is None, self.shown()
        os.write(self._ours, line.encode())
