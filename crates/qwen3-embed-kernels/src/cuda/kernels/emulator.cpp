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
#include "launch.hpp"

#include <sys/mman.h>
#include <unistd.h>

namespace emulator {

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

    bool are_all_used() const {
        return n_buffers == buffers.size() && n_floats == floats.size() &&
               n_whole_numbers == whole_numbers.size();
    }
};

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
    Arguments arguments;
    auto call = find(name, arguments);
    if (!call) fail(("no kernel " + name).c_str());
    if (!arguments.are_all_used()) fail("the launch has more arguments than the kernel");
    run(call, grid, n_threads);
    for (auto& buffer : buffers) std::fwrite(buffer.bytes, 1, buffer.n, stdout);
}
