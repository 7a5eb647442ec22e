// What the kernels for many tokens use beside what block_emulator.h has: votes and exchanges of a
// warp, tensor cores, copies to shared memory, messages between blocks.
#pragma once

#include <unordered_map>

static int lacks = -1;  // the part that a test has the kernels do without

struct uint4 {
    unsigned x, y, z, w;
};

inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline int __ffs(unsigned bits) { return __builtin_ffs(bits); }

inline unsigned atomicMin(unsigned* place, unsigned value) {
    const unsigned before = *place;
    if (value < before) *place = value;
    return before;
}

inline unsigned long long atomicMin(unsigned long long* place, unsigned long long value) {
    const unsigned long long before = *place;
    if (value < before) *place = value;
    return before;
}

inline unsigned atomicAdd(unsigned* place, unsigned value) {
    const unsigned before = *place;
    *place += value;
    return before;
}

inline unsigned __ballot_sync(unsigned, bool vote) {
    unsigned votes = vote;
    const auto collect = [](void* const* lanes) {
        unsigned bits = 0;
        for (unsigned lane = 0; lane < emulator::kLanes; ++lane)
            bits |= *static_cast<unsigned*>(lanes[lane]) << lane;
        for (unsigned lane = 0; lane < emulator::kLanes; ++lane)
            *static_cast<unsigned*>(lanes[lane]) = bits;
    };
    emulator::together(collect, &votes);
    return votes;
}

inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }

inline double __shfl_xor_sync(unsigned, double value, int apart) {
    struct Given {
        double value;
        int apart;
    } given = {value, apart};
    const auto exchange = [](void* const* lanes) {
        double values[emulator::kLanes];
        for (unsigned lane = 0; lane < emulator::kLanes; ++lane)
            values[lane] = static_cast<Given*>(lanes[lane])->value;
        for (unsigned lane = 0; lane < emulator::kLanes; ++lane) {
            Given* given = static_cast<Given*>(lanes[lane]);
            given->value = values[lane ^ given->apart];
        }
    };
    emulator::together(exchange, &given);
    return given.value;
}

// Copies come at the last moment that the kernel allows.
namespace emulator {

struct Copy {
    void* target;
    const void* source;
    bool copied;
    unsigned group;
};

struct Copies {
    std::vector<Copy> waiting;
    unsigned groups = 0;
};

static std::unordered_map<Fibre*, Copies> copies;

// How many products tensor cores align and add at once; those of known GPUs add 4, 8 or 16.
static unsigned products_at_once = 16;

inline float half(unsigned bits) {
    const float number = __uint_as_float((bits & 0x7fff) << 13) * 0x1p112f;
    return bits & 0x8000 ? -number : number;
}

// Products and what they are added to are cut off 23 bits below the largest, and so is the sum:
// the least precise of the tensor cores that have been measured.
inline float add_products(float start, const double* products, unsigned count) {
    double largest = std::fabs(start);
    for (unsigned index = 0; index < count; ++index)
        largest = std::fmax(largest, std::fabs(products[index]));
    if (largest == 0) return 0;
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
    double sum = std::trunc(start / unit);
    for (unsigned index = 0; index < count; ++index) sum += std::trunc(products[index] / unit);
    if (sum == 0) return 0;
    const double last = std::fmax(1, std::ldexp(1.0, std::ilogb(sum) - 23));
    return static_cast<float>(std::trunc(sum / last) * last * unit);
}

struct Fragments {
    float* c;
    const unsigned *a, *b;
};

inline void multiply_warp(void* const* lanes) {
    double a[16][16], b[16][8];
    for (unsigned lane = 0; lane < kLanes; ++lane) {
        const auto* given = static_cast<Fragments*>(lanes[lane]);
        const unsigned group = lane / 4, pair = lane % 4 * 2;
        for (unsigned odd = 0; odd < 2; ++odd) {
            for (unsigned part = 0; part < 4; ++part)
                a[group + part % 2 * 8][pair + odd + part / 2 * 8] =
                    half(given->a[part] >> odd * 16 & 0xffff);
            for (unsigned part = 0; part < 2; ++part)
                b[pair + odd + part * 8][group] = half(given->b[part] >> odd * 16 & 0xffff);
        }
    }
    for (unsigned lane = 0; lane < kLanes; ++lane)
        for (unsigned part = 0; part < 4; ++part) {
            const unsigned row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
            float& c = static_cast<Fragments*>(lanes[lane])->c[part];
            double products[16];
            for (unsigned inner = 0; inner < 16; ++inner)
                products[inner] = a[row][inner] * b[inner][column];
            for (unsigned inner = 0; inner < 16; inner += products_at_once)
                c = add_products(c, products + inner, products_at_once);
        }
}

}  // namespace emulator

inline void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    emulator::Fragments given = {c, a, b};
    emulator::together(emulator::multiply_warp, &given);
}

inline void copy_async(void* shared, const void* global, bool copied) {
    auto& own = emulator::copies[&emulator::current->fibre()];
    own.waiting.push_back({shared, global, copied, own.groups});
}

inline void commit_copies() { ++emulator::copies[&emulator::current->fibre()].groups; }

inline void wait_for_copies() {
    auto& own = emulator::copies[&emulator::current->fibre()];
    std::vector<emulator::Copy> later;
    for (const auto& copy : own.waiting) {
        if (copy.group + 1 >= own.groups) later.push_back(copy);
        else if (copy.copied) std::memcpy(copy.target, copy.source, 16);
        else std::memset(copy.target, 0, 16);
    }
    own.waiting = std::move(later);
}

inline void send(unsigned long long* place, unsigned long long message) {
    emulator::idle = 0;
    *place = message;
}

inline unsigned long long received(const unsigned long long* place) {
    emulator::looked = true;
    ++emulator::idle;
    return *place;
}

inline void send_to_block(unsigned long long* place, unsigned block, unsigned long long message) {
    send(static_cast<unsigned long long*>(emulator::blocks[block]->there(place)), message);
}

inline unsigned long long received_in_block(const unsigned long long* place) {
    return received(place);
}

inline void wait_for_cluster() { emulator::give_way(emulator::State::kAtGridBarrier); }
