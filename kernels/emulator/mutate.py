#!/usr/bin/env python3
"""Breaks the kernels, one place at a time, and looks whether the emulator notices.

After `make emulate`: `kernels/emulator/mutate.py [WORD...]`, for those whose names have one of the words. Ends with 1 if
something goes unnoticed. Takes some ten minutes.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Name, compute capability, group of checks, file, kernels to compile again, what is replaced, by what.
MUTATIONS = [
    ("gemm: slot released before the wait", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     """        if (block > 0) {
            mma_wait<1>();
            release<Shape::kCluster>(barriers.empty(before), thread);
        }""",
     """        if (block > 0) {
            release<Shape::kCluster>(barriers.empty(before), thread);
            mma_wait<1>();
        }"""),
    ("gemm: own slot released at once", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     """release<Shape::kCluster>(barriers.empty(before), thread);
        }
        before""",
     """release<Shape::kCluster>(barriers.empty(ring.stage), thread);
        }
        before"""),
    ("gemm: empty counts one block", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     "barrier_init(barriers.empty(stage), kConsumers * Shape::kCluster)",
     "barrier_init(barriers.empty(stage), kConsumers)"),
    ("gemm: release only own block", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     "if (thread < kCluster) barrier_arrive_at(empty, thread);",
     "if (thread == 0) barrier_arrive(empty);"),
    ("gemm: no cluster barrier at start", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     """    if constexpr (Shape::kCluster > 1)
        cluster_sync();
    else
        __syncthreads();""",
     "    __syncthreads();"),
    ("gemm: no cluster barrier at end", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     """    // A block whose neighbour may still arrive at its barriers must not go.
    if constexpr (Shape::kCluster > 1) cluster_sync();""",
     ""),
    ("gemm: lead of all stages", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     "kLead_ < kStages ? kLead_ : kStages - 1",
     "kStages"),
    ("gemm: no wait for full", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     """        barrier_wait(barriers.full(ring.stage), ring.parity);
        pin_all<Shape>(sum);""",
     "        pin_all<Shape>(sum);"),
    ("gemm: wait<2>", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     "mma_wait<1>();",
     "mma_wait<2>();"),
    ("gemm: no last wait", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     """    mma_wait<0>();
    pin_all<Shape>(sum);
    release""",
     """    pin_all<Shape>(sum);
    release"""),
    ("gemm: multicast of the wrong share", "9.0", "products", "sm90/gemm_problem.cuh", ["sm90/gemm_bf16"],
     "to_b + rank * kShare * kRowBytes",
     "to_b + (1 - rank) * kShare * kRowBytes"),
    ("gemm: bytes without the neighbour's", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_bf16"],
     "barrier_expect(barriers.full(ring.stage), Shape::kStageBytes)",
     "barrier_expect(barriers.full(ring.stage), Shape::kABytes + Shape::kBBytes / 2)"),
    ("epilogue: no __syncwarp after writing", "9.0", "products", "any/epilogue.cuh", ["sm90/gemm_bf16"],
     """        __syncwarp();

        if constexpr (kKind == kPlain) load_residual(c);""",
     "        if constexpr (kKind == kPlain) load_residual(c);"),
    ("epilogue: no __syncwarp before writing", "9.0", "products", "any/epilogue.cuh", ["sm90/gemm_bf16"],
     """        __syncwarp();
#pragma unroll
        for (int j = 0; j < kChunk / 8; j++)""",
     """#pragma unroll
        for (int j = 0; j < kChunk / 8; j++)"""),
    ("epilogue: vectors not waited for", "9.0", "products", "sm90/matrix_epilogue.cuh", ["sm90/gemm_e4m3_fast"],
     "        copy_wait<0>();",
     ""),
    ("epilogue: vectors not shared", "9.0", "products", "sm90/matrix_epilogue.cuh", ["sm90/gemm_e4m3_fast"],
     """        copy_wait<0>();
        __syncwarp();""",
     "        copy_wait<0>();"),
    ("epilogue: vectors overwritten early", "9.0", "products", "sm90/matrix_epilogue.cuh", ["sm90/gemm_e4m3_fast"],
     """        __syncwarp();
        const uint32_t scales""",
     "        const uint32_t scales"),
    ("residual: slice not waited for", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_e4m3_fast"],
     """                        barrier_wait(barriers.full(ring.stage), ring.parity);
                        ResidualSlice""",
     "                        ResidualSlice"),
    ("residual: slot released before all warps have read", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_e4m3_fast"],
     "                        named_sync(1 + consumer, kWarpgroup);\n",
     ""),
    ("residual: slot filled before it is free", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_e4m3_fast"],
     """                        barrier_wait(barriers.empty(ring.stage), ring.parity ^ 1);
                        barrier_expect(barriers.full(ring.stage), Slice::kBytes);""",
     "                        barrier_expect(barriers.full(ring.stage), Slice::kBytes);"),
    ("residual: released only in the own block", "9.0", "products", "sm90/gemm.cuh", ["sm90/gemm_e4m3_fast"],
     """                        release<Shape::kCluster>(barriers.empty(ring.stage), thread);
                        ring.next();
                        residual""",
     """                        release<1>(barriers.empty(ring.stage), thread);
                        ring.next();
                        residual"""),
    ("attention: no wait for values", "9.0", "attention", "sm90/attention_bf16.cu", ["sm90/attention_bf16"],
     """            barrier_wait(slots.value_full(value.stage), value.parity);
            pin(o);""",
     "            pin(o);"),
    ("attention: values released early", "9.0", "attention", "sm90/attention_bf16.cu", ["sm90/attention_bf16"],
     """            softmax.step(s, scale);
            hold_until_known""",
     """            if (thread == 0) barrier_arrive(slots.value_empty(value.stage));
            softmax.step(s, scale);
            hold_until_known"""),
    ("attention: scores read too early", "9.0", "attention", "sm90/attention_bf16.cu", ["sm90/attention_bf16"],
     """            mma_wait<1>();
            pin(s);""",
     "            pin(s);"),
    ("attention: P packed before the wait", "9.0", "attention", "sm90/attention_bf16.cu", ["sm90/attention_bf16"],
     """            mma_wait<0>();
            pin(o);
            pin(p);
            if (thread == 0) barrier_arrive(slots.value_empty(value.stage));
            value.next();
            pack(p, s);""",
     """            pack(p, s);
            mma_wait<0>();
            pin(o);
            pin(p);
            if (thread == 0) barrier_arrive(slots.value_empty(value.stage));
            value.next();"""),
    ("attention: one turn too many", "9.0", "attention", "sm90/attention_bf16.cu", ["sm90/attention_bf16"],
     "if (consumer == 0 || tile + 1 < tiles) named_arrive",
     "named_arrive"),
    ("8-bit: no proxy fence", "9.0", "attention", "sm90/attention_8bit.cu", ["sm90/attention_8bit"],
     "    shared_store_fence();",
     ""),
    ("8-bit: no barrier after initialisation", "9.0", "attention", "sm90/attention_8bit.cu", ["sm90/attention_8bit"],
     """        barrier_init_fence();
    }
    __syncthreads();""",
     """        barrier_init_fence();
    }"""),
    ("8-bit: no fence of barriers", "9.0", "attention", "sm90/attention_8bit.cu", ["sm90/attention_8bit"],
     "        barrier_init_fence();",
     ""),
    ("8-bit: no __syncthreads in K", "9.0", "attention", "any/attention_quantize_key.cu", ["any/attention_quantize_key"],
     "    __syncthreads();",
     ""),
    ("8-bit: no __syncthreads in V", "9.0", "attention", "sm90/attention_quantize_value.cu", ["sm90/attention_quantize_value"],
     "    __syncthreads();",
     ""),
    ("rows: no __syncthreads", "9.0", "rows", "any/rows.cuh", ["any/rms_norm", "any/layer_norm"],
     "    __syncthreads();",
     ""),
    ("rows: one array for two sums", "9.0", "rows", "any/layer_norm.cu", ["any/layer_norm"],
     "row.squares(mean), squares)",
     "row.squares(mean), sums)"),
    ("rows: a misaligned piece", "9.0", "rows", "any/rows.cuh", ["any/quantize_rows"],
     "load(x[i], from + piece(i) * kVector);",
     "load(x[i], from + piece(i) * kVector + 1);"),
    ("any: no barrier before reuse", "9.0", "other-attentions", "any/attention_any.cuh", ["any/attention_any"],
     """        // The next round overwrites this tile.
        __syncthreads();""",
     ""),
    ("any: no barrier after the copies", "9.0", "other-attentions", "any/attention_any.cuh", ["any/attention_any"],
     """        copy_wait<1>();
        __syncthreads();""",
     "        copy_wait<1>();"),
    ("any: wait<2>", "9.0", "other-attentions", "any/attention_any.cuh", ["any/attention_any"],
     "copy_wait<1>()",
     "copy_wait<2>()"),
    ("cross: no __syncwarp before the rows", "9.0", "other-attentions", "sm90/cross_attention_bf16.cu", ["sm90/cross_attention_bf16"],
     """            __syncwarp();
#pragma unroll
            for (int pass""",
     """#pragma unroll
            for (int pass"""),
    ("conv: steps by half", "9.0", "convolutions", "any/conv_walk.cuh", ["sm90/conv_96", "sm90/conv_192", "sm90/conv_16"],
     "left > 32 ? 4 : left > 16 ? 2 : 1",
     "left > 16 ? 2 : 1"),
    ("conv: part too late", "9.0", "convolutions", "any/conv_walk.cuh", ["sm90/conv_96", "sm90/conv_192", "sm90/conv_16"],
     "frame >= g.starts[part + 1]",
     "frame > g.starts[part + 1]"),
    ("Ada: no barrier before a slot is filled again", "8.9", "products", "sm80/product.cuh", ["sm80/gemm_bf16"],
     """        // Now everybody's copies are there, and everybody has done with the slot of the block before.
        __syncthreads();
""",
     ""),
    ("Ada: waits for a block too late", "8.9", "products", "sm80/product.cuh", ["sm80/gemm_bf16"],
     "copy_wait<Shape::kStages - 2>();",
     "copy_wait<Shape::kStages - 1>();"),
    ("Ada: no barrier before the epilogue", "8.9", "products", "sm80/product.cuh", ["sm80/gemm_bf16"],
     """    // The slots become room for what follows.
    __syncthreads();
""",
     ""),
    ("Ada: no commit where nothing is copied", "8.9", "products", "sm80/product.cuh", ["sm80/gemm_bf16"],
     """            problem.next(ahead);
        }
        copy_commit();
        const""",
     """            problem.next(ahead);
            copy_commit();
        }
        const"""),
    ("Ada: a row too many", "8.9", "products", "sm80/gemm.cuh", ["sm80/gemm_bf16"],
     "place.row + row < o.rows &&",
     "place.row + row <= o.rows &&"),
    ("Ada: a pixel beyond the frame", "8.9", "convolutions", "sm80/conv.cuh", ["sm80/conv_16", "sm80/conv_96", "sm80/conv_192"],
     "x >= input.width",
     "x > input.width"),
    ("int8: no barrier before a slot is filled again", "8.9", "int8", "sm80/gemm_int8.cuh", ["sm80/gemm_int8"],
     """        copy_wait<kStages - 2>();
        __syncthreads();""",
     "        copy_wait<kStages - 2>();"),
    ("int8: waits for a block too late", "8.9", "int8", "sm80/gemm_int8.cuh", ["sm80/gemm_int8"],
     "copy_wait<kStages - 2>();",
     "copy_wait<kStages - 1>();"),
    ("int8: no commit where nothing is copied", "8.9", "int8", "sm80/gemm_int8.cuh", ["sm80/gemm_int8"],
     """        if (block + kStages - 1 < blocks) copy(free);
        copy_commit();""",
     """        if (block + kStages - 1 < blocks) {
            copy(free);
            copy_commit();
        }"""),
    ("int8: next operands before the barrier", "8.9", "int8", "sm80/gemm_int8.cuh", ["sm80/gemm_int8"],
     """        meet();
        if (block + 1 < blocks) first.load(a_at[0] + next, b_at[0] + next);""",
     """        if (block + 1 < blocks) first.load(a_at[0] + next, b_at[0] + next);
        meet();"""),
    ("int8: fills the slot in use", "8.9", "int8", "sm80/gemm_int8.cuh", ["sm80/gemm_int8"],
     "const int free = stage == 0 ? kStages - 1 : stage - 1;",
     "const int free = stage;"),
    ("int8: a row too many", "8.9", "int8", "sm80/gemm_int8.cuh", ["sm80/gemm_int8"],
     "i * kEvery < rows",
     "i * kEvery <= rows"),
    ("int8: beyond a row's end", "8.9", "int8", "sm80/gemm_int8.cuh", ["sm80/gemm_int8"],
     "left > 0;",
     "left >= 0;"),
    ("int8 attention: no barrier after the first copies", "8.9", "int8", "sm80/attention_int8.cuh", ["sm80/attention_int8"],
     """    copy_wait<0>();
    __syncthreads();
""",
     """    copy_wait<0>();
"""),
    ("int8 attention: no wait for a tile", "8.9", "int8", "sm80/attention_int8.cuh", ["sm80/attention_int8"],
     """        copy_wait<0>();
        meet();""",
     "        meet();"),
    ("int8 attention: no barrier after P V", "8.9", "int8", "sm80/attention_int8.cuh", ["sm80/attention_int8"],
     """        copy_wait<0>();
        meet();""",
     "        copy_wait<0>();"),
    ("int8 attention: copies before the barrier", "8.9", "int8", "sm80/attention_int8.cuh", ["sm80/attention_int8"],
     "        score(keys + tile % 2 * kTileBytes);\n",
     "        copy_tile(tile + 1);\n        score(keys + tile % 2 * kTileBytes);\n"),
    ("int8 attention: all thirds at once", "8.9", "int8", "sm80/attention_int8.cuh", ["sm80/attention_int8"],
     "    for (int i = 0; i < third; i++) meet();\n",
     ""),
    ("int8 attention: a key too many", "8.9", "int8", "sm80/attention_int8.cuh", ["sm80/attention_int8"],
     "8 * n + j % 2 >= there",
     "8 * n + j % 2 > there"),
    ("int8 attention: a row too many", "8.9", "int8", "sm80/attention_int8.cuh", ["sm80/attention_int8"],
     "if (row + 8 * r >= a.rows) continue;",
     "if (row + 8 * r > a.rows) continue;"),
    ("int8 attention: bias left in the output", "8.9", "int8", "sm80/attention_int8.cuh", ["sm80/attention_int8"],
     """    for (int i = third; i < 2; i++) meet();
    flush();
""",
     """    for (int i = third; i < 2; i++) meet();
"""),
    ("int8 attention: all tiles of one sign", "8.9", "int8", "sm80/attention_int8.cuh", ["sm80/attention_int8"],
     "if (tile % 2 != 0) weight[r] = -weight[r];",
     ""),
    ("sync attention: no barrier for a tile", "8.9", "attention", "sm80/attention_bf16.cuh", ["sm80/attention_bf16"],
     "        __syncthreads();\n",
     ""),
    ("sync attention: no wait for a tile", "8.9", "attention", "sm80/attention_bf16.cuh", ["sm80/attention_bf16"],
     "        copy_wait<0>();\n",
     ""),
    ("sync attention: a key too many", "8.9", "attention", "sm80/attention_bf16.cuh", ["sm80/attention_bf16"],
     "8 * n + i % 2 >= there",
     "8 * n + i % 2 > there"),
    ("sync attention: a row too many", "8.9", "attention", "sm80/attention_bf16.cuh", ["sm80/attention_bf16"],
     "if (row + 8 * r >= a.rows) continue;",
     "if (row + 8 * r > a.rows) continue;"),
    ("int8 attention: no __syncthreads in V", "8.9", "int8", "sm80/attention_quantize_value.cu", ["sm80/attention_quantize_value"],
     "    __syncthreads();",
     ""),
    ("int8 rows: no __syncthreads", "8.9", "int8", "any/rows.cuh", ["any/quantize_rows"],
     "    __syncthreads();",
     ""),
    ("int8 rows: another digit", "8.9", "int8", "any/rows.cuh", ["any/quantize_rows"],
     "rotate_lanes<8>(p)",
     "rotate_lanes<4>(p)"),
]

HOME = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", HOME.parent / "target")) / "release"
FLAGS = "-std=c++17 -O2 -fPIC -fvisibility=hidden -U_FORTIFY_SOURCE -w -Wno-psabi".split()
FLAGS += ["-fsanitize=alignment,bounds", "-fsanitize-undefined-trap-on-error"]


def main():
    libraries = TARGET.glob("build/animd-kernels-*/out/emulator/libcuda.so.1")
    built = max(libraries, key=lambda path: path.stat().st_mtime).parent
    missed = 0
    whole = set()
    for name, capability, group, file, kernels, old, new in MUTATIONS:
        if sys.argv[1:] and not any(word in name for word in sys.argv[1:]):
            continue
        if (capability, group) not in whole:
            with tempfile.TemporaryDirectory() as folder:
                wrong = attempt(built, Path(folder), capability, group, file, kernels, "", "")
            if wrong:
                raise SystemExit(f"{group} on {capability} with nothing broken: {wrong}")
            whole.add((capability, group))
        with tempfile.TemporaryDirectory() as folder:
            verdict = attempt(built, Path(folder), capability, group, file, kernels, old, new)
        missed += verdict is None
        print(f"{'MISSED' if verdict is None else 'noticed':8}{name}: {verdict or ''}"[:150], flush=True)
    return 1 if missed else 0


def attempt(built, folder, capability, group, file, kernels, old, new):
    """What was noticed, or None."""
    shutil.copytree(HOME / "cuda", folder / "cuda")
    broken = folder / "cuda" / file
    text = broken.read_text()
    if old not in text:
        raise SystemExit(f"`{file}` no longer has: {old}")
    broken.write_text(text.replace(old, new, 1))
    objects = {path.stem: path for path in built.glob("*-*.o")}
    for kernel in kernels:
        stem = kernel.replace("/", "-")
        wrapper = folder / f"{stem}.cpp"
        wrapper.write_text((built / f"{stem}.cpp").read_text().replace(f"{HOME}/cuda", f"{folder}/cuda"))
        objects[stem] = folder / f"{stem}.o"
        compiler = [os.environ.get("CXX", "c++"), *FLAGS, "-I", HOME / "emulator/include"]
        subprocess.run([*compiler, "-c", "-o", objects[stem], wrapper], check=True)
    library = folder / "libcuda.so.1"
    # The name by which kernel-check looks for the driver.
    link = [os.environ.get("CXX", "c++"), "-shared", "-Wl,-soname,libcuda.so", "-o", library]
    subprocess.run([*link, *objects.values()], check=True)
    run = subprocess.run(
        [TARGET / "kernel-check", "--checks-only", "--quick", "--only", group],
        env={**os.environ, "ANIMD_EMULATOR": str(library), "ANIMD_EMULATOR_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    if run.returncode == 0:
        return None
    wrong = re.findall(r".*(?:WRONG|NOT REPEATABLE)", run.stdout)
    return (run.stderr.splitlines() or wrong or ["it ended with an error"])[0]


if __name__ == "__main__":
    sys.exit(main())
