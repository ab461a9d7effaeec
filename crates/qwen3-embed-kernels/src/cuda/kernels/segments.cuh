// The rows of the tokens of a batch, which is a forest of segments: see `Ragged`.
#pragma once
#include "device.cuh"

constexpr u32 NO_PARENT = 0xffffffffu;

// A run of tokens. Positions count from the beginning of the texts that contain it.
struct Segment {
    u32 start;    // position of its first token
    u32 end;      // position after its last token
    u32 row;      // row of its first token, if it is not also the last
    u32 last_row; // row of its last token
    u32 parent;   // the segment that it continues, or NO_PARENT
};

// The queries that a block of threads computes: `n` consecutive tokens of a segment.
struct Tile {
    u32 segment;
    u32 first; // position of the first query
    u32 n;
};

// The row of the token at `position`, which must be a token of this segment.
INLINE u32 own_row(const Segment& segment, u32 position) {
    return position + 1 == segment.end ? segment.last_row : segment.row + (position - segment.start);
}

// Finds the rows of the keys of a text, from its end to its beginning. The cursor visits each segment once, so long
// chains of segments cost little.
struct Cursor {
    const Segment* segments;
    u32 segment;

    // The row of the token at `position`. Calls may not go back to a later segment, so pass positions in decreasing
    // order.
    INLINE u32 row(u32 position) {
        while (position < segments[segment].start) segment = segments[segment].parent;
        return own_row(segments[segment], position);
    }
};

// The position after the last key that a query of the tile sees.
INLINE u32 n_keys_of(const Segment& segment, const Tile& tile, u32 causal) {
    return causal ? tile.first + tile.n : segment.end;
}
