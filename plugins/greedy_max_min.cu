// The greedy half of DivPrune: K of N tokens, farthest first, from their similarities.
//
// Again and again the unselected token whose largest similarity to the selected ones is
// smallest; ties go to the lowest index. Given the same matrix and the same first token the
// order is that of export/selection/divprune.py, always.
//
//   gram   float32 [images, N, N]  row i: similarities of token i to all tokens
//   seed   int32   [images, K]     the first of a row is the token to begin with, brought into
//                                  0..N-1; the others are not read: its length is K
//   order  int32   [images, K]     the selected tokens in the order chosen, K <= N
//   cover  float32 [images, K]     after each choice the least of the tokens' largest similarities
//                                  to the selected, at most 1, over those that are left; else 1
//
// One launch: one block an image (gridDim.x = images), a multiple of 32 threads, and at most
// as many tokens a thread as the entry's name says. A thread owns the tokens
// threadIdx.x + slot * blockDim.x. NaN similarities are ignored, infinite ones compared:
// whatever the matrix holds, the order has K different tokens.
//
// Compiled by NVRTC without any header, and by g++ against tests/plugins/block_emulator.h.

enum : unsigned {
    kWarpSize = 32,
    kMaxWarps = 32,
    kAllLanes = 0xffffffff,
    kNothing = 0xffffffff,  // above every token and every ordered number
};

// value << 32 | token: the least candidate is the lowest token of the least value.
using Candidate = unsigned long long;

__device__ inline Candidate pack(unsigned value, unsigned token) {
    return static_cast<Candidate>(value) << 32 | token;
}

// Unsigned integers in the order of the numbers; adding 0 makes one number of -0.0 and 0.0.
__device__ inline unsigned ordered(float number) {
    const unsigned bits = __float_as_uint(number + 0.0f);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// The number that became this integer, but at most 1. All ones were a NaN: no token was left.
__device__ inline float at_most_one(unsigned value) {
    return fminf(__uint_as_float(value & 0x80000000 ? value & 0x7fffffff : ~value), 1.0f);
}

// The least candidate of a warp, in all its lanes.
__device__ inline Candidate least_of_warp(Candidate candidate) {
    const unsigned value = static_cast<unsigned>(candidate >> 32);
    const unsigned least = __reduce_min_sync(kAllLanes, value);
    const unsigned token = value == least ? static_cast<unsigned>(candidate) : kNothing;
    return pack(least, __reduce_min_sync(kAllLanes, token));
}

// The least candidate of the block, in all its threads, at the price of one barrier. Callers
// alternate between two arrays of slots: a warp ahead of the others must not write over what
// they still read, and cannot be two calls ahead of them.
__device__ inline Candidate least_of_block(Candidate candidate, Candidate* slots) {
    const unsigned warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    candidate = least_of_warp(candidate);
    if (lane == 0) slots[warp] = candidate;
    __syncthreads();
    const bool used = lane < blockDim.x / kWarpSize;
    return least_of_warp(used ? slots[lane] : pack(kNothing, kNothing));
}

template <int kTokens>
__device__ inline void choose(const float* __restrict__ gram, int first, int num_tokens,
                              int num_kept, int* __restrict__ order, float* __restrict__ cover,
                              Candidate* slots) {
    constexpr float kNoSimilarity = -3.402823466e+38f;
    float largest[kTokens];  // each token's largest similarity to the selected
    unsigned closed = 0;     // one bit a slot: selected already, or no token
#pragma unroll
    for (int slot = 0; slot < kTokens; ++slot) {
        const int token = threadIdx.x + slot * blockDim.x;
        largest[slot] = kNoSimilarity;
        if (token >= num_tokens) closed |= 1u << slot;
    }
    int last = min(max(first, 0), num_tokens - 1);
    for (int step = 0; step < num_kept; ++step) {
        if (threadIdx.x == 0) order[step] = last;
        const float* row = gram + static_cast<unsigned long long>(last) * num_tokens;
        Candidate best = pack(kNothing, kNothing);
#pragma unroll
        for (int slot = 0; slot < kTokens; ++slot) {
            const int token = threadIdx.x + slot * blockDim.x;
            largest[slot] = fmaxf(largest[slot], row[min(token, num_tokens - 1)]);
            if (token == last) closed |= 1u << slot;
            const Candidate candidate = pack(ordered(largest[slot]), token);
            if (!(closed >> slot & 1) && candidate < best) best = candidate;
        }
        best = least_of_block(best, slots + step % 2 * kMaxWarps);
        if (threadIdx.x == 0) cover[step] = at_most_one(static_cast<unsigned>(best >> 32));
        last = static_cast<int>(best);
    }
}

// Arguments in TensorRT's order: inputs, extra integers, outputs.
#define GREEDY_MAX_MIN(kTokens)                                                               \
    extern "C" __global__ void __launch_bounds__(kMaxWarps* kWarpSize, 1)                     \
        greedy_max_min_##kTokens(const float* __restrict__ gram, const int* __restrict__ seed, \
                                 int num_tokens, int num_kept, int* __restrict__ order,       \
                                 float* __restrict__ cover) {                                 \
        __shared__ Candidate slots[2 * kMaxWarps];                                            \
        const unsigned long long image = blockIdx.x, tokens = num_tokens;                     \
        const unsigned long long row = image * num_kept;                                      \
        choose<kTokens>(gram + image * tokens * tokens, seed[row], num_tokens, num_kept,      \
                        order + row, cover + row, slots);                                     \
    }

GREEDY_MAX_MIN(1)
GREEDY_MAX_MIN(2)
GREEDY_MAX_MIN(3)
GREEDY_MAX_MIN(4)
GREEDY_MAX_MIN(5)
GREEDY_MAX_MIN(6)
GREEDY_MAX_MIN(7)
GREEDY_MAX_MIN(8)
GREEDY_MAX_MIN(9)
GREEDY_MAX_MIN(10)
