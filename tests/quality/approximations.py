#!/usr/bin/env python3
"""Prints what each approximation of the engine costs in pictures: a table over held-out photographs and wordings.

    approximations.py --data DATA                                  on the CPU
    approximations.py --data DATA --device cuda --quality PROGRAM  on a GPU

DATA is the folder that packaging/small-model/photographs.py makes. PROGRAM is the binary `quality` of the crate animd-tests;
for a GPU it is built with `cargo build --release --workspace --features animd-tests/cuda`. 24 videos by default: two of each
camera motion and of each effect. The exact videos take some 15 seconds of a core each. Needs torch, numpy and pillow; no ffmpeg.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import cases as made
import pool
from cases import FRAMES, SIZE

PROGRAM = Path(__file__).resolve().parents[2] / "target" / "release" / "quality"


def bytes_of(video):
    """Returns a video `[3, T, H, W]` in -1..1 as bytes `[T, H, W, 3]`."""
    return ((video + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0).contiguous().numpy().tobytes()


def write(cases, folder):
    """Writes the folder that the program `quality` reads."""
    from PIL import Image

    listed = []
    for n, case in enumerate(cases):
        names = {key: f"{n:02}.{end}" for key, end in [("picture", "png"), ("truth", "rgb"), ("shown", "mask")]}
        pixels = ((case.picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / names["picture"])
        (folder / names["truth"]).write_bytes(bytes_of(case.truth()))
        (folder / names["shown"]).write_bytes(case.visible().byte().numpy().tobytes())
        listed.append({"kind": case.kind, "prompt": case.prompt, "seed": case.seed, **names})
    about = {"width": SIZE[1], "height": SIZE[0], "frames": FRAMES, "cases": listed}
    (folder / "cases.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--quality", type=Path, default=PROGRAM, help="the program [default: target/release/quality]")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--each", type=int, default=2, help="videos of each motion and effect")
    parser.add_argument("--most", type=int, help="take only so many videos")
    parser.add_argument("--model", type=Path, help="the model's folder [default: the small model]")
    parser.add_argument("--json", type=Path, help="where to write the figures of each video")
    arguments = parser.parse_args()
    cases = made.draw(pool.load_photographs(arguments.data, True, "cpu"), arguments.each)[:arguments.most]
    with tempfile.TemporaryDirectory() as folder:
        write(cases, Path(folder))
        command = [arguments.quality, folder, "--device", arguments.device]
        for option in ("model", "json"):
            if getattr(arguments, option):
                command += [f"--{option}", getattr(arguments, option)]
        raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()
