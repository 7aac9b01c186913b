// Schemas of the operator, and its CPU implementation in front of the kernels in cpu/.

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <tuple>

#include "cpu/elsa_cpu.h"

namespace elsa_det {
namespace {

using at::Tensor;
using std::optional;

constexpr int64_t kMaxKernelSize = 13;

const cpu::Kernels& cpu_kernels() {
#if defined(__x86_64__)
  static const cpu::Kernels* const chosen = [] {
    const std::string capability = at::get_cpu_capability();  // honours ATEN_CPU_CAPABILITY
    if (capability.rfind("AVX512", 0) == 0) return &cpu::kernels_avx512;
    if (capability == "AVX2") return &cpu::kernels_avx2;
    return &cpu::kernels_default;
  }();
  return *chosen;
#else
  return cpu::kernels_default;
#endif
}

void check_inputs(const Tensor& value, const Tensor& logits, const optional<Tensor>& mul, const optional<Tensor>& add,
                  int64_t kernel_size, int64_t dilation) {
  TORCH_CHECK(kernel_size >= 1 && kernel_size <= kMaxKernelSize && kernel_size % 2 == 1,
              "elsa_attention: kernel_size must be odd and at most ", kMaxKernelSize, ", got ", kernel_size);
  TORCH_CHECK(dilation >= 1, "elsa_attention: dilation must be at least 1, got ", dilation);
  TORCH_CHECK(value.dim() == 4, "elsa_attention: value must be (B, C, H, W), got shape ", value.sizes());
  const int64_t taps = kernel_size * kernel_size;
  TORCH_CHECK(logits.dim() == 4 && logits.size(0) == value.size(0) && logits.size(2) == value.size(2) &&
                  logits.size(3) == value.size(3) && logits.size(1) > 0 && logits.size(1) % taps == 0,
              "elsa_attention: logits must be (B, heads * ", taps, ", H, W) for value of shape ", value.sizes(), ", got ",
              logits.sizes());
  const int64_t heads = logits.size(1) / taps;
  TORCH_CHECK(value.size(1) > 0 && value.size(1) % heads == 0, "elsa_attention: ", value.size(1),
              " channels cannot be split among ", heads, " heads");
  TORCH_CHECK(logits.scalar_type() == value.scalar_type(), "elsa_attention: value is ", value.scalar_type(),
              " but logits are ", logits.scalar_type());
  for (const auto* ghost : {&mul, &add})
    TORCH_CHECK(!*ghost || ((*ghost)->dim() == 3 && (*ghost)->size(0) == value.size(1) &&
                            (*ghost)->size(1) == kernel_size && (*ghost)->size(2) == kernel_size),
                "elsa_attention: a ghost must be (", value.size(1), ", ", kernel_size, ", ", kernel_size, "), got ",
                (*ghost)->sizes());
}

cpu::Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return cpu::Dtype::kFloat;
    case at::kDouble: return cpu::Dtype::kDouble;
    case at::kBFloat16: return cpu::Dtype::kBFloat16;
    case at::kHalf: return cpu::Dtype::kHalf;
    default: TORCH_CHECK_TYPE(false, "elsa_attention: unsupported dtype ", t.scalar_type());
  }
}

cpu::Map map_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// Results follow their input: NCHW for contiguous inputs, channels-last for everything with adjacent channels.
Tensor empty_following(const Tensor& t) {
  const bool channels_last = !t.is_contiguous() && t.stride(1) == 1;
  return at::empty(t.sizes(), t.options(), channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Plan {
  cpu::Problem pb;
  Tensor mul, add;  // packed: (heads, K², padded_dim)
  at::ScalarType acc;

  Plan(const Tensor& value, const Tensor& logits, const optional<Tensor>& ghost_mul, const optional<Tensor>& ghost_add,
       int64_t kernel_size, int64_t dilation)
      : acc(value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat) {
    const auto& kernels = cpu_kernels();
    pb.dtype = dtype_of(value);
    pb.batch = value.size(0), pb.height = value.size(2), pb.width = value.size(3);
    pb.kernel_size = kernel_size, pb.dilation = std::min(dilation, std::max(pb.height, pb.width));
    pb.heads = logits.size(1) / (kernel_size * kernel_size);
    pb.head_dim = value.size(1) / pb.heads;
    const int64_t lanes = acc == at::kDouble ? kernels.lanes_double : kernels.lanes_float;
    pb.padded_dim = ceil_div(pb.head_dim, lanes) * lanes;
    pb.value = map_of(value), pb.logits = map_of(logits);
    add = pack_ghost(ghost_add, value);
    pb.add = add.data_ptr();
    if (ghost_mul) mul = pack_ghost(ghost_mul, value), pb.mul = mul.data_ptr();

    const int64_t rows = ceil_div(pb.height, pb.dilation), columns = ceil_div(pb.width, pb.dilation);
    constexpr int64_t granule = 16;
    pb.tiles = ceil_div(columns, cpu::kMaxTile);
    pb.tile_width = ceil_div(ceil_div(columns, pb.tiles), granule) * granule;
    pb.partial_rows = 16;
    pb.partial_chunks = ceil_div(rows, pb.partial_rows);
    // A map shorter than the dilation has no more residues than rows or columns.
    const int64_t pieces = pb.batch * std::min(pb.dilation, pb.height) * std::min(pb.dilation, pb.width) * pb.tiles;
    // Long chunks repeat less of their borders; but all heads of a chunk should find its pages in the TLB and its lines in
    // the last-level cache, and every thread should get three units or more.
    const int64_t wanted = ceil_div(3 * at::get_num_threads(), pieces * pb.heads);
    const int64_t per_chunk = std::clamp<int64_t>(pb.partial_chunks / wanted, 1, 32 / pb.partial_rows);
    pb.chunk_rows = per_chunk * pb.partial_rows;
    pb.chunks = ceil_div(rows, pb.chunk_rows);
    pb.partials = pieces * pb.partial_chunks;
    pb.units = pieces * pb.chunks * pb.heads;
  }

  Tensor pack_ghost(const optional<Tensor>& ghost, const Tensor& value) const {
    const int64_t taps = pb.kernel_size * pb.kernel_size;
    Tensor packed = at::zeros({pb.heads, taps, pb.padded_dim}, value.options().dtype(acc));
    if (ghost) packed.narrow(2, 0, pb.head_dim).copy_(ghost->reshape({pb.heads, pb.head_dim, taps}).transpose(1, 2));
    return packed;
  }

  // Sums the partial ghost gradients in a fixed order.
  Tensor reduce_ghost(const Tensor& partials, const Tensor& ghost) const {
    const int64_t n = partials.size(0), size = partials.numel() / std::max<int64_t>(n, 1);
    Tensor total = at::zeros({pb.heads, pb.kernel_size * pb.kernel_size, pb.padded_dim}, partials.options());
    auto sum = [&](auto* out, const auto* in) {
      at::parallel_for(0, size, 2048, [&](int64_t begin, int64_t end) {
        for (int64_t p = 0; p < n; ++p)
          for (int64_t i = begin; i < end; ++i) out[i] += in[p * size + i];
      });
    };
    if (acc == at::kDouble)
      sum(total.data_ptr<double>(), partials.const_data_ptr<double>());
    else
      sum(total.data_ptr<float>(), partials.const_data_ptr<float>());
    Tensor grad = at::empty(ghost.sizes(), ghost.options(), at::MemoryFormat::Contiguous);
    grad.view({pb.heads, pb.head_dim, -1}).copy_(total.narrow(2, 0, pb.head_dim).transpose(1, 2));
    return grad;
  }
};

// Grows as needed and stays with the thread: a fresh block a call would cost page faults.
void* thread_scratch(size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> block;
  thread_local size_t capacity = 0;
  if (capacity < bytes) {
    block.reset();
    capacity = 0;
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    block.reset(std::aligned_alloc(4096, rounded));
    if (!block) throw std::bad_alloc();
    capacity = rounded;
  }
  return block.get();
}

void run_units(const cpu::Problem& pb, size_t scratch, void (*unit)(const cpu::Problem&, int64_t, void*)) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min<int64_t>(at::get_num_threads(), pb.units);
  at::parallel_for(0, workers, 1, [&](int64_t, int64_t) {
    void* memory = thread_scratch(scratch);
    for (int64_t u; (u = next.fetch_add(1, std::memory_order_relaxed)) < pb.units;) unit(pb, u, memory);
  });
}

Tensor forward_cpu(const Tensor& value, const Tensor& logits, const optional<Tensor>& ghost_mul,
                   const optional<Tensor>& ghost_add, int64_t kernel_size, int64_t dilation) {
  check_inputs(value, logits, ghost_mul, ghost_add, kernel_size, dilation);
  Tensor out = empty_following(value);
  if (out.numel() == 0) return out;
  Plan plan(value, logits, ghost_mul, ghost_add, kernel_size, dilation);
  plan.pb.out = map_of(out);
  const auto& kernels = cpu_kernels();
  run_units(plan.pb, kernels.forward_scratch(plan.pb), kernels.forward_unit);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward_cpu(const Tensor& grad_out, const Tensor& value, const Tensor& logits,
                                                        const optional<Tensor>& ghost_mul,
                                                        const optional<Tensor>& ghost_add, int64_t kernel_size,
                                                        int64_t dilation) {
  check_inputs(value, logits, ghost_mul, ghost_add, kernel_size, dilation);
  TORCH_CHECK(grad_out.sizes() == value.sizes(), "elsa_attention: grad_out has shape ", grad_out.sizes(), ", value ",
              value.sizes());
  TORCH_CHECK(grad_out.scalar_type() == value.scalar_type(), "elsa_attention: grad_out is ", grad_out.scalar_type(),
              ", value ", value.scalar_type());
  Tensor grad_value = empty_following(value), grad_logits = empty_following(logits);
  Tensor grad_mul = at::zeros(ghost_mul ? ghost_mul->sizes() : at::IntArrayRef{0}, (ghost_mul ? *ghost_mul : value).options());
  Tensor grad_add = at::zeros(ghost_add ? ghost_add->sizes() : at::IntArrayRef{0}, (ghost_add ? *ghost_add : value).options());
  if (value.numel() == 0) return {grad_value, grad_logits, grad_mul, grad_add};
  Plan plan(value, logits, ghost_mul, ghost_add, kernel_size, dilation);
  auto& pb = plan.pb;
  pb.grad_out = map_of(grad_out), pb.grad_value = map_of(grad_value), pb.grad_logits = map_of(grad_logits);
  const auto partials = [&] {
    return at::zeros({pb.partials, pb.heads, kernel_size * kernel_size, pb.padded_dim}, value.options().dtype(plan.acc));
  };
  Tensor sums_mul, sums_add;
  if (ghost_mul) sums_mul = partials(), pb.grad_mul = sums_mul.data_ptr();
  if (ghost_add) sums_add = partials(), pb.grad_add = sums_add.data_ptr();
  const auto& kernels = cpu_kernels();
  run_units(pb, kernels.backward_scratch(pb), kernels.backward_unit);
  if (ghost_mul) grad_mul = plan.reduce_ghost(sums_mul, *ghost_mul);
  if (ghost_add) grad_add = plan.reduce_ghost(sums_add, *ghost_add);
  return {grad_value, grad_logits, grad_mul, grad_add};
}

}  // namespace

TORCH_LIBRARY(elsa_det, m) {
  m.def("elsa_attention_forward(Tensor value, Tensor logits, Tensor? ghost_mul, Tensor? ghost_add, int kernel_size, int dilation) -> Tensor");
  m.def("elsa_attention_backward(Tensor grad_out, Tensor value, Tensor logits, Tensor? ghost_mul, Tensor? ghost_add, int kernel_size, int dilation) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(elsa_det, CPU, m) {
  m.impl("elsa_attention_forward", &forward_cpu);
  m.impl("elsa_attention_backward", &backward_cpu);
}

}  // namespace elsa_det
