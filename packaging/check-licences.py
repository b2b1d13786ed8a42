#!/usr/bin/env python3
"""Checks the licence and the source of every crate in Cargo.lock against deny.toml.

A crate passes if its SPDX expression can be met with the licences of `licenses.allow` and of its own entry in
`licenses.exceptions`, and if it comes from a registry of `sources.allow-registry` or from this workspace. `cargo deny`
checks the same and more; this needs only Python 3.11 and cargo.
"""

import json
import pathlib
import re
import subprocess
import sys

try:
    import tomllib
except ModuleNotFoundError:
    sys.exit("error: this check needs Python 3.11 or newer; `cargo deny check licenses sources` does the same")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def is_met(expression: str, allowed: set[str]) -> bool:
    """Whether an SPDX expression (with the old `/` for OR) can be met; ValueError if it cannot be read."""
    tokens = re.findall(r"[()]|[^\s()]+", expression.replace("/", " OR "))
    position = 0

    def take() -> str:
        nonlocal position
        if position == len(tokens):
            raise ValueError(expression)
        position += 1
        return tokens[position - 1]

    def next_is(word: str) -> bool:
        nonlocal position
        found = position < len(tokens) and tokens[position] == word
        position += found
        return found

    def term() -> bool:
        token = take()
        if token == "(":
            met = either()
            if take() != ")":
                raise ValueError(expression)
            return met
        if token in {")", "AND", "OR", "WITH"}:
            raise ValueError(expression)
        return (f"{token} WITH {take()}" if next_is("WITH") else token) in allowed

    def both() -> bool:
        met = term()
        while next_is("AND"):
            met &= term()
        return met

    def either() -> bool:
        met = both()
        while next_is("OR"):
            met |= both()
        return met

    met = either()
    if position != len(tokens):
        raise ValueError(expression)
    return met


def crates(targets: list[str]) -> dict[str, dict]:
    """Every crate that one of the targets can use, by its identity."""
    found = {}
    for target in targets:
        command = ["cargo", "metadata", "--format-version=1", "--locked", "--all-features", "--filter-platform", target]
        result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
        if result.returncode != 0:
            sys.exit(f"error: `{' '.join(command)}` failed")
        metadata = json.loads(result.stdout)
        used = {node["id"] for node in metadata["resolve"]["nodes"]}
        found.update((crate["id"], crate) for crate in metadata["packages"] if crate["id"] in used)
    return found


def main() -> int:
    deny = tomllib.loads((ROOT / "deny.toml").read_text(encoding="utf-8"))
    allowed = set(deny["licenses"]["allow"])
    exceptions = {entry["crate"]: set(entry["allow"]) for entry in deny["licenses"]["exceptions"]}
    registries = {f"registry+{url}" for url in deny["sources"]["allow-registry"]}

    found = crates(deny["graph"]["targets"])
    problems = []
    for crate in sorted(found.values(), key=lambda crate: (crate["name"], crate["version"])):
        name = f"{crate['name']} {crate['version']}"
        if crate["source"] is not None and crate["source"] not in registries:
            problems.append(f"{name}: comes from `{crate['source']}`, which deny.toml does not allow")
        licence = crate["license"]
        if licence is None:
            problems.append(f"{name}: names no licence")
            continue
        try:
            met = is_met(licence, allowed | exceptions.get(crate["name"], set()))
        except ValueError:
            problems.append(f"{name}: `{licence}` is not an SPDX expression")
            continue
        if not met:
            problems.append(f"{name}: `{licence}` is not allowed by deny.toml")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"licences and sources of {len(found)} crates: {'not ' if problems else ''}ok")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
