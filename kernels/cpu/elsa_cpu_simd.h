// A thin vector layer over the compiler's vector extensions, plus what they cannot express: conversions of 16-bit
// floats, transposes, exp. Included inside the namespace of one ISA (ELSA_VECTOR_BYTES is its vector width).

#define ELSA_INLINE inline __attribute__((always_inline))

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(ELSA_VECTOR_BYTES), may_alias));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(ELSA_VECTOR_BYTES), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int lanes = ELSA_VECTOR_BYTES / sizeof(T);

template <class F, int... I>
ELSA_INLINE void unroll_impl(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
// f(0), f(1), … f(N-1) with compile-time arguments: keeps arrays of vectors in registers.
template <int N, class F>
ELSA_INLINE void unroll(F&& f) {
  unroll_impl(f, std::make_integer_sequence<int, N>{});
}
#define ELSA_LAMBDA(...) [&](__VA_ARGS__) __attribute__((always_inline))

template <class T>
ELSA_INLINE Vec<T> splat(T x) {
#if ELSA_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_set1_ps(x);
  else return (Vec<T>)_mm512_set1_pd(x);
#elif ELSA_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_set1_ps(x);
  else return (Vec<T>)_mm256_set1_pd(x);
#else
  Vec<T> v;
  for (int i = 0; i < lanes<T>; ++i) v[i] = x;
  return v;
#endif
}

// ---- scalar conversions ---------------------------------------------------------------------------------------------

template <class To, class From>
ELSA_INLINE To bit_cast(const From& x) {
  To y;
  __builtin_memcpy(&y, &x, sizeof(y));
  return y;
}

ELSA_INLINE float to_acc(float x) { return x; }
ELSA_INLINE double to_acc(double x) { return x; }
ELSA_INLINE float to_acc(bf16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
ELSA_INLINE float to_acc(f16 x) {
#if defined(__F16C__)
  return _cvtsh_ss(x.bits);
#else
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return bit_cast<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Shifted into place and rescaled by 2^112: subnormals come out right as well.
  return bit_cast<float>(sign | bit_cast<uint32_t>(bit_cast<float>(rest << 13) * 0x1p112f));
#endif
}

ELSA_INLINE void from_acc(float x, float* y) { *y = x; }
ELSA_INLINE void from_acc(double x, double* y) { *y = x; }
ELSA_INLINE void from_acc(float x, bf16* y) {
  const uint32_t u = bit_cast<uint32_t>(x);
  y->bits = x != x ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
ELSA_INLINE void from_acc(float x, f16* y) {
#if defined(__F16C__)
  y->bits = _cvtss_sh(x, 0);
#else
  const uint32_t u = bit_cast<uint32_t>(x), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
  uint32_t h;
  if (rest > 0x7f800000) {
    h = 0x7e00;
  } else if (rest >= 0x477ff000) {  // rounds to 65520 or more
    h = 0x7c00;
  } else if (rest < 0x38800000) {  // subnormal: let the float adder round at 2^-24
    h = bit_cast<uint32_t>(bit_cast<float>(rest) + 0.5f) - 0x3f000000;
  } else {
    h = (rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13;
  }
  y->bits = uint16_t(sign | h);
#endif
}

// ---- vector loads and stores ----------------------------------------------------------------------------------------

template <class T>
ELSA_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <class T>
ELSA_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Pins a value to a register: otherwise the compiler folds the load into every use and runs out of load ports.
template <class V>
ELSA_INLINE void pin(V& v) {
#if defined(__x86_64__) && defined(__SSE2__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#else
  (void)v;
#endif
}

typedef uint16_t VecU16 __attribute__((vector_size(ELSA_VECTOR_BYTES / 2)));
typedef uint32_t VecU32 __attribute__((vector_size(ELSA_VECTOR_BYTES)));
typedef int32_t VecI32 __attribute__((vector_size(ELSA_VECTOR_BYTES)));

ELSA_INLINE Vec<float> load(const bf16* p) {
  VecU16 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return (Vec<float>)(__builtin_convertvector(v, VecU32) << 16);
}
ELSA_INLINE void store(bf16* p, Vec<float> x) {
  const VecU32 u = (VecU32)x;
  const VecU32 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const VecU32 ordered = (VecU32)(x == x);
  const VecU16 v = __builtin_convertvector((rounded & ordered) | (~ordered & 0x7fc0), VecU16);
  __builtin_memcpy(p, &v, sizeof(v));
}
ELSA_INLINE Vec<float> load(const f16* p) {
#if ELSA_VECTOR_BYTES == 64
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif ELSA_VECTOR_BYTES == 32
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<float> v;
  for (int i = 0; i < lanes<float>; ++i) v[i] = to_acc(p[i]);
  return v;
#endif
}
ELSA_INLINE void store(f16* p, Vec<float> x) {
#if ELSA_VECTOR_BYTES == 64
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif ELSA_VECTOR_BYTES == 32
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < lanes<float>; ++i) from_acc(x[i], p + i);
#endif
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

template <class T>
ELSA_INLINE Vec<T> vmax(Vec<T> a, Vec<T> b) {  // either operand may win where one is NaN
#if ELSA_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_max_ps((__m512)a, (__m512)b);
#elif ELSA_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_max_ps((__m256)a, (__m256)b);
#endif
  return a > b ? a : b;
}

// exp(x) for x <= 0 (or NaN, -inf), relative error below 3e-7 near zero. Degree-5 minimax polynomials for 2^f.
ELSA_INLINE Vec<float> exp_nonpositive(Vec<float> x) {
  const Vec<float> t = x * 1.44269504f;
#if ELSA_VECTOR_BYTES == 64
  const Vec<float> f = (Vec<float>)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  Vec<float> p = f * 0.0018775767f + 0.008989341f;
  p = p * f + 0.055826318f;
  p = p * f + 0.24015361f;
  p = p * f + 0.6931531f;
  p = p * f + 0.99999994f;
  return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)t);
#else
  const float magic = 0x1.8p23f;                               // adding it rounds to the nearest integer
  const Vec<float> clamped = t < -126.f ? splat(-126.f) : t;  // NaN passes
  const Vec<float> shifted = clamped + magic;
  const Vec<float> f = clamped - (shifted - magic);
  Vec<float> p = f * 0.0013276472f + 0.009675542f;
  p = p * f + 0.05550713f;
  p = p * f + 0.2402212f;
  p = p * f + 0.69314694f;
  p = p * f + 1.0000001f;
  const Vec<float> scale = (Vec<float>)(((VecI32)shifted + 127) << 23);
  return (Vec<float>)((VecI32)(p * scale) & ~(VecI32)(t < -126.f));
#endif
}
ELSA_INLINE Vec<double> exp_nonpositive(Vec<double> x) {
  for (int i = 0; i < lanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// r[i][k] <- r[k][i]
template <class T>
ELSA_INLINE void transpose(Vec<T> (&r)[lanes<T>]) {
#if ELSA_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    __m512 a[16], b[16];
    unroll<8>(ELSA_LAMBDA(auto I) {
      constexpr int i = I;
      a[2 * i] = _mm512_unpacklo_ps((__m512)r[2 * i], (__m512)r[2 * i + 1]);
      a[2 * i + 1] = _mm512_unpackhi_ps((__m512)r[2 * i], (__m512)r[2 * i + 1]);
    });
    unroll<4>(ELSA_LAMBDA(auto I) {
      constexpr int i = 4 * I;
      b[i] = (__m512)_mm512_unpacklo_pd((__m512d)a[i], (__m512d)a[i + 2]);
      b[i + 1] = (__m512)_mm512_unpackhi_pd((__m512d)a[i], (__m512d)a[i + 2]);
      b[i + 2] = (__m512)_mm512_unpacklo_pd((__m512d)a[i + 1], (__m512d)a[i + 3]);
      b[i + 3] = (__m512)_mm512_unpackhi_pd((__m512d)a[i + 1], (__m512d)a[i + 3]);
    });
    unroll<4>(ELSA_LAMBDA(auto I) {
      constexpr int i = I;
      a[i] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
      a[i + 4] = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
      a[i + 8] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
      a[i + 12] = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    });
    unroll<4>(ELSA_LAMBDA(auto I) {
      constexpr int i = I;
      r[i] = (Vec<T>)_mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
      r[i + 8] = (Vec<T>)_mm512_shuffle_f32x4(a[i], a[i + 8], 0xdd);
      r[i + 4] = (Vec<T>)_mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0x88);
      r[i + 12] = (Vec<T>)_mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0xdd);
    });
    return;
  }
#elif ELSA_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    __m256 a[8], b[8];
    unroll<4>(ELSA_LAMBDA(auto I) {
      constexpr int i = 2 * I;
      a[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
      a[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
    });
    unroll<2>(ELSA_LAMBDA(auto I) {
      constexpr int i = 4 * I;
      b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
      b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
      b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
      b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    });
    unroll<4>(ELSA_LAMBDA(auto I) {
      constexpr int i = I;
      r[i] = (Vec<T>)_mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
      r[i + 4] = (Vec<T>)_mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    });
    return;
  }
#endif
  for (int i = 0; i < lanes<T>; ++i)
    for (int k = i + 1; k < lanes<T>; ++k) {
      const T x = r[i][k];
      r[i][k] = r[k][i];
      r[k][i] = x;
    }
}
