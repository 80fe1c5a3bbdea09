"""Put small faults into pure parts of the package, one at a time; count which the tests notice.

`make mutants` does it for all parts that `mutants.toml` names, `make mutants MUTANTS=gates` for one
and `make mutants MUTANTS="plan commit/publish.py"` for a part and a file. mutmut makes the faults
in a copy below `build/mutants/`, and runs for each the tests that reach it. `--left` tries once
more those that were not killed, with the tests as they are now; `--sample 20` tries a fifth;
`--results` only shows what was found last.

Exit code 1: of a folder fewer were killed than `mutants.toml` wants, some were not tried, or an
accepted survivor is none any more.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
LISTED, BUILD = ROOT / "tests" / "mutants.toml", ROOT / "build" / "mutants"
COPIED = ("pipeline", "tests", "jobs", "examples", "README.md")
KILLED, TIMEOUT, NO_TESTS = {1, 3, -11, -9}, {36, 24, -24, 152, 255}, {5, 33}
"""Exit codes that mutmut keeps; 0: the tests passed."""
LIVES, KILLED_OR_SLOW = ("survived", "no tests"), ("killed", "timeout")
MESSAGE = r"""^\s*[rf]{0,2}(["'])(?=.* ).*\1"""
"""A line that is a piece of text with a space in it: a message, whose wording no test need hold."""
_OPTIONS = ("-n0", "-p", "no:cacheprovider", "--hypothesis-profile", "few")
_DIGITS = "3719046825"
"""A sample of 20 percent are the faults whose number ends in 3 or 7."""
_TEXT = re.compile(r"""(["'])[^"']*\1""")
_STRICT = re.compile(r"(?<=, )(strict=\w+)?(?=\))")


@dataclass(frozen=True)
class Mutant:
    """One fault, and what became of it."""

    name: str
    file: str
    line: str
    """As it is, without indentation; several lines if it changes several."""
    becomes: str
    outcome: str
    """killed, timeout, survived, no tests or not run."""

    @property
    def is_wording(self) -> bool:
        """Tell whether nothing is changed but a text with a space in it."""
        return _without_wording(self.line) == _without_wording(self.becomes)

    @property
    def is_lenient(self) -> bool:
        """Tell whether `zip` no longer checks that lengths are equal, which they always are."""
        return "strict=True" in self.line and _STRICT.sub("", self.line) == _STRICT.sub(
            "", self.becomes
        )


@dataclass(frozen=True)
class Accepted:
    """Survivors that no test need notice."""

    file: str
    line: str
    reason: str
    becomes: str | None = None
    """None: whatever becomes of the line."""

    def is_of(self, mutant: Mutant) -> bool:
        return (
            (self.file, self.line) == (mutant.file, mutant.line)
            and self.becomes in (None, mutant.becomes)
        )  # fmt: skip


def _without_wording(text: str) -> str:
    return _TEXT.sub(lambda found: "" if " " in found[0] else found[0], text)


def outcome_of(exit_code: int | None) -> str:
    """Say what an exit code of the tests means."""
    if exit_code is None:
        return "not run"
    if exit_code in NO_TESTS:
        return "no tests"
    if exit_code in TIMEOUT:
        return "timeout"
    return "killed" if exit_code in KILLED else "survived"


def prepare(part: str, scope: dict[str, Any], only_file: str) -> Path:
    """Copy what a part needs, as it is now, with the settings of mutmut; return the folder."""
    folder = BUILD / part
    shutil.rmtree(folder / "mutants" / "tests", ignore_errors=True)  # some may have moved since
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy2(source, target)
    chosen = [f"{each.rpartition('/')[0]}/{only_file}" for each in scope["mutate"]]
    settings = {
        "source_paths": ["pipeline"],
        "only_mutate": chosen if only_file else scope["mutate"],
        "do_not_mutate": scope.get("skip", []),
        "do_not_mutate_patterns": [MESSAGE],
        "also_copy": [name for name in COPIED if name not in ("pipeline", "tests")],
        "pytest_add_cli_args_test_selection": scope["tests"],
        "pytest_add_cli_args": [*_OPTIONS, *scope.get("options", [])],
        # Arrow and torch have threads, which a fork of a process that used them would not have.
        "process_isolation": "forkserver",
        "use_git_change_detection": False,
    }
    project = (ROOT / "pyproject.toml").read_text()
    told = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    (folder / "pyproject.toml").write_text(f"{project}\n[tool.mutmut]\n{told}\n")
    return folder


def results(folder: Path) -> list[Mutant]:
    """Read what mutmut left in its folder."""
    found = []
    for path in sorted((folder / "mutants" / "pipeline").rglob("*.py.meta")):
        mutated = path.with_suffix("")
        file = mutated.relative_to(folder / "mutants").as_posix()
        for name, exit_code in json.loads(path.read_text())["exit_code_by_key"].items():
            line, becomes = difference(mutated, name.rpartition(".")[2])
            found.append(Mutant(name, file, line, becomes, outcome_of(exit_code)))
    return found


def difference(mutated: Path, name: str) -> tuple[str, str]:
    """Return the lines that a mutant changes, and what they become."""
    functions = _functions(mutated)
    original = functions[f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"]
    before, after = [], []
    for line in difflib.ndiff(original, functions[name]):
        if line.startswith("- "):
            before.append(line[2:].strip())
        elif line.startswith("+ "):
            after.append(line[2:].strip())
    return "\n".join(before), "\n".join(after)


@lru_cache(maxsize=1)
def _functions(mutated: Path) -> dict[str, list[str]]:
    """Return the lines of all functions that mutmut wrote into a file, by its names for them."""
    text = mutated.read_text()
    lines = text.splitlines()
    return {
        node.name: [
            lines[node.lineno - 1].replace(node.name, "f"), *lines[node.lineno : node.end_lineno]
        ]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "__mutmut_" in node.name
    }  # fmt: skip


def judge(
    mutants: Sequence[Mutant],
    accepted: Sequence[Accepted],
    least_pct: float,
    *,
    is_sample: bool = False,
) -> tuple[bool, list[str]]:
    """Return whether enough were killed, and the lines that say so.

    Args:
        mutants: Those that were made.
        accepted: Survivors that no test need notice; each must be one, unless this is a sample.
        least_pct: How many of a folder have to be killed.
        is_sample: Leave out those that were not tried.
    """
    if is_sample:
        mutants = [mutant for mutant in mutants if mutant.outcome != "not run"]
    by_folder = dict[str, Counter[str]]()
    left = []
    for mutant in mutants:
        outcome = mutant.outcome
        if mutant.is_wording or mutant.is_lenient:
            outcome = "wording" if mutant.is_wording else "lenient"
        elif outcome in LIVES and any(each.is_of(mutant) for each in accepted):
            outcome = "accepted"
        elif outcome in LIVES:
            left.append(mutant)
        by_folder.setdefault(mutant.file.rpartition("/")[0], Counter())[outcome] += 1
    is_enough, lines = True, []
    for folder, counts in by_folder.items():
        judged = counts.total() - counts["accepted"] - counts["wording"] - counts["lenient"]
        pct = 100 * (counts["killed"] + counts["timeout"]) / judged if judged else 100.0
        is_enough &= pct >= least_pct and not counts["not run"]
        shown = ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common())
        lines.append(f"{folder}: {pct:.1f}% of {judged} killed ({shown})")
    for mutant in left:
        lines += [
            f"{mutant.outcome}: {mutant.name}",
            *(f"  - {x}" for x in mutant.line.split("\n")),
        ]
        lines += [f"  + {x}" for x in mutant.becomes.split("\n")]
    gone = [] if is_sample else [*_gone(mutants, accepted)]
    return is_enough and not gone, [*lines, *gone]


def _gone(mutants: Sequence[Mutant], accepted: Sequence[Accepted]) -> Iterator[str]:
    files = {mutant.file for mutant in mutants}
    alive = [mutant for mutant in mutants if mutant.outcome in LIVES]
    for each in accepted:
        if each.file in files and not any(each.is_of(mutant) for mutant in alive):
            yield f"killed by now, take it out of {LISTED.name}: {each.file}: {each.line}"


def main() -> int:
    listed = tomllib.loads(LISTED.read_text())
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = ", ".join(listed["parts"])
    parser.add_argument("parts", nargs="*", help=f"{names}, or PART/FILE.py; left out: all parts")
    parser.add_argument(
        "--processes", type=int, default=2, help="how many faults are tried at once"
    )
    parser.add_argument(
        "--sample", type=int, choices=range(10, 101, 10), default=100, help="percent of the faults"
    )
    parser.add_argument("--left", action="store_true", help="try those not killed once more")
    parser.add_argument("--results", action="store_true", help="only show what was found last")
    given = parser.parse_args()
    accepted = [Accepted(**each) for each in listed.get("accepted", [])]
    is_enough = True
    for text in given.parts or listed["parts"]:
        part, _, only_file = text.partition("/")
        if part not in listed["parts"]:
            parser.error(f"{part}: no part; there are {names}")
        folder = BUILD / part
        if not given.results:
            ends = tuple(_DIGITS[: given.sample // 10])
            names = [f"*{end}" for end in ends] if given.sample < 100 else []
            if not given.left:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                alive = [m.name for m in results(folder) if m.outcome not in KILLED_OR_SLOW]
                names = [name for name in alive if name.endswith(ends)]
            if given.left and not names:
                continue
            prepare(part, listed["parts"][part], only_file)
            (folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)  # tests have changed
            command = [sys.executable, "-m", "mutmut", "run", "--max-children"]
            done = subprocess.run(
                [*command, str(given.processes), *names], cwd=folder, check=False
            )  # fmt: skip
            if done.returncode:
                return done.returncode
        is_fine, lines = judge(
            results(folder), accepted, listed["least_killed_pct"], is_sample=given.sample < 100
        )
        is_enough &= is_fine
        print(f"\n{part}:", *lines, sep="\n")
    return 0 if is_enough else 1


if __name__ == "__main__":
    sys.exit(main())
