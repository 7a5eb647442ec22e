// What the kernels for many tokens share: an order of candidates, and the one similarity that all
// of them decide by.
//
// Features are float16 [tokens, width]. The similarity of two tokens is
//
//     float32(dot / (norm * norm)),   norm = max(sqrt(dot of the row with itself), 1e-12)
//
// with products and sums in float64, where products of float16 are exact. It is at most 1, the same
// for both directions, and equal for equal rows: it depends on what is in the rows only.
//
// Put into the sources that include it before they are compiled (plugins/ptx.py).
#ifndef DIVPRUNE_SIMILARITY
#define DIVPRUNE_SIMILARITY

enum : unsigned {
    kWarpSize = 32,
    kMaxWarps = 32,
    kAllLanes = 0xffffffff,
    kNothing = 0xffffffff,  // above every label and every ordered number
};

constexpr float kNoSimilarity = -3.402823466e+38f;

// value << 32 | label: the least candidate is the lowest label of the least value.
using Candidate = unsigned long long;

__device__ inline Candidate pack(unsigned value, unsigned label) {
    return static_cast<Candidate>(value) << 32 | label;
}

// Unsigned integers in the order of the numbers; adding 0 makes one number of -0.0 and 0.0.
__device__ inline unsigned ordered(float number) {
    const unsigned bits = __float_as_uint(number + 0.0f);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// The number that became this integer.
__device__ inline float number_of(unsigned value) {
    return __uint_as_float(value & 0x80000000 ? value & 0x7fffffff : ~value);
}

struct Features {
    const unsigned short* rows;  // float16 [tokens, width], on 16 bytes; width is a multiple of 32
    const double* norms;         // float64 [tokens]
    int width;
};

// Exact but for Inf and NaN, of which it makes large numbers.
__device__ inline double from_half(unsigned bits) {
    const float magnitude = __uint_as_float((bits & 0x7fff) << 13) * 0x1p112f;
    return bits & 0x8000 ? -magnitude : magnitude;
}

// Of two rows, by a whole warp, in all its lanes: a lane sums eight numbers of every 256 in their
// order, then pairs of lanes are added, 16 apart first.
__device__ inline double dot(const unsigned short* rows, int width, int left, int right) {
    const unsigned short* a = rows + static_cast<unsigned long long>(left) * width;
    const unsigned short* b = rows + static_cast<unsigned long long>(right) * width;
    double sum = 0;
    for (int begin = threadIdx.x % kWarpSize * 8; begin < width; begin += kWarpSize * 8) {
        const uint4 four = *reinterpret_cast<const uint4*>(a + begin);
        const uint4 more = *reinterpret_cast<const uint4*>(b + begin);
        const unsigned pairs[4] = {four.x, four.y, four.z, four.w};
        const unsigned others[4] = {more.x, more.y, more.z, more.w};
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
            sum += from_half(pairs[pair] & 0xffff) * from_half(others[pair] & 0xffff);
            sum += from_half(pairs[pair] >> 16) * from_half(others[pair] >> 16);
        }
    }
#pragma unroll
    for (int apart = kWarpSize / 2; apart > 0; apart /= 2)
        sum += __shfl_xor_sync(kAllLanes, sum, apart);
    return sum;
}

// The similarity of two tokens, by a whole warp, in all its lanes.
__device__ inline float similarity(const Features& features, int left, int right) {
    const double product = dot(features.rows, features.width, left, right);
    return static_cast<float>(product / (features.norms[left] * features.norms[right]));
}

#endif
