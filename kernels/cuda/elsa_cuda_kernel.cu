// Host side of the CUDA kernels: which kernel, how many blocks, how much shared memory.
#include "elsa_cuda_kernel.cuh"

#include <algorithm>
#include <cstdlib>

#include "elsa_cuda_aggregate.cuh"
#include "elsa_cuda_generic.cuh"
#include "elsa_cuda_query.cuh"

namespace elsa_det::cuda {
namespace {

/// Blocks of the query-centred kernel, roughly: more than any GPU holds at once, few enough to keep the partial ghost
/// gradients small. A constant, so that the order of summation, and every bit, is the same on every GPU.
constexpr int64_t kQueryBlocks = 2048;
constexpr size_t kDefaultSharedBytes = 48 * 1024;

int vector_channels(Dtype dtype) { return dtype == Dtype::kFloat ? kVec<float> : kVec<__half>; }

int64_t tile_count(const Tiling& t, int batch) {
  return static_cast<int64_t>(batch) * t.phases_y * t.phases_x * t.tiles_y * t.tiles_x;
}

Tiling make_tiling(const Problem& p, bool tiled) {
  Tiling t;
  t.heads = p.heads;
  t.head_dim = p.head_dim;
  t.height = p.height;
  t.width = p.width;
  t.dilation = p.dilation;
  t.tile_height = tiled ? kTileRows : kGenericRows;
  t.tile_width = tiled ? kTileCols : kGenericCols;
  t.phases_y = std::min(p.dilation, p.height);
  t.phases_x = std::min(p.dilation, p.width);
  const int longest_y = (p.height - 1) / p.dilation + 1;
  const int longest_x = (p.width - 1) / p.dilation + 1;
  t.tiles_y = (longest_y - 1) / t.tile_height + 1;
  t.tiles_x = (longest_x - 1) / t.tile_width + 1;
  t.tiles = 0;
  const int64_t tiles = tile_count(t, p.batch);
  // Else left at 0, which `launch` refuses. The margin keeps tile + kQueryBlocks within 32 bits.
  if (tiles * p.heads <= INT32_MAX - kQueryBlocks) t.tiles = static_cast<int>(tiles);
  return t;
}

int blocks_per_head(const Tiling& t) {
  const int64_t tiles_per_block = (static_cast<int64_t>(t.tiles) * t.heads + kQueryBlocks - 1) / kQueryBlocks;
  return static_cast<int>((t.tiles + tiles_per_block - 1) / tiles_per_block);
}

/// Launches `kernel` with `bytes` of shared memory; `fits` turns false, and nothing is done, if this GPU has less.
template <typename... P>
cudaError_t launch(void (*kernel)(P...), int64_t blocks, dim3 threads, size_t bytes, cudaStream_t stream, bool& fits,
                   P... params) {
  if (blocks <= 0 || blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  if (bytes > kDefaultSharedBytes) {
    int device = 0;
    int limit = 0;
    cudaError_t error = cudaGetDevice(&device);
    if (error != cudaSuccess) return error;
    error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error != cudaSuccess) return error;
    fits = bytes <= static_cast<size_t>(limit);
    if (!fits) return cudaSuccess;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {&params...};
  return cudaLaunchKernel(kernel, dim3(static_cast<unsigned int>(blocks)), threads, arguments, bytes, stream);
}

template <typename T, int K, bool kMul, bool kKeys>
cudaError_t launch_tiled_aggregate(const AggregateParams& params, cudaStream_t stream, bool& fits) {
  using Layout = AggregateLayout<T, K, kMul, kKeys>;
  return launch(aggregate_kernel<T, K, kMul, kKeys>, static_cast<int64_t>(params.tiling.tiles) * params.tiling.heads,
                dim3(Layout::kThreads), Layout::kBytes, stream, fits, params);
}

template <typename T, int K, bool kMul>
cudaError_t launch_tiled_query(const QueryParams& params, cudaStream_t stream, bool& fits) {
  using Layout = QueryLayout<T, K, kMul>;
  return launch(query_backward_kernel<T, K, kMul>, static_cast<int64_t>(params.blocks_per_head) * params.tiling.heads,
                dim3(Layout::kThreads), Layout::kBytes, stream, fits, params);
}

template <typename T, bool kKeys>
cudaError_t launch_aggregate(const Problem& problem, bool tiled, AggregateParams params, cudaStream_t stream) {
  bool fits = tiled;
  if (tiled) {
    params.tiling = make_tiling(problem, true);
    const bool mul = params.mul.data != nullptr;
    cudaError_t error = cudaErrorInvalidValue;
    switch (problem.kernel_size) {
      case 3:
        error = mul ? launch_tiled_aggregate<T, 3, true, kKeys>(params, stream, fits)
                    : launch_tiled_aggregate<T, 3, false, kKeys>(params, stream, fits);
        break;
      case 5:
        error = mul ? launch_tiled_aggregate<T, 5, true, kKeys>(params, stream, fits)
                    : launch_tiled_aggregate<T, 5, false, kKeys>(params, stream, fits);
        break;
      case 7:
        error = mul ? launch_tiled_aggregate<T, 7, true, kKeys>(params, stream, fits)
                    : launch_tiled_aggregate<T, 7, false, kKeys>(params, stream, fits);
        break;
      default: break;
    }
    if (error != cudaSuccess || fits) return error;
  }
  params.tiling = make_tiling(problem, false);
  return launch(generic_aggregate_kernel<T, kKeys>, static_cast<int64_t>(params.tiling.tiles) * params.tiling.heads,
                dim3(kGenericThreads), generic_shared_bytes(problem.kernel_size, 1), stream, fits, params,
                problem.kernel_size);
}

template <typename T>
cudaError_t launch_query(const Problem& problem, bool tiled, QueryParams params, cudaStream_t stream) {
  params.tiling = make_tiling(problem, tiled);
  params.blocks_per_head = blocks_per_head(params.tiling);
  bool fits = tiled;
  if (tiled) {
    const bool mul = params.mul.data != nullptr;
    cudaError_t error = cudaErrorInvalidValue;
    switch (problem.kernel_size) {
      case 3:
        error = mul ? launch_tiled_query<T, 3, true>(params, stream, fits)
                    : launch_tiled_query<T, 3, false>(params, stream, fits);
        break;
      case 5:
        error = mul ? launch_tiled_query<T, 5, true>(params, stream, fits)
                    : launch_tiled_query<T, 5, false>(params, stream, fits);
        break;
      case 7:
        error = mul ? launch_tiled_query<T, 7, true>(params, stream, fits)
                    : launch_tiled_query<T, 7, false>(params, stream, fits);
        break;
      default: break;
    }
    if (error != cudaSuccess || fits) return error;
    params.tiling = make_tiling(problem, false);  // smaller tiles, so still at least one for every block
    if (params.tiling.tiles == 0) return cudaErrorInvalidConfiguration;
  }
  return launch(generic_query_backward_kernel<T>, static_cast<int64_t>(params.blocks_per_head) * params.tiling.heads,
                dim3(kGenericThreads), generic_shared_bytes(problem.kernel_size, 2), stream, fits, params,
                problem.kernel_size);
}

cudaError_t launch_reduction(const Problem& problem, const QueryParams& query, int slots, const GhostGrad& grad_mul,
                             const GhostGrad& grad_add, cudaStream_t stream) {
  ReduceParams params{};
  unsigned int count = 0;
  const auto add = [&](const float* partial, const GhostGrad& target) {
    if (partial == nullptr) return;
    params.partial[count] = partial;
    params.target[count] = target;
    ++count;
  };
  add(query.partial_mul, grad_mul);
  add(query.partial_add, grad_add);
  if (count == 0) return cudaSuccess;
  params.slots = slots;
  params.taps = problem.kernel_size * problem.kernel_size;
  params.channels = problem.heads * problem.head_dim;
  const int outputs = params.taps * params.channels;
  void* arguments[] = {&params};
  return cudaLaunchKernel(reduce_partials_kernel, dim3((outputs - 1) / kReduceOutputs + 1, count),
                          dim3(kReduceOutputs, kReduceSlices), arguments, 0, stream);
}

/// Calls f with a value of the C++ type that `dtype` names.
template <typename F>
cudaError_t with_type(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kHalf: return f(__half());
    case Dtype::kBFloat16: return f(__nv_bfloat16());
    default: return f(0.f);
  }
}

int64_t stats_floats(const Problem& p) {
  const int64_t floats = 2 * static_cast<int64_t>(p.batch) * p.heads * p.height * p.width;
  return (floats + 3) / 4 * 4;
}

int64_t partial_floats(const Problem& p, int slots) {
  return static_cast<int64_t>(slots) * p.kernel_size * p.kernel_size * p.heads * p.head_dim;
}

}  // namespace

bool has_tiled_kernels(const Problem& problem, const ConstMap& logits) {
  const int64_t row_elements = std::abs(logits.col) * problem.dilation * (kTileCols + kMaxKernelSize);
  return (problem.kernel_size == 3 || problem.kernel_size == 5 || problem.kernel_size == 7) &&
         problem.head_dim % vector_channels(problem.dtype) == 0 && row_elements < INT32_MAX / 2;
}

bool is_vector_aligned(const Problem& problem, const ConstMap& map) {
  const int vector = vector_channels(problem.dtype);
  return reinterpret_cast<uintptr_t>(map.data) % kVecBytes == 0 && (problem.batch == 1 || map.batch % vector == 0) &&
         (problem.height == 1 || map.row % vector == 0) && (problem.width == 1 || map.col % vector == 0);
}

int64_t backward_workspace_floats(const Problem& problem, bool tiled, bool want_mul, bool want_add) {
  const Tiling tiling = make_tiling(problem, tiled);
  if (tiling.tiles == 0) return 0;
  return stats_floats(problem) +
         (static_cast<int>(want_mul) + static_cast<int>(want_add)) * partial_floats(problem, blocks_per_head(tiling));
}

cudaError_t launch_forward(const Problem& problem, bool tiled, const ConstMap& value, const ConstMap& logits,
                           const Ghost& mul, const Ghost& add, const Map& out, cudaStream_t stream) {
  const AggregateParams params{{}, value, logits, nullptr, mul, add, out};
  return with_type(problem.dtype, [&](auto type) {
    return launch_aggregate<decltype(type), false>(problem, tiled, params, stream);
  });
}

cudaError_t launch_backward(const Problem& problem, bool tiled, const ConstMap& grad_out, const ConstMap& value,
                            const ConstMap& logits, const Ghost& mul, const Ghost& add, const Map& grad_value,
                            const Map& grad_logits, const GhostGrad& grad_mul, const GhostGrad& grad_add,
                            float* workspace, cudaStream_t stream) {
  const Tiling tiling = make_tiling(problem, tiled);
  if (tiling.tiles == 0) return cudaErrorInvalidConfiguration;
  const int slots = blocks_per_head(tiling);
  float2* const stats = reinterpret_cast<float2*>(workspace);
  float* partial = workspace + stats_floats(problem);
  const auto take_partial = [&](const GhostGrad& target) -> float* {
    if (target.data == nullptr) return nullptr;
    float* const mine = partial;
    partial += partial_floats(problem, slots);
    return mine;
  };
  QueryParams query{};
  query.grad_out = grad_out;
  query.value = value;
  query.logits = logits;
  query.mul = mul;
  query.grad_logits = grad_logits;
  query.stats = stats;
  query.partial_mul = take_partial(grad_mul);
  query.partial_add = take_partial(grad_add);
  const AggregateParams keys{{}, grad_out, logits, stats, mul, add, grad_value};

  cudaError_t error = with_type(problem.dtype, [&](auto type) {
    return launch_query<decltype(type)>(problem, tiled, query, stream);
  });
  if (error != cudaSuccess) return error;
  error = with_type(problem.dtype, [&](auto type) {
    return launch_aggregate<decltype(type), true>(problem, tiled, keys, stream);
  });
  if (error != cudaSuccess) return error;
  return launch_reduction(problem, query, slots, grad_mul, grad_add, stream);
}

}  // namespace elsa_det::cuda
