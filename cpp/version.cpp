#include <onewave/version.h>

const char ONEWAVE_LIBRARY_MUST_BE = 0;

namespace onewave {

const char* library_version() { return kVersion; }

}  // namespace onewave
