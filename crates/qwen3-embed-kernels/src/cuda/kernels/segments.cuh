// Where the tokens of a batch are: a forest of segments, as `Ragged` describes it.
#pragma once
#include "device.cuh"

constexpr u32 NO_PARENT = 0xffffffffu;

// A run of tokens. Positions count from the beginning of its texts.
struct Segment {
    u32 start;    // position of its first token
    u32 end;      // position behind its last token
    u32 row;      // row of its first token, if that is not its last one
    u32 last_row; // row of its last token
    u32 parent;   // the segment that it continues, or NO_PARENT
};

// Queries that a block computes: neighbours in a segment.
struct Tile {
    u32 segment;
    u32 first; // position of the first one
    u32 n;
};

// The row of the token at `position`, which is one of the segment's own.
INLINE u32 own_row(const Segment& segment, u32 position) {
    return position + 1 == segment.end ? segment.last_row : segment.row + (position - segment.start);
}

// A way along the keys of a segment's texts, from their end to their beginning: a segment that was left
// is not looked at again, however long the chain is.
struct Cursor {
    const Segment* segments;
    u32 segment;

    // The row of the token at `position`, which is before any that was asked for.
    INLINE u32 row(u32 position) {
        while (position < segments[segment].start) segment = segments[segment].parent;
        return own_row(segments[segment], position);
    }
};

// The keys that the queries of a tile see at most: those before this position.
INLINE u32 n_keys_of(const Segment& segment, const Tile& tile, u32 causal) {
    return causal ? tile.first + tile.n : segment.end;
}
