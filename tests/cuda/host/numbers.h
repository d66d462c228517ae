// CUDA's value types: vectors, and the 16-bit floats with its names and its rounding (to nearest, ties to even).
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

struct dim3;

#define FRD_VECTORS(T, name, bytes)                                                                                    \
  struct alignas((bytes) * 2) name##2 { T x, y; };                                                                     \
  struct name##3 { T x, y, z; };                                                                                       \
  struct alignas((bytes) * 4 < 16 ? (bytes) * 4 : 16) name##4 { T x, y, z, w; };                                       \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                           \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                                   \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

FRD_VECTORS(signed char, char, 1)
FRD_VECTORS(unsigned char, uchar, 1)
FRD_VECTORS(short, short, 2)
FRD_VECTORS(unsigned short, ushort, 2)
FRD_VECTORS(int, int, 4)
FRD_VECTORS(unsigned, uint, 4)
FRD_VECTORS(float, float, 4)
FRD_VECTORS(long long, longlong, 8)
FRD_VECTORS(unsigned long long, ulonglong, 8)
FRD_VECTORS(double, double, 8)
#undef FRD_VECTORS

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

namespace frd::cuda::host {

// A binary float of 16 bits: a sign, EXPONENT bits, MANTISSA bits.
template <int EXPONENT, int MANTISSA>
struct Float16 {
  static constexpr int BIAS = (1 << (EXPONENT - 1)) - 1;
  static constexpr unsigned INFINITY_BITS = ((1u << EXPONENT) - 1) << MANTISSA;

  // Every float is a double and every Float16 is a float, so one rounding, from double, serves all: there is none
  // on the way that it could disagree with.
  static uint16_t round(double value) {
    const auto bits = std::bit_cast<uint64_t>(value);
    const auto sign = static_cast<uint16_t>(bits >> 48 & 0x8000);
    if (std::isnan(value)) return 0x7FFF;  // as the hardware: one NaN, without a sign
    const int exponent = static_cast<int>(bits >> 52 & 0x7FF) - 1023;
    if (exponent > BIAS) return static_cast<uint16_t>(sign | INFINITY_BITS);
    const int least = std::max(exponent, 1 - BIAS);  // below it, numbers keep the smallest normal one's spacing
    const int dropped = 52 - MANTISSA + least - exponent;
    if (dropped > 53) return sign;  // below half of the smallest number
    const uint64_t significand = (bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1} << 52;
    const uint64_t rest = significand & ((uint64_t{1} << dropped) - 1), half = uint64_t{1} << (dropped - 1);
    uint64_t kept = significand >> dropped;
    if (rest > half || (rest == half && kept % 2 == 1)) ++kept;
    // The leading 1 of a normal number, and a carry out of the mantissa, add to the exponent; at most up to infinity.
    return static_cast<uint16_t>(sign + kept + (static_cast<uint64_t>(least + BIAS - 1) << MANTISSA));
  }

  static float value(uint16_t bits) {
    const unsigned exponent = (bits & 0x7FFFu) >> MANTISSA, mantissa = bits & ((1u << MANTISSA) - 1);
    const unsigned sign = (bits & 0x8000u) << 16, fraction = mantissa << (23 - MANTISSA);
    if (exponent == (1u << EXPONENT) - 1) return std::bit_cast<float>(sign | 0x7F800000u | fraction);
    if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 127 - BIAS) << 23 | fraction);
    const float magnitude = std::ldexp(static_cast<float>(mantissa), 1 - BIAS - MANTISSA);
    return sign ? -magnitude : magnitude;
  }
};

// bf16 is the upper half of a float, which most conversions can use.
struct BFloat16 : Float16<8, 7> {
  static float value(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  using Float16::round;
  static uint16_t round(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if (std::isnan(value)) return 0x7FFF;
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  }
};

using Half = Float16<5, 10>;

}  // namespace frd::cuda::host

#define FRD_FLOAT16(name, pair, Format, word)                                                                          \
  struct name {                                                                                                        \
    uint16_t bits;                                                                                                     \
    name() = default;                                                                                                  \
    name(float value) : bits(::frd::cuda::host::Format::round(value)) {}                                               \
    name(double value) : bits(::frd::cuda::host::Format::round(value)) {}                                              \
    name(int value) : bits(::frd::cuda::host::Format::round(static_cast<double>(value))) {}                            \
    operator float() const { return ::frd::cuda::host::Format::value(bits); }                                          \
  };                                                                                                                   \
  struct alignas(4) pair {                                                                                             \
    name x, y;                                                                                                         \
  };                                                                                                                   \
  inline name __float2##word(float x) { return {x}; }                                                                  \
  inline name __float2##word##_rn(float x) { return {x}; }                                                             \
  inline name __double2##word(double x) { return {x}; }                                                                \
  inline float __##word##2float(name x) { return x; }                                                                  \
  inline pair __floats2##word##2_rn(float x, float y) { return {name(x), name(y)}; }                                   \
  inline float __low2float(pair v) { return v.x; }                                                                     \
  inline float __high2float(pair v) { return v.y; }                                                                    \
  inline unsigned short __##word##_as_ushort(name x) { return x.bits; }                                                \
  inline name __ushort_as_##word(unsigned short bits) {                                                                \
    name x;                                                                                                            \
    x.bits = bits;                                                                                                     \
    return x;                                                                                                          \
  }

FRD_FLOAT16(__half, __half2, Half, half)
FRD_FLOAT16(__nv_bfloat16, __nv_bfloat162, BFloat16, bfloat16)
#undef FRD_FLOAT16

inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)}; }
