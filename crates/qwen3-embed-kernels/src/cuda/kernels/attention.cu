// Grouped-query attention along the segments of a batch, for any type and any head_dim up to 256, with a warp for each
// query of each head. `flash.cu` is faster, but it supports only 16-bit types, a head_dim of 128 and aligned rows.
//
//     for each 32 keys, from the last key that the query sees to the first
//         each lane: computes the score of its key
//         all lanes: find the largest score so far and rescale the sums to it             (online softmax)
//         each lane: adds the weighted values of all keys, in every 32nd dimension
//     out = weighted values / sum of the weights
#include "segments.cuh"

constexpr u32 MOST_PARTS = 8; // 256 dimensions of a head over the lanes of a warp

template <typename T>
INLINE void attention(const typename T::Stored* qkv, typename T::Stored* out, const Segment* segments,
                      const Tile* tiles, u32 n_heads, u32 n_kv_heads, u32 head_dim, u32 qkv_stride,
                      u32 out_stride, u32 first_query, u32 causal) {
    u32 lane = threadIdx.x % WARP;
    u32 head = blockIdx.y;
    u32 kv_head = head / (n_heads / n_kv_heads);
    Tile tile = tiles[blockIdx.x];
    Segment segment = segments[tile.segment];
    u32 query = threadIdx.x / WARP;
    // All lanes of the warp return together, and there is no barrier.
    if (query >= tile.n) return;
    u32 position = tile.first + query;
    u32 n_keys = causal ? position + 1 : segment.end;
    u32 query_row = own_row(segment, position);
    const typename T::Stored* q =
        qkv + static_cast<size_t>(query_row) * qkv_stride + head * head_dim;
    u32 k_column = (n_heads + kv_head) * head_dim;
    u32 v_column = (n_heads + n_kv_heads + kv_head) * head_dim;

    Cursor cursor = {segments, tile.segment};
    float largest = -INFINITY, weights = 0.0f;
    float sums[MOST_PARTS] = {};
    for (u32 block = (n_keys + WARP - 1) / WARP; block-- > 0;) {
        u32 key = block * WARP + lane;
        bool is_seen = key < n_keys;
        // A lane without a key reads the last key, with weight zero.
        u32 row = cursor.row(is_seen ? key : n_keys - 1);
        const typename T::Stored* k = qkv + static_cast<size_t>(row) * qkv_stride + k_column;
        float score = 0.0f;
        for (u32 i = 0; i < head_dim; ++i) score += T::widen(q[i]) * T::widen(k[i]);
        if (!is_seen) score = -INFINITY;
        float new_largest = fmaxf(largest, warp_max(score));
        float weight = expf(score - new_largest);
        float scale = expf(largest - new_largest);
        weights = weights * scale + warp_sum(weight);
        largest = new_largest;
        for (u32 part = 0; part < MOST_PARTS; ++part) sums[part] *= scale;
        for (int other = 0; other < WARP; ++other) {
            float other_weight = shuffle(weight, other);
            u32 other_row = shuffle_bits(row, other);
            const typename T::Stored* v =
                qkv + static_cast<size_t>(other_row) * qkv_stride + v_column;
            for (u32 part = 0; part < MOST_PARTS; ++part) {
                u32 i = part * WARP + lane;
                if (i < head_dim && other_weight > 0.0f) sums[part] += other_weight * T::widen(v[i]);
            }
        }
    }
    typename T::Stored* result =
        out + static_cast<size_t>(query_row - first_query) * out_stride + head * head_dim;
    for (u32 part = 0; part < MOST_PARTS; ++part) {
        u32 i = part * WARP + lane;
        if (i < head_dim) result[i] = T::round(sums[part] / weights);
    }
}

#define FOR_TYPE(T, name)                                                                          \
    extern "C" __global__ void attention_##name(                                                   \
        const T::Stored* qkv, T::Stored* out, const Segment* segments, const Tile* tiles,          \
        u32 n_heads, u32 n_kv_heads, u32 head_dim, u32 qkv_stride, u32 out_stride,                 \
        u32 first_query, u32 causal) {                                                             \
        attention<T>(qkv, out, segments, tiles, n_heads, n_kv_heads, head_dim, qkv_stride,         \
                     out_stride, first_query, causal);                                             \
    }

FOR_TYPE(F32, f32)
FOR_TYPE(Bf16, bf16)
FOR_TYPE(F16, f16)
