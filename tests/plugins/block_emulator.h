// Runs a CUDA kernel on the host, its threads as fibres, blocks one after the other or, where they
// tell each other something, all at once.
//
// A fibre runs until its next barrier or warp-wide operation. Which warp of which block runs next,
// and in which order its lanes do, is drawn anew each time: a kernel that needs an order which no
// barrier gives it comes out wrong for some schedules. Included before the kernel's source
// (g++ -include); knows what that source uses and nothing else.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#ifdef BLOCKS_AT_ONCE  // a section that is exchanged for that of the block that runs
#define __shared__ static __attribute__((section("cuda_shared")))
extern char __start_cuda_shared[], __stop_cuda_shared[];
#else
#define __shared__ static
static char __start_cuda_shared[1], *const __stop_cuda_shared = __start_cuda_shared;
#endif
#define __launch_bounds__(...)

struct Dimensions {
    unsigned x = 1;
};
static Dimensions threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr unsigned kLanes = 32;
constexpr std::size_t kStackBytes = 16 * 1024 + 320;  // no power of two: they would share cache lines

enum class State { kReady, kInWarpOperation, kAtBarrier, kAtGridBarrier, kDone };
enum Result { kFinished, kPaused, kDivergentWarp, kDivergentBarrier, kDeadlock };
using Operation = void (*)(void* const* lanes);  // on what each lane gives; results replace it

struct Fibre {
    jmp_buf here;
    bool started = false;
    State state = State::kReady;
    Operation operation = nullptr;
    void* given = nullptr;
};

class Block;
static Block* current;
static std::vector<std::unique_ptr<Block>> blocks;
static jmp_buf scheduler;
static std::function<void()> kernel;
static bool looked;         // for a message, since a warp began to run
static unsigned long idle;  // looks since the last message was sent

inline void give_way(State state);

inline void run_fibre() {
    kernel();
    give_way(State::kDone);
}

class Block {
  public:
    Block(unsigned index, unsigned threads, std::uint64_t schedule, bool alone)
        : index_(index), num_warps_(threads / kLanes), alone_(alone),
          random_state_(schedule * 2 + 1), fibres_(threads), starts_(threads),
          stacks_(new char[threads * kStackBytes]), shared_(alone ? 0 : shared_bytes(), '\xcd') {
        for (unsigned thread = 0; thread < threads; ++thread) {
            ucontext_t& start = starts_[thread];
            getcontext(&start);
            start.uc_stack.ss_sp = stacks_.get() + thread * kStackBytes;
            start.uc_stack.ss_size = kStackBytes;
            makecontext(&start, run_fibre, 0);
        }
    }

    // Until the block ends or comes to a barrier of all blocks, or, unless alone, any warp has run.
    Result run() {
        enter();
        for (unsigned warp = 0;;) {
            if (random() % 4 == 0 || !ready(warp)) warp = random() % num_warps_;
            for (unsigned tries = 0; !ready(warp) && tries < num_warps_; ++tries)
                warp = (warp + 1) % num_warps_;
            if (!ready(warp)) {
                if (everywhere(State::kDone)) return kFinished;
                if (everywhere(State::kAtGridBarrier)) return kPaused;
                if (!everywhere(State::kAtBarrier)) return kDivergentBarrier;
                set(0, threads(), State::kReady);
                continue;
            }
            looked = false;
            run_lanes(warp);
            if (!settle(warp)) return kDivergentWarp;
            if (!alone_ && random() % (looked ? 4 : 64) == 0) return kPaused;
        }
    }

    bool everywhere(State state) const { return all(0, threads(), state); }
    void pass_grid_barrier() { set(0, threads(), State::kReady); }
    Fibre& fibre() { return fibres_[threadIdx.x]; }

    // Where a place of the block that runs is in this block.
    void* there(void* place) {
        return current == this ? place : &shared_[static_cast<char*>(place) - __start_cuda_shared];
    }

    unsigned random() {
        random_state_ = random_state_ * 6364136223846793005u + 1442695040888963407u;
        return static_cast<unsigned>(random_state_ >> 33);
    }

  private:
    static std::size_t shared_bytes() { return __stop_cuda_shared - __start_cuda_shared; }
    unsigned threads() const { return num_warps_ * kLanes; }
    bool ready(unsigned warp) const { return fibres_[warp * kLanes].state == State::kReady; }

    void enter() {
        if (current != this && !shared_.empty()) {
            if (current) std::memcpy(current->shared_.data(), __start_cuda_shared, shared_bytes());
            std::memcpy(__start_cuda_shared, shared_.data(), shared_bytes());
        }
        current = this;
        blockIdx.x = index_;
    }

    bool all(unsigned first, unsigned count, State state) const {
        for (unsigned thread = first; thread < first + count; ++thread)
            if (fibres_[thread].state != state) return false;
        return true;
    }

    void set(unsigned first, unsigned count, State state) {
        for (unsigned thread = first; thread < first + count; ++thread)
            fibres_[thread].state = state;
    }

    // An odd stride from anywhere visits every lane once.
    void run_lanes(unsigned warp) {
        const unsigned start = random(), stride = random() | 1;
        for (unsigned turn = 0; turn < kLanes; ++turn)
            resume(warp * kLanes + (start + turn * stride) % kLanes);
    }

    __attribute__((noinline)) void resume(unsigned thread) {
        threadIdx.x = thread;
        Fibre& fibre = fibres_[thread];
        if (_setjmp(scheduler) != 0) return;
        if (fibre.started) _longjmp(fibre.here, 1);
        fibre.started = true;
        setcontext(&starts_[thread]);
    }

    // All lanes of a warp must have come to the same place.
    bool settle(unsigned warp) {
        Fibre* lanes = &fibres_[warp * kLanes];
        const State state = lanes[0].state;
        if (!all(warp * kLanes, kLanes, state)) return false;
        if (state != State::kInWarpOperation) return state != State::kReady;
        void* given[kLanes];
        for (unsigned lane = 0; lane < kLanes; ++lane) {
            if (lanes[lane].operation != lanes[0].operation) return false;
            given[lane] = lanes[lane].given;
        }
        lanes[0].operation(given);
        set(warp * kLanes, kLanes, State::kReady);
        return true;
    }

    unsigned index_, num_warps_;
    bool alone_;
    std::uint64_t random_state_;
    std::vector<Fibre> fibres_;
    std::vector<ucontext_t> starts_;
    std::unique_ptr<char[]> stacks_;
    std::vector<char> shared_;
};

// Whole ucontext switches cost a system call each; after the first, setjmp does it without.
inline __attribute__((noinline)) void give_way(State state) {
    Fibre& self = current->fibre();
    self.state = state;
    if (_setjmp(self.here) == 0) _longjmp(scheduler, 1);
}

inline void together(Operation operation, void* given) {
    Fibre& self = current->fibre();
    self.operation = operation;
    self.given = given;
    give_way(State::kInWarpOperation);
}

// Blocks one after the other; none may wait for another.
inline Result launch(std::function<void()> body, unsigned num_blocks, unsigned threads,
                     std::uint64_t schedule) {
    kernel = std::move(body);
    blockDim.x = threads, gridDim.x = num_blocks;
    for (unsigned index = 0; index < num_blocks; ++index) {
        Block block(index, threads, schedule + index, true);
        const Result result = block.run();
        current = nullptr;
        if (result) return result == kPaused ? kDivergentBarrier : result;
    }
    return kFinished;
}

// All blocks at once, as a cluster or a cooperative grid.
inline Result launch_at_once(std::function<void()> body, unsigned num_blocks, unsigned threads,
                             std::uint64_t schedule) {
    kernel = std::move(body);
    blockDim.x = threads, gridDim.x = num_blocks;
    current = nullptr, idle = 0;
    blocks.clear();
    for (unsigned index = 0; index < num_blocks; ++index)
        blocks.emplace_back(new Block(index, threads, schedule + index, false));
    Result result = kPaused;
    while (result == kPaused) {
        std::vector<Block*> running, waiting;
        for (const auto& block : blocks)
            if (block->everywhere(State::kAtGridBarrier)) waiting.push_back(block.get());
            else if (!block->everywhere(State::kDone)) running.push_back(block.get());
        if (!running.empty()) {
            result = running[blocks[0]->random() % running.size()]->run();
            if (result == kFinished) result = kPaused;
            if (idle > 20000 * num_blocks) result = kDeadlock;
        } else if (waiting.size() == num_blocks) {
            for (Block* block : waiting) block->pass_grid_barrier();
        } else {
            result = waiting.empty() ? kFinished : kDivergentBarrier;
        }
    }
    current = nullptr;
    blocks.clear();
    return result;
}

}  // namespace emulator

inline void __syncthreads() { emulator::give_way(emulator::State::kAtBarrier); }

inline unsigned __reduce_min_sync(unsigned, unsigned value) {
    const auto least = [](void* const* lanes) {
        unsigned found = *static_cast<unsigned*>(lanes[0]);
        for (unsigned lane = 1; lane < emulator::kLanes; ++lane)
            if (*static_cast<unsigned*>(lanes[lane]) < found)
                found = *static_cast<unsigned*>(lanes[lane]);
        for (unsigned lane = 0; lane < emulator::kLanes; ++lane)
            *static_cast<unsigned*>(lanes[lane]) = found;
    };
    emulator::together(least, &value);
    return value;
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
