// The kernels of runtime/device/kernels.cu, run on the host by the block emulator.

extern "C" {

int emulate_largest_logit(const float* logits, int count, Best* best, unsigned threads,
                          std::uint64_t schedule) {
    return emulator::launch([=] { largest_logit(logits, count, best); }, 1, threads, schedule);
}

int emulate_broken_rows(const void* rows, int bits, int count, int width, int* broken,
                        unsigned threads, std::uint64_t schedule) {
    const auto body = [=] {
        if (bits == 16) broken_rows_16(static_cast<const unsigned short*>(rows), width, broken);
        else broken_rows_32(static_cast<const unsigned*>(rows), width, broken);
    };
    return emulator::launch(body, count, threads, schedule);
}

}
