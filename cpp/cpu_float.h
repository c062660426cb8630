#pragma once

/// Floats of 16 and 8 bits on a CPU: arithmetic alone, no tables, so that loops over rows vectorise on any
/// x86-64 or Arm.

#include <bit>
#include <cstdint>

namespace onewave {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

/// OCP's e4m3: an exponent of 4 bits, biased by 7, and no infinities; NaN is all bits but the sign.
struct Float8E4M3 {
  uint8_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float to_float(Float16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  // The exponent's bias is 15 there and 127 here; a product rebiases subnormal numbers too.
  const float rebiased = std::bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t infinity_or_nan = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(rebiased) | infinity_or_nan | sign);
}

inline float to_float(Float8E4M3 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80) << 24;
  const uint32_t magnitude = x.bits & 0x7f;
  // A subnormal number gets the leading 1 of the least normal one, which is then taken away: one random
  // number of 80 is subnormal, and as a subnormal float to be scaled it would take a hundred cycles.
  const bool is_subnormal = magnitude < 8;
  const uint32_t rebiased = (magnitude << 20) + ((is_subnormal ? 121u : 120u) << 23);
  const float value = std::bit_cast<float>(rebiased) - (is_subnormal ? 0x1p-6f : 0.0f);
  const uint32_t nan = magnitude == 0x7f ? 0x7fc00000u : 0u;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | nan | sign);
}

/// To the nearest, ties to even.
template <class Element>
Element from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fc0};  // rounding could carry a NaN into infinity
  const uint32_t round_up_from_half = 0x7fff + ((bits >> 16) & 1);
  return {static_cast<uint16_t>((bits + round_up_from_half) >> 16)};
}

template <>
inline Float16 from_float<Float16>(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {0x7e00};
  // 65520 lies halfway between the largest half and the next power of two.
  if (magnitude >= std::bit_cast<uint32_t>(65520.0f)) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (magnitude < std::bit_cast<uint32_t>(0x1p-14f)) {
    // Subnormal: the float adder rounds to units of 2^-24, the last bit of a float in [0.5, 1).
    const float units = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(units) - std::bit_cast<uint32_t>(0.5f)))};
  }
  const uint32_t round_up_from_half = 0xfff + ((magnitude >> 13) & 1);
  const uint32_t rebiased = magnitude - ((127 - 15) << 23);
  return {static_cast<uint16_t>(sign | ((rebiased + round_up_from_half) >> 13))};
}

}  // namespace onewave
