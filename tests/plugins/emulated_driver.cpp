// The part of libcuda that plugins/driver.py and the tests call, over the emulated kernel.
//
// "Device" memory is host memory; loading a module only checks that it is our PTX. The
// environment of the test process stays as it is: the library is opened by its path.

#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <string>

using Kernel = void (*)(const float*, const int*, int, int, int*, float*);

namespace {
enum { kSuccess = 0, kInvalidValue = 1, kInvalidImage = 200, kNotFound = 500, kLaunchFailed = 719 };
std::uint64_t schedule = 0;
std::string loaded;
int context, module;
}  // namespace

extern "C" {

void emulator_set_schedule(std::uint64_t number) { schedule = number; }

int cuInit(unsigned flags) { return flags == 0 ? kSuccess : kInvalidValue; }

int cuGetErrorString(int code, const char** text) {
    *text = code == kNotFound ? "named symbol not found" : "emulated error";
    return kSuccess;
}

int cuDeviceGet(int* device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? kSuccess : kInvalidValue;
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
    loaded = static_cast<const char*>(image);
    *handle = &module;
    return loaded.find(".version 8.5") == std::string::npos ? kInvalidImage : kSuccess;
}

int cuModuleGetFunction(void** function, void*, const char* name) {
    const std::string entry = std::string(".entry ") + name + "(";
    *function = loaded.find(entry) == std::string::npos ? nullptr : dlsym(RTLD_DEFAULT, name);
    Dl_info here;
    if (*function == nullptr && loaded.find(entry) != std::string::npos &&
        dladdr(reinterpret_cast<void*>(&cuInit), &here))
        *function = dlsym(dlopen(here.dli_fname, RTLD_NOW), name);
    return *function ? kSuccess : kNotFound;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared, void*,
                   void** arguments, void** extra) {
    if (grid_y * grid_z * block_y * block_z != 1 || shared || extra || block_x % 32 ||
        block_x > 1024 || block_x == 0)
        return kInvalidValue;
    const auto gram = *static_cast<const float**>(arguments[0]);
    const auto seed = *static_cast<const int**>(arguments[1]);
    const int num_tokens = *static_cast<int*>(arguments[2]);
    const int num_kept = *static_cast<int*>(arguments[3]);
    const auto order = *static_cast<int**>(arguments[4]);
    const auto cover = *static_cast<float**>(arguments[5]);
    const auto kernel = reinterpret_cast<Kernel>(function);
    const auto body = [=] { kernel(gram, seed, num_tokens, num_kept, order, cover); };
    return emulator::launch(body, grid_x, block_x, schedule) ? kLaunchFailed : kSuccess;
}

int cuMemAlloc_v2(std::uint64_t* address, std::size_t size) {
    *address = reinterpret_cast<std::uint64_t>(std::malloc(size));
    return kSuccess;
}

int cuMemFree_v2(std::uint64_t address) {
    std::free(reinterpret_cast<void*>(address));
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

int cuStreamSynchronize(void*) { return kSuccess; }

}  // extern "C"
