// The kernels as a program for the CPU. It reads one launch from standard input, runs it, and writes the buffers to
// standard output. Numbers are in the byte order of the machine:
//
//     the name of the kernel, terminated by a zero byte
//     u32[3] blocks, u32 threads in a block
//     u32 number of pointers, for each: u64 bytes of the buffer, the bytes
//     u32 number of integers, u32[…]
//     u32 number of floats, f32[…]
//
// A buffer ends at the end of a page, and the page after it is not accessible.
#include "attention.cu"
#undef FOR_TYPE
#include "flash.cu"
#undef FOR_TYPE
#include "rows.cu"

#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

Index thread_index, block_index, block_size;
std::vector<Thread> threads;
std::vector<Warp> warps;
jmp_buf scheduler;
unsigned current, n_at_barrier, barrier_round;

static std::function<void()> kernel;

static void enter() {
    kernel();
    threads[current].has_ended = true;
    _longjmp(scheduler, 1);
}

// Runs a thread until it waits or ends.
static void resume(Thread& thread) {
    if (_setjmp(scheduler) != 0) return;
    if (thread.has_begun) _longjmp(thread.jump, 1);
    thread.has_begun = true;
    setcontext(&thread.context);
}

static void run_block() {
    bool is_reversed = std::getenv("EMULATOR_REVERSED") != nullptr;
    for (auto& warp : warps) warp.n_arrived = 0;
    n_at_barrier = 0;
    for (auto& thread : threads) {
        getcontext(&thread.context);
        thread.stack.resize(1 << 16);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, enter, 0);
        thread.has_begun = thread.has_ended = false;
        thread.waits_for = nullptr;
        thread.copies.clear();
    }
    for (size_t n_ended = 0; n_ended < threads.size();) {
        bool has_run = false;
        for (unsigned turn = 0; turn < threads.size(); ++turn) {
            current = is_reversed ? threads.size() - 1 - turn : turn;
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

static void read_exactly(void* to, size_t n) {
    if (std::fread(to, 1, n, stdin) != n) fail("the input ends before the launch is complete");
}

template <typename T>
static T read() {
    T value;
    read_exactly(&value, sizeof value);
    return value;
}

struct Buffer {
    char* bytes;
    size_t n;
};

static Buffer read_buffer() {
    size_t n = read<uint64_t>(), page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_t pages = (n + page - 1) / page * page;
    auto* start = static_cast<char*>(mmap(nullptr, pages + page, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (start == MAP_FAILED) fail("no memory");
    mprotect(start + pages, page, PROT_NONE);
    Buffer buffer = {start + pages - n, n};
    read_exactly(buffer.bytes, n);
    return buffer;
}

static std::vector<Buffer> buffers;
static std::vector<u32> whole_numbers;
static std::vector<float> floats;

// The next argument, in the type of the parameter of the kernel.
struct Arguments {
    size_t n_buffers = 0, n_whole_numbers = 0, n_floats = 0;

    template <typename T>
    T next() {
        if constexpr (std::is_pointer_v<T>) {
            return reinterpret_cast<T>(buffers.at(n_buffers++).bytes);
        } else if constexpr (std::is_same_v<T, float>) {
            return floats.at(n_floats++);
        } else {
            return whole_numbers.at(n_whole_numbers++);
        }
    }
};

template <typename... Args>
static std::function<void()> call(void (*function)(Args...)) {
    Arguments arguments;
    std::tuple<Args...> values{arguments.next<Args>()...};
    bool all = arguments.n_buffers == buffers.size() && arguments.n_floats == floats.size() &&
               arguments.n_whole_numbers == whole_numbers.size();
    if (!all) fail("the launch has more arguments than the kernel");
    return [function, values] { std::apply(function, values); };
}

#define KERNEL(function)                                                                           \
    if (name == #function) return call(function);

#define KERNELS(type)                                                                              \
    KERNEL(rms_norm_##type)                                                                        \
    KERNEL(qk_norm_rope_##type)                                                                    \
    KERNEL(swiglu_##type)                                                                          \
    KERNEL(bias_##type)                                                                            \
    KERNEL(copy_rows_##type)                                                                       \
    KERNEL(gather_rows_##type)                                                                     \
    KERNEL(attention_##type)

static std::function<void()> find(const std::string& name) {
    KERNELS(f32)
    KERNELS(bf16)
    KERNELS(f16)
    KERNEL(flash_attention_bf16)
    KERNEL(flash_attention_f16)
    fail(("no kernel " + name).c_str());
}

} // namespace emulator

int main() {
    using namespace emulator;
    std::string name;
    while (char c = read<char>()) name.push_back(c);
    u32 grid[3], n_threads;
    for (u32& n : grid) n = read<u32>();
    n_threads = read<u32>();
    for (u32 n = read<u32>(); n > 0; --n) buffers.push_back(read_buffer());
    for (u32 n = read<u32>(); n > 0; --n) whole_numbers.push_back(read<u32>());
    for (u32 n = read<u32>(); n > 0; --n) floats.push_back(read<float>());
    if (n_threads == 0 || n_threads > 1024 || n_threads % LANES != 0) {
        fail("the number of threads is not a multiple of 32 from 32 to 1024");
    }
    kernel = find(name);
    block_size = {n_threads, 1, 1};
    threads.resize(n_threads);
    warps.resize(n_threads / LANES);
    for (u32 z = 0; z < grid[2]; ++z) {
        for (u32 y = 0; y < grid[1]; ++y) {
            for (u32 x = 0; x < grid[0]; ++x) {
                block_index = {x, y, z};
                run_block();
            }
        }
    }
    for (auto& buffer : buffers) std::fwrite(buffer.bytes, 1, buffer.n, stdout);
}
