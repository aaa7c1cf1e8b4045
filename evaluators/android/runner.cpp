// Runs an ExecuTorch program on inputs from a file, and says what it took as lines of a name and numbers.
//
//     runner PROGRAM INPUTS SAMPLES OUTPUTS THREADS WARMUP_MS RUNS
//
// INPUTS holds the samples one after another, each the raw bytes of the program's inputs. Every sample is run once, its outputs are appended to
// OUTPUTS ("-": to nothing); then runs are repeated for WARMUP_MS without a clock, and RUNS of them are timed, the samples in turn.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#if __has_include(<executorch/extension/threadpool/threadpool.h>)
#include <executorch/extension/threadpool/threadpool.h>
#else  // ExecuTorch's wheels hold the library without this header
namespace executorch::extension::threadpool {
class ThreadPool {
public:
    bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool *get_threadpool();
}
#endif

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

using namespace executorch::extension;
using executorch::aten::SizesType;
using executorch::runtime::EValue;

static long long now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static long peak_kb() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmHWM:", 0) == 0) return std::atol(line.c_str() + 6);
    return 0;
}

static void fail(const std::string &what, int code) {
    std::fprintf(stderr, "%s, error %#x\n", what.c_str(), code);
    std::exit(1);
}

int main(int count, char **words) {
    if (count != 8) fail("runner PROGRAM INPUTS SAMPLES OUTPUTS THREADS WARMUP_MS RUNS", count);
    const long samples = std::atol(words[3]), warmup_ms = std::atol(words[6]), runs = std::atol(words[7]);
    std::printf("baseline_kb %ld\n", peak_kb());
    threadpool::get_threadpool()->_unsafe_reset_threadpool(std::atoi(words[5]));

    const auto load = now_ns();
    Module module(words[1]);
    const auto error = module.load_method("forward");
    if (error != executorch::runtime::Error::Ok) fail("ExecuTorch does not load the program", static_cast<int>(error));
    std::printf("load_ns %lld\n", now_ns() - load);

    const auto meta = module.method_meta("forward").get();
    std::ifstream file(words[2], std::ios::binary);
    std::vector<std::vector<char>> bytes;
    std::vector<TensorPtr> tensors;
    std::vector<std::vector<EValue>> inputs(samples);
    for (auto &sample : inputs)
        for (size_t i = 0; i < meta.num_inputs(); i++) {
            const auto info = meta.input_tensor_meta(i).get();
            bytes.emplace_back(info.nbytes());
            if (!file.read(bytes.back().data(), info.nbytes())) fail("the inputs end too early", static_cast<int>(i));
            tensors.push_back(from_blob(bytes.back().data(), std::vector<SizesType>(info.sizes().begin(), info.sizes().end()), info.scalar_type()));
            sample.emplace_back(tensors.back());
        }

    std::ofstream outputs;
    if (std::string(words[4]) != "-") outputs.open(words[4], std::ios::binary);
    const auto run = [&](long sample) {
        auto found = module.forward(inputs[sample]);
        if (!found.ok()) fail("ExecuTorch failed", static_cast<int>(found.error()));
        return std::move(found.get());
    };
    for (long sample = 0; sample < samples; sample++) {
        const auto begin = now_ns();
        const auto found = run(sample);
        if (sample == 0) std::printf("first_ns %lld\n", now_ns() - begin);
        for (const auto &value : found) outputs.write(static_cast<const char *>(value.toTensor().const_data_ptr()), value.toTensor().nbytes());
    }
    if (outputs.is_open() && !outputs.flush()) fail("the outputs cannot be written", 0);

    long warm = samples;
    for (const auto end = now_ns() + warmup_ms * 1000000LL; now_ns() < end; warm++) run(warm % samples);
    std::printf("warmup_runs %ld\n", warm);
    std::vector<long long> times;
    for (long i = 0; i < runs; i++) {
        const auto begin = now_ns();
        run(i % samples);
        times.push_back(now_ns() - begin);
    }
    std::printf("times_ns");
    for (const auto time : times) std::printf(" %lld", time);
    std::printf("\npeak_kb %ld\n", peak_kb());
}
