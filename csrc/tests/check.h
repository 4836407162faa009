// A test harness of a few lines: the C++ tests need no package.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace check {

struct Counts {
  int passed = 0;
  int failed = 0;
};
inline Counts& counts() {
  static Counts counts;
  return counts;
}

inline bool that(bool ok, const char* expression, const char* file, int line) {
  ++(ok ? counts().passed : counts().failed);
  if (!ok) std::printf("%s:%d: failed: %s\n", file, line, expression);
  return ok;
}

}  // namespace check

#define CHECK(expression) \
  check::that(static_cast<bool>(expression), #expression, __FILE__, __LINE__)
