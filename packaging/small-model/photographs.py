#!/usr/bin/env python3
"""Fetches the photographs that the small model learns from, out of Debian's packages, and makes the compact set.

    photographs.py OUT        fetches with apt-get, and writes OUT/NAME.jpg
    photographs.py --table    prints the table of the model card

Nothing is installed: the packages are unpacked in a temporary folder. `photographs.json` names each photograph with its
author and licence; the model card says where these are from.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

LIST = Path(__file__).with_name("photographs.json")
WIDTH, QUALITY = 1280, 90


def photographs():
    """Yields each photograph as a dictionary with `name`, `package`, `path`, `author`, `licence` and `held_out`."""
    for package in json.loads(LIST.read_text(encoding="utf-8")):
        for one in package["photographs"]:
            first, *rest = Path(one["file"]).parts
            name = (first if rest else Path(first).stem).split("_by_")[0].lower().replace("_", "-")
            yield {"name": name, "package": package["package"], "path": f"{package['root']}/{one['file']}",
                   "held_out": False, **one}


def fetch(out):
    from PIL import Image

    chosen = list(photographs())
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        packages = sorted({p["package"] for p in chosen})
        subprocess.run(["apt-get", "download", *packages], cwd=folder, check=True)
        for deb in Path(folder).glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
        for photograph in chosen:
            with Image.open(folder + photograph["path"]) as image:
                image = image.convert("RGB")
            if image.width > WIDTH:
                image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.LANCZOS)
            image.save(out / f"{photograph['name']}.jpg", quality=QUALITY)
    print(f"{out}: {len(chosen)} photographs, {sum(p['held_out'] for p in chosen)} of them held out for judging")


def table():
    print("| photograph | author | licence | Debian package | used to |")
    print("| --- | --- | --- | --- | --- |")
    for p in photographs():
        print(f"| {p['name']} | {p['author']} | {p['licence']} | {p['package']} | "
              f"{'judge' if p['held_out'] else 'train'} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        table()
    elif arguments.out:
        fetch(arguments.out)
    else:
        parser.error("name a folder, or give --table")
