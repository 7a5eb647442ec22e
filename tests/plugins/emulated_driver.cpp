// The part of libcuda that plugins/driver.py and the tests call, over emulated kernels.
//
// "Device" memory is host memory; loading a module only checks that it is our PTX. The
// environment of the test process stays as it is: the library is opened by its path. ENTRIES names
// the kernels: ENTRY(one) ENTRY(another).

#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <utility>

namespace {

enum { kSuccess = 0, kInvalidValue = 1, kInvalidImage = 200, kUnsupportedPtx = 222 };
enum { kNotFound = 500, kLaunchFailed = 719 };
enum { kClusterSize = 4, kMajor = 75, kMinor = 76 };
std::uint64_t schedule = 0;
std::map<std::string, int> launches;
int capability = 90, context;
double newest_ptx = 8.5;

using Body = std::function<void()>;
using Binder = Body (*)(void** arguments);

template <auto kernel, typename... Values, std::size_t... places>
Body bind_each(void (*)(Values...), void** arguments, std::index_sequence<places...>) {
    auto values = std::make_tuple(*static_cast<Values*>(arguments[places])...);
    return [=] { std::apply(kernel, values); };
}

template <auto kernel, typename... Values>
Body bind_to(void (*type)(Values...), void** arguments) {
    return bind_each<kernel>(type, arguments, std::index_sequence_for<Values...>());
}

struct Entry {
    const char* name;
    Binder bind;
};

#define ENTRY(name) {#name, [](void** arguments) { return bind_to<name>(name, arguments); }},
const Entry entries[] = {ENTRIES};

struct Attribute {  // CUlaunchAttribute
    unsigned id, unused;
    unsigned values[16];
};

struct Configuration {  // CUlaunchConfig
    unsigned grid[3], block[3], shared;
    void* stream;
    const Attribute* attributes;
    unsigned num_attributes;
};

using Launch = emulator::Result (*)(Body, unsigned, unsigned, std::uint64_t);

int run(void* function, const unsigned* shape, unsigned shared, void** arguments, Launch launch) {
    const auto* entry = static_cast<const Entry*>(function);
    const unsigned blocks = shape[0], threads = shape[3];
    if (shape[1] * shape[2] * shape[4] * shape[5] != 1 || shared || threads % 32 ||
        threads > 1024 || threads == 0)
        return kInvalidValue;
    ++launches[entry->name];
#ifdef BLOCKS_AT_ONCE
    emulator::copies.clear();
    emulator::products_at_once = 4u << schedule % 3;
#endif
    return launch(entry->bind(arguments), blocks, threads, schedule) ? kLaunchFailed : kSuccess;
}

}  // namespace

extern "C" {

void emulator_set_schedule(std::uint64_t number) { schedule = number; }

#ifdef BLOCKS_AT_ONCE
void emulator_set_lack(int number) { lacks = number; }
#endif

void emulator_set_newest_ptx(double version) { newest_ptx = version; }

void emulator_set_capability(int number) { capability = number; }

int emulator_launches(const char* name) { return launches[name]; }

int cuInit(unsigned flags) { return flags == 0 ? kSuccess : kInvalidValue; }

int cuGetErrorString(int code, const char** text) {
    *text = code == kNotFound ? "named symbol not found" : "emulated error";
    return kSuccess;
}

int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? kSuccess : kInvalidValue;
}

int cuCtxGetDevice(int* device) { return cuDeviceGet(device, 0); }

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (device != 0 || (attribute != kMajor && attribute != kMinor)) return kInvalidValue;
    *value = attribute == kMajor ? capability / 10 : capability % 10;
    return kSuccess;
}

int cuDevicePrimaryCtxRetain(void** handle, int) {
    *handle = &context;
    return kSuccess;
}

int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }

int cuCtxSetCurrent(void*) { return kSuccess; }

int cuCtxGetCurrent(void** handle) {
    *handle = &context;
    return kSuccess;
}

int cuModuleLoadData(void** handle, const void* image) {
    auto* text = new std::string(static_cast<const char*>(image));  // for the life of the process
    *handle = text;
    const auto place = text->find(".version ");
    if (place == std::string::npos) return kInvalidImage;
    return std::atof(text->c_str() + place + 9) > newest_ptx ? kUnsupportedPtx : kSuccess;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    const std::string entry = std::string(".entry ") + name + "(";
    *function = nullptr;
    if (static_cast<std::string*>(module)->find(entry) != std::string::npos)
        for (const Entry& each : entries)
            if (each.name == std::string(name)) *function = const_cast<Entry*>(&each);
    return *function ? kSuccess : kNotFound;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, void*,
                   void** arguments, void** extra) {
    const unsigned shape[] = {grid_x, grid_y, grid_z, block_x, block_y, block_z};
    return extra ? kInvalidValue : run(function, shape, shared, arguments, emulator::launch);
}

int cuLaunchCooperativeKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                              unsigned block_x, unsigned block_y, unsigned block_z,
                              unsigned shared, void*, void** arguments) {
    const unsigned shape[] = {grid_x, grid_y, grid_z, block_x, block_y, block_z};
    return run(function, shape, shared, arguments, emulator::launch_at_once);
}

int cuLaunchKernelEx(const Configuration* given, void* function, void** arguments, void** extra) {
    if (extra || given->num_attributes != 1 || given->attributes->id != kClusterSize ||
        given->attributes->values[0] != given->grid[0] || given->grid[0] > 8)
        return kInvalidValue;
    const unsigned shape[] = {given->grid[0],  given->grid[1],  given->grid[2],
                              given->block[0], given->block[1], given->block[2]};
    return run(function, shape, given->shared, arguments, emulator::launch_at_once);
}

int cuMemAlloc_v2(std::uint64_t* address, std::size_t size) {
    *address = reinterpret_cast<std::uint64_t>(std::aligned_alloc(256, (size + 255) / 256 * 256));
    return kSuccess;
}

int cuMemFree_v2(std::uint64_t address) {
    std::free(reinterpret_cast<void*>(address));
    return kSuccess;
}

int cuMemsetD8Async(std::uint64_t target, unsigned char value, std::size_t size, void*) {
    std::memset(reinterpret_cast<void*>(target), value, size);
    return kSuccess;
}

int cuMemcpyHtoD_v2(std::uint64_t target, const void* source, std::size_t size) {
    std::memcpy(reinterpret_cast<void*>(target), source, size);
    return kSuccess;
}

int cuMemcpyDtoH_v2(void* target, std::uint64_t source, std::size_t size) {
    std::memcpy(target, reinterpret_cast<void*>(source), size);
    return kSuccess;
}

int cuStreamCreate(void** stream, unsigned flags) {
    *stream = &context;  // any address: everything runs at once
    return flags == 0 ? kSuccess : kInvalidValue;
}

int cuStreamSynchronize(void*) { return kSuccess; }

}  // extern "C"
