// ExecuTorch with a C interface, for a Python that has no torch. Built against the aarch64 wheel of executorch.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <memory>
#include <vector>

using namespace executorch::extension;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::runtime::EValue;

struct Loaded {
    Module module;
    std::vector<TensorPtr> inputs;
    std::vector<EValue> outputs;
    explicit Loaded(const char *path) : module(path) {}
};

extern "C" {

// A program with its method loaded; null, with ExecuTorch's error code, where it cannot be. It lives as long as its process.
Loaded *program_open(const char *path, int *error) {
    auto loaded = std::make_unique<Loaded>(path);
    *error = static_cast<int>(loaded->module.load_method("forward"));
    return *error ? nullptr : loaded.release();
}

// Gives the next input; its data is read when the program runs.
void program_input(Loaded *loaded, void *data, int type, int rank, const int *sizes) {
    loaded->inputs.push_back(from_blob(data, std::vector<SizesType>(sizes, sizes + rank), static_cast<ScalarType>(type)));
}

// Runs with the inputs given since the last run: ExecuTorch's error code, or minus the number of outputs.
int program_run(Loaded *loaded) {
    std::vector<EValue> values(loaded->inputs.begin(), loaded->inputs.end());
    auto result = loaded->module.forward(values);
    loaded->inputs.clear();
    if (!result.ok()) return static_cast<int>(result.error());
    loaded->outputs = std::move(result.get());
    return -static_cast<int>(loaded->outputs.size());
}

// Data of an output of the last run, with its type, rank and sizes.
const void *program_output(Loaded *loaded, int index, int *type, int *rank, int *sizes) {
    const auto &tensor = loaded->outputs[index].toTensor();
    *type = static_cast<int>(tensor.scalar_type());
    *rank = static_cast<int>(tensor.dim());
    for (int i = 0; i < *rank; i++) sizes[i] = static_cast<int>(tensor.size(i));
    return tensor.const_data_ptr();
}
}
