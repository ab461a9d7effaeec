// Finds kernels by their names, and runs launches of them on the CPU: see `emulator.hpp`.
#pragma once
#include "attention.cu"
#undef FOR_TYPE
#include "flash.cu"
#undef FOR_TYPE
#include "rows.cu"

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace emulator {

Index thread_index, block_index, block_size;
std::vector<Thread> threads;
std::vector<Warp> warps;
jmp_buf scheduler;
unsigned n_threads, current, n_at_barrier, barrier_round;

static std::function<void()> kernel;

// What a thread does. It keeps its stack, and runs the kernel again for each block.
static void enter() {
    while (true) {
        kernel();
        Thread& self = threads[current];
        self.has_ended = true;
        if (_setjmp(self.jump) == 0) _longjmp(scheduler, 1);
    }
}

// Runs a thread until it waits or ends.
static void resume(Thread& thread) {
    if (_setjmp(scheduler) != 0) return;
    if (!thread.stack.empty()) _longjmp(thread.jump, 1);
    thread.stack.resize(1 << 16);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
    setcontext(&thread.context);
}

static void run_block() {
    bool is_reversed = std::getenv("EMULATOR_REVERSED") != nullptr;
    for (auto& warp : warps) warp.n_arrived = 0;
    n_at_barrier = 0;
    for (unsigned i = 0; i < n_threads; ++i) {
        threads[i].has_ended = false;
        threads[i].waits_for = nullptr;
        threads[i].copies.clear();
    }
    for (size_t n_ended = 0; n_ended < n_threads;) {
        bool has_run = false;
        for (unsigned turn = 0; turn < n_threads; ++turn) {
            current = is_reversed ? n_threads - 1 - turn : turn;
            Thread& thread = threads[current];
            bool waits = thread.waits_for && *thread.waits_for == thread.waits_while;
            if (thread.has_ended || waits) continue;
            has_run = true;
            thread.waits_for = nullptr;
            thread_index = {current, 0, 0};
            resume(thread);
            n_ended += thread.has_ended;
            if (thread.has_ended && !thread.copies.empty()) fail("a thread ended before it waited for its copies");
        }
        if (!has_run) fail("deadlock: all threads that have not ended wait for other threads");
    }
}

// A call of a kernel with the arguments that `Arguments::next` returns, in the types of its parameters.
template <typename Arguments, typename... Args>
static std::function<void()> call(Arguments& arguments, void (*function)(Args...)) {
    std::tuple<Args...> values{arguments.template next<Args>()...};
    return [function, values] { std::apply(function, values); };
}

#define KERNEL(function)                                                                           \
    if (name == #function) return call(arguments, function);

#define KERNELS(type)                                                                              \
    KERNEL(rms_norm_##type)                                                                        \
    KERNEL(qk_norm_rope_##type)                                                                    \
    KERNEL(swiglu_##type)                                                                          \
    KERNEL(bias_##type)                                                                            \
    KERNEL(copy_rows_##type)                                                                       \
    KERNEL(gather_rows_##type)                                                                     \
    KERNEL(attention_##type)

// A call of the kernel with this name, or no call if there is no such kernel.
template <typename Arguments>
static std::function<void()> find(const std::string& name, Arguments& arguments) {
    KERNELS(f32)
    KERNELS(bf16)
    KERNELS(f16)
    KERNEL(flash_attention_bf16)
    KERNEL(flash_attention_f16)
    return nullptr;
}

// Runs a launch.
static void run(std::function<void()> call, const u32 (&grid)[3], u32 n_threads_of_block) {
    constexpr u32 MOST_THREADS = 1024;
    n_threads = n_threads_of_block;
    if (n_threads == 0 || n_threads > MOST_THREADS || n_threads % LANES != 0) {
        fail("the number of threads is not a multiple of 32 from 32 to 1024");
    }
    // Threads must not move, because contexts contain pointers to themselves.
    if (threads.empty()) threads.resize(MOST_THREADS);
    kernel = call;
    block_size = {n_threads, 1, 1};
    warps.resize(n_threads / LANES);
    for (u32 z = 0; z < grid[2]; ++z) {
        for (u32 y = 0; y < grid[1]; ++y) {
            for (u32 x = 0; x < grid[0]; ++x) {
                block_index = {x, y, z};
                run_block();
            }
        }
    }
}

} // namespace emulator
