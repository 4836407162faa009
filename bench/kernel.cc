// Our transform and FFHT under the same loop, in place and without Python: a call through ctypes or
// torch takes longer than a small transform. Built by bench/native.py.
#include <string>

#include "cpu/cpu.h"

extern "C" {

// The error's text, or null.
const char* fixclf_set_isa(const char* name) {
  static std::string message;
  const fixclf::Status status = fixclf::cpu::set_isa(name);
  message = status.ok() ? "" : status.message();
  return status.ok() ? nullptr : message.c_str();
}

// `repeat` times: every row of x [rows, 2^log_n], on this thread.
int fixclf_rows(float* x, long rows, int log_n, long repeat) {
  const long n = 1L << log_n;
  const fixclf::TransformProblem problem{
      {x, fixclf::DType::kFloat32, rows, n, n}, {x, fixclf::DType::kFloat32, rows, n, n}, 1.0};
  for (long r = 0; r < repeat; ++r)
    if (!fixclf::cpu::transform(problem, {}).ok()) return 1;
  return 0;
}

int ffht_rows(int (*fht_float)(float*, int), float* x, long rows, int log_n, long repeat) {
  for (long r = 0; r < repeat; ++r)
    for (long i = 0; i < rows; ++i)
      if (fht_float(x + (i << log_n), log_n) != 0) return 1;
  return 0;
}
}
