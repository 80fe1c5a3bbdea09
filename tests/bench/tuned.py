"""What `pipeline tune` chose for our systems."""

from __future__ import annotations

import json
from typing import Any

from systems import Case, Unusable, tune

_TUNED = ("fp32", "auto")


class Tuned:
    """The choices for one case."""

    def __init__(self, case: Case, model: str) -> None:
        """Choose nothing yet.

        Args:
            case: The rows and the model.
            model: Its name in what is printed.
        """
        self._case, self._model = case, model
        self._chosen: dict[str, dict[str, Any]] = {}

    def tune(self, systems: list[str], skipped: dict[str, str]) -> None:
        """Let `pipeline tune` choose for `fp32` and `auto`; `skipped` says why it could not."""
        for name in _TUNED:
            if name not in systems:
                continue
            try:
                self._chosen[name] = tune(self._case, name)
            except Unusable as error:
                skipped[f"{self._model} {name}"] = str(error)
                continue
            for trial in self._chosen[name]["runtimes"]:
                print(f"{self._model} {json.dumps(trial)}", flush=True)
            print(f"{self._model} {name} chosen: {self.said(name)}", flush=True)

    def said(self, system: str) -> str:
        """Return the runtime and precision of a system, for the table."""
        found = self._chosen.get(system)
        return "eager fp32" if found is None else str(found["chosen"])
