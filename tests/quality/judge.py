#!/usr/bin/env python3
"""Judges the small model on photographs and wordings that it was not trained on, and prints the table of its card.

    judge.py --data DATA --model MODEL                            in PyTorch, on a GPU or a CPU
    judge.py --data DATA --model MODEL --engine animd-engine      with the engine, on a CPU

DATA is the folder that packaging/small-model/photographs.py makes. 24 videos by default: two of each camera motion and
of each effect. Needs torch, opencv, scikit-learn and, with --engine, ffmpeg.
"""

import argparse
import json
import multiprocessing
import pickle
import random
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import cases as made
from cases import EFFECTS, FRAMES, LIGHT, SIZE
from measures import CAMERA, EffectClassifier, direction, features, register

import generate
import motions
import pool
import stage_vae
from sampling import psnr

LEARNED = 12  # true videos of each effect that the classifier learns from


def with_torch(model, device, frames=FRAMES):
    """Returns a function that makes a case's video in PyTorch."""
    maker = generate.Generator(model, device)
    return lambda case: maker.video(case.picture, case.prompt, case.noise(frames), frames).cpu()


def with_engine(model, engine, frames=FRAMES):
    """Returns a function that has the engine make a video, and reads it back."""
    from PIL import Image

    def video(case):
        with tempfile.TemporaryDirectory() as folder:
            picture, out = Path(folder, "picture.png"), Path(folder, "video.mp4")
            pixels = ((case.picture + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(picture)
            subprocess.run([engine, "generate", picture, "-p", case.prompt, "-m", model, "-o", out, "-s",
                            str(case.seed), "--sampler", "distill", "--size", f"{SIZE[1]}x{SIZE[0]}", "--noise", "cpu",
                            "--frames", str(frames), "--quality", "1"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            raw = subprocess.run(["ffmpeg", "-v", "error", "-i", out, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                                 check=True, capture_output=True).stdout
        decoded = torch.from_numpy(np.frombuffer(raw, np.uint8).copy()).view(-1, *SIZE, 3)
        return decoded.permute(3, 0, 1, 2).float() / 127.5 - 1

    return video


def true_effects(photographs):
    """Yields what the classifier learns from, of the photographs that the model was trained with: an effect, what
    `render` takes for it, and whether the video is to be softened. A model's videos are softer than true ones; what
    tells effects apart must not be sharpness."""
    rng, generator = random.Random(7), torch.Generator().manual_seed(7)
    for kind in EFFECTS * LEARNED:
        canvas = pool.canvas(photographs, SIZE, rng, turn=False)
        plane = torch.randn(1, *pool.latent_shape(SIZE, FRAMES), generator=generator)
        yield kind, (canvas[None], [[rng.choice(LIGHT) if kind == "light" else kind]], plane), rng.random() < 0.5


def effect_features(scene, softened):
    video = motions.render(*scene, SIZE, FRAMES)[0]
    return features(soften(video) if softened else video)


def soften(video):
    small = torch.nn.functional.interpolate(video.transpose(0, 1), scale_factor=0.6, mode="bilinear", antialias=True)
    return torch.nn.functional.interpolate(small, size=SIZE, mode="bilinear").transpose(0, 1)


def judge(case, pixels):
    """Returns what the table is made of, for one video of 8 bits `[3, T, H, W]`. Effects are given as features."""
    video, truth = pixels.float() / 127.5 - 1, case.truth()
    over, shown = (0, 1, 2, 3), case.visible()[None].float()
    result = {"kind": case.kind, "prompt": case.prompt,
              "first_frame": psnr(video[:, :1], truth[:, :1], over=over).item(),
              "truth": psnr(video, truth, over=over, weight=shown).item(),
              "still": psnr(truth[:, :1].expand_as(truth), truth, over=over, weight=shown).item()}
    if case.kind in CAMERA:
        moved = register(video)
        return result | {"moved": [round(float(m), 2) for m in moved], "found": direction(moved),
                         "found_in_truth": direction(register(truth))}
    return result | {"found": features(video), "found_in_truth": features(truth)}


def call(packed):
    """Calls a function in a worker. What it is called with comes as bytes, because tensors would go through shared
    memory, which containers have little of."""
    function, arguments = pickle.loads(packed)
    return function(*arguments)


def share(results, key="found"):
    return f"{sum(r[key] == r['kind'] for r in results)} of {len(results)}"


def table(results, round_trip, device):
    values = lambda key: np.array([r[key] for r in results])
    spread = lambda v: f"{v.mean():.1f} dB (from {v.min():.1f} to {v.max():.1f})"
    camera = [r for r in results if r["kind"] in CAMERA]
    effects = [r for r in results if r["kind"] in EFFECTS]
    rows = [
        ("first frame against the picture", "27 dB", spread(values("first_frame"))),
        ("camera prompts that move the asked way", "95 of 100",
         f"{share(camera)} (true videos: {share(camera, 'found_in_truth')})"),
        ("frames against the true motion, where the picture shows it", "20 dB",
         f"{spread(values('truth'))}; a still picture would have {values('still').mean():.1f} dB"),
        ("effects told apart", "80 of 100", f"{share(effects)} (true videos: {share(effects, 'found_in_truth')})"),
        ("the autoencoder's round trip of photographs", "30 dB", f"{round_trip:.1f} dB"),
    ]
    print(f"\n{len(results)} videos of {SIZE[1]}x{SIZE[0]}, {FRAMES} frames, four steps, {device}\n")
    print("| what | at least | reached |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--engine", help="the program animd-engine; PyTorch without it")
    parser.add_argument("--device", default="cpu", help="PyTorch's device")
    parser.add_argument("--each", type=int, default=2, help="videos of each motion and effect")
    parser.add_argument("--jobs", type=int, default=1, help="processes that measure meanwhile")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--sheet", type=Path, help="where to write a picture of frames of the videos")
    arguments = parser.parse_args()

    torch.backends.cudnn.allow_tf32 = False
    held_out = pool.load_photographs(arguments.data, True, "cpu")
    trained = pool.load_photographs(arguments.data, False, "cpu")
    maker = (with_engine(arguments.model, arguments.engine) if arguments.engine
             else with_torch(arguments.model, arguments.device))
    results, rows = [], []
    workers = ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn"),
                                  initializer=torch.set_num_threads, initargs=(1,))
    submit = lambda function, *given: workers.submit(call, pickle.dumps((function, given)))
    with workers:
        learned = [(kind, submit(effect_features, *scene)) for kind, *scene in true_effects(trained)]
        for case in made.draw(held_out, arguments.each):
            began = time.monotonic()
            pixels = ((maker(case) + 1) * 127.5).round().byte()
            seconds = round(time.monotonic() - began, 2)
            results.append((seconds, submit(judge, case, pixels)))
            rows.append(torch.cat([pixels[:, t] for t in (0, 20, 40, 60, 80)], dim=2))
        classifier = EffectClassifier([future.result() for _, future in learned], [kind for kind, _ in learned])
        results = [future.result() | {"seconds": seconds} for seconds, future in results]
    for result in results:
        if result["kind"] in EFFECTS:
            result |= {key: classifier.name(result[key]) for key in ("found", "found_in_truth")}
        print(json.dumps(result), flush=True)
    vae = generate.Generator(arguments.model, arguments.device).vae
    round_trip = stage_vae.round_trip(vae, held_out, SIZE, arguments.device)
    table(results, round_trip, "the engine" if arguments.engine else f"PyTorch on {arguments.device}, f32")
    if arguments.json:
        arguments.json.write_text(json.dumps({"round_trip": round_trip, "videos": results}, indent=1) + "\n")
    if arguments.sheet:
        from PIL import Image

        pixels = torch.cat(rows[:24], dim=1).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2)).save(arguments.sheet, quality=88)


if __name__ == "__main__":
    main()
