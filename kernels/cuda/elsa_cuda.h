// Interface between the PyTorch side (elsa_cuda.cpp) and the CUDA kernels (elsa_cuda_kernel.cu).
// Plain types and raw pointers only: the .cu file never sees a PyTorch header.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace elsa_det::cuda {

enum class Dtype : int { kFloat, kHalf, kBFloat16 };

constexpr int kMaxKernelSize = 13;

/// Sizes of one call. `dilation` is at most max(height, width): a larger one reaches no neighbour anyway.
struct Problem {
  int batch, heads, head_dim, height, width, kernel_size, dilation;
  Dtype dtype;
};

/// A (batch, channels, height, width) map whose channels lie next to each other. Strides in elements.
struct ConstMap {
  const void* data;
  int64_t batch, row, col;
};
struct Map {
  void* data;
  int64_t batch, row, col;
};

/// A (channels, K, K) contiguous ghost tensor of any supported dtype; `data` is null when it is absent.
struct Ghost {
  const void* data;
  Dtype dtype;
};

/// The same for a gradient to be written.
struct GhostGrad {
  void* data;
  Dtype dtype;
};

/// Whether there are tiled kernels for this problem, given that value, out and their gradients are vector-aligned.
bool has_tiled_kernels(const Problem& problem, const ConstMap& logits);

/// Whether the map can be read and written 16 bytes at a time. Strides of axes of length one do not count.
bool is_vector_aligned(const Problem& problem, const ConstMap& map);

/// Floats of scratch memory the backward needs (16-byte aligned).
int64_t backward_workspace_floats(const Problem& problem, bool tiled, bool want_mul, bool want_add);

/// out = sum over j of value[i + d j] * (mul[c, j] * softmax(logits)[g, j, i] + add[c, j]).
cudaError_t launch_forward(const Problem& problem, bool tiled, const ConstMap& value, const ConstMap& logits,
                           const Ghost& mul, const Ghost& add, const Map& out, cudaStream_t stream);

/// Gradients of the above. `grad_mul.data` / `grad_add.data` are null when not wanted.
cudaError_t launch_backward(const Problem& problem, bool tiled, const ConstMap& grad_out, const ConstMap& value,
                            const ConstMap& logits, const Ghost& mul, const Ghost& add, const Map& grad_value,
                            const Map& grad_logits, const GhostGrad& grad_mul, const GhostGrad& grad_add,
                            float* workspace, cudaStream_t stream);

}  // namespace elsa_det::cuda
