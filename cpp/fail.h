#pragma once

#include <onewave/error.h>

#include <sstream>

namespace onewave {

/// Throws InvalidArgument that says `parts` one after the other. Text is put together here and nowhere
/// before: a check that passes allocates nothing.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw InvalidArgument(message.str());
}

}  // namespace onewave
