// Runs a CUDA kernel on the host, one block after the other, its threads as fibres.
//
// A fibre runs until its next barrier or warp-wide operation. Which warp runs next, and in
// which order its lanes do, is drawn anew each time: a kernel that needs an order which no
// barrier gives it comes out wrong for some schedules. Included before the kernel's source
// (g++ -include); knows what that source uses and nothing else.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct Dimensions {
    unsigned x = 1;
};
static Dimensions threadIdx, blockIdx, blockDim;

namespace emulator {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStackBytes = 16 * 1024 + 320;  // no power of two: they would share cache lines

enum class State { kReady, kInWarpOperation, kAtBarrier, kDone };
enum Result { kFinished = 0, kDivergentWarp = 1, kDivergentBarrier = 2 };

struct Fibre {
    jmp_buf here;
    bool started = false;
    State state = State::kReady;
    unsigned value = 0;  // what this lane gives to a warp-wide operation, then its result
};

static std::vector<Fibre> fibres;
static std::vector<ucontext_t> starts;
static std::unique_ptr<char[]> stacks;
static jmp_buf scheduler;
static std::function<void()> kernel;

// Whole ucontext switches cost a system call each; after the first, setjmp does it without.
inline __attribute__((noinline)) void give_way(State state) {
    Fibre& self = fibres[threadIdx.x];
    self.state = state;
    if (_setjmp(self.here) == 0) _longjmp(scheduler, 1);
}

inline void run_fibre() {
    kernel();
    give_way(State::kDone);
}

inline __attribute__((noinline)) void resume(unsigned thread) {
    threadIdx.x = thread;
    Fibre& fibre = fibres[thread];
    if (_setjmp(scheduler) != 0) return;
    if (fibre.started) _longjmp(fibre.here, 1);
    fibre.started = true;
    setcontext(&starts[thread]);
}

inline void prepare(unsigned threads) {
    fibres.assign(threads, Fibre());
    starts.resize(threads);
    stacks.reset(new char[threads * kStackBytes]);
    for (unsigned thread = 0; thread < threads; ++thread) {
        ucontext_t& start = starts[thread];
        getcontext(&start);
        start.uc_stack.ss_sp = stacks.get() + thread * kStackBytes;
        start.uc_stack.ss_size = kStackBytes;
        makecontext(&start, run_fibre, 0);
    }
}

class Block {
  public:
    Block(unsigned threads, std::uint64_t schedule)
        : num_warps_(threads / kLanes), random_state_(schedule * 2 + 1) {
        prepare(threads);
    }

    Result run() {
        for (unsigned warp = 0;;) {
            if (random() % 4 == 0 || !ready(warp)) warp = random() % num_warps_;
            for (unsigned tries = 0; !ready(warp) && tries < num_warps_; ++tries)
                warp = (warp + 1) % num_warps_;
            if (!ready(warp)) {
                if (all(0, threads(), State::kDone)) return kFinished;
                if (!all(0, threads(), State::kAtBarrier)) return kDivergentBarrier;
                set(0, threads(), State::kReady);
                continue;
            }
            run_lanes(warp);
            if (!settle(warp)) return kDivergentWarp;
        }
    }

  private:
    unsigned threads() const { return num_warps_ * kLanes; }
    bool ready(unsigned warp) const { return fibres[warp * kLanes].state == State::kReady; }

    bool all(unsigned first, unsigned count, State state) const {
        for (unsigned thread = first; thread < first + count; ++thread)
            if (fibres[thread].state != state) return false;
        return true;
    }

    void set(unsigned first, unsigned count, State state) {
        for (unsigned thread = first; thread < first + count; ++thread)
            fibres[thread].state = state;
    }

    // An odd stride from anywhere visits every lane once.
    void run_lanes(unsigned warp) {
        const unsigned start = random(), stride = random() | 1;
        for (unsigned turn = 0; turn < kLanes; ++turn)
            resume(warp * kLanes + (start + turn * stride) % kLanes);
    }

    // All lanes of a warp must have come to the same place.
    bool settle(unsigned warp) {
        const unsigned first = warp * kLanes;
        if (all(first, kLanes, State::kInWarpOperation)) {
            unsigned least = fibres[first].value;
            for (unsigned lane = 1; lane < kLanes; ++lane)
                if (fibres[first + lane].value < least) least = fibres[first + lane].value;
            for (unsigned lane = 0; lane < kLanes; ++lane) fibres[first + lane].value = least;
            set(first, kLanes, State::kReady);
            return true;
        }
        return all(first, kLanes, State::kAtBarrier) || all(first, kLanes, State::kDone);
    }

    unsigned random() {
        random_state_ = random_state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<unsigned>(random_state_ >> 33);
    }

    unsigned num_warps_;
    std::uint64_t random_state_;
};

inline Result launch(std::function<void()> body, unsigned blocks, unsigned threads,
                     std::uint64_t schedule) {
    kernel = std::move(body);
    blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        if (Result result = Block(threads, schedule + blockIdx.x).run()) return result;
    return kFinished;
}

}  // namespace emulator

inline void __syncthreads() { emulator::give_way(emulator::State::kAtBarrier); }

inline unsigned __reduce_min_sync(unsigned, unsigned value) {
    emulator::fibres[threadIdx.x].value = value;
    emulator::give_way(emulator::State::kInWarpOperation);
    return emulator::fibres[threadIdx.x].value;
}

inline unsigned __float_as_uint(float number) {
    unsigned bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
}

// As CUDA has it: any NaN loses. The host's own turns a signalling NaN into the result.
inline float larger(float a, float b) { return a != a || b > a ? b : a; }
inline float smaller(float a, float b) { return a != a || b < a ? b : a; }
#define fmaxf larger
#define fminf smaller

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
