// PyTorch side of the CUDA operator: checks, layouts, allocation, device and stream. The kernels know pointers only.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>

#include "elsa_cuda.h"

namespace elsa_det::cuda {
namespace {

using at::Tensor;

Dtype dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat: return Dtype::kFloat;
    case at::kHalf: return Dtype::kHalf;
    case at::kBFloat16: return Dtype::kBFloat16;
    default:
      TORCH_CHECK(false, "elsa_attention on CUDA takes float32, float16 or bfloat16, but ", name, " is ",
                  t.scalar_type());
  }
}

/// Checks all inputs against each other, and gives their common sizes.
Problem make_problem(const Tensor& value, const Tensor& logits, const std::optional<Tensor>& mul,
                     const std::optional<Tensor>& add, int64_t kernel_size, int64_t dilation) {
  TORCH_CHECK(value.dim() == 4, "elsa_attention: value must be (B, C, H, W), got ", value.sizes());
  TORCH_CHECK(logits.dim() == 4, "elsa_attention: logits must be (B, G*K*K, H, W), got ", logits.sizes());
  TORCH_CHECK(kernel_size >= 1 && kernel_size % 2 == 1 && kernel_size <= kMaxKernelSize,
              "elsa_attention: kernel_size must be odd and at most ", kMaxKernelSize, " on CUDA, got ", kernel_size);
  TORCH_CHECK(dilation >= 1, "elsa_attention: dilation must be at least 1, got ", dilation);
  const int64_t taps = kernel_size * kernel_size;
  TORCH_CHECK(logits.size(1) > 0 && logits.size(1) % taps == 0, "elsa_attention: logits have ", logits.size(1),
              " channels, which is not a multiple of kernel_size^2 = ", taps);
  const int64_t heads = logits.size(1) / taps;
  TORCH_CHECK(value.size(1) % heads == 0, "elsa_attention: ", value.size(1), " channels of value cannot be split into ",
              heads, " heads");
  TORCH_CHECK(logits.size(0) == value.size(0) && logits.size(2) == value.size(2) && logits.size(3) == value.size(3),
              "elsa_attention: value ", value.sizes(), " and logits ", logits.sizes(), " differ in B, H or W");
  TORCH_CHECK(logits.scalar_type() == value.scalar_type(), "elsa_attention: value is ", value.scalar_type(),
              " but logits are ", logits.scalar_type());
  TORCH_CHECK(logits.device() == value.device(), "elsa_attention: value is on ", value.device(), " but logits are on ",
              logits.device());
  const auto check_ghost = [&](const std::optional<Tensor>& ghost, const char* name) {
    if (!ghost.has_value()) return;
    TORCH_CHECK(ghost->dim() == 3 && ghost->size(0) == value.size(1) && ghost->size(1) == kernel_size &&
                    ghost->size(2) == kernel_size,
                "elsa_attention: ", name, " must be (", value.size(1), ", ", kernel_size, ", ", kernel_size, "), got ",
                ghost->sizes());
    TORCH_CHECK(ghost->device() == value.device(), "elsa_attention: value is on ", value.device(), " but ", name,
                " is on ", ghost->device());
    dtype_of(*ghost, name);
  };
  check_ghost(mul, "ghost_mul");
  check_ghost(add, "ghost_add");
  for (const int64_t size : value.sizes()) {
    TORCH_CHECK(size <= INT32_MAX / 2, "elsa_attention: an axis of value ", value.sizes(), " is too long for CUDA");
  }
  TORCH_CHECK(value.size(1) * taps <= INT32_MAX / 2, "elsa_attention: value has too many channels: ", value.size(1));

  const int64_t longest = std::max({value.size(2), value.size(3), int64_t{1}});
  Problem problem;
  problem.batch = static_cast<int>(value.size(0));
  problem.heads = static_cast<int>(heads);
  problem.head_dim = static_cast<int>(value.size(1) / heads);
  problem.height = static_cast<int>(value.size(2));
  problem.width = static_cast<int>(value.size(3));
  problem.kernel_size = static_cast<int>(kernel_size);
  problem.dilation = static_cast<int>(std::min(dilation, longest));
  problem.dtype = dtype_of(value, "value");
  return problem;
}

ConstMap input_map(const Tensor& t) { return {t.const_data_ptr(), t.stride(0), t.stride(2), t.stride(3)}; }

Map output_map(const Tensor& t) { return {t.mutable_data_ptr(), t.stride(0), t.stride(2), t.stride(3)}; }

Tensor empty_channels_last(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty({sizes[0], sizes[2], sizes[3], sizes[1]}, options).permute({0, 3, 1, 2});
}

/// `t` itself if its channels lie next to each other, and, for the tiled kernels, on 16-byte boundaries; else a copy.
Tensor with_dense_channels(const Tensor& t, const Problem& problem, bool vectors) {
  const bool dense = t.size(1) == 1 || t.stride(1) == 1;
  if (dense && !(vectors && !is_vector_aligned(problem, input_map(t)))) return t;
  Tensor copy = empty_channels_last(t.sizes(), t.options());
  copy.copy_(t);
  return copy;
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& ghost) {
  return ghost.has_value() ? std::optional<Tensor>(ghost->contiguous()) : std::nullopt;
}

Ghost ghost_of(const std::optional<Tensor>& ghost) {
  if (!ghost.has_value()) return {nullptr, Dtype::kFloat};
  return {ghost->const_data_ptr(), dtype_of(*ghost, "ghost")};
}

Tensor forward(const Tensor& value, const Tensor& logits, const std::optional<Tensor>& ghost_mul,
               const std::optional<Tensor>& ghost_add, int64_t kernel_size, int64_t dilation) {
  const Problem problem = make_problem(value, logits, ghost_mul, ghost_add, kernel_size, dilation);
  const c10::cuda::CUDAGuard guard(value.device());
  const Tensor out = empty_channels_last(value.sizes(), value.options());
  if (out.numel() == 0) return out;
  const Tensor dense_logits = with_dense_channels(logits, problem, false);
  const bool tiled = has_tiled_kernels(problem, input_map(dense_logits));
  const Tensor dense_value = with_dense_channels(value, problem, tiled);
  const std::optional<Tensor> mul = contiguous(ghost_mul);
  const std::optional<Tensor> add = contiguous(ghost_add);
  C10_CUDA_CHECK(launch_forward(problem, tiled, input_map(dense_value), input_map(dense_logits), ghost_of(mul),
                                ghost_of(add), output_map(out), c10::cuda::getCurrentCUDAStream().stream()));
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_out, const Tensor& value, const Tensor& logits,
                                                    const std::optional<Tensor>& ghost_mul,
                                                    const std::optional<Tensor>& ghost_add, int64_t kernel_size,
                                                    int64_t dilation) {
  const Problem problem = make_problem(value, logits, ghost_mul, ghost_add, kernel_size, dilation);
  TORCH_CHECK(grad_out.sizes() == value.sizes() && grad_out.scalar_type() == value.scalar_type() &&
                  grad_out.device() == value.device(),
              "elsa_attention: grad_out (", grad_out.scalar_type(), " ", grad_out.sizes(), " on ", grad_out.device(),
              ") must match value (", value.scalar_type(), " ", value.sizes(), " on ", value.device(), ")");
  const c10::cuda::CUDAGuard guard(value.device());
  const bool nothing = value.numel() == 0;
  const auto ghost_grad = [&](const std::optional<Tensor>& ghost) {
    if (!ghost.has_value()) return at::empty({0}, value.options());
    return nothing ? at::zeros(ghost->sizes(), ghost->options()) : at::empty(ghost->sizes(), ghost->options());
  };
  const Tensor grad_value = empty_channels_last(value.sizes(), value.options());
  const Tensor grad_logits = empty_channels_last(logits.sizes(), logits.options());
  const Tensor grad_mul = ghost_grad(ghost_mul);
  const Tensor grad_add = ghost_grad(ghost_add);
  if (nothing) {
    grad_logits.zero_();  // no channels: logits have no influence
    return {grad_value, grad_logits, grad_mul, grad_add};
  }

  const Tensor dense_logits = with_dense_channels(logits, problem, false);
  const bool tiled = has_tiled_kernels(problem, input_map(dense_logits));
  const Tensor dense_value = with_dense_channels(value, problem, tiled);
  const Tensor dense_grad_out = with_dense_channels(grad_out, problem, tiled);
  const std::optional<Tensor> mul = contiguous(ghost_mul);
  const std::optional<Tensor> add = contiguous(ghost_add);
  const auto target = [](const std::optional<Tensor>& ghost, const Tensor& grad) -> GhostGrad {
    if (!ghost.has_value()) return {nullptr, Dtype::kFloat};
    return {grad.mutable_data_ptr(), dtype_of(grad, "ghost")};
  };
  const Tensor workspace =
      at::empty({backward_workspace_floats(problem, tiled, ghost_mul.has_value(), ghost_add.has_value())},
                value.options().dtype(at::kFloat));
  C10_CUDA_CHECK(launch_backward(problem, tiled, input_map(dense_grad_out), input_map(dense_value),
                                 input_map(dense_logits), ghost_of(mul), ghost_of(add), output_map(grad_value),
                                 output_map(grad_logits), target(ghost_mul, grad_mul), target(ghost_add, grad_add),
                                 workspace.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream().stream()));
  return {grad_value, grad_logits, grad_mul, grad_add};
}

}  // namespace

TORCH_LIBRARY_IMPL(elsa_det, CUDA, m) {
  m.impl("elsa_attention_forward", &forward);
  m.impl("elsa_attention_backward", &backward);
}

}  // namespace elsa_det::cuda
