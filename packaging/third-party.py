#!/usr/bin/env python3
"""Prints the licences of the crates that the programs contain, as their licences ask: names, then each text once."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = ("licen", "copying", "notice", "unlicense")


def main() -> int:
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    command += ["--features", "animd-engine/cuda"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

    # Only crates that are linked into the programs count, not those of build scripts and tests.
    linked, todo = set(), list(metadata["workspace_members"])
    while todo:
        crate = todo.pop()
        if crate not in linked:
            linked.add(crate)
            todo += [
                dependency["pkg"]
                for dependency in nodes[crate]["deps"]
                if any(kind["kind"] is None for kind in dependency["dep_kinds"])
            ]

    texts: dict[str, list[str]] = {}
    print("The programs of animd contain these libraries, each under the licence beside it. The texts follow.\n")
    for crate in sorted(metadata["packages"], key=lambda crate: (crate["name"], crate["version"])):
        if crate["id"] not in linked or crate["source"] is None:
            continue
        name = f"{crate['name']} {crate['version']}"
        print(f"{name}: {crate['license']}")
        for path in sorted(pathlib.Path(crate["manifest_path"]).parent.iterdir()):
            if path.is_file() and path.name.lower().startswith(NAMES):
                texts.setdefault(path.read_text(encoding="utf-8", errors="replace").strip(), []).append(name)
    for text, names in texts.items():
        print(f"\n{'-' * 78}\n{', '.join(dict.fromkeys(names))}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
