// A bounds-checked reader and writer for the few MessagePack types the wire format uses.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace neds {

// True for well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
inline bool is_utf8(std::string_view text) noexcept {
  std::size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<std::uint8_t>(text[i++]);
    if (lead < 0x80) continue;
    const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || text.size() - i < static_cast<std::size_t>(more)) return false;
    std::uint32_t point = lead & (0x3fU >> more);
    for (int k = 0; k < more; ++k) {
      const auto byte = static_cast<std::uint8_t>(text[i++]);
      if ((byte & 0xc0) != 0x80) return false;
      point = (point << 6) | (byte & 0x3fU);
    }
    if ((more == 2 && (point < 0x800 || (point >= 0xd800 && point <= 0xdfff))) ||
        (more == 3 && (point < 0x10000 || point > 0x10ffff))) {
      return false;
    }
  }
  return true;
}

// Reads values one after the other; every method returns false, and never reads past the end, on
// anything else than the type asked for. Nothing recurses, so no input can exhaust the stack.
class Reader {
 public:
  Reader(const std::uint8_t* data, std::size_t size) noexcept : at_(data), left_(size) {}

  bool finished() const noexcept { return left_ == 0; }

  bool array(std::uint64_t& n) noexcept {
    std::uint8_t tag = 0;
    if (!byte(tag)) return false;
    if ((tag & 0xf0) == 0x90) return n = tag & 0x0f, true;
    if (tag == 0xdc) return big(n, 2);
    if (tag == 0xdd) return big(n, 4);
    return false;
  }

  bool text(std::string_view& out) noexcept {
    std::uint8_t tag = 0;
    std::uint64_t n = 0;
    if (!byte(tag)) return false;
    if ((tag & 0xe0) == 0xa0) {
      n = tag & 0x1f;
    } else if (tag < 0xd9 || tag > 0xdb || !big(n, 1U << (tag - 0xd9))) {
      return false;
    }
    if (n > left_) return false;
    out = {reinterpret_cast<const char*>(at_), static_cast<std::size_t>(n)};
    at_ += n;
    left_ -= static_cast<std::size_t>(n);
    return is_utf8(out);
  }

  bool integer(std::int64_t& out) noexcept {
    std::uint8_t tag = 0;
    return byte(tag) && integer_of(tag, out);
  }

  // A float64, a float32 or an integer: many encoders write 30000.0 as an integer.
  bool number(double& out) noexcept {
    std::uint8_t tag = 0;
    std::uint64_t bits = 0;
    if (!byte(tag)) return false;
    if (tag == 0xcb) {
      if (!big(bits, 8)) return false;
      return out = std::bit_cast<double>(bits), true;
    }
    if (tag == 0xca) {
      if (!big(bits, 4)) return false;
      return out = static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits))), true;
    }
    std::int64_t whole = 0;
    if (!integer_of(tag, whole)) return false;
    return out = static_cast<double>(whole), true;
  }

 private:
  bool byte(std::uint8_t& out) noexcept {
    if (left_ == 0) return false;
    out = *at_++;
    --left_;
    return true;
  }

  bool big(std::uint64_t& out, unsigned size) noexcept {
    if (left_ < size) return false;
    out = 0;
    for (unsigned i = 0; i < size; ++i) out = (out << 8) | at_[i];
    at_ += size;
    left_ -= size;
    return true;
  }

  bool integer_of(std::uint8_t tag, std::int64_t& out) noexcept {
    std::uint64_t bits = 0;
    if (tag < 0x80) return out = tag, true;
    if (tag >= 0xe0) return out = static_cast<std::int8_t>(tag), true;
    if (tag >= 0xcc && tag <= 0xcf) {  // unsigned
      if (!big(bits, 1U << (tag - 0xcc)) || bits > INT64_MAX) return false;
      return out = static_cast<std::int64_t>(bits), true;
    }
    if (tag >= 0xd0 && tag <= 0xd3) {  // signed: shift the sign bit to the top and back
      const unsigned size = 1U << (tag - 0xd0);
      if (!big(bits, size)) return false;
      const unsigned shift = 64 - 8 * size;
      return out = static_cast<std::int64_t>(bits << shift) >> shift, true;
    }
    return false;
  }

  const std::uint8_t* at_;
  std::size_t left_;
};

// Writes into a buffer of fixed size; what does not fit is not written and `overflowed` turns true.
class Writer {
 public:
  Writer(std::uint8_t* data, std::size_t size) noexcept : data_(data), size_(size) {}

  std::size_t used() const noexcept { return used_; }
  bool overflowed() const noexcept { return overflowed_; }

  void map(std::size_t n) noexcept { sized(n, 0x80, 0x0f, 0, 0xde, 0xdf); }
  void array(std::size_t n) noexcept { sized(n, 0x90, 0x0f, 0, 0xdc, 0xdd); }
  void boolean(bool value) noexcept { byte(value ? 0xc3 : 0xc2); }

  void text(std::string_view value) noexcept {
    sized(value.size(), 0xa0, 0x1f, 0xd9, 0xda, 0xdb);
    raw(value.data(), value.size());
  }

  // Integers and floats are always written at full width, so that a place can be patched later.
  std::size_t int64(std::int64_t value) noexcept {
    byte(0xd3);
    return big(static_cast<std::uint64_t>(value), 8);
  }
  std::size_t float64(double value) noexcept {
    byte(0xcb);
    return big(std::bit_cast<std::uint64_t>(value), 8);
  }
  void float32(float value) noexcept {
    byte(0xca);
    big(std::bit_cast<std::uint32_t>(value), 4);
  }

  // Overwrites the eight bytes that int64() or float64() returned the place of.
  void patch(std::size_t place, std::uint64_t bits) noexcept {
    if (place + 8 > used_) return;
    for (int i = 0; i < 8; ++i) data_[place + i] = static_cast<std::uint8_t>(bits >> (56 - 8 * i));
  }

 private:
  void byte(std::uint8_t value) noexcept { raw(&value, 1); }

  void raw(const void* bytes, std::size_t n) noexcept {
    if (overflowed_ || size_ - used_ < n) {
      overflowed_ = true;
      return;
    }
    if (n > 0) std::memcpy(data_ + used_, bytes, n);
    used_ += n;
  }

  std::size_t big(std::uint64_t bits, int n) noexcept {
    const std::size_t place = used_;
    std::uint8_t bytes[8];
    for (int i = 0; i < n; ++i) bytes[i] = static_cast<std::uint8_t>(bits >> (8 * (n - 1 - i)));
    raw(bytes, static_cast<std::size_t>(n));
    return place;
  }

  // A length prefix; `tag8` is 0 for maps and arrays, which have no 8-bit form.
  void sized(std::size_t n, int fixed, std::size_t limit, int tag8, int tag16, int tag32) noexcept {
    if (n <= limit) {
      byte(static_cast<std::uint8_t>(static_cast<std::size_t>(fixed) | n));
    } else if (tag8 != 0 && n <= 0xff) {
      byte(static_cast<std::uint8_t>(tag8));
      big(n, 1);
    } else if (n <= 0xffff) {
      byte(static_cast<std::uint8_t>(tag16));
      big(n, 2);
    } else {
      byte(static_cast<std::uint8_t>(tag32));
      big(n, 4);
    }
  }

  std::uint8_t* data_;
  std::size_t size_;
  std::size_t used_ = 0;
  bool overflowed_ = false;
};

}  // namespace neds
