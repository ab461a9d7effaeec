// Definitions that all kernels use: the types of activations, and the GPU instructions that C++ cannot express. This
// file defines them for a GPU. `emulator.hpp` defines them for a CPU, so that every kernel can run, slowly, without a
// GPU.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;

#if defined(__CUDACC__)

#define INLINE __device__ __forceinline__

// Exchange of values between the lanes of a warp.
INLINE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
INLINE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

INLINE u32 shuffle_bits(u32 value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

INLINE float bits_to_float(u32 bits) { return __uint_as_float(bits); }

// 2^x with an error of at most 2 ulp, in one instruction. A subnormal result becomes zero.
INLINE float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// Loads four 8x8 matrices of 16-bit values from shared memory: lane l passes the address of row l % 8 of matrix l / 8,
// and receives from each matrix the values 2(l % 4) and 2(l % 4) + 1 of row l / 4.
INLINE void load_matrices(u32 (&r)[4], const u16* row) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// Loads the transposed matrices in the same way.
INLINE void load_matrices_transposed(u32 (&r)[4], const u16* row) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

// Starts to copy 16 bytes to shared memory, or 16 zero bytes if `present` is false. The thread can read the copy after
// `wait_for_copies`, and other threads after a barrier that follows.
INLINE void copy_async(u16* to, const u16* from, bool present) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
    u32 n_bytes = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(address), "l"(__cvta_generic_to_global(from)), "r"(n_bytes) : "memory");
}

INLINE void wait_for_copies() {
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
}

#define MMA(TYPE)                                                                                  \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 "                    \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                 \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

#else
#include "emulator.hpp"
#endif

// The types of activations: how they are stored, and their conversion from and to f32.
struct F32 {
    typedef float Stored;
    static INLINE float widen(float value) { return value; }
    static INLINE float round(float value) { return value; }
};

struct Bf16 {
    typedef u16 Stored;
    static INLINE float widen(u16 value) { return bits_to_float(static_cast<u32>(value) << 16); }
#if defined(__CUDACC__)
    static INLINE u16 round(float value) {
        u16 rounded;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
        return rounded;
    }
    // A pair of values, `low` in the lower half.
    static INLINE u32 pack(float low, float high) {
        u32 packed;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }
    // c[16, 8] += a[16, 16] b[16, 8], distributed over a warp.
    static INLINE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { MMA("bf16"); }
#else
    static u16 round(float value) { return emulator::round_bf16(value); }
    static u32 pack(float low, float high) { return round(low) | static_cast<u32>(round(high)) << 16; }
    static void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        emulator::multiply_add(c, a, b0, b1, widen);
    }
#endif
};

struct F16 {
    typedef u16 Stored;
#if defined(__CUDACC__)
    static INLINE float widen(u16 value) {
        float widened;
        asm("cvt.f32.f16 %0, %1;" : "=f"(widened) : "h"(value));
        return widened;
    }
    static INLINE u16 round(float value) {
        u16 rounded;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
        return rounded;
    }
    static INLINE u32 pack(float low, float high) {
        u32 packed;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }
    static INLINE void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { MMA("f16"); }
#else
    static float widen(u16 value) { return emulator::widen_f16(value); }
    static u16 round(float value) { return emulator::round_f16(value); }
    static u32 pack(float low, float high) { return round(low) | static_cast<u32>(round(high)) << 16; }
    static void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        emulator::multiply_add(c, a, b0, b1, widen);
    }
#endif
};

constexpr int WARP = 32;

INLINE float warp_sum(float value) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

INLINE float warp_max(float value) {
    for (int mask = WARP / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
    return value;
}
