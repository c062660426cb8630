#pragma once

/// No exception crosses a C boundary, since no C code calls into the library: it exports no function with C
/// linkage, gives the driver no callback, and what its own threads run does not throw. Nor does one leave a
/// destructor.

#include <stdexcept>
#include <string>

namespace onewave {

/// A caller's mistake: the message names the argument, what it was and what it must be.
/// Python sees ValueError.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

/// The machine cannot do what was asked: no driver, a driver too old, a GPU that is not Hopper, a CUDA
/// call that failed. Python sees RuntimeError.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace onewave
