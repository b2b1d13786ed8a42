#!/usr/bin/env python3
"""Trains the small model: the autoencoder, then the transformer, then the files that animd loads.

    photographs.py DATA
    train.py --data DATA --out RUN                  one GPU, 20 minutes
    train.py --data DATA --out RUN --seconds 500    stops in time; the same command goes on, and with more
                                                    --vae-seconds or --dit-seconds a finished run does, too

RUN/model is the model's folder. RUN/state-*.bin are the checkpoint, RUN/curves.json what was measured meanwhile.
"""

import argparse

import torch

import export
import stage_dit
import stage_vae
from run import Run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="the folder that photographs.py made")
    parser.add_argument("--out", required=True, help="the run's folder")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many seconds")
    parser.add_argument("--vae-seconds", type=float, default=300, help="the autoencoder's time")
    parser.add_argument("--dit-seconds", type=float, default=840, help="the transformer's time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action="store_true", help="compile the transformer's blocks")
    parser.add_argument("--toy", action="store_true", help="everything small, to try the commands out on a CPU")
    arguments = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    # Where code cannot be compiled, it runs as it is.
    torch._dynamo.config.suppress_errors = True

    run = Run(arguments)
    for stage, train in (("vae", stage_vae.train), ("dit", stage_dit.train)):
        if not run.stage_is_over(stage):
            if not train(run):
                break
            run.checkpoint()
    export.write(run.networks(), run.state["tokenizer"], run.out / "model")
    run.write_curves()
    print(f"{run.out}: after {run.state['elapsed']} seconds of training")


if __name__ == "__main__":
    main()
