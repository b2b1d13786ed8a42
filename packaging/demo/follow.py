#!/usr/bin/env python3
"""Follows the service's first job until it has ended: one moving line on a terminal, a line for each stage elsewhere.

Prints the job's number on descriptor 3. Exits with 0 if there is a video, and with 1 otherwise.
"""

import json
import os
import subprocess
import sys
import time

# In seconds. The whole demo takes about a minute, so a job that has not appeared by then will not come.
APPEARS_WITHIN = 30
BAR = 30


def jobs() -> list[dict]:
    result = subprocess.run(["animctl", "list", "--json"], stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)


def describe(job: dict) -> str:
    """`denoise 2/4` during the second step, or the state of a job that is not running."""
    if not job["stage"]:
        return job["state"]
    done, steps = job["step"]
    return f"{job['stage']} {min(done + 1, steps)}/{steps}" if job["stage"] == "denoise" else job["stage"]


def main() -> int:
    terminal = sys.stdout.isatty()
    start = time.monotonic()
    told = None
    while True:
        found = jobs()
        elapsed = time.monotonic() - start
        if found:
            job = found[0]
            what = describe(job)
            if terminal:
                filled = round(job["progress"] * BAR)
                bar = "#" * filled + "-" * (BAR - filled)
                print(f"\r\033[K  [{bar}] {job['progress']:4.0%}  {elapsed:3.0f} s  {what}", end="", flush=True)
            elif what != told:
                print(f"  {job['progress']:4.0%}  {elapsed:3.0f} s  {what}", flush=True)
            told = what
            if job["state"] in {"done", "failed", "canceled"}:
                if terminal:
                    print()
                os.write(3, str(job["id"]).encode())
                return 0 if job["state"] == "done" else 1
        elif elapsed > APPEARS_WITHIN:
            print(f"  no job after {APPEARS_WITHIN} s", file=sys.stderr)
            return 1
        time.sleep(0.3)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError) as error:
        print(f"\nerror: the service's jobs cannot be listed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
