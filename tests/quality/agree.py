#!/usr/bin/env python3
"""Compares the engine with PyTorch on one request: the same model, picture, prompt and noise, both in f32.

    agree.py --data DATA --model MODEL --engine animd-engine

Prints how far the frames' brightness is apart. The engine's frames come out of a video file of the highest quality, so that
more than 40 dB are as good as equal; colours have half the resolution there, and are not compared. Fails under LEAST.
"""

import argparse
from pathlib import Path

import torch

import cases
import judge
import pool
from sampling import psnr

LEAST = 38.0  # dB; another prompt or seed gives less than 30
FRAMES = 9
BRIGHTNESS = (0.2126, 0.7152, 0.0722)  # BT.709, as the engine writes its videos


def brightness(video):
    return torch.einsum("c,cthw->thw", torch.tensor(BRIGHTNESS), video)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--engine", required=True)
    arguments = parser.parse_args()
    case = cases.draw(pool.load_photographs(arguments.data, True, "cpu"), 1)[0]
    ours = brightness(judge.with_torch(arguments.model, "cpu", FRAMES)(case))
    theirs = brightness(judge.with_engine(arguments.model, arguments.engine, FRAMES)(case))
    each = psnr(theirs, ours, over=(1, 2))
    print(f"{case.prompt!r}: {each.mean():.1f} dB between the engine's frames and PyTorch's, {each.min():.1f} dB at least")
    if each.min() < LEAST:
        raise SystemExit(f"the engine and PyTorch differ: {each.min():.1f} dB is less than {LEAST}")


if __name__ == "__main__":
    main()
