#pragma once

/// What the parts of the extension module share.

#include <nanobind/nanobind.h>

#include <cstdint>

namespace nb = nanobind;
using nb::literals::operator""_a;

namespace onewave {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);  // NOLINT: the caller's integer is an address by contract
}

void bind_layouts(nb::module_& m);
void bind_row_kernels(nb::module_& m);

}  // namespace onewave
