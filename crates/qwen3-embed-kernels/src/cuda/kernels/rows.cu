// Operations on one row at a time. Matrices are row-major, `…_stride` elements from one row to the next.
#include "device.cuh"

// out = x / sqrt(mean(x²) + eps) · weight, a block of 256 threads for each row:
//
//     each thread sums the squares of every 256th value; warps add up theirs, then the block
//     each thread scales its values
template <typename Out>
INLINE void rms_norm(const float* x, const float* weight, typename Out::Stored* out, u32 n_columns,
                     u32 x_stride, u32 out_stride, float eps) {
    __shared__ float sums[8];
    const float* row = x + static_cast<size_t>(blockIdx.x) * x_stride;
    typename Out::Stored* normed = out + static_cast<size_t>(blockIdx.x) * out_stride;
    float squares = 0.0f;
    for (u32 column = threadIdx.x; column < n_columns; column += blockDim.x) {
        squares += row[column] * row[column];
    }
    squares = warp_sum(squares);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = squares;
    __syncthreads();
    float total = 0.0f;
    for (u32 warp = 0; warp < blockDim.x / WARP; ++warp) total += sums[warp];
    float scale = 1.0f / sqrtf(total / n_columns + eps);
    for (u32 column = threadIdx.x; column < n_columns; column += blockDim.x) {
        normed[column] = Out::round(row[column] * scale * weight[column]);
    }
}

// Per-head RMSNorm of queries and keys and their rotation, in place, a warp for each head of a row, those
// of rows without queries apart. Lane i of a head is paired with lane i + head_dim / 2.
//
// Row r of `qkv` is turned by row r of the tables; each lane of the warp has every 32nd pair, four at most.
template <typename T>
INLINE void qk_norm_rope(typename T::Stored* qkv, const float* q_norm, const float* k_norm,
                         const float* cosines, const float* sines, u32 n_rows, u32 n_heads,
                         u32 n_kv_heads, u32 head_dim, u32 stride, u32 first_query, float eps) {
    u32 lane = threadIdx.x % WARP;
    size_t idx = static_cast<size_t>(blockIdx.x) * (blockDim.x / WARP) + threadIdx.x / WARP;
    u32 row = static_cast<u32>(idx / (n_heads + n_kv_heads));
    u32 head = static_cast<u32>(idx % (n_heads + n_kv_heads));
    bool is_query = head < n_heads;
    // The whole warp leaves together.
    if (row >= n_rows || (is_query && row < first_query)) return;
    typename T::Stored* values = qkv + static_cast<size_t>(row) * stride + head * head_dim;
    const float* norm = is_query ? q_norm : k_norm;
    u32 half = head_dim / 2;
    float low[4], high[4];
    float squares = 0.0f;
    for (u32 i = 0; i < 4; ++i) {
        u32 pair = i * WARP + lane;
        low[i] = pair < half ? T::widen(values[pair]) : 0.0f;
        high[i] = pair < half ? T::widen(values[pair + half]) : 0.0f;
        squares += low[i] * low[i] + high[i] * high[i];
    }
    float scale = 1.0f / sqrtf(warp_sum(squares) / head_dim + eps);
    for (u32 i = 0; i < 4; ++i) {
        u32 pair = i * WARP + lane;
        if (pair >= half) continue;
        float a = low[i] * scale * norm[pair];
        float b = high[i] * scale * norm[pair + half];
        float cosine = cosines[static_cast<size_t>(row) * half + pair];
        float sine = sines[static_cast<size_t>(row) * half + pair];
        values[pair] = T::round(a * cosine - b * sine);
        values[pair + half] = T::round(b * cosine + a * sine);
    }
}

// out = silu(gate) · up, where a row of `gate_up` is its gates and then its ups. A block has 256 columns
// of a row.
template <typename T>
INLINE void swiglu(const typename T::Stored* gate_up, typename T::Stored* out, u32 n_columns,
                   u32 in_stride, u32 out_stride) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= n_columns) return;
    const typename T::Stored* row = gate_up + static_cast<size_t>(blockIdx.x) * in_stride;
    float gate = T::widen(row[column]), up = T::widen(row[n_columns + column]);
    float silu = gate / (1.0f + expf(-gate));
    out[static_cast<size_t>(blockIdx.x) * out_stride + column] = T::round(silu * up);
}

// out = bias, or out += bias if `add`, in every row.
template <typename T>
INLINE void bias(const float* bias, typename T::Stored* out, u32 n_columns, u32 out_stride, u32 add) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= n_columns) return;
    typename T::Stored* value = out + static_cast<size_t>(blockIdx.x) * out_stride + column;
    *value = T::round(add ? T::widen(*value) + bias[column] : bias[column]);
}

// out = x, values of any type of this size.
template <typename Value>
INLINE void copy_rows(const Value* x, Value* out, u32 n_columns, u32 x_stride, u32 out_stride) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= n_columns) return;
    out[static_cast<size_t>(blockIdx.x) * out_stride + column] =
        x[static_cast<size_t>(blockIdx.x) * x_stride + column];
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
    }

FOR_TYPE(F32, f32)
FOR_TYPE(Bf16, bf16)
FOR_TYPE(F16, f16)
