// The greedy half of DivPrune by several blocks: K of N tokens, farthest first, for one image.
//
// The rule is that of greedy_max_min.cu: again and again the unselected token whose largest
// similarity to the selected ones is smallest; ties go to the lowest index.
//
//   gram      float32 [N, N]
//   seed      int32, the token to begin with
//   order     int32 [K], cover float32 [K]: as in greedy_max_min.cu
//   inbox     [2][2][kMaxBlocks] messages of zero; grid only
//
// and for the exact kernels, where gram is within `bound` of the similarities in similarity.cuh and
// the order is theirs:
//
//   rows, norms, width   the features
//   chosen    int32 [K + 1]: the order, and the token that would come next, or -1
//
// Entries: greedy_grid_T and exact_grid_T (a cooperative launch; blocks write to global memory),
// greedy_cluster_T and exact_cluster_T (one cluster; blocks write to each other's shared memory;
// compiled for 9.0 and later). T tokens a thread at most; blocks of the same number of whole warps,
// at most kMaxBlocks of them and in all at least N / T threads, for the exact ones at most kLocal
// tokens a block.
//
// Compiled by NVRTC without any other header, and by g++ against tests/plugins/block_emulator.h.
#include "similarity.cuh"

enum : int {
    kMaxBlocks = 32,
    kMaxTokens = 10240,
    kLocal = 2560,
};

#ifdef __CUDACC__

// A message is one number that is there whole or not at all; what else was written before or after
// it does not matter. So no fence is needed.
__device__ inline void send(Candidate* place, Candidate message) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(place)),
                 "l"(message)
                 : "memory");
}

__device__ inline Candidate received(const Candidate* place) {
    Candidate message;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];"
                 : "=l"(message)
                 : "l"(__cvta_generic_to_global(place))
                 : "memory");
    return message;
}

#if __CUDA_ARCH__ >= 900

// The same place in the shared memory of another block of the cluster.
__device__ inline void send_to_block(Candidate* place, unsigned block, Candidate message) {
    asm volatile(
        "{ .reg .u32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "st.relaxed.cluster.shared::cluster.u64 [there], %2; }" ::"r"(
            static_cast<unsigned>(__cvta_generic_to_shared(place))),
        "r"(block), "l"(message)
        : "memory");
}

__device__ inline Candidate received_in_block(const Candidate* place) {
    Candidate message;
    asm volatile("ld.relaxed.cluster.shared::cta.u64 %0, [%1];"
                 : "=l"(message)
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(place)))
                 : "memory");
    return message;
}

__device__ inline void wait_for_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

#endif
#endif

// The least candidate, and the least value among the others. A label is the token's index twice, and
// one more if the value is exact.
struct Best {
    Candidate first;
    unsigned second;

    __device__ unsigned label() const { return static_cast<unsigned>(first); }
    __device__ unsigned value() const { return static_cast<unsigned>(first >> 32); }
};

__device__ inline Best nothing() { return {pack(kNothing, kNothing), kNothing}; }

__device__ inline void take(Best& best, Candidate candidate) {
    const Candidate worse = candidate < best.first ? best.first : candidate;
    if (candidate < best.first) best.first = candidate;
    best.second = min(best.second, static_cast<unsigned>(worse >> 32));
}

template <bool kExact>
__device__ inline Best least_of_warp(Best best) {
    const unsigned least = __reduce_min_sync(kAllLanes, best.value());
    const unsigned label = best.value() == least ? best.label() : kNothing;
    const Candidate first = pack(least, __reduce_min_sync(kAllLanes, label));
    unsigned second = kNothing;
    if constexpr (kExact)
        second = __reduce_min_sync(kAllLanes, best.first == first ? best.second : best.value());
    return {first, second};
}

// What a block has in shared memory beside its inbox.
struct Slots {
    Best warps[2][kMaxWarps];
    Best agreed[2];
};

// Blocks that tell each other through a cluster's shared memory, where every warp looks for itself.
struct Cluster {
    Candidate (*inbox)[2][kMaxBlocks];  // this block's
    static constexpr bool kEveryWarpLooks = true;

    __device__ void tell(Candidate* place, Candidate message) const {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
        const unsigned block = threadIdx.x;
        if (block < gridDim.x) send_to_block(place, block, message);
#endif
    }
    __device__ Candidate look(const Candidate* place) const {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
        return received_in_block(place);
#else
        return 0;
#endif
    }
};

// Blocks that tell each other through global memory, where one warp of each looks.
struct Grid {
    Candidate (*inbox)[2][kMaxBlocks];  // of all
    static constexpr bool kEveryWarpLooks = false;

    __device__ void tell(Candidate* place, Candidate message) const {
        if (threadIdx.x == 0) send(place, message);
    }
    __device__ Candidate look(const Candidate* place) const { return received(place); }
};

__device__ inline Candidate message(unsigned value, unsigned tag, unsigned label) {
    return pack(value, tag << 16 | (label & 0xffff));
}

// Waits for the message of every block; a lane has that of one.
template <class Link>
__device__ inline Candidate await(const Link& link, const Candidate* messages, unsigned tag) {
    const unsigned lane = threadIdx.x % kWarpSize;
    const bool awaited = lane < gridDim.x;
    Candidate message;
    do {
        message = awaited ? link.look(messages + lane) : 0;
    } while (__any_sync(kAllLanes, awaited && (message >> 16 & 0xffff) != tag));
    if (!awaited) return pack(kNothing, kNothing);
    const unsigned label = message & 0xffff;
    return pack(message >> 32, label == 0xffff ? kNothing : label);
}

// The least candidate of all blocks, in all their threads; `number` counts the calls from 0 on.
// Two sets of slots and of messages take turns: a block that is ahead has had the others' messages
// of the call before, so that none of them still reads what it writes over. Messages carry the
// number of their call, which tells them from older ones.
template <bool kExact, class Link>
__device__ inline Best least_of_all(Best best, const Link& link, Slots& slots, unsigned number) {
    const unsigned warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const unsigned turn = number % 2, tag = number + 1;
    best = least_of_warp<kExact>(best);
    if (lane == 0) slots.warps[turn][warp] = best;
    __syncthreads();
    if (!Link::kEveryWarpLooks && warp != 0) {
        __syncthreads();
        return slots.agreed[turn];
    }
    best = lane < blockDim.x / kWarpSize ? slots.warps[turn][lane] : nothing();
    best = least_of_warp<kExact>(best);
    Candidate* firsts = link.inbox[turn][0];
    Candidate* seconds = link.inbox[turn][1];
    if (warp == 0) {
        link.tell(firsts + blockIdx.x, message(best.value(), tag, best.label()));
        if (kExact) link.tell(seconds + blockIdx.x, message(best.second, tag, 0));
    }
    best.first = await(link, firsts, tag);
    if (kExact) best.second = static_cast<unsigned>(await(link, seconds, tag) >> 32);
    best = least_of_warp<kExact>(best);
    if (!Link::kEveryWarpLooks) {
        if (lane == 0) slots.agreed[turn] = best;
        __syncthreads();
    }
    return best;
}

// What the exact kernels have in shared memory.
struct Doubts {
    unsigned count;
    unsigned short tokens[kLocal];    // that are in doubt, as places in this block
    float known[kLocal];              // at least the largest similarity; exact after refining
    unsigned short done[kLocal];      // steps whose token is in that number exactly
    unsigned short chosen[kMaxTokens];
};

struct Empty {};

// Replaces what is known of the tokens in doubt by their largest similarity to the chosen ones. Of
// these only those matter whose similarity may exceed what is known.
__device__ inline void refine(const float* gram, const Features& features, float bound,
                              int num_tokens, int step, Doubts& doubts) {
    const unsigned warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    for (unsigned item = warp; item < doubts.count; item += blockDim.x / kWarpSize) {
        const unsigned local = doubts.tokens[item];
        const int token = (local / blockDim.x * gridDim.x + blockIdx.x) * blockDim.x +
                          local % blockDim.x;
        const float* alike = gram + static_cast<unsigned long long>(token) * num_tokens;
        const float known = doubts.known[local];
        float largest = known;
        for (int begin = doubts.done[local]; begin <= step; begin += kWarpSize) {
            const int other = min(begin + static_cast<int>(lane), step);
            const bool matters = alike[doubts.chosen[other]] + bound >= known;
            unsigned todo = __ballot_sync(kAllLanes, matters && other == begin + lane);
            for (; todo; todo &= todo - 1) {
                const int chosen = doubts.chosen[begin + __ffs(todo) - 1];
                largest = fmaxf(largest, similarity(features, token, chosen));
            }
        }
        if (lane == 0) {
            doubts.known[local] = largest;
            doubts.done[local] = step + 1;
        }
    }
}

// With kExact a token's largest similarity lies in [low, low + 2 bound], or is low where its bit of
// `exact` is set. The least low is that of the token to choose if it is exact, or if every other low
// lies above its interval. Otherwise all those whose low lies in the interval are refined, which
// makes every candidate for the least exact.
template <int kTokens, bool kExact, class Link, class Memory>
__device__ inline void choose(const float* __restrict__ gram, const Features& features, float bound,
                              int first, int num_tokens, int num_kept, int* __restrict__ order,
                              float* __restrict__ cover, const Link& link, Slots& slots,
                              Memory& memory) {
    const int place = blockIdx.x * blockDim.x + threadIdx.x, stride = gridDim.x * blockDim.x;
    const bool writes = place == 0;
    float low[kTokens];
    unsigned closed = 0;  // one bit a slot: selected already, or no token
    unsigned exact = kExact ? 0 : kNothing;
#pragma unroll
    for (int slot = 0; slot < kTokens; ++slot) {
        low[slot] = kNoSimilarity;
        if (place + slot * stride >= num_tokens) closed |= 1u << slot;
        if constexpr (kExact) memory.done[slot * blockDim.x + threadIdx.x] = 0;
    }
    if constexpr (kExact)
        if (threadIdx.x == 0) memory.count = 0;
    int last = min(max(first, 0), num_tokens - 1);
    unsigned number = 0;  // of the calls of least_of_all
    for (int step = 0; step < num_kept; ++step) {
        if (writes) order[step] = last;
        if constexpr (kExact)
            if (threadIdx.x == 0) memory.chosen[step] = last;
        const float* row = gram + static_cast<unsigned long long>(last) * num_tokens;
#pragma unroll
        for (int slot = 0; slot < kTokens; ++slot) {
            const int token = place + slot * stride;
            const float alike = row[min(token, num_tokens - 1)];
            low[slot] = fmaxf(low[slot], kExact ? alike - bound : alike);
            if (kExact && fminf(alike + bound, 1.0f) > low[slot]) exact &= ~(1u << slot);
            if (token == last) closed |= 1u << slot;
        }
        Best best;
        while (true) {
            best = nothing();
#pragma unroll
            for (int slot = 0; slot < kTokens; ++slot) {
                const unsigned label = 2 * (place + slot * stride) + (exact >> slot & 1);
                if (!(closed >> slot & 1)) take(best, pack(ordered(low[slot]), label));
            }
            best = least_of_all<kExact>(best, link, slots, number++);
            if constexpr (!kExact) break;
            const float high = number_of(best.value()) + 2 * bound;
            if (best.label() & 1 || best.second > ordered(high)) break;
            if constexpr (kExact) {
                unsigned doubtful = 0;
#pragma unroll
                for (int slot = 0; slot < kTokens; ++slot) {
                    if ((closed | exact) >> slot & 1 || low[slot] > high) continue;
                    const unsigned local = slot * blockDim.x + threadIdx.x;
                    doubtful |= 1u << slot;
                    memory.known[local] = low[slot];
                    memory.tokens[atomicAdd(&memory.count, 1u)] = local;
                }
                __syncthreads();
                refine(gram, features, bound, num_tokens, step, memory);
                __syncthreads();
                if (threadIdx.x == 0) memory.count = 0;
#pragma unroll
                for (int slot = 0; slot < kTokens; ++slot)
                    if (doubtful >> slot & 1)
                        low[slot] = memory.known[slot * blockDim.x + threadIdx.x];
                exact |= doubtful;
            }
        }
        last = best.label() >> 1;
        if (!kExact && writes)
            cover[step] = best.label() == kNothing ? 1.0f : fminf(number_of(best.value()), 1.0f);
        if (kExact && writes && step == num_kept - 1)
            order[num_kept] = best.label() == kNothing ? -1 : last;
    }
}

#define GREEDY_GRID(kTokens)                                                                   \
    extern "C" __global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1) greedy_grid_##kTokens( \
        const float* __restrict__ gram, const int* __restrict__ seed, int num_tokens,          \
        int num_kept, int* __restrict__ order, float* __restrict__ cover,                      \
        Candidate (*inbox)[2][kMaxBlocks]) {                                                   \
        __shared__ Slots slots;                                                                \
        Empty none;                                                                            \
        choose<kTokens, false>(gram, Features(), 0, *seed, num_tokens, num_kept, order, cover, \
                               Grid{inbox}, slots, none);                                      \
    }                                                                                          \
    extern "C" __global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1) exact_grid_##kTokens( \
        const float* __restrict__ gram, const unsigned short* __restrict__ rows,               \
        const double* __restrict__ norms, int width, float bound, const int* __restrict__ seed, \
        int num_tokens, int num_kept, int* __restrict__ chosen,                                \
        Candidate (*inbox)[2][kMaxBlocks]) {                                                   \
        __shared__ Slots slots;                                                                \
        __shared__ Doubts doubts;                                                              \
        choose<kTokens, true>(gram, Features{rows, norms, width}, bound, *seed, num_tokens,    \
                              num_kept, chosen, nullptr, Grid{inbox}, slots, doubts);          \
    }

#define GREEDY_CLUSTER(kTokens)                                                                \
    extern "C" __global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1)                      \
        greedy_cluster_##kTokens(const float* __restrict__ gram, const int* __restrict__ seed, \
                                 int num_tokens, int num_kept, int* __restrict__ order,        \
                                 float* __restrict__ cover) {                                  \
        __shared__ Slots slots;                                                                \
        __shared__ Candidate inbox[2][2][kMaxBlocks];                                          \
        Empty none;                                                                            \
        open_inbox(inbox);                                                                     \
        choose<kTokens, false>(gram, Features(), 0, *seed, num_tokens, num_kept, order, cover, \
                               Cluster{inbox}, slots, none);                                   \
        wait_for_cluster();                                                                    \
    }                                                                                          \
    extern "C" __global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1)                      \
        exact_cluster_##kTokens(const float* __restrict__ gram,                                \
                                const unsigned short* __restrict__ rows,                       \
                                const double* __restrict__ norms, int width, float bound,      \
                                const int* __restrict__ seed, int num_tokens, int num_kept,    \
                                int* __restrict__ chosen) {                                    \
        __shared__ Slots slots;                                                                \
        __shared__ Candidate inbox[2][2][kMaxBlocks];                                          \
        __shared__ Doubts doubts;                                                              \
        open_inbox(inbox);                                                                     \
        choose<kTokens, true>(gram, Features{rows, norms, width}, bound, *seed, num_tokens,    \
                              num_kept, chosen, nullptr, Cluster{inbox}, slots, doubts);       \
        wait_for_cluster();                                                                    \
    }

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
GREEDY_GRID(1)
GREEDY_GRID(2)
GREEDY_GRID(4)
#endif

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// No block may write before the others' inboxes are there and empty, nor leave before all have read.
__device__ inline void open_inbox(Candidate (*inbox)[2][kMaxBlocks]) {
    for (unsigned place = threadIdx.x; place < 4 * kMaxBlocks; place += blockDim.x)
        inbox[0][0][place] = 0;
    wait_for_cluster();
}

GREEDY_CLUSTER(1)
GREEDY_CLUSTER(2)
GREEDY_CLUSTER(4)

#endif
