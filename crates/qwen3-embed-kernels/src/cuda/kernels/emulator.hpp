// Runs the kernels on a CPU, one block at a time. Each thread of the block is a context that runs until it has to wait
// for other threads. An operation of a whole warp runs when all threads of the warp have reached it.
//
// The emulator helps to find errors in kernels:
// - Copies to shared memory happen when a thread waits for them, and not before. So a missing wait gives wrong results.
// - The program fails if some threads of a block never reach a barrier, or some lanes of a warp never reach an
//   operation of the warp.
// - The program fails if loading a matrix causes bank conflicts.
// - Threads run in one order, or in the opposite order if the environment variable EMULATOR_REVERSED is set. So a
//   missing barrier gives wrong results in one of the orders.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include <setjmp.h>
#include <ucontext.h>

#define INLINE inline
#define __global__
#define __shared__ static
#define __launch_bounds__(n)
#define __syncthreads() emulator::barrier()

struct Index {
    uint32_t x, y, z;
};

namespace emulator {

constexpr int LANES = 32;

// A thread of the block.
struct Thread {
    // Where the thread starts, and where it continues. Unlike a context switch, a jump needs no system call.
    ucontext_t context;
    jmp_buf jump;
    std::vector<char> stack;
    bool has_ended;
    // The thread waits while the counter `*waits_for` is equal to `waits_while`.
    const unsigned* waits_for;
    unsigned waits_while;
    // Copies that have not happened yet.
    struct Copy {
        void* to;
        const void* from;
    };
    std::vector<Copy> copies;
};

// The operands of an operation of a warp, and its results.
struct Warp {
    unsigned n_arrived, round;
    uint32_t in[LANES][6];
    const void* row[LANES];
    float sums[LANES][4];
    uint32_t out[LANES][4];
    float sums_out[LANES][4];
};

extern Index thread_index, block_index, block_size;
extern std::vector<Thread> threads;
extern std::vector<Warp> warps;
extern jmp_buf scheduler;
extern unsigned n_threads, current, n_at_barrier, barrier_round;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "emulator: %s\n", what);
    std::exit(1);
}

// Runs other threads until `*round` changes.
inline void wait(const unsigned* round) {
    Thread& self = threads[current];
    self.waits_for = round;
    self.waits_while = *round;
    if (_setjmp(self.jump) == 0) _longjmp(scheduler, 1);
}

inline void barrier() {
    if (++n_at_barrier == n_threads) {
        n_at_barrier = 0;
        ++barrier_round;
    } else {
        wait(&barrier_round);
    }
}

// Waits for the other lanes of the warp. The last lane to arrive does the work.
inline void together(const std::function<void(Warp&)>& work) {
    Warp& warp = warps[current / LANES];
    if (++warp.n_arrived == LANES) {
        work(warp);
        warp.n_arrived = 0;
        ++warp.round;
    } else {
        wait(&warp.round);
    }
}

inline int lane() { return current % LANES; }
inline Warp& warp() { return warps[current / LANES]; }

inline uint32_t exchange(uint32_t value, int from) {
    warp().in[lane()][0] = value;
    warp().in[lane()][1] = static_cast<uint32_t>(from);
    together([](Warp& warp) {
        for (auto& in : warp.in) {
            if (in[1] >= LANES) fail("a shuffle reads from a lane that does not exist");
        }
        for (int i = 0; i < LANES; ++i) warp.out[i][0] = warp.in[warp.in[i][1]][0];
    });
    return warp().out[lane()][0];
}

inline uint32_t bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline void load_matrices(uint32_t (&r)[4], const uint16_t* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a row of a matrix is not aligned to 16 bytes");
    warp().row[lane()] = row;
    together([transposed](Warp& warp) {
        for (int matrix = 0; matrix < 4; ++matrix) {
            // Shared memory has banks for eight reads of 16 bytes at once.
            unsigned banks = 0;
            for (int i = 0; i < 8; ++i) {
                banks |= 1u << reinterpret_cast<uintptr_t>(warp.row[8 * matrix + i]) / 16 % 8;
            }
            if (banks != 255) fail("bank conflict: rows of a matrix are in the same banks");
        }
        for (int i = 0; i < LANES; ++i) {
            for (int matrix = 0; matrix < 4; ++matrix) {
                uint16_t values[2];
                for (int j = 0; j < 2; ++j) {
                    int a = i / 4, b = 2 * (i % 4) + j;
                    int row = transposed ? b : a, column = transposed ? a : b;
                    values[j] = static_cast<const uint16_t*>(warp.row[8 * matrix + row])[column];
                }
                warp.out[i][matrix] = values[0] | static_cast<uint32_t>(values[1]) << 16;
            }
        }
    });
    std::memcpy(r, warp().out[lane()], sizeof r);
}

// mma.sync.m16n8k16, with the operands distributed over the lanes as in the instruction.
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                         float (*widen)(uint16_t)) {
    uint32_t in[6] = {a[0], a[1], a[2], a[3], b0, b1};
    std::memcpy(warp().in[lane()], in, sizeof in);
    std::memcpy(warp().sums[lane()], c, sizeof c);
    together([widen](Warp& warp) {
        auto half = [&](int lane, int reg, int j) {
            return widen(static_cast<uint16_t>(warp.in[lane][reg] >> (16 * j)));
        };
        float left[16][16], right[16][8];
        for (int lane = 0; lane < LANES; ++lane) {
            int group = lane / 4, pair = lane % 4 * 2;
            for (int j = 0; j < 2; ++j) {
                left[group][pair + j] = half(lane, 0, j);
                left[group + 8][pair + j] = half(lane, 1, j);
                left[group][pair + 8 + j] = half(lane, 2, j);
                left[group + 8][pair + 8 + j] = half(lane, 3, j);
                right[pair + j][group] = half(lane, 4, j);
                right[pair + 8 + j][group] = half(lane, 5, j);
            }
        }
        for (int lane = 0; lane < LANES; ++lane) {
            for (int i = 0; i < 4; ++i) {
                int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
                float sum = warp.sums[lane][i];
                for (int k = 0; k < 16; ++k) sum += left[row][k] * right[k][column];
                warp.sums_out[lane][i] = sum;
            }
        }
    });
    std::memcpy(c, warp().sums_out[lane()], sizeof c);
}

inline uint16_t round_bf16(float value) {
    uint32_t b = bits(value);
    if (value != value) return 0x7fff;
    return static_cast<uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16);
}

inline float widen_f16(uint16_t value) {
    int exponent = value >> 10 & 31, fraction = value & 1023;
    float magnitude = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                      : exponent == 31 ? (fraction ? NAN : INFINITY)
                                       : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return value & 0x8000 ? -magnitude : magnitude;
}

inline uint16_t round_f16(float value) {
    uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    float magnitude = std::fabs(value);
    if (value != value) return 0x7fff;
    if (magnitude >= 65520.0f) return sign | 0x7c00;
    int exponent = magnitude < 6.103515625e-5f ? -14 : std::ilogb(magnitude);
    // The value in units of the last place, rounded to the nearest integer, ties to even.
    auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
    return static_cast<uint16_t>(sign | (units + (exponent + 14) * 1024));
}

} // namespace emulator

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_size

inline float shuffle_xor(float value, int mask) {
    return emulator::from_bits(emulator::exchange(emulator::bits(value), emulator::lane() ^ mask));
}
inline float shuffle(float value, int lane) {
    return emulator::from_bits(emulator::exchange(emulator::bits(value), lane));
}
inline u32 shuffle_bits(u32 value, int lane) { return emulator::exchange(value, lane); }
inline float bits_to_float(u32 bits) { return emulator::from_bits(bits); }

inline float power_of_two(float x) {
    float power = exp2f(x);
    return std::fpclassify(power) == FP_SUBNORMAL ? 0.0f : power;
}

inline void load_matrices(u32 (&r)[4], const u16* row) { emulator::load_matrices(r, row, false); }
inline void load_matrices_transposed(u32 (&r)[4], const u16* row) {
    emulator::load_matrices(r, row, true);
}

inline void copy_async(u16* to, const u16* from, bool present) {
    if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) {
        emulator::fail("a copy is not aligned to 16 bytes");
    }
    emulator::threads[emulator::current].copies.push_back({to, present ? from : nullptr});
}

inline void wait_for_copies() {
    auto& copies = emulator::threads[emulator::current].copies;
    for (auto [to, from] : copies) {
        if (from) {
            std::memcpy(to, from, 16);
        } else {
            std::memset(to, 0, 16);
        }
    }
    copies.clear();
}
