// What the tiled kernels share. They are for K known at compile time and heads that are a multiple of 16 bytes wide.
//
// A block owns a tile of 16 x 8 pixels of one head, cut into four strips of 4 x 8 pixels. Channels are worked through
// in chunks of 64 bytes (32 half-precision or 16 float32 ones), whose values lie in shared memory with their halo. A
// thread owns 16 bytes of channels of four pixels in a row; it slides over the row, so that every value is read and
// unpacked once for the four pixels. Sums are float32. Nothing is added atomically: equal inputs give equal bits.
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

/// Starts copying kRows x kCols pixels from (y0, x0) on, one chunk wide, into shared memory; zeros outside the image
/// and past the last channel. Rows go round the warps. The caller waits with `__pipeline_wait_prior(0)` and a barrier.
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

/// Copies a chunk of a ghost tensor, (channel, tap) in memory, to (tap, channel) in shared memory. Channels go round
/// the warps.
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

}  // namespace elsa_det::cuda
