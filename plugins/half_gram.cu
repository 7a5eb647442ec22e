// Similarities of float16 features on tensor cores, and what needs them to be exact.
//
//   row_norms      norms (float64) and their inverses (float32) of every row. A warp a row.
//   half_gram      float32 [N, N], each number within `error_bound` (plugins/feature_selection.py)
//                  of the similarity in similarity.cuh. A block for every 128 x 128 numbers.
//   nearest_rows   of each row its largest number beside the diagonal, and the least of these,
//                  as an ordered integer. A block a row.
//   exact_seed     the token whose most similar other token is least similar, by the similarity
//                  itself; ties go to the lowest index. A block a row.
//   exact_cover    of each step the largest similarity of the next token to those chosen so far.
//                  A warp a step.
//
// Compiled by NVRTC without any other header, and by g++ against tests/plugins/block_emulator.h.
#include "similarity.cuh"

#ifdef __CUDACC__

// D = A B + C for a warp: A 16 x 16 and B 16 x 8 of float16, C 16 x 8 of float32. Lane 4 g + t holds
// the pairs from column 2 t (2 t + 8) on of rows g and g + 8 of A, those from row 2 t (2 t + 8) on
// of column g of B, and from column 2 t on of rows g and g + 8 of C.
__device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Copies 16 bytes, or writes zeros; there after commit_copies and wait_for_copies.
__device__ inline void copy_async(void* shared, const void* global, bool copied) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(shared))),
                 "l"(global), "r"(copied ? 16 : 0)
                 : "memory");
}

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most one group that this thread has committed is under way.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

#endif

enum : int {
    kTile = 128,   // rows and columns of a block
    kChunk = 32,   // numbers of a row that are multiplied before sums are rounded as float32
    kUnits = 4,    // of 16 bytes in a chunk of a row
    kStages = 3,   // chunks on their way or in use
    kGramThreads = 256,
    kWarpRows = 64, kWarpColumns = 32,
    kGroup = 8,    // rows of tiles that run side by side, so that they share what they read
};

// Chunks of 128 rows from two places. Unit u of row r lies at u ^ (r / 2 % 4): no two of the eight
// rows that a warp reads at once are in the same bank.
struct Stage {
    uint4 rows[2][kTile * kUnits];
};

__device__ inline int place(int row, int unit) { return row * kUnits + (unit ^ (row >> 1 & 3)); }

// Numbers `begin` to `begin` + 31 of 128 rows from `top` on, and of 128 from `left` on.
__device__ inline void load(Stage& stage, const unsigned short* features, int num_tokens, int width,
                            int top, int left, int begin) {
    constexpr int kRows = kGramThreads / kUnits;  // copied at once
    const int row = threadIdx.x / kUnits, unit = threadIdx.x % kUnits;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
        const int token = (side == 0 ? top : left) + row;
        const unsigned short* from =
            features + (static_cast<unsigned>(token) * width + begin + unit * 8);
#pragma unroll
        for (int down = 0; down < kTile; down += kRows)
            copy_async(&stage.rows[side][place(row + down, unit)], from + down * width,
                       token + down < num_tokens);
    }
    commit_copies();
}

// The pair of numbers that lane 4 g + t needs of a row: number 2 t of a unit and the next.
__device__ inline unsigned pair_of(const uint4* rows, int row, int unit, int pair) {
    return reinterpret_cast<const unsigned*>(rows + place(row, unit))[pair];
}

constexpr int kDown = kWarpRows / 16, kAcross = kWarpColumns / 8;

// Adds a chunk's products: multiplied and summed from zero on tensor cores, then one IEEE addition.
__device__ inline void multiply(const Stage& stage, float (&sums)[kDown][kAcross][4], int top,
                                int left) {
    const int group = threadIdx.x % kWarpSize / 4, pair = threadIdx.x % 4;
    unsigned b[kAcross][2][2];
#pragma unroll
    for (int across = 0; across < kAcross; ++across)
#pragma unroll
        for (int part = 0; part < 4; ++part)
            b[across][part / 2][part % 2] =
                pair_of(stage.rows[1], left + across * 8 + group, part, pair);
#pragma unroll
    for (int down = 0; down < kDown; ++down) {
        unsigned a[2][4];
#pragma unroll
        for (int part = 0; part < 8; ++part)
            a[part / 4][part % 4] =
                pair_of(stage.rows[0], top + down * 16 + group + part % 2 * 8, part / 2, pair);
#pragma unroll
        for (int across = 0; across < kAcross; ++across) {
            float products[4] = {0, 0, 0, 0};
            multiply_add(products, a[0], b[across][0]);
            multiply_add(products, a[1], b[across][1]);
#pragma unroll
            for (int part = 0; part < 4; ++part) sums[down][across][part] += products[part];
        }
    }
}

extern "C" __global__ void __launch_bounds__(kGramThreads, 2)
    half_gram(const unsigned short* __restrict__ features, const float* __restrict__ inverse,
              int num_tokens, int width, float* __restrict__ gram) {
    __shared__ Stage stages[kStages];
    const int tiles = (num_tokens + kTile - 1) / kTile, group = blockIdx.x / (kGroup * tiles);
    const int inside = blockIdx.x % (kGroup * tiles);
    const int tile_row = group * kGroup + inside % kGroup, tile_column = inside / kGroup;
    if (tile_column < tile_row || tile_row >= tiles) return;  // the other half is written with it
    const int first_row = tile_row * kTile, first_column = tile_column * kTile;
    const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const int top = warp / 4 * kWarpRows, left = warp % 4 * kWarpColumns;
    const int chunks = width / kChunk;
    float sums[kDown][kAcross][4] = {};
    for (int chunk = 0; chunk < kStages - 1; ++chunk)
        load(stages[chunk], features, num_tokens, width, first_row, first_column,
             min(chunk, chunks - 1) * kChunk);
    int stage = 0;
#pragma unroll 1
    for (int chunk = 0; chunk < chunks; ++chunk) {
        wait_for_copies();
        __syncthreads();
        const int next = min(chunk + kStages - 1, chunks - 1);
        load(stages[stage == 0 ? kStages - 1 : stage - 1], features, num_tokens, width, first_row,
             first_column, next * kChunk);
        multiply(stages[stage], sums, top, left);
        stage = stage == kStages - 1 ? 0 : stage + 1;
    }
#pragma unroll
    for (int down = 0; down < kDown; ++down)
#pragma unroll
        for (int across = 0; across < kAcross; ++across)
#pragma unroll
            for (int part = 0; part < 4; ++part) {
                const int row = first_row + top + down * 16 + lane / 4 + part / 2 * 8;
                const int column = first_column + left + across * 8 + lane % 4 * 2 + part % 2;
                if (row >= num_tokens || column >= num_tokens) continue;
                const float alike = sums[down][across][part] * inverse[row] * inverse[column];
                gram[static_cast<unsigned long long>(row) * num_tokens + column] = alike;
                if (tile_row != tile_column)
                    gram[static_cast<unsigned long long>(column) * num_tokens + row] = alike;
            }
}

extern "C" __global__ void row_norms(const unsigned short* __restrict__ features, int num_tokens,
                                     int width, double* __restrict__ norms,
                                     float* __restrict__ inverse) {
    const int token = (blockIdx.x * blockDim.x + threadIdx.x) / kWarpSize;
    if (token >= num_tokens) return;
    const double norm = fmax(sqrt(dot(features, width, token, token)), 1e-12);
    if (threadIdx.x % kWarpSize == 0) {
        norms[token] = norm;
        inverse[token] = static_cast<float>(1 / norm);
    }
}

// The largest value of a block in all its threads; one slot a warp, not written again before the
// next barrier.
__device__ inline float largest_of_block(float value, unsigned* slots) {
    const unsigned warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    const unsigned least = __reduce_min_sync(kAllLanes, ~ordered(value));
    if (lane == 0) slots[warp] = least;
    __syncthreads();
    const bool used = lane < blockDim.x / kWarpSize;
    return number_of(~__reduce_min_sync(kAllLanes, used ? slots[lane] : kNothing));
}

extern "C" __global__ void nearest_rows(const float* __restrict__ gram, int num_tokens,
                                        float* __restrict__ nearest, unsigned* __restrict__ least) {
    __shared__ unsigned slots[kMaxWarps];
    const int row = blockIdx.x;
    const float* alike = gram + static_cast<unsigned long long>(row) * num_tokens;
    float largest = kNoSimilarity;
    for (int other = threadIdx.x; other < num_tokens; other += blockDim.x)
        if (other != row) largest = fmaxf(largest, alike[other]);
    largest = largest_of_block(largest, slots);
    if (threadIdx.x == 0) {
        nearest[row] = largest;
        atomicMin(least, ordered(largest));
    }
}

extern "C" __global__ void exact_seed(const float* __restrict__ gram,
                                      const unsigned short* __restrict__ rows,
                                      const double* __restrict__ norms, int num_tokens, int width,
                                      float bound, const float* __restrict__ nearest,
                                      const unsigned* __restrict__ least, Candidate* best) {
    __shared__ unsigned slots[kMaxWarps];
    const Features features = {rows, norms, width};
    const int row = blockIdx.x, lane = threadIdx.x % kWarpSize, start = threadIdx.x - lane;
    const float* alike = gram + static_cast<unsigned long long>(row) * num_tokens;
    if (nearest[row] > number_of(*least) + 2 * bound) return;
    const float near = nearest[row] - 2 * bound;  // what is below is not the largest
    float largest = kNoSimilarity;
    for (int begin = start; begin < num_tokens; begin += blockDim.x) {
        // The largest there can be, or more than another token has: the rest changes nothing.
        const Candidate other_row = *static_cast<volatile Candidate*>(best);
        if (__any_sync(kAllLanes, largest >= 1 || pack(ordered(largest), row) > other_row)) break;
        const int other = begin + lane;
        const bool is_near = other < num_tokens && other != row && alike[other] >= near;
        for (unsigned todo = __ballot_sync(kAllLanes, is_near); todo; todo &= todo - 1)
            largest = fmaxf(largest, similarity(features, row, begin + __ffs(todo) - 1));
    }
    largest = largest_of_block(largest, slots);
    if (threadIdx.x == 0) atomicMin(best, pack(ordered(largest), row));
}

// Chosen holds the token of every step and, behind them, the one that would come next, or -1.
extern "C" __global__ void exact_cover(const float* __restrict__ gram,
                                       const unsigned short* __restrict__ rows,
                                       const double* __restrict__ norms, int num_tokens, int width,
                                       float bound, int num_kept, const int* __restrict__ chosen,
                                       int* __restrict__ order, float* __restrict__ cover) {
    const Features features = {rows, norms, width};
    const int step = (blockIdx.x * blockDim.x + threadIdx.x) / kWarpSize;
    const int lane = threadIdx.x % kWarpSize;
    if (step >= num_kept) return;
    const int token = chosen[step + 1];
    const float* alike = gram + static_cast<unsigned long long>(max(token, 0)) * num_tokens;
    float near = kNoSimilarity, largest = kNoSimilarity;
    for (int other = lane; other <= step; other += kWarpSize)
        near = fmaxf(near, alike[chosen[other]]);
    near = number_of(~__reduce_min_sync(kAllLanes, ~ordered(near))) - 2 * bound;
    for (int begin = 0; begin <= step && token >= 0; begin += kWarpSize) {
        const int other = begin + lane;
        const bool is_near = other <= step && alike[chosen[min(other, step)]] >= near;
        for (unsigned todo = __ballot_sync(kAllLanes, is_near); todo; todo &= todo - 1)
            largest = fmaxf(largest,
                            similarity(features, token, chosen[begin + __ffs(todo) - 1]));
    }
    if (lane != 0) return;
    order[step] = chosen[step];
    cover[step] = token < 0 ? 1.0f : fminf(largest, 1.0f);
}
