#!/usr/bin/env python3
"""Draws the curves of a training run: draw.py RUN/curves.json curves.png"""

import json
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Stage, key, title, and the least that will do.
PANELS = [
    ("vae", "loss", "autoencoder: loss", None),
    ("vae", "first_frame_psnr", "autoencoder: first frames, dB", 30),
    ("dit", "loss", "transformer: velocity error", None),
    ("dit", "psnr", "four steps, held out: dB against the truth", 20),
]


def main(curves, out):
    points = json.load(open(curves))
    figure, axes = plt.subplots(1, len(PANELS), figsize=(16, 3.4), constrained_layout=True)
    for axis, (stage, key, title, least) in zip(axes, PANELS):
        chosen = [p for p in points if p["stage"] == stage and key in p]
        axis.plot([p["seconds"] for p in chosen], [p[key] for p in chosen], marker="." if key == "psnr" else None)
        if key == "psnr":
            axis.plot([p["seconds"] for p in chosen], [p["first_frame"] for p in chosen], marker=".", color="grey",
                      label="first frame")
            axis.legend()
        if key == "loss":
            axis.set_yscale("log")
        if least:
            axis.axhline(least, color="black", linewidth=0.7, linestyle=":")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("seconds of training")
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
