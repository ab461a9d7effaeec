// Grouped-query attention along the segments of a batch on tensor cores: 16-bit types, head_dim 128.
//
// A block of four warps computes a tile of queries of one key/value head. A tile has 64 rows: each query with all query
// heads of the group, so that keys and values are read once for the group. Each warp has 16 of the rows.
//
//     Q → registers, through the shared memory of the keys
//     for each block of 64 keys, from the last that any query sees to the first:
//         wait for K; start to copy V
//         S = Q·Kᵀ                              64 instructions m16n8k16 for each warp, sums in f32
//         mask; P = exp2(S − largest so far); rescale O and the sums              (online softmax)
//         wait for V; start to copy the next K
//         O += P·V                              P stays in registers
//     out = O / sums
//
// Blocks of keys are visited from the last to the first, because a `Cursor` finds rows in this order only.
//
// A row of K or V has 256 bytes, in 16 chunks. Chunk c of row r is stored at chunk c ^ (r % 8), so that the eight rows
// that a quarter of a warp reads at once are in different banks.
//
// Source: Dao, *FlashAttention-2* (2023), algorithm 1.
#include "segments.cuh"

constexpr u32 D = 128;
constexpr u32 ROWS = 64;                 // rows of queries in a tile
constexpr u32 KEYS = 64;                 // keys in a block
constexpr u32 THREADS = 128;
constexpr u32 CHUNK = 8;                 // values in 16 bytes
constexpr u32 CHUNKS = D / CHUNK;        // chunks in a row
constexpr u32 K_STEPS = D / 16;          // products along the dimensions of a head
constexpr u32 KEY_TILES = KEYS / 8;      // tiles of S, with 8 columns each
constexpr u32 VALUE_TILES = D / 8;       // tiles of O, with 8 columns each
constexpr float LOG2_E = 1.4426950408889634f;

INLINE u16* chunk_at(u16* matrix, u32 row, u32 chunk) {
    return matrix + row * D + (chunk ^ (row % 8)) * CHUNK;
}

// Starts to copy the rows of a block of keys or values that are before `n_keys`. The other rows become zero, because a
// weight of zero times arbitrary memory could be NaN.
INLINE void fetch(u16* to, const u16* column, const u32* rows, u32 first_key, u32 n_keys, u32 stride) {
    u32 chunk = threadIdx.x % CHUNKS;
    for (u32 i = threadIdx.x / CHUNKS; i < KEYS; i += THREADS / CHUNKS) {
        const u16* from = column + static_cast<size_t>(rows[i]) * stride + chunk * CHUNK;
        copy_async(chunk_at(to, i, chunk), from, first_key + i < n_keys);
    }
}

// Loads the queries of a warp into the registers of the left operand.
INLINE void load_queries(u32 (&q)[K_STEPS][4], u16* staged, const u16* qkv, const Segment& segment,
                         const Tile& tile, u32 kv_head, u32 group, u32 qkv_stride) {
    u32 chunk = threadIdx.x % CHUNKS;
    for (u32 i = threadIdx.x / CHUNKS; i < ROWS; i += THREADS / CHUNKS) {
        bool present = i < tile.n * group;
        u32 row = own_row(segment, tile.first + (present ? i / group : 0));
        u32 head = kv_head * group + i % group;
        copy_async(chunk_at(staged, i, chunk),
                   qkv + static_cast<size_t>(row) * qkv_stride + head * D + chunk * CHUNK, present);
    }
    wait_for_copies();
    __syncthreads();
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 row = warp * 16 + lane / 8 % 2 * 8 + lane % 8;
    for (u32 step = 0; step < K_STEPS; ++step) {
        load_matrices(q[step], chunk_at(staged, row, step * 2 + lane / 16));
    }
    // From here on, the keys use the shared memory.
    __syncthreads();
}

// S = Q·Kᵀ. Of tile t, this lane has rows lane / 4 and lane / 4 + 8, columns 8t + 2(lane % 4) and the next.
template <typename T>
INLINE void scores(float (&s)[KEY_TILES][4], const u32 (&q)[K_STEPS][4], u16* keys) {
    u32 lane = threadIdx.x % WARP;
    u32 row = lane / 16 * 8 + lane % 8, half = lane / 8 % 2;
    for (u32 tile = 0; tile < KEY_TILES; ++tile) {
        for (u32 i = 0; i < 4; ++i) s[tile][i] = 0.0f;
    }
    for (u32 step = 0; step < K_STEPS; ++step) {
        for (u32 pair = 0; pair < KEY_TILES / 2; ++pair) {
            u32 k[4];
            load_matrices(k, chunk_at(keys, pair * 16 + row, step * 2 + half));
            T::multiply_add(s[2 * pair], q[step], k[0], k[1]);
            T::multiply_add(s[2 * pair + 1], q[step], k[2], k[3]);
        }
    }
}

// O += P·V, where P is in the registers of S.
template <typename T>
INLINE void add_values(float (&o)[VALUE_TILES][4], const float (&p)[KEY_TILES][4], u16* values) {
    u32 lane = threadIdx.x % WARP;
    u32 row = lane / 8 % 2 * 8 + lane % 8, half = lane / 16;
    for (u32 step = 0; step < KEYS / 16; ++step) {
        const float(&low)[4] = p[2 * step];
        const float(&high)[4] = p[2 * step + 1];
        u32 weights[4] = {T::pack(low[0], low[1]), T::pack(low[2], low[3]), T::pack(high[0], high[1]),
                          T::pack(high[2], high[3])};
        for (u32 pair = 0; pair < VALUE_TILES / 2; ++pair) {
            u32 v[4];
            load_matrices_transposed(v, chunk_at(values, step * 16 + row, pair * 2 + half));
            T::multiply_add(o[2 * pair], weights, v[0], v[1]);
            T::multiply_add(o[2 * pair + 1], weights, v[2], v[3]);
        }
    }
}

// Online softmax of the two rows of this lane: the scores in `s` are replaced by weights, and `o` and `sums` are
// rescaled to the new largest score. Four neighboring lanes have the same rows.
INLINE void weigh(float (&s)[KEY_TILES][4], float (&o)[VALUE_TILES][4], float (&largest)[2],
                  float (&sums)[2]) {
    for (u32 r = 0; r < 2; ++r) {
        float most = largest[r];
        for (u32 tile = 0; tile < KEY_TILES; ++tile) {
            most = fmaxf(most, fmaxf(s[tile][2 * r], s[tile][2 * r + 1]));
        }
        most = fmaxf(most, shuffle_xor(most, 1));
        most = fmaxf(most, shuffle_xor(most, 2));
        // If the row has seen no key yet, infinity minus infinity would be NaN.
        float shift = most == -INFINITY ? 0.0f : most * LOG2_E;
        // Exactly 1 if the maximum has not changed: a rounding error would be repeated for each block.
        float scale = largest[r] == most ? 1.0f : power_of_two((largest[r] - most) * LOG2_E);
        largest[r] = most;
        sums[r] *= scale;
        for (u32 tile = 0; tile < KEY_TILES; ++tile) {
            for (u32 i = 2 * r; i < 2 * r + 2; ++i) {
                s[tile][i] = power_of_two(s[tile][i] * LOG2_E - shift);
                sums[r] += s[tile][i];
            }
        }
        for (u32 tile = 0; tile < VALUE_TILES; ++tile) {
            o[tile][2 * r] *= scale;
            o[tile][2 * r + 1] *= scale;
        }
    }
}

// Masks the keys that a row does not see. `n_seen` has the number of keys that each of the two rows of this lane sees.
INLINE void mask(float (&s)[KEY_TILES][4], u32 first_key, const u32 (&n_seen)[2]) {
    for (u32 tile = 0; tile < KEY_TILES; ++tile) {
        for (u32 i = 0; i < 4; ++i) {
            u32 key = first_key + tile * 8 + threadIdx.x % 4 * 2 + i % 2;
            if (key >= n_seen[i / 2]) s[tile][i] = -INFINITY;
        }
    }
}

// Writes the values that this lane has of row `r` of its two rows.
template <typename T>
INLINE void store(const float (&o)[VALUE_TILES][4], u32 r, float sum, u16* row) {
    for (u32 tile = 0; tile < VALUE_TILES; ++tile) {
        u32 pair = T::pack(o[tile][2 * r] / sum, o[tile][2 * r + 1] / sum);
        *reinterpret_cast<u32*>(row + tile * 8 + threadIdx.x % 4 * 2) = pair;
    }
}

template <typename T>
INLINE void flash_attention(const u16* qkv, u16* out, const Segment* segments, const Tile* tiles,
                            u32 n_heads, u32 n_kv_heads, u32 qkv_stride, u32 out_stride,
                            u32 first_query, u32 causal) {
    alignas(16) __shared__ u16 keys[KEYS * D];
    alignas(16) __shared__ u16 values[KEYS * D];
    __shared__ u32 rows[2][KEYS];
    u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 kv_head = blockIdx.y, group = n_heads / n_kv_heads;
    Tile tile = tiles[blockIdx.x];
    Segment segment = segments[tile.segment];
    u32 n_keys = n_keys_of(segment, tile, causal);
    const u16* k_column = qkv + (n_heads + kv_head) * D;
    const u16* v_column = k_column + n_kv_heads * D;

    // Each of the first 64 threads looks up a row.
    Cursor cursor = {segments, tile.segment};
    auto look_up = [&](u32 block) {
        if (threadIdx.x >= KEYS) return;
        u32 key = block * KEYS + threadIdx.x;
        rows[block % 2][threadIdx.x] = cursor.row(key < n_keys ? key : n_keys - 1);
    };
    u32 block = (n_keys + KEYS - 1) / KEYS - 1;
    look_up(block);
    u32 q[K_STEPS][4];
    load_queries(q, keys, qkv, segment, tile, kv_head, group, qkv_stride);
    fetch(keys, k_column, rows[block % 2], block * KEYS, n_keys, qkv_stride);

    // The positions of the queries in the two rows of this lane, the number of keys that each of them sees, and the
    // number of keys that all queries of the tile see.
    u32 position[2], n_seen[2];
    for (u32 r = 0; r < 2; ++r) {
        u32 query = (warp * 16 + lane / 4 + 8 * r) / group;
        position[r] = tile.first + (query < tile.n ? query : 0);
        n_seen[r] = causal ? position[r] + 1 : n_keys;
    }
    u32 n_seen_by_all = causal ? tile.first + 1 : n_keys;
    float o[VALUE_TILES][4] = {};
    float largest[2] = {-INFINITY, -INFINITY}, sums[2] = {};
    while (true) {
        wait_for_copies();
        __syncthreads();
        // All threads are done with the values of the previous block.
        fetch(values, v_column, rows[block % 2], block * KEYS, n_keys, qkv_stride);
        float s[KEY_TILES][4];
        scores<T>(s, q, keys);
        if ((block + 1) * KEYS > n_seen_by_all) mask(s, block * KEYS, n_seen);
        weigh(s, o, largest, sums);
        if (block > 0) look_up(block - 1);
        wait_for_copies();
        __syncthreads();
        // All threads are done with the keys of this block.
        if (block > 0) {
            fetch(keys, k_column, rows[(block - 1) % 2], (block - 1) * KEYS, n_keys, qkv_stride);
        }
        add_values<T>(o, s, values);
        if (block == 0) break;
        --block;
    }

    for (u32 r = 0; r < 2; ++r) {
        sums[r] += shuffle_xor(sums[r], 1);
        sums[r] += shuffle_xor(sums[r], 2);
        u32 i = warp * 16 + lane / 4 + 8 * r;
        if (i >= tile.n * group) continue;
        u32 row = own_row(segment, position[r]) - first_query;
        u32 head = kv_head * group + i % group;
        store<T>(o, r, sums[r], out + static_cast<size_t>(row) * out_stride + head * D);
    }
}

#define FOR_TYPE(T, name)                                                                          \
    extern "C" __global__ void __launch_bounds__(THREADS) flash_attention_##name(                  \
        const u16* qkv, u16* out, const Segment* segments, const Tile* tiles, u32 n_heads,         \
        u32 n_kv_heads, u32 qkv_stride, u32 out_stride, u32 first_query, u32 causal) {             \
        flash_attention<T>(qkv, out, segments, tiles, n_heads, n_kv_heads, qkv_stride, out_stride, \
                           first_query, causal);                                                   \
    }

FOR_TYPE(Bf16, bf16)
FOR_TYPE(F16, f16)
