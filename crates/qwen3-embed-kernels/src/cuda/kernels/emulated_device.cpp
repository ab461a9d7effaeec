// The CUDA driver, cuBLAS and cuRAND as a library for the CPU: programs with the feature `cuda` run on it without a
// device. It has the functions that candle and this crate call. A function that it does not have returns an error.
//
// Work of all streams is queued in one queue, and done when the host waits for it. So work that reads memory of the host
// too late, or memory that was freed too early, has the same effects as on a device. New memory contains NaN. An
// allocation ends shortly before a page that is not accessible, so a read beyond its end crashes.
//
// A stream can record kernels and multiplications as a graph. Other work on a stream that records ends the program. If the
// host waits for all streams meanwhile, or a cuBLAS handle is made or destroyed, the recording fails.
//
// Environment variables:
// - EMULATED_DEVICE_BYTES: the memory of the device. The default is 16 GiB.
// - EMULATED_DEVICE_COUNTS: a file. When the host reads memory of the device, the numbers of calls so far are written to
//   the file, as lines with a name and a number.
// - EMULATED_DEVICE_IDLE: if set, kernels and multiplications do nothing, and nothing is counted, to measure the time of
//   the host.
// - EMULATED_DEVICE_WITHOUT_GRAPHS: if set, graphs cannot be made.
#include "launch.hpp"

#include <fstream>
#include <map>
#include <mutex>
#include <set>

#include <sys/mman.h>
#include <unistd.h>

namespace {

using emulator::fail;

// Results of functions of the driver. Those of cuBLAS and cuRAND are also 0 if the call succeeded.
enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    NO_MEMORY = 2,
    NO_DEVICE = 101,
    NOT_SUPPORTED = 801,
    NOT_DURING_RECORDING = 900,
    RECORDING_FAILED = 901,
};

std::mutex lock;
typedef std::lock_guard<std::mutex> Guard;

typedef std::vector<std::function<void()>> Work;

// Work that was queued and is not done yet.
Work queue;

struct Stream {
    bool records = false, has_failed = false;
    Work recorded;
};

// The streams that record.
std::set<Stream*> recorders;

// A call that waits for all streams, which makes recordings fail.
Result wait_for_all() {
    for (Stream* stream : recorders) stream->has_failed = true;
    return recorders.empty() ? SUCCESS : NOT_DURING_RECORDING;
}

// Queues work that a graph can contain.
void add(Stream* stream, std::function<void()> work) { (stream->records ? stream->recorded : queue).push_back(work); }

// Queues other work.
void add_unrecorded(Stream* stream, std::function<void()> work) {
    if (stream->records) fail("a stream that records has work other than kernels and multiplications");
    queue.push_back(work);
}

bool is_idle() {
    static const bool idle = std::getenv("EMULATED_DEVICE_IDLE") != nullptr;
    return idle;
}

std::map<std::string, size_t> counts;

void count(const std::string& name) {
    if (!is_idle()) ++counts[name];
}

void write_counts() {
    static const char* path = std::getenv("EMULATED_DEVICE_COUNTS");
    if (!path) return;
    std::ofstream file(path);
    for (auto& [name, n] : counts) file << name << ' ' << n << '\n';
}

// The memory of the device: the size that was asked for, for each address.
std::map<size_t, size_t> allocations;
size_t n_allocated = 0;

// The pool of memory: what is in use by the order of the calls, what the pool has, the most that it had, and how much of
// it is kept when the host waits for the device, even if it is not in use.
size_t n_in_use = 0, n_in_pool = 0, n_in_pool_at_most = 0, n_kept = 0;

void release(size_t n) { n_in_pool = std::max(n_in_use, std::min(n_in_pool, n)); }

void finish() {
    for (auto& work : queue) work();
    queue.clear();
    release(n_kept);
}

size_t n_bytes_in_all() {
    static const char* named = std::getenv("EMULATED_DEVICE_BYTES");
    static const size_t n = named ? std::strtoull(named, nullptr, 10) : size_t(16) << 30;
    return n;
}

constexpr size_t PAGE = 4096, ALIGNMENT = 256;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// The size of the pages of an allocation, with the page after it that is not accessible.
size_t mapped(size_t n) { return round_up(n, PAGE) + PAGE; }

// The address of memory of the host for an allocation, or 0.
size_t host_memory(size_t n) {
    if (is_idle()) return reinterpret_cast<size_t>(std::aligned_alloc(ALIGNMENT, round_up(n, ALIGNMENT)));
    void* start = mmap(nullptr, mapped(n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return 0;
    size_t end = reinterpret_cast<size_t>(start) + mapped(n) - PAGE;
    mprotect(reinterpret_cast<void*>(end), PAGE, PROT_NONE);
    std::memset(start, 0xff, mapped(n) - PAGE);
    return end - round_up(n, ALIGNMENT);
}

Result allocate(size_t* address, size_t n) {
    if (n == 0) return INVALID_VALUE;
    if (n_allocated + n > n_bytes_in_all()) finish();
    if (n_allocated + n > n_bytes_in_all()) return NO_MEMORY;
    *address = host_memory(n);
    if (!*address) return NO_MEMORY;
    allocations[*address] = n;
    n_allocated += n;
    n_in_use += n;
    if (n_in_use > n_in_pool) {
        count("growths of the pool");
        n_in_pool = n_in_use;
        n_in_pool_at_most = std::max(n_in_pool_at_most, n_in_pool);
    }
    return SUCCESS;
}

void free_now(size_t address) {
    auto found = allocations.find(address);
    if (found == allocations.end()) fail("memory is freed twice");
    size_t n = found->second, end = address + round_up(n, ALIGNMENT) + PAGE;
    if (is_idle()) {
        std::free(reinterpret_cast<void*>(address));
    } else {
        munmap(reinterpret_cast<void*>(end - mapped(n)), mapped(n));
    }
    allocations.erase(found);
    n_allocated -= n;
}

// Checks that bytes of the device belong to one allocation.
void check(size_t address, size_t n) {
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) fail("memory is used that was not allocated");
    auto [start, size] = *std::prev(after);
    if (address + n > start + size) fail("memory is used beyond the end of its allocation");
}

// The arguments of a launch: pointers to values, in the order of the kernel's parameters.
struct Pointers {
    void** next_value;

    template <typename T>
    T next() {
        return *static_cast<T*>(*next_value++);
    }
};

// The kernels of candle that tests use. They are written here again, because candle's sources need CUDA's headers.

// The offset of element i of a tensor with these strides. Contiguous tensors may have no description.
size_t offset_of(size_t i, size_t n_dims, const size_t* info) {
    if (!info) return i;
    size_t offset = 0;
    for (size_t dim = n_dims; dim-- > 0; i /= info[dim]) offset += i % info[dim] * info[n_dims + dim];
    return offset;
}

template <typename From, typename To>
void cast(size_t n, size_t n_dims, const size_t* info, const typename From::Stored* x, typename To::Stored* out) {
    for (size_t i = 0; i < n; ++i) out[i] = To::round(From::widen(x[offset_of(i, n_dims, info)]));
}

void set_f32(size_t n, size_t n_dims, const size_t* info, float value, float* out) {
    for (size_t i = 0; i < n; ++i) out[offset_of(i, n_dims, info)] = value;
}

std::function<void()> find_of_candle(const std::string& name, Pointers& arguments) {
    using emulator::call;
    if (name == "cast_f32_bf16") return call(arguments, cast<F32, Bf16>);
    if (name == "cast_bf16_f32") return call(arguments, cast<Bf16, F32>);
    if (name == "cast_f16_f32") return call(arguments, cast<F16, F32>);
    if (name == "ucopy_f32") return call(arguments, cast<F32, F32>);
    if (name == "ucopy_bf16") return call(arguments, cast<Bf16, Bf16>);
    if (name == "const_set_f32") return call(arguments, set_f32);
    return nullptr;
}

void count_launch(Stream* stream, const std::string& name) {
    count(stream->records ? "recorded launches" : "launches");
    count(name);
}

Result launch(Stream* stream, const std::string& name, const u32 (&grid)[3], u32 n_threads, void** values) {
    count_launch(stream, name);
    for (u32 n : grid) {
        if (n == 0) return INVALID_VALUE;
    }
    if (is_idle()) return SUCCESS;
    Pointers arguments{values};
    if (auto call = emulator::find(name, arguments)) {
        u32 x = grid[0], y = grid[1], z = grid[2];
        add(stream, [=] { emulator::run(call, {x, y, z}, n_threads); });
    } else if (auto call = find_of_candle(name, arguments)) {
        add(stream, call);
    } else {
        fail(("no kernel " + name).c_str());
    }
    return SUCCESS;
}

// Types of matrices, as cuBLAS numbers them.
enum Type { TYPE_F32 = 0, TYPE_F16 = 2, TYPE_BF16 = 14 };

// A column-major matrix.
struct Matrix {
    size_t address;
    int type, stride;

    size_t size() const { return type == TYPE_F32 ? 4 : 2; }

    float get(size_t row, size_t column) const {
        size_t at = address + (column * stride + row) * size();
        if (type == TYPE_F32) return *reinterpret_cast<const float*>(at);
        u16 value = *reinterpret_cast<const u16*>(at);
        return type == TYPE_BF16 ? Bf16::widen(value) : F16::widen(value);
    }

    void set(size_t row, size_t column, float value) const {
        size_t at = address + (column * stride + row) * size();
        if (type == TYPE_F32) {
            *reinterpret_cast<float*>(at) = value;
        } else {
            *reinterpret_cast<u16*>(at) = type == TYPE_BF16 ? Bf16::round(value) : F16::round(value);
        }
    }

    std::vector<float> column(size_t column, size_t n_rows) const {
        std::vector<float> values(n_rows);
        for (size_t row = 0; row < n_rows; ++row) values[row] = get(row, column);
        return values;
    }

    void check(size_t n_rows, size_t n_columns) const {
        if (type != TYPE_F32 && type != TYPE_F16 && type != TYPE_BF16) fail("a matrix is not f32, f16 or bf16");
        if (stride < static_cast<int>(n_rows)) fail("the columns of a matrix overlap");
        ::check(address, ((n_columns - 1) * stride + n_rows) * size());
    }
};

float dot(const std::vector<float>& a, const std::vector<float>& b) {
    constexpr size_t LANES = 16;
    float sums[LANES] = {};
    size_t i = 0;
    for (; i + LANES <= a.size(); i += LANES) {
        for (size_t lane = 0; lane < LANES; ++lane) sums[lane] += a[i + lane] * b[i + lane];
    }
    for (; i < a.size(); ++i) sums[0] += a[i] * b[i];
    float sum = 0.0f;
    for (float lane : sums) sum += lane;
    return sum;
}

// C = Aᵀ·B + beta·C, with A [k, m], B [k, n] and C [m, n].
void multiply(size_t m, size_t n, size_t k, Matrix a, Matrix b, float beta, Matrix c) {
    a.check(k, m);
    b.check(k, n);
    c.check(m, n);
    std::vector<std::vector<float>> columns;
    for (size_t column = 0; column < n; ++column) columns.push_back(b.column(column, k));
    for (size_t row = 0; row < m; ++row) {
        std::vector<float> left = a.column(row, k);
        for (size_t column = 0; column < n; ++column) {
            float old = beta == 0.0f ? 0.0f : beta * c.get(row, column);
            c.set(row, column, dot(left, columns[column]) + old);
        }
    }
}

Result synchronize() {
    count("synchronizations");
    finish();
    return SUCCESS;
}

// A cuBLAS handle.
struct Multiplier {
    Stream* stream = nullptr;
};

// Other handles need only be different from null.
int handle;

} // namespace

extern "C" {

Result cuInit(unsigned) { return SUCCESS; }

Result cuDeviceGet(int* device, int number) {
    *device = 0;
    return number == 0 ? SUCCESS : NO_DEVICE;
}

Result cuDeviceGetName(char* name, int size, int) {
    std::snprintf(name, size, "emulated device");
    return SUCCESS;
}

Result cuDeviceGetAttribute(int* value, int attribute, int) {
    constexpr int MAJOR = 75, MINOR = 76, MEMORY_POOLS = 115;
    *value = attribute == MAJOR ? 8 : attribute == MINOR ? 0 : attribute == MEMORY_POOLS;
    return SUCCESS;
}

Result cuDevicePrimaryCtxRetain(void** context, int) {
    *context = &handle;
    return SUCCESS;
}

Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

thread_local void* current_context = nullptr;

Result cuCtxGetCurrent(void** context) {
    *context = current_context;
    return SUCCESS;
}

Result cuCtxSetCurrent(void* context) {
    current_context = context;
    return SUCCESS;
}

Result cuStreamCreate(Stream** stream, unsigned) {
    *stream = new Stream;
    return SUCCESS;
}

Result cuStreamDestroy_v2(Stream* stream) {
    delete stream;
    return SUCCESS;
}

Result cuStreamSynchronize(Stream* stream) {
    Guard guard(lock);
    if (stream->records) fail("the host waits for a stream that records");
    return synchronize();
}

Result cuCtxSynchronize() {
    Guard guard(lock);
    Result result = wait_for_all();
    return result == SUCCESS ? synchronize() : result;
}

Result cuStreamBeginCapture_v2(Stream* stream, int) {
    Guard guard(lock);
    if (stream->records) return INVALID_VALUE;
    stream->records = true;
    recorders.insert(stream);
    return SUCCESS;
}

Result cuStreamEndCapture(Stream* stream, Work** graph) {
    Guard guard(lock);
    if (!stream->records) return INVALID_VALUE;
    recorders.erase(stream);
    Stream recorded = std::move(*stream);
    *stream = Stream();
    *graph = recorded.has_failed ? nullptr : new Work(std::move(recorded.recorded));
    return recorded.has_failed ? RECORDING_FAILED : SUCCESS;
}

Result cuStreamIsCapturing(const Stream* stream, int* status) {
    constexpr int NONE = 0, ACTIVE = 1, INVALIDATED = 2;
    Guard guard(lock);
    *status = !stream->records ? NONE : stream->has_failed ? INVALIDATED : ACTIVE;
    return SUCCESS;
}

Result cuGraphInstantiateWithFlags(Work** executable, const Work* graph, unsigned long long) {
    if (std::getenv("EMULATED_DEVICE_WITHOUT_GRAPHS")) return NOT_SUPPORTED;
    *executable = new Work(*graph);
    return SUCCESS;
}

Result cuGraphLaunch(const Work* executable, Stream* stream) {
    Guard guard(lock);
    count("launches of graphs");
    for (auto& work : *executable) add_unrecorded(stream, work);
    return SUCCESS;
}

Result cuGraphExecDestroy(Work* executable) {
    delete executable;
    return SUCCESS;
}

Result cuGraphDestroy(Work* graph) { return cuGraphExecDestroy(graph); }

Result cuMemGetInfo_v2(size_t* n_free, size_t* n_total) {
    Guard guard(lock);
    *n_total = n_bytes_in_all();
    *n_free = *n_total - n_in_pool;
    return SUCCESS;
}

Result cuDeviceGetMemPool(void** pool, int) {
    *pool = &handle;
    return SUCCESS;
}

constexpr int RELEASE_THRESHOLD = 4, RESERVED_MEM_HIGH = 6;

Result cuMemPoolGetAttribute(void*, int attribute, void* value) {
    if (attribute != RELEASE_THRESHOLD && attribute != RESERVED_MEM_HIGH) return INVALID_VALUE;
    Guard guard(lock);
    *static_cast<unsigned long long*>(value) = attribute == RELEASE_THRESHOLD ? n_kept : n_in_pool_at_most;
    return SUCCESS;
}

Result cuMemPoolSetAttribute(void*, int attribute, const void* value) {
    auto n = *static_cast<const unsigned long long*>(value);
    Guard guard(lock);
    if (attribute == RELEASE_THRESHOLD) {
        n_kept = n;
    } else if (attribute == RESERVED_MEM_HIGH && n == 0) {
        n_in_pool_at_most = n_in_pool;
    } else {
        return INVALID_VALUE;
    }
    return SUCCESS;
}

Result cuMemPoolTrimTo(void*, size_t n) {
    Guard guard(lock);
    count("releases of the pool");
    write_counts();
    release(n);
    return SUCCESS;
}

Result cuMemAllocAsync(size_t* address, size_t n, Stream* stream) {
    Guard guard(lock);
    if (stream->records) fail("memory is allocated on a stream that records");
    count("allocations");
    return allocate(address, n);
}

Result cuMemFreeAsync(size_t address, Stream* stream) {
    Guard guard(lock);
    auto found = allocations.find(address);
    if (found == allocations.end()) fail("memory is freed that was not allocated");
    n_in_use -= found->second;
    add_unrecorded(stream, [=] { free_now(address); });
    return SUCCESS;
}

Result cuMemsetD8Async(size_t address, unsigned char value, size_t n, Stream* stream) {
    Guard guard(lock);
    count("memsets");
    check(address, n);
    add_unrecorded(stream, [=] { std::memset(reinterpret_cast<void*>(address), value, n); });
    return SUCCESS;
}

// Memory of the host that is not pinned is read before the call returns.
Result cuMemcpyHtoDAsync_v2(size_t to, const void* from, size_t n, Stream* stream) {
    Guard guard(lock);
    count("copies to the device");
    check(to, n);
    auto bytes = static_cast<const char*>(from);
    std::vector<char> copy(bytes, bytes + n);
    add_unrecorded(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), copy.data(), n); });
    return SUCCESS;
}

Result cuMemcpyDtoDAsync_v2(size_t to, size_t from, size_t n, Stream* stream) {
    Guard guard(lock);
    check(to, n);
    check(from, n);
    add_unrecorded(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), n); });
    return SUCCESS;
}

Result cuMemcpyDtoHAsync_v2(void* to, size_t from, size_t n, Stream* stream) {
    Guard guard(lock);
    if (stream->records) fail("the host reads memory on a stream that records");
    count("copies to the host");
    check(from, n);
    finish();
    std::memcpy(to, reinterpret_cast<const void*>(from), n);
    write_counts();
    return SUCCESS;
}

Result cuModuleLoadData(void** module, const void*) {
    *module = &handle;
    return SUCCESS;
}

Result cuModuleUnload(void*) { return SUCCESS; }

// A function is a pointer to its name.
Result cuModuleGetFunction(void** function, void*, const char* name) {
    Guard guard(lock);
    static std::map<std::string, std::string> names;
    count("lookups of kernels");
    *function = &names.try_emplace(name, name).first->second;
    return SUCCESS;
}

Result cuLaunchKernel(const std::string* function, u32 x, u32 y, u32 z, u32 n_threads, u32, u32, u32, Stream* stream,
                      void** values, void**) {
    Guard guard(lock);
    return launch(stream, *function, {x, y, z}, n_threads, values);
}

Result cuGetErrorName(Result, const char** name) {
    *name = "an error of the emulated device";
    return SUCCESS;
}

Result cuGetErrorString(Result, const char** text) { return cuGetErrorName(SUCCESS, text); }

Result cublasCreate_v2(Multiplier** created) {
    Guard guard(lock);
    *created = new Multiplier;
    return wait_for_all();
}

Result cublasDestroy_v2(Multiplier* multiplier) {
    Guard guard(lock);
    delete multiplier;
    wait_for_all();
    return SUCCESS;
}

Result cublasSetWorkspace_v2(Multiplier*, size_t address, size_t n) {
    Guard guard(lock);
    check(address, n);
    return SUCCESS;
}

Result cublasSetStream_v2(Multiplier* multiplier, Stream* stream) {
    multiplier->stream = stream;
    return SUCCESS;
}

Result cublasSetMathMode(void*, int) { return SUCCESS; }

Result cublasGemmEx(const Multiplier* multiplier, int transposes_a, int transposes_b, int m, int n, int k,
                    const void* alpha, size_t a, int a_type, int a_stride, size_t b, int b_type, int b_stride,
                    const void* beta, size_t c, int c_type, int c_stride, int compute_type, int) {
    constexpr int TRANSPOSED = 1, UNCHANGED = 0, COMPUTE_32F = 68;
    Guard guard(lock);
    count_launch(multiplier->stream, "cublasGemmEx");
    float one = *static_cast<const float*>(alpha), factor = *static_cast<const float*>(beta);
    bool is_known = transposes_a == TRANSPOSED && transposes_b == UNCHANGED && compute_type == COMPUTE_32F;
    if (!is_known || one != 1.0f || m <= 0 || n <= 0 || k <= 0) fail("an unknown kind of multiplication");
    if (is_idle()) return SUCCESS;
    add(multiplier->stream, [=] {
        multiply(m, n, k, {a, a_type, a_stride}, {b, b_type, b_stride}, factor, {c, c_type, c_stride});
    });
    return SUCCESS;
}

Result curandCreateGenerator(void** created, int) {
    *created = &handle;
    return SUCCESS;
}

Result curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return SUCCESS; }

Result curandSetStream(void*, void*) { return SUCCESS; }

Result curandDestroyGenerator(void*) { return SUCCESS; }

} // extern "C"
