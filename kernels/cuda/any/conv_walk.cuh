// The causal convolution over channels-last volumes as a walk over tiles and blocks of K: rows of the product are voxels, K
// runs over the kernel's taps and, innermost, the channels.
//
// A tile's rows are a rectangle of pixels of one frame, so that for each tap the operand A is a box of the input, shifted
// by the tap. Frames come from up to eight volumes that follow each other in time, so a causal past need not be copied
// in front of its chunk.
#pragma once

namespace conv {

constexpr int kParts = 8;
constexpr int kChannels = 64;  // of a block of K

// A convolution's extents and steps. Input frames are numbered through all parts. Frame t of the product starts at
// input frame t * frame_step - frames_before; a tap before frame 0 meets zeros and is left out. Pixel (x, y) of the
// product starts at input pixel (step x + x0, step y + y0), and is written at (out_step x + out_x, out_step y + out_y).
// Frame t is written at frame_out * t, and columns beyond the output's width one frame later
// (gemm::Epilogue::half_step).
struct Geometry {
    int starts[kParts + 1];  // first frame of each part; the total for parts that there are not
    int frames, height, width;  // of the product
    int patch_height_log2, patch_width_log2;
    int patches_across, patch_pairs;  // of a row of patches; of a frame, in clusters
    int channels, outputs;
    int taps_t, taps_y, taps_x;
    int frame_step, frames_before;
    int step, x0, y0;
    int out_step, out_x, out_y, out_height, out_width, frame_out;
};

// `Shape` is that of the tiles: it has kColumns, and kCluster blocks that take patches below each other.
template <class Shape>
struct Walk {
    const Geometry& g;

    static constexpr bool kScaled = false;
    static constexpr bool kMatrix = false;

    struct Place {
        int frame, y, x, column, first_frame, blocks;
    };

    __device__ __forceinline__ int across() const { return (g.outputs + Shape::kColumns - 1) / Shape::kColumns; }
    __device__ __forceinline__ int tiles() const { return across() * g.frames * g.patch_pairs; }
    // Returns what a tile covers: the columns of a patch come one after the other, then the patches, then the frames.
    __device__ __forceinline__ Place place(int tile, int rank) const {
        Place place;
        const int patches = tile / across();
        place.column = (tile - patches * across()) * Shape::kColumns;
        place.frame = patches / g.patch_pairs;
        // A frame's last pair can have only one patch; the other one then lies below the frame.
        const int patch = (patches - place.frame * g.patch_pairs) * Shape::kCluster + rank;
        const int down = patch / g.patches_across;
        place.y = down << g.patch_height_log2;
        place.x = (patch - down * g.patches_across) << g.patch_width_log2;
        place.first_frame = max(g.frames_before - place.frame * g.frame_step, 0);
        place.blocks = (g.taps_t - place.first_frame) * g.taps_y * g.taps_x * ((g.channels + kChannels - 1) / kChannels);
        return place;
    }
    struct Cursor {
        int t, y, x, tap, channel;
    };
    __device__ __forceinline__ Cursor first(const Place& place) const {
        return {place.first_frame, 0, 0, place.first_frame * g.taps_y * g.taps_x, 0};
    }
    __device__ __forceinline__ void next(Cursor& cursor) const {
        cursor.channel += kChannels;
        if (cursor.channel < g.channels) return;
        cursor.channel = 0;
        cursor.tap++;
        if (++cursor.x < g.taps_x) return;
        cursor.x = 0;
        if (++cursor.y < g.taps_y) return;
        cursor.y = 0;
        cursor.t++;
    }
    // Returns the instructions of a block of K, 16 channels each: 4, or 1 or 2 where the last channels need no more.
    __device__ __forceinline__ int steps(const Cursor& cursor) const {
        const int left = g.channels - cursor.channel;
        return left > 32 ? 4 : left > 16 ? 2 : 1;
    }
    // Returns the part that an input frame is in.
    __device__ __forceinline__ int part(int frame) const {
        int part = 0;
        while (part + 1 < kParts && frame >= g.starts[part + 1]) part++;
        return part;
    }
    // Returns the input frame of a block of K.
    __device__ __forceinline__ int frame(const Place& place, const Cursor& cursor) const {
        return place.frame * g.frame_step - g.frames_before + cursor.t;
    }
    // Returns the output's row of pixel i of a patch; pixels are numbered row by row.
    __device__ __forceinline__ int row(const Place& place, int i) const {
        const int y = place.y + (i >> g.patch_width_log2), x = place.x + (i & ((1 << g.patch_width_log2) - 1));
        if (y >= g.height || x >= g.width) return -1;
        return (place.frame * g.frame_out * g.out_height + y * g.out_step + g.out_y) * g.out_width + x * g.out_step +
               g.out_x;
    }
    __device__ __forceinline__ int column(const Place& place) const { return place.column; }
    __device__ __forceinline__ int columns() const { return g.outputs; }
};

}  // namespace conv
