// What is reduced on the device so that a few bytes travel to the host instead of megabytes.
//
//   largest_logit     the largest of float32 [count] and where it is; NaN counts as largest,
//                     ties go to the lowest index. One block.
//   broken_rows_32    which rows of float32 [rows, width] hold a NaN or Inf: int32 [rows].
//   broken_rows_16    the same for float16. One block a row.
//
// Blocks are whole warps of at most 1024 threads. Compiled by NVRTC without any header, and by
// g++ against tests/plugins/block_emulator.h.

enum : unsigned {
    kWarpSize = 32,
    kMaxWarps = 32,
    kAllLanes = 0xffffffff,
    kNothing = 0xffffffff,
};

struct Best {
    int index;
    float value;
};

// Smaller for larger numbers, 0 for NaN; adding 0 makes one number of -0.0 and 0.0.
__device__ inline unsigned descending(float number) {
    if (number != number) return 0;
    const unsigned bits = __float_as_uint(number + 0.0f);
    return bits & 0x80000000 ? bits : ~bits & 0x7fffffff;
}

// The least value of the block in all its threads; `slots` is not written again before the
// next barrier.
__device__ inline unsigned least_of_block(unsigned value, unsigned* slots) {
    const unsigned warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
    value = __reduce_min_sync(kAllLanes, value);
    if (lane == 0) slots[warp] = value;
    __syncthreads();
    const bool used = lane < blockDim.x / kWarpSize;
    return __reduce_min_sync(kAllLanes, used ? slots[lane] : kNothing);
}

template <typename Bits>
__device__ inline void find_broken(const Bits* rows, int width, int* broken, Bits exponent) {
    __shared__ unsigned slots[kMaxWarps];
    const Bits* row = rows + static_cast<unsigned long long>(blockIdx.x) * width;
    unsigned finite = 1;
    for (int column = threadIdx.x; column < width; column += blockDim.x)
        if ((row[column] & exponent) == exponent) finite = 0;
    finite = least_of_block(finite, slots);
    if (threadIdx.x == 0) broken[blockIdx.x] = !finite;
}

extern "C" __global__ void __launch_bounds__(1024)
    largest_logit(const float* logits, int count, Best* best) {
    __shared__ unsigned keys[kMaxWarps], places[kMaxWarps];
    unsigned key = kNothing, place = kNothing;
    for (int index = threadIdx.x; index < count; index += blockDim.x) {
        const unsigned candidate = descending(logits[index]);
        if (candidate < key) key = candidate, place = index;
    }
    const unsigned least = least_of_block(key, keys);
    place = least_of_block(key == least ? place : kNothing, places);
    if (threadIdx.x == 0) {
        best->index = place;
        best->value = logits[place];
    }
}

extern "C" __global__ void __launch_bounds__(1024)
    broken_rows_32(const unsigned* rows, int width, int* broken) {
    find_broken<unsigned>(rows, width, broken, 0x7f800000);
}

extern "C" __global__ void __launch_bounds__(1024)
    broken_rows_16(const unsigned short* rows, int width, int* broken) {
    find_broken<unsigned short>(rows, width, broken, 0x7c00);
}
