// Python objects seen as bytes or floats for the length of a call.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <span>
#include <string_view>

namespace neds {

// The bytes of any contiguous buffer. Much cheaper a call than an nanobind::ndarray, and it takes
// bytes, memoryviews and ZeroMQ frames as well as arrays.
class Bytes {
 public:
  explicit Bytes(nanobind::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nanobind::python_error();
  }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() { PyBuffer_Release(&view_); }

  const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(view_.buf); }
  std::size_t size() const { return static_cast<std::size_t>(view_.len); }
  std::span<const std::uint8_t> all() const { return {data(), size()}; }

 private:
  Py_buffer view_{};
};

// An engine's output, checked at every call: the engine may be anybody's.
class Floats {
 public:
  Floats(nanobind::handle object, std::size_t n) {
    constexpr int flags = PyBUF_FORMAT | PyBUF_ND | PyBUF_C_CONTIGUOUS;
    if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw nanobind::python_error();
    const bool floats = view_.format != nullptr && std::string_view(view_.format) == "f";
    if (!floats || static_cast<std::size_t>(view_.len) != 4 * n) {
      PyBuffer_Release(&view_);
      throw nanobind::value_error("the outputs must be a contiguous float32 array of n_outputs values");
    }
  }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  ~Floats() { PyBuffer_Release(&view_); }

  const float* data() const { return static_cast<const float*>(view_.buf); }

 private:
  Py_buffer view_{};
};

}  // namespace neds
