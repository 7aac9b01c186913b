// The tiled kernels, for K known at compile time and heads that are a multiple of 16 bytes wide.
//
// A block owns a tile of 16 x 8 pixels of one head, cut into four strips of 4 x 8 pixels. Channels are worked through in
// chunks of 64 bytes (32 half-precision or 16 float32 ones), whose values lie in shared memory with their halo. A thread
// owns 16 bytes of channels of four pixels in a row; it slides over the row, so that every value is read and unpacked
// once for the four pixels. Sums are float32. Nothing is added atomically: equal inputs give equal bits.
#pragma once

#include "elsa_cuda_kernel.cuh"

namespace elsa_det::cuda {

constexpr int kPixels = 4;        // pixels in a row of one thread
constexpr int kStrips = 4;        // strips of kPixels columns side by side
constexpr int kTileRows = 8;
constexpr int kTileCols = kPixels * kStrips;
constexpr int kTilePixels = kTileRows * kTileCols;
constexpr int kStripPixels = kTileRows * kPixels;
constexpr int kChannelLanes = 4;  // threads side by side along the channels
constexpr int kPixelBytes = kChannelLanes * kVecBytes;
static_assert(kStripPixels == 32 && kTileRows * kChannelLanes == 32, "a warp is a strip, and a pixel a lane");

template <typename T>
constexpr int kChunk = kChannelLanes * kVec<T>;

/// Floats from one tap of a ghost to the next in shared memory; four more than needed, against bank conflicts.
template <typename T>
constexpr int kGhostRow = kChunk<T> + 4;

/// Pixels of one row in shared memory, padded so that two rows differ by 16 banks: the two rows that eight neighbouring
/// lanes read then fall into different banks.
__host__ __device__ constexpr int padded_row(int pixels) { return pixels % 2 == 0 ? pixels + 1 : pixels; }

template <int K>
constexpr int kHaloRows = kTileRows + K - 1;
template <int K>
constexpr int kHaloCols = kTileCols + K - 1;
template <int K>
constexpr int kHaloBytes = kHaloRows<K> * padded_row(kHaloCols<K>) * kPixelBytes;
constexpr int kCentreBytes = kTileRows * padded_row(kTileCols) * kPixelBytes;

/// Starts copying kRows x kCols pixels from (y0, x0) on, one chunk wide, into shared memory; zeros outside the image and
/// past the last channel. Rows go round the warps. The caller waits with `__pipeline_wait_prior(0)` and a barrier.
template <typename T, int kRows, int kCols, int kWarps>
__device__ __forceinline__ void start_tile_copy(unsigned char* shared, const View<const T>& src, const Tile& tile,
                                                int y0, int x0, int channels, int warp, int lane) {
  constexpr int kPitch = padded_row(kCols) * kPixelBytes;
  constexpr int kPixelsAtOnce = 32 / kChannelLanes;
  constexpr int kRounds = (kCols + kPixelsAtOnce - 1) / kPixelsAtOnce;
  const int channel = lane % kChannelLanes * kVec<T>;
  const int first = lane / kChannelLanes;
  bool valid[kRounds];
  int64_t offset[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int x = x0 + first + r * kPixelsAtOnce;
    valid[r] = x >= 0 && x < tile.width && channel < channels;
    offset[r] = valid[r] ? x * src.col + channel : 0;
  }
#pragma unroll 1
  for (int y = warp; y < kRows; y += kWarps) {
    const bool row_valid = y0 + y >= 0 && y0 + y < tile.height;
    const T* const row = src.base + (row_valid ? (y0 + y) * src.row : 0);
    unsigned char* const to = shared + y * kPitch + lane * kVecBytes;
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (first + r * kPixelsAtOnce < kCols) {
        unsigned char* const dst = to + r * (32 * kVecBytes);
        if (row_valid && valid[r]) {
          __pipeline_memcpy_async(dst, row + offset[r], kVecBytes);
        } else {
          *reinterpret_cast<uint4*>(dst) = make_uint4(0, 0, 0, 0);
        }
      }
    }
  }
  __pipeline_commit();
}

/// Copies a chunk of a ghost tensor, (channel, tap) in memory, to (tap, channel) in shared memory. Channels go round the
/// warps.
template <typename T, int K, int kWarps, bool kMirrored, typename G>
__device__ __forceinline__ void load_ghost(float* shared, const G* ghost, int first_channel, int channels, int warp,
                                           int lane) {
  constexpr int kTaps = K * K;
  constexpr int kRounds = (kTaps + 31) / 32;
#pragma unroll 2
  for (int c = warp; c < kChunk<T>; c += kWarps) {
    const G* const src = ghost + static_cast<int64_t>(first_channel + c) * kTaps + lane;
    G x[kRounds] = {};
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (c < channels && r * 32 + lane < kTaps) x[r] = src[r * 32];
    }
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int j = r * 32 + lane;
      if (j < kTaps) shared[(kMirrored ? kTaps - 1 - j : j) * kGhostRow<T> + c] = to_float(x[r]);
    }
  }
}

template <typename T, int K, int kWarps, bool kMirrored>
__device__ __forceinline__ void load_ghost(float* shared, const Ghost& ghost, int first_channel, int channels, int warp,
                                           int lane) {
  if (ghost.data == nullptr) channels = 0;  // an absent `add` is zero; without `mul` there is another kernel
  switch (ghost.dtype) {
    case Dtype::kHalf:
      load_ghost<T, K, kWarps, kMirrored>(shared, static_cast<const __half*>(ghost.data), first_channel, channels, warp,
                                          lane);
      break;
    case Dtype::kBFloat16:
      load_ghost<T, K, kWarps, kMirrored>(shared, static_cast<const __nv_bfloat16*>(ghost.data), first_channel,
                                          channels, warp, lane);
      break;
    default:
      load_ghost<T, K, kWarps, kMirrored>(shared, static_cast<const float*>(ghost.data), first_channel, channels, warp,
                                          lane);
  }
}

/// One warp: a strip's logits from memory to `stage` (pixel, tap). Neighbouring lanes read neighbouring taps. Pixels
/// outside the image get the nearest pixel's: something harmless, that is never used.
template <typename T, int K>
__device__ __forceinline__ void stage_logits(float* stage, const View<const T>& logits, const Tile& tile, int x0,
                                             int lane) {
  constexpr int kTaps = K * K;
  constexpr int kRounds = (kTaps + 31) / 32;
  const T* from[kPixels];
#pragma unroll
  for (int p = 0; p < kPixels; ++p) from[p] = logits.base + min(x0 + p, tile.width - 1) * logits.col + lane;
#pragma unroll 1
  for (int y = 0; y < kTileRows; ++y) {
    const int64_t offset = min(tile.y0 + y, tile.height - 1) * logits.row;
    T x[kPixels][kRounds] = {};
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
#pragma unroll
      for (int r = 0; r < kRounds; ++r) {
        if (r * 32 + lane < kTaps) x[p][r] = from[p][offset + r * 32];
      }
    }
    float* const to = stage + y * kPixels * kTaps + lane;
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
#pragma unroll
      for (int r = 0; r < kRounds; ++r) {
        if (r * 32 + lane < kTaps) to[p * kTaps + r * 32] = to_float(x[p][r]);
      }
    }
  }
}

/// The way back: a strip's gradients from `stage` (pixel, tap) to memory.
template <typename T, int K>
__device__ __forceinline__ void unstage_logits(const float* stage, const View<T>& logits, const Tile& tile, int x0,
                                               int lane) {
  constexpr int kTaps = K * K;
  constexpr int kRounds = (kTaps + 31) / 32;
  T* to[kPixels];
#pragma unroll
  for (int p = 0; p < kPixels; ++p) to[p] = logits.base + (x0 + p) * logits.col + lane;
#pragma unroll 1
  for (int y = 0; y < kTileRows && tile.y0 + y < tile.height; ++y) {
    const float* const from = stage + y * kPixels * kTaps + lane;
    const int64_t offset = (tile.y0 + y) * logits.row;
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
#pragma unroll
      for (int r = 0; r < kRounds; ++r) {
        if (x0 + p < tile.width && r * 32 + lane < kTaps) {
          to[p][offset + r * 32] = from_float<T>(from[p * kTaps + r * 32]);
        }
      }
    }
  }
}

/// Softmax of one pixel's staged logits, in registers. Returns the pair that `View<float2>` stats hold.
template <int K>
__device__ __forceinline__ float2 softmax(const float* logits, float (&a)[K * K]) {
  constexpr int kTaps = K * K;
#pragma unroll
  for (int j = 0; j < kTaps; ++j) a[j] = logits[j];
  float high = a[0];
#pragma unroll
  for (int j = 1; j < kTaps; ++j) high = fmaxf(high, a[j]);
  float sum = 0.f;
#pragma unroll
  for (int j = 0; j < kTaps; ++j) {
    a[j] = fast_exp(a[j] - high);
    sum += a[j];
  }
  const float scale = 1.f / sum;
#pragma unroll
  for (int j = 0; j < kTaps; ++j) a[j] *= scale;
  return make_float2(high, scale);
}

/// One warp: the softmax of its strip's queries to `coefficients` (tap, pixel), through the same shared memory.
template <typename T, int K>
__device__ __forceinline__ void strip_softmax(float* coefficients, const View<const T>& logits, const Tile& tile,
                                              int strip, int lane) {
  stage_logits<T, K>(coefficients, logits, tile, tile.x0 + strip * kPixels, lane);
  __syncwarp();
  float a[K * K];
  softmax<K>(coefficients + lane * (K * K), a);
  __syncwarp();
#pragma unroll
  for (int j = 0; j < K * K; ++j) coefficients[j * kStripPixels + lane] = a[j];
}

/// The whole block, for dvalue: coefficient (j, key) is the softmax of query key + j at its tap -j. Logits are read in
/// runs of K taps of one query; `stats` is the tile of softmax statistics with its halo, which makes the coefficients of
/// queries outside the image zero, whatever is read in their place. Every entry is written once: rows of keys and tap
/// columns lie on the lanes (so that a warp's stores are spread over the banks), query columns go round the warps.
template <typename T, int K>
__device__ __forceinline__ void gather_key_coefficients(float* coefficients, const float2* stats,
                                                        const View<const T>& logits, const Tile& tile, int warp,
                                                        int lane) {
  constexpr int kRadius = K / 2;
  constexpr int kTapLanes = K <= 4 ? 4 : 8;
  constexpr int kRowsAtOnce = 32 / kTapLanes;
  constexpr int kRowGroups = kTileRows / kRowsAtOnce;
  constexpr int kStep = kStrips / kRowGroups;
  const int y = warp % kRowGroups * kRowsAtOnce + lane / kTapLanes;
  const int tap = lane % kTapLanes;
  const T* rows[K];
#pragma unroll
  for (int jy = 0; jy < K; ++jy) {  // the query lies in halo row y + jy, its tap in row K - 1 - jy
    const int row = min(max(tile.y0 - kRadius + y + jy, 0), tile.height - 1);
    rows[jy] = logits.at(row, tile.x0) + (K - 1 - jy) * K + min(tap, K - 1);
  }
#pragma unroll 2
  for (int query = warp / kRowGroups; query < kHaloCols<K>; query += kStep) {  // its column, halo included
    const int key = query - (K - 1 - tap);
    const bool used = tap < K && key >= 0 && key < kTileCols;
    // The host made sure that 32 bits suffice for offsets within a tile's row.
    const int column = (min(max(tile.x0 - kRadius + query, 0), tile.width - 1) - tile.x0) * static_cast<int>(logits.col);
    const float2* const stat_column = stats + y * kHaloCols<K> + query;
    float* const to = coefficients + (used ? key / kPixels * (K * K * kStripPixels) + (K - 1 - tap) * kStripPixels +
                                                 y * kPixels + key % kPixels
                                           : 0);
    T x[K];
#pragma unroll
    for (int jy = 0; jy < K; ++jy) x[jy] = rows[jy][column];
#pragma unroll
    for (int jy = 0; jy < K; ++jy) {
      const float2 stat = stat_column[jy * kHaloCols<K>];
      const float coefficient = fast_exp(to_float(x[jy]) - stat.x) * stat.y;
      if (used) to[jy * K * kStripPixels] = coefficient;
    }
  }
}

/// The softmax statistics of the tile's halo to shared memory; outside the image such that every exponential is zero.
template <int K, int kThreads>
__device__ __forceinline__ void load_stats(float2* shared, const View<const float2>& stats, const Tile& tile) {
  for (int i = static_cast<int>(threadIdx.x); i < kHaloRows<K> * kHaloCols<K>; i += kThreads) {
    const int y = tile.y0 - K / 2 + i / kHaloCols<K>;
    const int x = tile.x0 - K / 2 + i % kHaloCols<K>;
    shared[i] = inside(tile, y, x) ? *stats.at(y, x) : make_float2(INFINITY, 0.f);
  }
}

// ---- Forward, and dvalue --------------------------------------------------------------------------------------------

template <typename T, int K, bool kMul, bool kKeys>
struct AggregateLayout {
  static constexpr int kHalo = 0;
  static constexpr int kCoefficients = kHalo + kHaloBytes<K>;
  static constexpr int kAdd = kCoefficients + K * K * kTilePixels * static_cast<int>(sizeof(float));
  static constexpr int kGhostBytes = K * K * kGhostRow<T> * static_cast<int>(sizeof(float));
  static constexpr int kMulGhost = kAdd + kGhostBytes;
  static constexpr int kStats = kMulGhost + (kMul ? kGhostBytes : 0);
  static constexpr int kBytes =
      kStats + (kKeys ? kHaloRows<K> * kHaloCols<K> * static_cast<int>(sizeof(float2)) : 0);
  static constexpr int kWarps = kStrips;
  static constexpr int kThreads = kWarps * 32;
};

template <typename T, int K, bool kMul, bool kKeys>
__global__ void __launch_bounds__(AggregateLayout<T, K, kMul, kKeys>::kThreads, 4)
    aggregate_kernel(const AggregateParams params) {
  using Layout = AggregateLayout<T, K, kMul, kKeys>;
  constexpr int kWarps = Layout::kWarps;
  constexpr int kTaps = K * K;
  constexpr int kN = kVec<T>;
  constexpr int kPitch = padded_row(kHaloCols<K>) * kPixelBytes;
  const Tiling& t = params.tiling;
  const int head = static_cast<int>(blockIdx.x) % t.heads;
  const Tile tile = locate_tile(t, static_cast<int>(blockIdx.x) / t.heads);
  if (!inside(tile, tile.y0, tile.x0)) return;  // a phase that is shorter than the longest

  unsigned char* const shared = shared_memory();
  unsigned char* const halo = shared + Layout::kHalo;
  float* const coefficients = reinterpret_cast<float*>(shared + Layout::kCoefficients);
  float* const ghost_add = reinterpret_cast<float*>(shared + Layout::kAdd);
  float* const ghost_mul = reinterpret_cast<float*>(shared + Layout::kMulGhost);

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int strip = warp;
  const int channel_lane = lane % kChannelLanes;
  const int y = lane / kChannelLanes;
  float* const strip_coefficients = coefficients + strip * (kTaps * kStripPixels);
  const unsigned char* const first_value =
      halo + y * kPitch + (strip * kPixels * kChannelLanes + channel_lane) * kVecBytes;

#pragma unroll 1
  for (int chunk = 0; chunk < t.head_dim; chunk += kChunk<T>) {
    const int channel = head * t.head_dim + chunk;
    const int channels = t.head_dim - chunk;
    if (chunk > 0) __syncthreads();
    start_tile_copy<T, kHaloRows<K>, kHaloCols<K>, kWarps>(halo, view<T>(params.source, t, tile, channel), tile,
                                                             tile.y0 - K / 2, tile.x0 - K / 2, channels, warp, lane);
    load_ghost<T, K, kWarps, kKeys>(ghost_add, params.add, channel, channels, warp, lane);
    if constexpr (kMul) load_ghost<T, K, kWarps, kKeys>(ghost_mul, params.mul, channel, channels, warp, lane);
    if (chunk == 0) {
      const View<const T> logits = view<T>(params.logits, t, tile, head * kTaps);
      if constexpr (kKeys) {
        float2* const stats = reinterpret_cast<float2*>(shared + Layout::kStats);
        load_stats<K, Layout::kThreads>(stats, stats_view(params.stats, t, tile, head), tile);
        __syncthreads();
        gather_key_coefficients<T, K>(coefficients, stats, logits, tile, warp, lane);
      } else {
        strip_softmax<T, K>(strip_coefficients, logits, tile, strip, lane);
      }
    }
    __pipeline_wait_prior(0);
    __syncthreads();

    float sum[kPixels][kN] = {};
#pragma unroll 1
    for (int ky = 0; ky < K; ++ky) {
      const unsigned char* const row = first_value + ky * kPitch;
      const float* const a_row = strip_coefficients + ky * K * kStripPixels + y * kPixels;
      const int ghost_row = ky * K * kGhostRow<T> + channel_lane * kN;
      float window[kPixels][kN];
#pragma unroll
      for (int p = 0; p < kPixels - 1; ++p) load_vector(reinterpret_cast<const T*>(row + p * kPixelBytes), window[p]);
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        load_vector(reinterpret_cast<const T*>(row + (kx + kPixels - 1) * kPixelBytes),
                    window[(kx + kPixels - 1) % kPixels]);
        float a[kPixels], add[kN], mul[kN];
        load_vector(a_row + kx * kStripPixels, a);
        load_vector(ghost_add + ghost_row + kx * kGhostRow<T>, add);
        if constexpr (kMul) load_vector(ghost_mul + ghost_row + kx * kGhostRow<T>, mul);
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
#pragma unroll
          for (int c = 0; c < kN; ++c) {
            const float weight = kMul ? fmaf(a[p], mul[c], add[c]) : a[p] + add[c];
            sum[p][c] = fmaf(window[(kx + p) % kPixels][c], weight, sum[p][c]);
          }
        }
      }
    }

    const View<T> target = view<T>(params.target, t, tile, channel + channel_lane * kN);
    if (channel_lane * kN < channels) {
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const int row = tile.y0 + y;
        const int col = tile.x0 + strip * kPixels + p;
        if (inside(tile, row, col)) store_vector(target.at(row, col), sum[p]);
      }
    }
  }
}

// ---- Query-centred backward: dlogits, and this block's share of the ghost gradients ---------------------------------

template <typename T, int K, bool kMul>
struct QueryLayout {
  static constexpr int kCoefficientBytes = K * K * kTilePixels * static_cast<int>(sizeof(float));
  static constexpr int kHalo = 0;
  static constexpr int kCentre = kHalo + kHaloBytes<K>;
  static constexpr int kStage = 0;  // of logits and of dlogits: over the values, which are then no longer needed
  static constexpr int kDot = kCentre + kCentreBytes;
  static constexpr int kMulGhost = kDot + kCoefficientBytes;
  static constexpr int kCoefficients = kMulGhost + (kMul ? K * K * kGhostRow<T> * static_cast<int>(sizeof(float)) : 0);
  static constexpr int kBytes = kCoefficients + (kMul ? kCoefficientBytes : 0);
  static constexpr int kWarps = K;  // a warp is a row of taps
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kBlocks = (kMul ? 256 : 512) / kThreads;  // at once: leaves 255 or 128 registers a thread
  static_assert(kStage + kCoefficientBytes <= kDot, "the stage must fit over the values");
};

/// Adds up x[pixel] over the four lanes along the channels; the lane of channel group p is left with pixel p's sum.
__device__ __forceinline__ float reduce_channel_lanes(const float (&x)[kPixels], int channel_lane) {
  const bool odd = (channel_lane & 1) != 0;
  const bool upper = (channel_lane & 2) != 0;
  const float even_or_odd_low = (odd ? x[1] : x[0]) + __shfl_xor_sync(kFullWarp, odd ? x[0] : x[1], 1);
  const float even_or_odd_high = (odd ? x[3] : x[2]) + __shfl_xor_sync(kFullWarp, odd ? x[2] : x[3], 1);
  return (upper ? even_or_odd_high : even_or_odd_low) +
         __shfl_xor_sync(kFullWarp, upper ? even_or_odd_low : even_or_odd_high, 2);
}

/// Adds up x[tap][channel] over the eight lanes that share a channel group (lane bits 2 to 4), halving the channels a
/// lane holds with each step as long as there are any to halve. Leaves x[tap][0]; returns the channel that stands for.
template <int K, int kN>
__device__ __forceinline__ int reduce_pixel_lanes(float (&x)[K][kN], int lane) {
  int channel = 0;
#pragma unroll
  for (int step = 0; step < 3; ++step) {
    const int mask = 4 << step;
    const bool upper = (lane & mask) != 0;
    const int half = kN >> (step + 1);
    if (half > 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int c = 0; c < half; ++c) {
          const float keep = upper ? x[k][c + half] : x[k][c];
          const float send = upper ? x[k][c] : x[k][c + half];
          x[k][c] = keep + __shfl_xor_sync(kFullWarp, send, mask);
        }
      }
      if (upper) channel += half;
    } else {
#pragma unroll
      for (int k = 0; k < K; ++k) x[k][0] += __shfl_xor_sync(kFullWarp, x[k][0], mask);
    }
  }
  return channel;
}

/// Writes this block's share for a chunk, or adds to what the same thread wrote for an earlier tile.
template <typename T, int K>
__device__ __forceinline__ void store_partial(float* partial, float (&x)[K][kVec<T>], int lane, int ky, int channel,
                                              int channels, int all_channels, bool first) {
  const int mine = lane % kChannelLanes * kVec<T> + reduce_pixel_lanes<K, kVec<T>>(x, lane);
  const bool writer = kVec<T> == 8 || (lane & 16) == 0;  // four channels: two lanes hold the same sum
  if (!writer || mine >= channels) return;
#pragma unroll
  for (int kx = 0; kx < K; ++kx) {
    float* const dst = partial + (ky * K + kx) * all_channels + channel + mine;
    *dst = first ? x[kx][0] : *dst + x[kx][0];
  }
}

/// Where pixel `lane` of a strip keeps its dA: turned by 8 a strip, so that a warp's stores hit 32 different banks.
__device__ __forceinline__ int dot_slot(int strip, int lane) { return strip * 32 + ((lane + 8 * strip) & 31); }

template <typename T, int K, bool kMul>
__global__ void __launch_bounds__(QueryLayout<T, K, kMul>::kThreads, QueryLayout<T, K, kMul>::kBlocks)
    query_backward_kernel(const QueryParams params) {
  using Layout = QueryLayout<T, K, kMul>;
  constexpr int kWarps = Layout::kWarps;
  constexpr int kTaps = K * K;
  constexpr int kN = kVec<T>;
  constexpr int kPitch = padded_row(kHaloCols<K>) * kPixelBytes;
  constexpr int kCentrePitch = padded_row(kTileCols) * kPixelBytes;
  const Tiling& t = params.tiling;
  const int head = static_cast<int>(blockIdx.x) % t.heads;
  const int slot = static_cast<int>(blockIdx.x) / t.heads;
  const int all_channels = t.heads * t.head_dim;

  unsigned char* const shared = shared_memory();
  unsigned char* const halo = shared + Layout::kHalo;
  unsigned char* const centre = shared + Layout::kCentre;
  float* const stage = reinterpret_cast<float*>(shared + Layout::kStage);
  float* const dot = reinterpret_cast<float*>(shared + Layout::kDot);
  float* const ghost_mul = reinterpret_cast<float*>(shared + Layout::kMulGhost);
  float* const coefficients = reinterpret_cast<float*>(shared + Layout::kCoefficients);

  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int ky = warp;
  const int channel_lane = lane % kChannelLanes;
  const int parity = lane / kChannelLanes % 2;  // even or odd rows of the tile
  const int strip = lane / (kChannelLanes * 2);

#pragma unroll 1
  for (int index = slot; index < t.tiles; index += params.blocks_per_head) {
    const Tile tile = locate_tile(t, index);
    const View<const T> logits = view<T>(params.logits, t, tile, head * kTaps);
    const View<float2> stats = stats_view(params.stats, t, tile, head);

    if constexpr (kMul) {
#pragma unroll 1
      for (int s = warp; s < kStrips; s += K) {
        strip_softmax<T, K>(coefficients + s * (kTaps * kStripPixels), logits, tile, s, lane);
      }
    }

#pragma unroll 1
    for (int chunk = 0; chunk < t.head_dim; chunk += kChunk<T>) {
      const int channel = head * t.head_dim + chunk;
      const int channels = t.head_dim - chunk;
      __syncthreads();  // the tile, or the chunk, before is done with
      start_tile_copy<T, kHaloRows<K>, kHaloCols<K>, kWarps>(halo, view<T>(params.value, t, tile, channel), tile,
                                                               tile.y0 - K / 2, tile.x0 - K / 2, channels, warp, lane);
      start_tile_copy<T, kTileRows, kTileCols, kWarps>(centre, view<T>(params.grad_out, t, tile, channel), tile,
                                                         tile.y0, tile.x0, channels, warp, lane);
      if constexpr (kMul) load_ghost<T, K, kWarps, false>(ghost_mul, params.mul, channel, channels, warp, lane);
      __pipeline_wait_prior(0);
      __syncthreads();

      float grad_add[K][kN] = {};
      float grad_mul[kMul ? K : 1][kN] = {};
#pragma unroll 1
      for (int i = 0; i < kTileRows / 2; ++i) {
        const int y = 2 * i + parity;
        const unsigned char* const row = halo + (y + ky) * kPitch +
                                         (strip * kPixels * kChannelLanes + channel_lane) * kVecBytes;
        const unsigned char* const grad_row = centre + y * kCentrePitch +
                                              (strip * kPixels * kChannelLanes + channel_lane) * kVecBytes;
        float* const dot_row = dot + ky * K * kTilePixels + dot_slot(strip, y * kPixels + channel_lane);
        float grad[kPixels][kN];
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
          load_vector(reinterpret_cast<const T*>(grad_row + p * kPixelBytes), grad[p]);
        }
        // A value meets pixel p at tap column x - p. Of the taps, four columns are under way at a time.
        float part[kPixels][kPixels], a[kMul ? kPixels : 1][kPixels], mul[kMul ? kPixels : 1][kN];
#pragma unroll
        for (int x = 0; x < K + kPixels - 1; ++x) {
          float value[kN];
          load_vector(reinterpret_cast<const T*>(row + x * kPixelBytes), value);
          if constexpr (kMul) {
            if (x < K) {
              const int j = ky * K + x;
              load_vector(coefficients + (strip * kTaps + j) * kStripPixels + y * kPixels, a[x % kPixels]);
              load_vector(ghost_mul + j * kGhostRow<T> + channel_lane * kN, mul[x % kPixels]);
            }
          }
#pragma unroll
          for (int p = 0; p < kPixels; ++p) {
            const int kx = x - p;
            if (kx < 0 || kx >= K) continue;
            float sum = 0.f;
#pragma unroll
            for (int c = 0; c < kN; ++c) {
              if constexpr (kMul) {
                const float product = grad[p][c] * value[c];
                sum = fmaf(product, mul[kx % kPixels][c], sum);
                grad_add[kx][c] += product;
                grad_mul[kx][c] = fmaf(product, a[kx % kPixels][p], grad_mul[kx][c]);
              } else {
                sum = fmaf(grad[p][c], value[c], sum);
                grad_add[kx][c] = fmaf(grad[p][c], value[c], grad_add[kx][c]);
              }
            }
            part[kx % kPixels][p] = sum;
          }
          const int done = x - (kPixels - 1);
          if (done >= 0) {
            const float whole = reduce_channel_lanes(part[done % kPixels], channel_lane);
            float* const dst = dot_row + done * kTilePixels;
            *dst = chunk == 0 ? whole : *dst + whole;
          }
        }
      }

      const bool first = index == slot;
      const int64_t partial = static_cast<int64_t>(slot) * kTaps * all_channels;
      if (params.partial_add != nullptr) {
        store_partial<T, K>(params.partial_add + partial, grad_add, lane, ky, channel, channels, all_channels, first);
      }
      if constexpr (kMul) {
        if (params.partial_mul != nullptr) {
          store_partial<T, K>(params.partial_mul + partial, grad_mul, lane, ky, channel, channels, all_channels, first);
        }
      }
    }
    __syncthreads();  // dA is complete, and the values give way to the stage

#pragma unroll 1
    for (int s = warp; s < kStrips; s += K) {
      float* const strip_stage = stage + s * (kTaps * kStripPixels);
      const int x0 = tile.x0 + s * kPixels;
      stage_logits<T, K>(strip_stage, logits, tile, x0, lane);
      __syncwarp();
      float a[kTaps];
      const float2 stat = softmax<K>(strip_stage + lane * kTaps, a);
      const int y = tile.y0 + lane / kPixels;
      const int x = x0 + lane % kPixels;
      if (inside(tile, y, x)) *stats.at(y, x) = stat;

      const float* const strip_dot = dot + dot_slot(s, lane);
      float mean = 0.f;
#pragma unroll
      for (int j = 0; j < kTaps; ++j) mean = fmaf(a[j], strip_dot[j * kTilePixels], mean);
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        strip_stage[lane * kTaps + j] = a[j] * (strip_dot[j * kTilePixels] - mean);
      }
      __syncwarp();
      unstage_logits<T, K>(strip_stage, view<T>(params.grad_logits, t, tile, head * kTaps), tile, x0, lane);
    }
  }
}

}  // namespace elsa_det::cuda
