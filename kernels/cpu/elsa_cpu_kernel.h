// The CPU kernels, compiled once for each ISA (ELSA_ISA names it, ELSA_VECTOR_BYTES is its vector width).
//
// A unit of work is one head of a column tile of a row chunk of a map. Everything a unit reads is first packed into
// scratch, in the accumulation type and zero-padded; the inner loops know neither strides, dtypes, borders nor dilation
// (a dilated map is dilation² interleaved dense ones). Two layouts are used:
//   channel lanes  [x][channel]   one vector = channels of one pixel: aggregation, value and ghost gradients
//   pixel lanes    [channel][x]   one vector = neighbouring pixels: softmax and attention gradients, no horizontal sums
// Rows live in rings as long as some output row still needs them, so each input element is packed once for a unit.

#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC's own AVX-512 header: _mm512_undefined_ps()
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#endif

#include "elsa_cpu.h"

#define ELSA_CONCAT_(a, b) a##b
#define ELSA_CONCAT(a, b) ELSA_CONCAT_(a, b)

namespace elsa_det::cpu {
namespace ELSA_CONCAT(isa_, ELSA_ISA) {
namespace {

#include "elsa_cpu_simd.h"

constexpr int64_t kMaxKernel = 13;
#if ELSA_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
// Fixed strides for the widest tile, so that the inner loops address with constants: odd numbers of cache lines.
constexpr int64_t kAttnColumns = 176, kKeyColumns = 176, kQueryColumns = 144;
static_assert(kMaxTile + 2 * kMaxKernel + 16 <= kKeyColumns && kMaxTile <= kQueryColumns);
template <class T>
constexpr int64_t kBlock = lanes<T> < 4 ? 4 : lanes<T>;  // pixels for which the forward holds attention

ELSA_INLINE int64_t imin(int64_t a, int64_t b) { return a < b ? a : b; }
ELSA_INLINE int64_t imax(int64_t a, int64_t b) { return a > b ? a : b; }
ELSA_INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// ---- packing --------------------------------------------------------------------------------------------------------

// dst[o * ld + i] = src[o * so + i * si]; i runs on to the next multiple of the vector width with zeros.
template <class S, class T>
void pack(const S* src, int64_t so, int64_t si, int64_t outer, int64_t inner, T* dst, int64_t ld) {
  constexpr int N = lanes<T>;
  if (si == 1) {
    const int64_t whole = inner / N * N;
    for (int64_t o = 0; o < outer; ++o) {
      const S* s = src + o * so;
      T* d = dst + o * ld;
      for (int64_t i = 0; i < whole; i += N) store(d + i, load(s + i));
      if (whole < inner) {
        store(d + whole, Vec<T>{});
        for (int64_t i = whole; i < inner; ++i) d[i] = to_acc(s[i]);
      }
    }
    return;
  }
  int64_t done = 0;  // of outer
  if (so == 1 && outer >= N) {
    for (;;) {
      for (int64_t i = 0; i < inner; i += N) {
        const S* s = src + done + i * si;
        Vec<T> r[N];
        if (inner - i >= N) {
          unroll<N>(ELSA_LAMBDA(auto P) { r[P] = load(s + P * si); });
        } else {
          for (int p = 0; p < N; ++p) r[p] = p < inner - i ? load(s + p * si) : Vec<T>{};
        }
        transpose<T>(r);
        T* d = dst + done * ld + i;
        unroll<N>(ELSA_LAMBDA(auto P) { store(d + P * ld, r[P]); });
      }
      done += N;
      if (outer - done >= N) continue;
      if (outer - done <= 2) break;
      done = outer - N;  // a last block that overlaps the one before
    }
  }
  for (int64_t o = done; o < outer; ++o) {
    T* d = dst + o * ld;
    const S* s = src + o * so;
    for (int64_t i = 0; i < inner; ++i) d[i] = to_acc(s[i * si]);
    for (int64_t i = inner; i % N; ++i) d[i] = 0;
  }
}

// dst[o * dst_o + i * dst_i] = src[o * ld + i]
template <class S, class T>
void unpack(const T* src, int64_t ld, int64_t outer, int64_t inner, S* dst, int64_t dst_o, int64_t dst_i) {
  constexpr int N = lanes<T>;
  if (dst_i == 1) {
    const int64_t whole = inner / N * N;
    for (int64_t o = 0; o < outer; ++o) {
      const T* s = src + o * ld;
      S* d = dst + o * dst_o;
      for (int64_t i = 0; i < whole; i += N) store(d + i, load(s + i));
      for (int64_t i = whole; i < inner; ++i) from_acc(s[i], d + i);
    }
    return;
  }
  int64_t done = 0;
  if (dst_o == 1 && outer >= N) {
    for (;;) {
      for (int64_t i = 0; i < inner; i += N) {
        const T* s = src + done * ld + i;
        S* d = dst + done + i * dst_i;
        Vec<T> r[N];
        if (inner - i >= N) {
          unroll<N>(ELSA_LAMBDA(auto P) { r[P] = load(s + P * ld); });
          transpose<T>(r);
          unroll<N>(ELSA_LAMBDA(auto P) { store(d + P * dst_i, r[P]); });
        } else {
          for (int k = 0; k < N; ++k)
            for (int64_t p = 0; p < inner - i; ++p) from_acc(s[k * ld + p], d + p * dst_i + k);
        }
      }
      done += N;
      if (outer - done >= N) continue;
      if (outer - done <= 2) break;
      done = outer - N;
    }
  }
  for (int64_t o = done; o < outer; ++o)
    for (int64_t i = 0; i < inner; ++i) from_acc(src[o * ld + i], dst + o * dst_o + i * dst_i);
}

// Asks for `n` adjacent elements of each of `outer` pixels: one head's share of a pixel is too short for the hardware
// prefetcher to follow.
template <bool WRITE, class S>
ELSA_INLINE void prefetch(const S* p, int64_t stride, int64_t outer, int64_t n) {
  if (stride == 1) return;  // not channels-last
  for (int64_t o = 0; o < outer; ++o) {
    const char* q = reinterpret_cast<const char*>(p + o * stride);
    for (int64_t i = 0; i < n * int64_t(sizeof(S)); i += 64) __builtin_prefetch(q + i, WRITE);
    __builtin_prefetch(q + n * int64_t(sizeof(S)) - 1, WRITE);
  }
}

// One head of one image of one residue of a map: element (y, x, c) at p[y * sy + x * sx + c * sc].
template <class S>
struct View {
  S* p;
  int64_t sy, sx, sc;
};

// Where a unit works; height and width are those of the dense sub-map.
struct Piece {
  int64_t b, g, ry, rx, height, width, y0, y1, x0, x1, partial;

  template <class S>
  View<S> view(const Map& m, int64_t channels, int64_t dilation) const {
    return {static_cast<S*>(m.data) + b * m.sb + ry * m.sh + rx * m.sw + g * channels * m.sc, m.sh * dilation,
            m.sw * dilation, m.sc};
  }
};

bool locate(const Problem& pb, int64_t unit, Piece& pc) {
  const int64_t d = pb.dilation, residues_x = imin(d, pb.width), residues_y = imin(d, pb.height);
  pc.g = unit % pb.heads, unit /= pb.heads;
  const int64_t chunk = unit % pb.chunks;
  unit /= pb.chunks;
  const int64_t tile = unit % pb.tiles;
  unit /= pb.tiles;
  pc.partial = (unit * pb.tiles + tile) * pb.partial_chunks + chunk * (pb.chunk_rows / pb.partial_rows);
  pc.rx = unit % residues_x, unit /= residues_x;
  pc.ry = unit % residues_y, unit /= residues_y;
  pc.b = unit;
  pc.height = (pb.height - pc.ry + d - 1) / d;
  pc.width = (pb.width - pc.rx + d - 1) / d;
  pc.y0 = chunk * pb.chunk_rows, pc.y1 = imin(pc.y0 + pb.chunk_rows, pc.height);
  pc.x0 = tile * pb.tile_width, pc.x1 = imin(pc.x0 + pb.tile_width, pc.width);
  return pc.y0 < pc.y1 && pc.x0 < pc.x1;
}

// Calls f(channel, NV) for slices of one or two vectors of channels. Channel-lane data are kept slice after slice: the
// slice that begins at channel c is a dense [x][NV vectors] (or [j][NV vectors]) array at c times the number of x (or j).
template <class T, class F>
ELSA_INLINE void channel_slices(int64_t padded, F&& f) {
  constexpr int N = lanes<T>;
  int64_t c = 0;
  for (; c + 2 * N <= padded; c += 2 * N) f(c, std::integral_constant<int, 2>{});
  if (c < padded) f(c, std::integral_constant<int, 1>{});
}

// Row y, columns from .. to-1 (zero outside the map), in channel lanes.
template <class S, class T>
void pack_row(const View<S>& m, const Piece& pc, int64_t y, int64_t from, int64_t to, const Problem& pb, T* dst) {
  const int64_t a = imax(from, 0), b = imin(to, pc.width);
  if (y < 0 || y >= pc.height || a >= b) {
    std::memset(dst, 0, (to - from) * pb.padded_dim * sizeof(T));
    return;
  }
  channel_slices<T>(pb.padded_dim, ELSA_LAMBDA(int64_t c, auto NV) {
    constexpr int64_t C = NV * lanes<T>;
    T* d = dst + c * (to - from);
    std::memset(d, 0, (a - from) * C * sizeof(T));
    pack(m.p + y * m.sy + a * m.sx + c * m.sc, m.sx, m.sc, b - a, imin(C, pb.head_dim - c), d + (a - from) * C, C);
    std::memset(d + (b - from) * C, 0, (to - b) * C * sizeof(T));
  });
}

// The reverse for `count` pixels of a packed row of `columns`.
template <class S, class T>
void unpack_row(const T* src, int64_t columns, int64_t count, const Problem& pb, const View<S>& m, int64_t y, int64_t x) {
  channel_slices<T>(pb.padded_dim, ELSA_LAMBDA(int64_t c, auto NV) {
    constexpr int64_t C = NV * lanes<T>;
    unpack(src + c * columns, C, count, imin(C, pb.head_dim - c), m.p + y * m.sy + x * m.sx + c * m.sc, m.sx, m.sc);
  });
}

// From channel lanes, `count` columns from `first` of a row of `columns`, to pixel lanes [channel][ld].
template <class T>
void flip(const T* src, int64_t columns, int64_t first, int64_t count, int64_t padded, T* dst, int64_t ld) {
  constexpr int N = lanes<T>;
  channel_slices<T>(padded, ELSA_LAMBDA(int64_t c0, auto NV) {
    const T* s = src + c0 * columns + first * NV * N;
    for (int64_t c = 0; c < NV * N; c += N)
      for (int64_t x = 0; x < count; x += N) {
        Vec<T> r[N];
        unroll<N>(ELSA_LAMBDA(auto P) { r[P] = load(s + (x + P) * NV * N + c); });
        transpose<T>(r);
        unroll<N>(ELSA_LAMBDA(auto P) { store(dst + (c0 + c + P) * ld + x, r[P]); });
      }
  });
}

// A packed ghost, [j][padded], into slices, and back.
template <class T>
void slice_ghost(const T* src, int64_t taps, int64_t padded, T* dst) {
  channel_slices<T>(padded, ELSA_LAMBDA(int64_t c, auto NV) {
    constexpr int64_t C = NV * lanes<T>;
    for (int64_t j = 0; j < taps; ++j) std::memcpy(dst + c * taps + j * C, src + j * padded + c, C * sizeof(T));
  });
}
template <class T>
void join_ghost(const T* src, int64_t taps, int64_t padded, T* dst) {
  channel_slices<T>(padded, ELSA_LAMBDA(int64_t c, auto NV) {
    constexpr int64_t C = NV * lanes<T>;
    for (int64_t j = 0; j < taps; ++j) std::memcpy(dst + j * padded + c, src + c * taps + j * C, C * sizeof(T));
  });
}

// ---- the inner loops ------------------------------------------------------------------------------------------------

// Softmax over n rows, one pixel a lane. NaN and infinities come out as from the definition.
template <class T>
void softmax(const T* in, int64_t ld_in, T* out, int64_t ld_out, int64_t n) {
  Vec<T> top = load(in), top2 = top;
  for (int64_t j = 1; j + 1 < n; j += 2) {  // n is odd
    top = vmax<T>(top, load(in + j * ld_in));
    top2 = vmax<T>(top2, load(in + (j + 1) * ld_in));
  }
  top = vmax<T>(top, top2);
  Vec<T> sum{};
  for (int64_t j = 0; j < n; ++j) {
    const Vec<T> e = exp_nonpositive(load(in + j * ld_in) - top);
    store(out + j * ld_out, e);
    sum += e;
  }
  const Vec<T> scale = T(1) / sum;
  for (int64_t j = 0; j < n; ++j) store(out + j * ld_out, load(out + j * ld_out) * scale);
}

// dlogits in place of dA: A · (dA - Σ A · dA), one pixel a lane.
template <class T>
void softmax_backward(const T* attn, int64_t lda, T* grad, int64_t ldg, int64_t n) {
  Vec<T> mean = load(attn) * load(grad), mean2{};
  for (int64_t j = 1; j + 1 < n; j += 2) {
    mean += load(attn + j * lda) * load(grad + j * ldg);
    mean2 += load(attn + (j + 1) * lda) * load(grad + (j + 1) * ldg);
  }
  mean += mean2;
  for (int64_t j = 0; j < n; ++j) store(grad + j * ldg, load(attn + j * lda) * (load(grad + j * ldg) - mean));
}

// Weighted sums over the neighbourhood, `count` pixels from the one the row pointers stand at, NV vectors of channels:
//   out[x] = Σ_ky Σ_kx rows[ky][x + kx] · (mul · attn + add)
// Query-centred, the weights are those of the pixel x itself; key-centred (the transposed operation: dvalue from dout),
// those of the query read, whose offset to x is mirrored. A null row is skipped.
template <class T, int KT, int NV, bool KEY, bool MUL>
void gather(int64_t kernel_size, const T* const* rows, const T* const* attn, const T* mul, const T* add, T* out,
            int64_t count) {
  constexpr int N = lanes<T>, C = NV * N, P = 4;
  constexpr int64_t lda = KEY ? kAttnColumns : kBlock<T>;
  const int64_t K = KT ? KT : kernel_size;
  for (int64_t x0 = 0; x0 < count; x0 += P) {
    Vec<T> acc[P][NV]{};
    for (int64_t ky = 0; ky < K; ++ky) {
      if (KEY && !rows[ky]) continue;
      const T* row = rows[ky] + x0 * C;
      const T* a = attn[ky] + x0;
      const T* g = add + ky * K * C;
      const T* m = MUL ? mul + ky * K * C : nullptr;
      if constexpr (KT != 0) {
        constexpr bool hold = kRegisters >= (KT + P + 1) * NV + 1 && !MUL;  // ghost row in registers
        Vec<T> held[KT][NV];
        if constexpr (hold)
          unroll<KT>(ELSA_LAMBDA(auto I) {
            unroll<NV>(ELSA_LAMBDA(auto V) {
              held[I][V] = load(g + I * C + V * N);
              pin(held[I][V]);
            });
          });
        unroll<P + KT - 1>(ELSA_LAMBDA(auto I) {
          Vec<T> v[NV];
          unroll<NV>(ELSA_LAMBDA(auto V) {
            v[V] = load(row + I * C + V * N);
            pin(v[V]);
          });
          unroll<P>(ELSA_LAMBDA(auto X) {
            constexpr int off = I - X;
            if constexpr (off >= 0 && off < KT) {
              constexpr int kx = KEY ? KT - 1 - off : off;
              Vec<T> w = splat<T>(a[kx * lda + (KEY ? I : X)]);
              pin(w);
              unroll<NV>(ELSA_LAMBDA(auto V) {
                const Vec<T> s = hold ? held[kx][V] : load(g + kx * C + V * N);
                if constexpr (MUL)
                  acc[X][V] += v[V] * (load(m + kx * C + V * N) * w + s);
                else
                  acc[X][V] += v[V] * (w + s);
              });
            }
          });
        });
      } else {
        for (int64_t off = 0; off < K; ++off) {
          const int64_t kx = KEY ? K - 1 - off : off;
          Vec<T> s[NV], f[NV];
          unroll<NV>(ELSA_LAMBDA(auto V) {
            s[V] = load(g + kx * C + V * N);
            if constexpr (MUL) f[V] = load(m + kx * C + V * N);
          });
          unroll<P>(ELSA_LAMBDA(auto X) {
            const Vec<T> w = splat<T>(a[kx * lda + (KEY ? off : 0) + X]);
            unroll<NV>(ELSA_LAMBDA(auto V) {
              const Vec<T> v = load(row + (off + X) * C + V * N);
              if constexpr (MUL)
                acc[X][V] += v * (f[V] * w + s[V]);
              else
                acc[X][V] += v * (w + s[V]);
            });
          });
        }
      }
    }
    unroll<P>(ELSA_LAMBDA(auto X) {
      unroll<NV>(ELSA_LAMBDA(auto V) { store(out + (x0 + X) * C + V * N, acc[X][V]); });
    });
  }
}

// rows: slice 0 of rows of row_x columns, standing at their first pixel; out: rows of out_x columns.
template <class T, int KT, bool KEY>
void gather_head(const Problem& pb, const T* const* rows, int64_t row_x, const T* const* attn, const T* mul, const T* add,
                 T* out, int64_t out_x, int64_t first, int64_t count) {
  const int64_t K = pb.kernel_size;
  channel_slices<T>(pb.padded_dim, ELSA_LAMBDA(int64_t c, auto NV) {
    const T* slice[kMaxKernel];
    for (int64_t k = 0; k < K; ++k) slice[k] = rows[k] ? rows[k] + c * row_x + first * NV * lanes<T> : nullptr;
    if (mul)
      gather<T, KT, NV, KEY, true>(K, slice, attn, mul + c * K * K, add + c * K * K, out + c * out_x, count);
    else
      gather<T, KT, NV, KEY, false>(K, slice, attn, nullptr, add + c * K * K, out + c * out_x, count);
  });
}

// dA of R query rows for one vector of pixels: out[r][j * N] = Σ_c dout[r][c] · value[r + ky][c][x + kx] (· mul[j][c]).
// One key row serves all query rows at once: `FIRST`..`LAST` are those that it meets.
template <class T, int KT, int FIRST, int LAST, bool MUL>
ELSA_INLINE void score_row(const T* dout, int64_t row_d, const T* value, const T* mul, int64_t ldg, int64_t channels,
                           int64_t key_row, T* out, int64_t row_out) {
  constexpr int N = lanes<T>, R = LAST - FIRST;
  Vec<T> acc[R][KT]{};
  for (int64_t c = 0; c < channels; ++c) {
    Vec<T> d[R];
    unroll<R>(ELSA_LAMBDA(auto I) {
      d[I] = load(dout + (FIRST + I) * row_d + c * kQueryColumns);
      pin(d[I]);
    });
    unroll<KT>(ELSA_LAMBDA(auto X) {
      Vec<T> v = load(value + c * kKeyColumns + X);
      if constexpr (R > 1) pin(v);
      unroll<R>(ELSA_LAMBDA(auto I) {
        if constexpr (MUL)
          acc[I][X] += d[I] * mul[((key_row - FIRST - I) * KT + X) * ldg + c] * v;
        else
          acc[I][X] += d[I] * v;
      });
    });
  }
  unroll<R>(ELSA_LAMBDA(auto I) {
    unroll<KT>(ELSA_LAMBDA(auto X) {
      store(out + (FIRST + I) * row_out + ((key_row - FIRST - I) * KT + X) * N, acc[I][X]);
    });
  });
}

template <class T, int KT, bool MUL>
void score(int64_t kernel_size, int64_t query_rows, const T* dout, int64_t row_d, const T* const* value, const T* mul,
           int64_t ldg, int64_t channels, T* out, int64_t row_out) {
  if constexpr (KT != 0) {
    if (query_rows == 2) {
      score_row<T, KT, 0, 1, MUL>(dout, row_d, value[0], mul, ldg, channels, 0, out, row_out);
      for (int64_t k = 1; k < KT; ++k)
        score_row<T, KT, 0, 2, MUL>(dout, row_d, value[k], mul, ldg, channels, k, out, row_out);
      score_row<T, KT, 1, 2, MUL>(dout, row_d, value[KT], mul, ldg, channels, KT, out, row_out);
    } else {
      for (int64_t k = 0; k < KT; ++k)
        score_row<T, KT, 0, 1, MUL>(dout, row_d, value[k], mul, ldg, channels, k, out, row_out);
    }
  } else {
    constexpr int N = lanes<T>;
    for (int64_t r = 0; r < query_rows; ++r)
      for (int64_t ky = 0; ky < kernel_size; ++ky)
        for (int64_t kx = 0; kx < kernel_size; ++kx) {
          const int64_t j = ky * kernel_size + kx;
          Vec<T> acc{};
          for (int64_t c = 0; c < channels; ++c) {
            Vec<T> d = load(dout + r * row_d + c * kQueryColumns);
            if constexpr (MUL) d *= mul[j * ldg + c];
            acc += d * load(value[r + ky] + c * kKeyColumns + kx);
          }
          store(out + r * row_out + j * N, acc);
        }
  }
}

// Ghost gradients of a query row: sum[j][c] += Σ_x dout[x][c] · value[ky][x + kx][c] (· attn[j][x] if WEIGHTED).
template <class T, int KT, int NV, bool WEIGHTED>
void ghost(int64_t kernel_size, const T* dout, const T* const* rows, const T* attn, T* sum, int64_t count) {
  constexpr int N = lanes<T>, C = NV * N, P = 4;
  const int64_t K = KT ? KT : kernel_size;
  for (int64_t ky = 0; ky < K; ++ky) {
    if constexpr (KT != 0) {
      Vec<T> acc[KT][NV]{};
      for (int64_t x = 0; x < count; x += P) {
        Vec<T> d[P][NV];
        unroll<P>(ELSA_LAMBDA(auto X) {
          unroll<NV>(ELSA_LAMBDA(auto V) { d[X][V] = load(dout + (x + X) * C + V * N); });
        });
        unroll<P + KT - 1>(ELSA_LAMBDA(auto I) {
          Vec<T> v[NV];
          unroll<NV>(ELSA_LAMBDA(auto V) {
            v[V] = load(rows[ky] + (x + I) * C + V * N);
            pin(v[V]);
          });
          unroll<P>(ELSA_LAMBDA(auto X) {
            constexpr int kx = I - X;
            if constexpr (kx >= 0 && kx < KT) {
              unroll<NV>(ELSA_LAMBDA(auto V) {
                if constexpr (WEIGHTED)
                  acc[kx][V] += d[X][V] * splat<T>(attn[(ky * KT + kx) * kAttnColumns + x + X]) * v[V];
                else
                  acc[kx][V] += d[X][V] * v[V];
              });
            }
          });
        });
      }
      unroll<KT>(ELSA_LAMBDA(auto X) {
        unroll<NV>(ELSA_LAMBDA(auto V) {
          T* s = sum + (ky * KT + X) * C + V * N;
          store(s, load(s) + acc[X][V]);
        });
      });
    } else {
      for (int64_t kx = 0; kx < K; ++kx) {
        Vec<T> acc[NV]{};
        for (int64_t x = 0; x < count; ++x)
          unroll<NV>(ELSA_LAMBDA(auto V) {
            Vec<T> d = load(dout + x * C + V * N);
            if constexpr (WEIGHTED) d *= attn[(ky * K + kx) * kAttnColumns + x];
            acc[V] += d * load(rows[ky] + (x + kx) * C + V * N);
          });
        unroll<NV>(ELSA_LAMBDA(auto V) {
          T* s = sum + (ky * K + kx) * C + V * N;
          store(s, load(s) + acc[V]);
        });
      }
    }
  }
}

// ---- units ----------------------------------------------------------------------------------------------------------

template <class T>
T* take(T*& cursor, int64_t n) {  // cuts n elements, rounded up to 64 bytes, off the scratch
  T* p = cursor;
  cursor += round_up(n, 64 / sizeof(T));
  return p;
}

template <class T>
struct Layout {
  int64_t K, r, K2, C, tile, row_x;  // tile: whole vectors; row_x: columns of a packed row (halo on both sides)
  T *mul, *add;                      // the ghosts of this head, in slices; mul null if all ones
  Layout(const Problem& pb, T*& p)
      : K(pb.kernel_size), r(K / 2), K2(K * K), C(pb.padded_dim), tile(round_up(pb.tile_width, kBlock<T>)),
        row_x(round_up(tile + 2 * r, lanes<T>)) {
    mul = pb.mul ? take(p, K2 * C) : nullptr;
    add = take(p, K2 * C);
  }
  void load_ghosts(const Problem& pb, int64_t g) const {
    if (mul) slice_ghost(static_cast<const T*>(pb.mul) + g * K2 * C, K2, C, mul);
    slice_ghost(static_cast<const T*>(pb.add) + g * K2 * C, K2, C, add);
  }
};

template <class T>
struct ForwardScratch : Layout<T> {
  T *ring, *attn, *out, *end;
  ForwardScratch(const Problem& pb, T* p) : Layout<T>(pb, p) {
    ring = take(p, this->K * this->row_x * this->C);
    attn = take(p, this->K2 * kBlock<T>);
    out = take(p, kBlock<T> * this->C);
    end = p;
  }
};

template <class S, class T, int KT>
void forward_unit(const Problem& pb, const Piece& pc, T* scratch) {
  constexpr int64_t N = lanes<T>, block = kBlock<T>;
  const ForwardScratch<T> s(pb, scratch);
  const int64_t K = KT ? KT : s.K, r = K / 2, row_size = s.row_x * s.C;
  const auto value = pc.view<const S>(pb.value, pb.head_dim, pb.dilation);
  const auto logits = pc.view<const S>(pb.logits, s.K2, pb.dilation);
  const auto out = pc.view<S>(pb.out, pb.head_dim, pb.dilation);
  auto slot = [&](int64_t y) { return s.ring + (y - pc.y0 + r) % K * row_size; };
  auto load_row = [&](int64_t y) { pack_row(value, pc, y, pc.x0 - r, pc.x0 - r + s.row_x, pb, slot(y)); };
  s.load_ghosts(pb, pc.g);
  for (int64_t y = pc.y0 - r; y < pc.y0 + r; ++y) load_row(y);
  const T *attn[kMaxKernel], *rows[kMaxKernel];
  for (int64_t k = 0; k < K; ++k) attn[k] = s.attn + k * K * block;
  for (int64_t y = pc.y0; y < pc.y1; ++y) {
    load_row(y + r);
    for (int64_t k = 0; k < K; ++k) rows[k] = slot(y - r + k);
    for (int64_t x = pc.x0; x < pc.x1; x += block) {
      const int64_t count = imin(block, pc.x1 - x);
      if (x + block < pc.x1)
        prefetch<false>(logits.p + y * logits.sy + (x + block) * logits.sx, logits.sx, imin(block, pc.x1 - x - block), s.K2);
      else if (y + 1 < pc.y1)
        prefetch<false>(logits.p + (y + 1) * logits.sy + pc.x0 * logits.sx, logits.sx, imin(block, pc.x1 - pc.x0), s.K2);
      if (y + r + 1 < imin(pc.height, pc.y1 + r))
        prefetch<false>(value.p + (y + r + 1) * value.sy + x * value.sx, value.sx, count, pb.head_dim);
      prefetch<true>(out.p + y * out.sy + x * out.sx, out.sx, count, pb.head_dim);
      pack(logits.p + y * logits.sy + x * logits.sx, logits.sc, logits.sx, s.K2, count, s.attn, block);
      for (int64_t i = 0; i < block; i += N) softmax(s.attn + i, block, s.attn + i, block, s.K2);
      gather_head<T, KT, false>(pb, rows, s.row_x, attn, s.mul, s.add, s.out, block, x - pc.x0, count);
      unpack_row(s.out, block, count, pb, out, y, x);
    }
  }
}

constexpr int64_t kQueryRows = 2;  // query rows that share the reading of a key row in score()

template <class T>
struct BackwardScratch : Layout<T> {
  static constexpr int64_t N = lanes<T>;
  int64_t query_rows;  // rows in the rings of dout and attention
  T *value, *value_t, *dout, *dout_t, *attn, *logits, *scores, *out, *sum_add, *sum_mul, *end;
  BackwardScratch(const Problem& pb, T* p) : Layout<T>(pb, p) {
    const int64_t K = this->K, K2 = this->K2, C = this->C, row_x = this->row_x;
    query_rows = imax(K, kQueryRows);
    value = take(p, (K + kQueryRows - 1) * row_x * C);
    value_t = take(p, (K + kQueryRows - 1) * C * kKeyColumns);
    dout = take(p, query_rows * row_x * C);
    dout_t = take(p, kQueryRows * C * kQueryColumns);
    attn = take(p, query_rows * K2 * kAttnColumns);
    logits = take(p, K2 * N);
    scores = take(p, kQueryRows * K2 * N);
    out = take(p, this->tile * C);
    sum_add = take(p, K2 * C);
    sum_mul = take(p, K2 * C);
    end = p;
  }
};

template <class S, class T, int KT>
void backward_unit(const Problem& pb, const Piece& pc, T* scratch) {
  constexpr int64_t N = lanes<T>, R = kQueryRows, lda = kAttnColumns;
  const BackwardScratch<T> s(pb, scratch);
  const int64_t K = KT ? KT : s.K, r = K / 2, K2 = K * K, C = s.C, row_size = s.row_x * C;
  const auto value = pc.view<const S>(pb.value, pb.head_dim, pb.dilation);
  const auto dout = pc.view<const S>(pb.grad_out, pb.head_dim, pb.dilation);
  const auto logits = pc.view<const S>(pb.logits, K2, pb.dilation);
  const auto dvalue = pc.view<S>(pb.grad_value, pb.head_dim, pb.dilation);
  const auto dlogits = pc.view<S>(pb.grad_logits, K2, pb.dilation);
  const T* mul = pb.mul ? static_cast<const T*>(pb.mul) + pc.g * K2 * C : nullptr;  // not sliced

  const int64_t base = pc.y0 - r;  // first row of all rings
  auto value_slot = [&](int64_t y) { return (y - base) % (K + R - 1); };
  auto query_slot = [&](int64_t y) { return (y - base) % s.query_rows; };
  const int64_t left = pc.x0 - r;  // column 0 of packed rows
  // Attention is kept for the queries left.. clipped to the map, starting at column `margin`; what lies beyond is zero or
  // the softmax of zeros and meets a zero gradient.
  const int64_t margin = round_up(r, N), xq0 = imax(left, 0), xq1 = imin(pc.x1 + r, pc.width);
  const int64_t used = margin + round_up(xq1 - xq0, N);
  for (int64_t i = 0; i < s.query_rows * K2; ++i) {
    std::memset(s.attn + i * lda, 0, margin * sizeof(T));
    std::memset(s.attn + i * lda + used, 0, imin(lda - used, 2 * r + 4) * sizeof(T));
  }
  auto attn_at = [&](int64_t y, int64_t x) { return s.attn + query_slot(y) * K2 * lda + margin + x - xq0; };

  auto load_value = [&](int64_t y) {
    T* row = s.value + value_slot(y) * row_size;
    pack_row(value, pc, y, left, left + s.row_x, pb, row);
    flip(row, s.row_x, 0, s.row_x, C, s.value_t + value_slot(y) * C * kKeyColumns, kKeyColumns);
  };
  auto load_query = [&](int64_t y) {
    if (y < 0 || y >= pc.height) return;
    pack_row(dout, pc, y, left, left + s.row_x, pb, s.dout + query_slot(y) * row_size);
    for (int64_t x = xq0; x < xq1; x += N) {
      pack(logits.p + y * logits.sy + x * logits.sx, logits.sc, logits.sx, K2, imin(N, xq1 - x), s.logits, N);
      softmax(s.logits, N, attn_at(y, x), lda, K2);
    }
  };

  auto query_pass = [&](int64_t q, int64_t n) {  // n rows from q: dlogits, ghost gradients
    constexpr int64_t row_d = kQueryColumns;
    for (int64_t i = 0; i < n; ++i)
      flip(s.dout + query_slot(q + i) * row_size, s.row_x, r, s.tile, C, s.dout_t + i * C * row_d, row_d);
    const T* keys[kMaxKernel + kQueryRows];
    for (int64_t x = pc.x0; x < pc.x1; x += N) {
      const int64_t count = imin(N, pc.x1 - x);
      for (int64_t i = 0; i < n; ++i) {  // where these rows go, and what the next ones need
        prefetch<true>(dlogits.p + (q + i) * dlogits.sy + x * dlogits.sx, dlogits.sx, count, K2);
        const int64_t next = q + n + i, done = q - r + i;
        if (next < pc.height) prefetch<false>(logits.p + next * logits.sy + x * logits.sx, logits.sx, count, K2);
        if (done >= 0) prefetch<true>(dvalue.p + done * dvalue.sy + x * dvalue.sx, dvalue.sx, count, pb.head_dim);
      }
      for (int64_t k = 0; k < K + n - 1; ++k)
        keys[k] = s.value_t + value_slot(q - r + k) * C * kKeyColumns + (x - pc.x0);
      const T* d = s.dout_t + (x - pc.x0);
      if (mul)
        score<T, KT, true>(K, n, d, C * row_d, keys, mul, C, pb.head_dim, s.scores, K2 * N);
      else
        score<T, KT, false>(K, n, d, C * row_d, keys, mul, C, pb.head_dim, s.scores, K2 * N);
      for (int64_t i = 0; i < n; ++i) {
        T* da = s.scores + i * K2 * N;
        softmax_backward(attn_at(q + i, x), lda, da, N, K2);
        unpack(da, N, K2, count, dlogits.p + (q + i) * dlogits.sy + x * dlogits.sx, dlogits.sc, dlogits.sx);
      }
    }
    if (!pb.grad_add && !pb.grad_mul) return;
    for (int64_t i = 0; i < n; ++i) {
      const T* d = s.dout + query_slot(q + i) * row_size;
      channel_slices<T>(C, ELSA_LAMBDA(int64_t c, auto NV) {
        const T* rows[kMaxKernel];
        for (int64_t k = 0; k < K; ++k) rows[k] = s.value + value_slot(q + i - r + k) * row_size + c * s.row_x;
        const T *slice = d + c * s.row_x + r * NV * N, *a = attn_at(q + i, pc.x0);
        if (pb.grad_add) ghost<T, KT, NV, false>(K, slice, rows, a, s.sum_add + c * K2, pc.x1 - pc.x0);
        if (pb.grad_mul) ghost<T, KT, NV, true>(K, slice, rows, a, s.sum_mul + c * K2, pc.x1 - pc.x0);
      });
    }
  };
  auto clear_sums = [&] {
    std::memset(s.sum_add, 0, K2 * C * sizeof(T));
    std::memset(s.sum_mul, 0, K2 * C * sizeof(T));
  };
  auto flush_sums = [&](int64_t q) {
    const int64_t part = pc.partial + (q - pc.y0) / pb.partial_rows, at = (part * pb.heads + pc.g) * K2 * C;
    if (pb.grad_add) join_ghost(s.sum_add, K2, C, static_cast<T*>(pb.grad_add) + at);
    if (pb.grad_mul) join_ghost(s.sum_mul, K2, C, static_cast<T*>(pb.grad_mul) + at);
    clear_sums();
  };

  auto key_pass = [&](int64_t y) {  // dvalue of row y
    const T *rows[kMaxKernel], *attn[kMaxKernel];
    for (int64_t ky = 0; ky < K; ++ky) {
      const int64_t q = y + r - ky;
      const bool inside = q >= 0 && q < pc.height;
      rows[ky] = inside ? s.dout + query_slot(q) * row_size : nullptr;
      attn[ky] = inside ? attn_at(q, left) + ky * K * lda : nullptr;
    }
    const int64_t count = pc.x1 - pc.x0;
    gather_head<T, KT, true>(pb, rows, s.row_x, attn, s.mul, s.add, s.out, s.tile, 0, count);
    unpack_row(s.out, s.tile, count, pb, dvalue, y, pc.x0);
  };

  s.load_ghosts(pb, pc.g);
  clear_sums();
  for (int64_t y = base; y < pc.y0 + r; ++y) load_value(y);
  int64_t q = pc.y0;  // first query row not yet passed
  for (int64_t t = base; t < pc.y1 + r; ++t) {
    load_query(t);
    if (t >= pc.y0 && t < pc.y1) {
      load_value(t + r);
      const bool last = t + 1 == pc.y1 || (t + 1 - pc.y0) % pb.partial_rows == 0;
      if (last || t + 1 - q == R) {
        query_pass(q, t + 1 - q);
        if (last) flush_sums(q);
        q = t + 1;
      }
    }
    if (t - r >= pc.y0) key_pass(t - r);
  }
}

// ---- dispatch -------------------------------------------------------------------------------------------------------

template <bool BACKWARD, class S, class T, int KT>
void run(const Problem& pb, const Piece& pc, void* scratch) {
  if constexpr (BACKWARD)
    backward_unit<S, T, KT>(pb, pc, static_cast<T*>(scratch));
  else
    forward_unit<S, T, KT>(pb, pc, static_cast<T*>(scratch));
}

template <bool BACKWARD, class S>
void run_float(const Problem& pb, const Piece& pc, void* scratch) {
  switch (pb.kernel_size) {
    case 3: return run<BACKWARD, S, float, 3>(pb, pc, scratch);
    case 5: return run<BACKWARD, S, float, 5>(pb, pc, scratch);
    case 7: return run<BACKWARD, S, float, 7>(pb, pc, scratch);
    default: return run<BACKWARD, S, float, 0>(pb, pc, scratch);
  }
}

template <bool BACKWARD>
void run_unit(const Problem& pb, int64_t unit, void* scratch) {
  Piece pc;
  if (!locate(pb, unit, pc)) return;
  switch (pb.dtype) {
    case Dtype::kFloat: return run_float<BACKWARD, float>(pb, pc, scratch);
    case Dtype::kBFloat16: return run_float<BACKWARD, bf16>(pb, pc, scratch);
    case Dtype::kHalf: return run_float<BACKWARD, f16>(pb, pc, scratch);
    case Dtype::kDouble: return run<BACKWARD, double, double, 0>(pb, pc, scratch);
  }
}

template <template <class> class Scratch>
size_t scratch_bytes(const Problem& pb) {
  if (pb.dtype == Dtype::kDouble) return reinterpret_cast<size_t>(Scratch<double>(pb, nullptr).end);
  return reinterpret_cast<size_t>(Scratch<float>(pb, nullptr).end);
}

}  // namespace
}  // namespace isa_*

#define ELSA_STRING_(x) #x
#define ELSA_STRING(x) ELSA_STRING_(x)

const Kernels ELSA_CONCAT(kernels_, ELSA_ISA) = {
    ELSA_STRING(ELSA_ISA),
    ELSA_CONCAT(isa_, ELSA_ISA)::lanes<float>,
    ELSA_CONCAT(isa_, ELSA_ISA)::lanes<double>,
    ELSA_CONCAT(isa_, ELSA_ISA)::scratch_bytes<ELSA_CONCAT(isa_, ELSA_ISA)::ForwardScratch>,
    ELSA_CONCAT(isa_, ELSA_ISA)::scratch_bytes<ELSA_CONCAT(isa_, ELSA_ISA)::BackwardScratch>,
    ELSA_CONCAT(isa_, ELSA_ISA)::run_unit<false>,
    ELSA_CONCAT(isa_, ELSA_ISA)::run_unit<true>,
};

}  // namespace elsa_det::cpu
