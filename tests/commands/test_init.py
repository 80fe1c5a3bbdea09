"""`pipeline init`: on a terminal it asks for missing arguments; elsewhere they are errors."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from support import HANG_S
from support.models.snapshots import make_snapshot
from support.runs.cli import command, environment, pipeline, wait_until

from pipeline.operations.arguments import load_job


class Terminal:
    """A command on a terminal of its own, what it has shown, and what is typed."""

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A table with two columns of texts, and an encoder."""
    (tmp_path / "rows.csv").write_text("title,summary\na cat,two cats\na dog,two dogs\n")
    make_snapshot(tmp_path / "encoder", "bert", pooling="mean", normalize=True)
    return tmp_path


def test_init_asks_for_missing_and_ambiguous_values(folder: Path):
    terminal = Terminal("init", "rows.csv", cwd=str(folder))
    terminal.answer("--model: ", "\n")
    terminal.answer("--model: ", "encoder\n")
    terminal.answer("--to: ", "out\n")
    terminal.answer("Name or number: ", "3\n")
    terminal.answer("Name or number: ", "summary\n")
    assert terminal.process.wait(timeout=HANG_S) == 0, terminal.shown()
    assert "pipeline run job.yaml" in terminal.shown()
    job = load_job(folder / "job.yaml")
    assert (job.source.text_column, job.model.path) == ("summary", str(folder / "encoder"))
    assert job.sink.uri == str(folder / "out")


@pytest.mark.parametrize(
    ("typed", "code", "message"),
    [
        ("\x04", 2, "Missing option --model: no answer was given"),
        pytest.param("", 6, "SIGINT received", marks=pytest.mark.slow),
    ],
)
def test_no_answer_writes_nothing(typed: str, code: int, message: str, folder: Path):
    terminal = Terminal("init", "rows.csv", cwd=str(folder))
    terminal.answer("--model: ", typed)
    if not typed:
        terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.wait(timeout=HANG_S) == code, terminal.shown()
    assert message in terminal.shown()
    assert not (folder / "job.yaml").exists()


@pytest.mark.no_ray
def test_without_a_terminal_a_missing_option_is_an_error(folder: Path):
    done = pipeline("init", str(folder / "rows.csv"), "--json")
    assert done.code == 2
    assert done.json["error"].startswith("Missing option --model")
