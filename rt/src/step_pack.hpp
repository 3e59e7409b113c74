// How step.cpp lays out and packs weights: one block, filled once, in the order of use.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "step_plan.hpp"

namespace neds {

inline std::size_t round_up(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Hands out parts of one block in order. Without a block it only counts, so that the layout is
// written once and run twice.
class Arena {
 public:
  Arena(std::byte* base, Precision precision) : base_(base), precision_(precision) {}

  template <typename T = float>
  T* take(std::size_t n) {
    std::byte* const here = base_ ? base_ + used_ : nullptr;
    used_ += round_up(n * sizeof(T), 64);
    return reinterpret_cast<T*>(here);
  }

  // Room for (outputs, depth) numbers in panels; a row or ring of one may be stored otherwise.
  std::byte* panels(Precision precision, std::size_t n_outputs, std::size_t depth,
                    std::size_t panel) {
    const std::size_t padded = round_up(depth, static_cast<std::size_t>(group_of(precision)));
    return take<std::byte>(round_up(n_outputs, panel) * padded * bytes_of(precision));
  }

  Linear linear(std::size_t n_outputs, std::size_t depth, std::size_t panel) {
    std::byte* const weight = panels(precision_, n_outputs, depth, panel);
    float* const scale = scales(round_up(n_outputs, panel));
    return {weight, scale, take(round_up(n_outputs, panel))};
  }

  float* scales(std::size_t n) { return precision_ == Precision::int8 ? take(n) : nullptr; }

  Norm norm(std::size_t n) {
    float* const weight = take(n);
    return {weight, take(n)};
  }

  std::size_t used() const { return used_; }

 private:
  std::byte* base_;
  Precision precision_;
  std::size_t used_ = 0;
};

// Writes numbers in a precision. For int8 a row shares one scale, largest absolute value / 127.
class Packer {
 public:
  Packer(Precision precision, std::size_t panel) : precision_(precision), panel_(panel) {}

  // Rows [0, n_outputs) of a (out, in) matrix, times `factor`, into panels.
  void linear(const float* weight, const float* bias, std::size_t n_outputs, std::size_t depth,
              float factor, const Linear& to) const {
    const std::size_t group = static_cast<std::size_t>(group_of(precision_));
    const std::size_t padded = round_up(depth, group);
    for (std::size_t o = 0; o < n_outputs; ++o) {
      const std::size_t column = o / panel_ * panel_ * padded + o % panel_ * group;
      const float scale = row_scale(weight + o * depth, depth);
      for (std::size_t k = 0; k < depth; ++k)
        put(to.weight, column + k / group * group * panel_ + k % group,
            weight[o * depth + k] * (precision_ == Precision::int8 ? 1.0f : factor), scale);
      if (to.scale != nullptr) to.scale[o] = scale * factor;
      to.bias[o] = bias[o] * factor;
    }
  }

  // Rows of `width` numbers, one every `ld`; their scales if there are any.
  void rows(const float* from, std::size_t n_rows, std::size_t width, std::size_t ld,
            std::byte* to, float* scales) const {
    for (std::size_t row = 0; row < n_rows; ++row) {
      const float scale = row_scale(from + row * width, width);
      for (std::size_t k = 0; k < width; ++k) put(to, row * ld + k, from[row * width + k], scale);
      if (scales != nullptr) scales[row] = scale;
    }
  }

 private:
  float row_scale(const float* row, std::size_t n) const {
    if (precision_ != Precision::int8) return 1.0f;
    float largest = 0.0f;
    for (std::size_t k = 0; k < n; ++k) largest = std::max(largest, std::abs(row[k]));
    return largest / 127.0f;
  }

  void put(std::byte* to, std::size_t index, float x, float scale) const {
    if (precision_ == Precision::float32) return store(to, index, x);
    if (precision_ == Precision::bf16) return store(to, index, to_bf16(x));
    // A row so small that x / scale is not a number becomes zeros.
    const float whole = scale > 0.0f ? std::nearbyint(x / scale) : 0.0f;
    store(to, index, static_cast<std::int8_t>(std::clamp(whole, -127.0f, 127.0f)));
  }

  template <typename T>
  static void store(std::byte* to, std::size_t index, T x) {
    std::memcpy(to + index * sizeof x, &x, sizeof x);
  }

  Precision precision_;
  std::size_t panel_;
};

}  // namespace neds
