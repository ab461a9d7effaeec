// Operations on one row at a time. Matrices are row-major; `…_stride` is the distance between rows, in elements.
#include "device.cuh"

// Neighbors in a row, which a thread reads or writes with one instruction if their alignment permits.
template <typename Stored, u32 N>
struct alignas(N * sizeof(Stored)) Chunk {
    Stored values[N];
};

// The next N values of a row that has `n_left` values left, and zeros after its end.
template <u32 N, typename Stored>
INLINE Chunk<Stored, N> load(const Stored* from, u32 n_left) {
    if (n_left >= N && reinterpret_cast<size_t>(from) % sizeof(Chunk<Stored, N>) == 0) {
        return *reinterpret_cast<const Chunk<Stored, N>*>(from);
    }
    Chunk<Stored, N> chunk = {};
    for (u32 i = 0; i < N; ++i) {
        if (i < n_left) chunk.values[i] = from[i];
    }
    return chunk;
}

// Writes the values of a chunk, up to the end of the row, which has `n_left` values left.
template <u32 N, typename Stored>
INLINE void store(Stored* to, const Chunk<Stored, N>& chunk, u32 n_left) {
    if (n_left >= N && reinterpret_cast<size_t>(to) % sizeof(Chunk<Stored, N>) == 0) {
        *reinterpret_cast<Chunk<Stored, N>*>(to) = chunk;
        return;
    }
    for (u32 i = 0; i < N; ++i) {
        if (i < n_left) to[i] = chunk.values[i];
    }
}

// out = x / sqrt(mean(x²) + eps) · weight, with a block of 256 threads for each row:
//
//     each thread sums the squares of four neighbors in every 1024; each warp sums over its threads, then the block
//     each thread scales its values
template <typename Out>
INLINE void rms_norm(const float* x, const float* weight, typename Out::Stored* out, u32 n_columns,
                     u32 x_stride, u32 out_stride, float eps) {
    constexpr u32 N = 4;
    __shared__ float sums[8];
    const float* row = x + static_cast<size_t>(blockIdx.x) * x_stride;
    typename Out::Stored* normed = out + static_cast<size_t>(blockIdx.x) * out_stride;
    float squares = 0.0f;
    for (u32 column = threadIdx.x * N; column < n_columns; column += blockDim.x * N) {
        Chunk<float, N> part = load<N>(row + column, n_columns - column);
        for (float value : part.values) squares += value * value;
    }
    squares = warp_sum(squares);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = squares;
    __syncthreads();
    float total = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / WARP; ++warp) total += sums[warp];
    float scale = 1.0f / sqrtf(total / n_columns + eps);
    for (u32 column = threadIdx.x * N; column < n_columns; column += blockDim.x * N) {
        Chunk<float, N> part = load<N>(row + column, n_columns - column);
        Chunk<float, N> weights = load<N>(weight + column, n_columns - column);
        Chunk<typename Out::Stored, N> result;
        for (u32 i = 0; i < N; ++i) {
            result.values[i] = Out::round(part.values[i] * scale * weights.values[i]);
        }
        store(normed + column, result, n_columns - column);
    }
}

// Per-head RMSNorm and rotation of queries and keys, in place, with a warp for each head of a row. The queries of the
// rows before `first_query` are left unchanged. Value i of a head is paired with value i + head_dim / 2.
//
// Row r of `qkv` is rotated by row r of the tables. Each lane of the warp has two neighboring pairs in every 64, four
// at most.
template <typename T>
INLINE void qk_norm_rope(typename T::Stored* qkv, const float* q_norm, const float* k_norm,
                         const float* cosines, const float* sines, u32 n_rows, u32 n_heads,
                         u32 n_kv_heads, u32 head_dim, u32 stride, u32 first_query, float eps) {
    constexpr u32 N = 2, PARTS = 2;
    u32 lane = threadIdx.x % WARP;
    size_t idx = static_cast<size_t>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    u32 row = static_cast<u32>(idx / (n_heads + n_kv_heads));
    u32 head = static_cast<u32>(idx % (n_heads + n_kv_heads));
    bool is_query = head < n_heads;
    // All lanes of the warp return together.
    if (row >= n_rows || (is_query && row < first_query)) return;
    u32 half = head_dim / 2;
    typename T::Stored* low = qkv + static_cast<size_t>(row) * stride + head * head_dim;
    typename T::Stored* high = low + half;
    const float* norm = is_query ? q_norm : k_norm;
    Chunk<typename T::Stored, N> lows[PARTS], highs[PARTS];
    float squares = 0.0f;
    for (u32 part = 0; part < PARTS; ++part) {
        u32 pair = (part * WARP + lane) * N;
        u32 n_left = pair < half ? half - pair : 0;
        lows[part] = load<N>(low + pair, n_left);
        highs[part] = load<N>(high + pair, n_left);
        for (u32 i = 0; i < N; ++i) {
            float a = T::widen(lows[part].values[i]), b = T::widen(highs[part].values[i]);
            squares += a * a + b * b;
        }
    }
    float scale = 1.0f / sqrtf(warp_sum(squares) / head_dim + eps);
    size_t first = static_cast<size_t>(row) * half;
    for (u32 part = 0; part < PARTS; ++part) {
        u32 pair = (part * WARP + lane) * N;
        if (pair >= half) continue;
        u32 n_left = half - pair;
        Chunk<float, N> cosine = load<N>(cosines + first + pair, n_left);
        Chunk<float, N> sine = load<N>(sines + first + pair, n_left);
        Chunk<float, N> low_norm = load<N>(norm + pair, n_left);
        Chunk<float, N> high_norm = load<N>(norm + half + pair, n_left);
        for (u32 i = 0; i < N; ++i) {
            float a = T::widen(lows[part].values[i]) * scale * low_norm.values[i];
            float b = T::widen(highs[part].values[i]) * scale * high_norm.values[i];
            lows[part].values[i] = T::round(a * cosine.values[i] - b * sine.values[i]);
            highs[part].values[i] = T::round(b * cosine.values[i] + a * sine.values[i]);
        }
        store(low + pair, lows[part], n_left);
        store(high + pair, highs[part], n_left);
    }
}

// out = silu(gate) · up, where a row of `gate_up` has its gates and then its ups. A thread writes 16 bytes of a row.
template <typename T>
INLINE void swiglu(const typename T::Stored* gate_up, typename T::Stored* out, u32 n_columns,
                   u32 in_stride, u32 out_stride) {
    constexpr u32 N = 16 / sizeof(typename T::Stored);
    u32 column = (blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (column >= n_columns) return;
    u32 n_left = n_columns - column;
    const typename T::Stored* row = gate_up + static_cast<size_t>(blockIdx.x) * in_stride + column;
    Chunk<typename T::Stored, N> gates = load<N>(row, n_left), ups = load<N>(row + n_columns, n_left);
    for (u32 i = 0; i < N; ++i) {
        float gate = T::widen(gates.values[i]), up = T::widen(ups.values[i]);
        float silu = gate / (1.0f + expf(-gate));
        gates.values[i] = T::round(silu * up);
    }
    store(out + static_cast<size_t>(blockIdx.x) * out_stride + column, gates, n_left);
}

// out = bias, or out += bias if `add`, in every row.
template <typename T>
INLINE void bias(const float* bias, typename T::Stored* out, u32 n_columns, u32 out_stride, u32 add) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= n_columns) return;
    typename T::Stored* value = out + static_cast<size_t>(blockIdx.x) * out_stride + column;
    *value = T::round(add ? T::widen(*value) + bias[column] : bias[column]);
}

// out = x, without a conversion.
template <typename Value>
INLINE void copy_rows(const Value* x, Value* out, u32 n_columns, u32 x_stride, u32 out_stride) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= n_columns) return;
    out[static_cast<size_t>(blockIdx.x) * out_stride + column] =
        x[static_cast<size_t>(blockIdx.x) * x_stride + column];
}

// Row r of out = row rows[r] of the table, in f32, with a block for each row. A thread copies four neighbors at a time.
template <typename T>
INLINE void gather_rows(const typename T::Stored* table, const u32* rows, float* out, u32 n_columns,
                        u32 table_stride, u32 out_stride) {
    constexpr u32 N = 4;
    const typename T::Stored* from = table + static_cast<size_t>(rows[blockIdx.x]) * table_stride;
    float* to = out + static_cast<size_t>(blockIdx.x) * out_stride;
    for (u32 column = threadIdx.x * N; column < n_columns; column += blockDim.x * N) {
        Chunk<typename T::Stored, N> stored = load<N>(from + column, n_columns - column);
        Chunk<float, N> widened;
        for (u32 i = 0; i < N; ++i) widened.values[i] = T::widen(stored.values[i]);
        store(to + column, widened, n_columns - column);
    }
}

#define FOR_TYPE(T, name)                                                                          \
    extern "C" __global__ void rms_norm_##name(const float* x, const float* weight,                \
                                               T::Stored* out, u32 n_columns, u32 x_stride,        \
                                               u32 out_stride, float eps) {                        \
        rms_norm<T>(x, weight, out, n_columns, x_stride, out_stride, eps);                         \
    }                                                                                              \
    extern "C" __global__ void qk_norm_rope_##name(                                                \
        T::Stored* qkv, const float* q_norm, const float* k_norm, const float* cosines,            \
        const float* sines, u32 n_rows, u32 n_heads, u32 n_kv_heads, u32 head_dim, u32 stride,     \
        u32 first_query, float eps) {                                                              \
        qk_norm_rope<T>(qkv, q_norm, k_norm, cosines, sines, n_rows, n_heads, n_kv_heads,          \
                        head_dim, stride, first_query, eps);                                       \
    }                                                                                              \
    extern "C" __global__ void swiglu_##name(const T::Stored* gate_up, T::Stored* out,             \
                                             u32 n_columns, u32 in_stride, u32 out_stride) {       \
        swiglu<T>(gate_up, out, n_columns, in_stride, out_stride);                                 \
    }                                                                                              \
    extern "C" __global__ void bias_##name(const float* values, T::Stored* out, u32 n_columns,     \
                                           u32 out_stride, u32 add) {                              \
        bias<T>(values, out, n_columns, out_stride, add);                                          \
    }                                                                                              \
    extern "C" __global__ void copy_rows_##name(const T::Stored* x, T::Stored* out,                \
                                                u32 n_columns, u32 x_stride, u32 out_stride) {     \
        copy_rows(x, out, n_columns, x_stride, out_stride);                                        \
    }                                                                                              \
    extern "C" __global__ void gather_rows_##name(const T::Stored* table, const u32* rows,         \
                                                  float* out, u32 n_columns, u32 table_stride,     \
                                                  u32 out_stride) {                                \
        gather_rows<T>(table, rows, out, n_columns, table_stride, out_stride);                     \
    }

FOR_TYPE(F32, f32)
FOR_TYPE(Bf16, bf16)
FOR_TYPE(F16, f16)
